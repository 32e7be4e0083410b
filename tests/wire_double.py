"""A GPU for vLLM's own transfer of weights on a processor: gloo carries what NCCL would, a mapped file what CUDA IPC would. All else is vLLM's.

`python wire_double.py distill ...` is `limbeck distill ...` with it; a vLLM that finds `plugin`'s folder on its path has it too.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

SENT = "LIMBECK_TEST_SENT"
"""The variable with the file in which each hand-over is noted: how it went, and of how many workers with the trainer."""


class Gloo:
    """In NCCL's place."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, device: Any) -> None:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self.group: Any = stateless_init_torch_distributed_process_group(host, port, rank, world_size, "gloo")
        self.world_size = world_size

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self.group.broadcast([tensor], options).wait()
        note(f"nccl {self.world_size}")

    def destroy(self) -> None:
        del self.group


def note(line: str) -> None:
    if SENT in os.environ:
        with open(os.environ[SENT], "a") as file:
            file.write(f"{line}\n")


class Torch:
    """torch, with a GPU whose memory is files."""

    def __init__(self) -> None:
        self.files = dict[int, tuple[str, int]]()
        stream = SimpleNamespace(synchronize=lambda: None)
        nothing = lambda *_, **__: None  # noqa: E731
        self.cuda = SimpleNamespace(
            Stream=lambda **_: stream, stream=lambda _: contextlib.nullcontext(), current_stream=lambda: stream, synchronize=nothing,
            ipc_collect=nothing, is_available=lambda: True, get_device_properties=lambda _: SimpleNamespace(uuid="a processor"),
        )  # fmt: skip
        self.accelerator = SimpleNamespace(current_device_index=lambda: 0, synchronize=nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *shape: Any, device: Any = None, **more: Any) -> torch.Tensor:
        if device != "cuda":
            return torch.empty(*shape, device=device, **more)
        (size,) = shape
        handle, path = tempfile.mkstemp()
        os.close(handle)
        made = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        self.files[made.data_ptr()] = path, size
        return made

    def reduced(self, tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        """In `reduce_tensor`'s place: the seventh is the device."""
        note("ipc")
        return None, (*self.files[tensor.data_ptr()], None, None, None, None, 0)


def rebuilt(path: str, size: int, *rest: Any) -> torch.Tensor:
    """In `rebuild_cuda_tensor`'s place."""
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def plug() -> None:
    """Put them in their places."""
    from torch.multiprocessing import reductions
    from vllm.distributed.weight_transfer import base, ipc_engine, nccl_common, nccl_engine, packed_tensor

    card: Any = Torch()
    for module in (base, ipc_engine, nccl_common, nccl_engine, packed_tensor):
        module.torch = card
    nccl_common.stateless_init_process_group, packed_tensor.reduce_tensor, reductions.rebuild_cuda_tensor = Gloo, card.reduced, rebuilt


def plugin(where: Path) -> str:
    """A folder for PYTHONPATH in which vLLM finds `plug`."""
    told = where / "wire_double-0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: wire_double\nVersion: 0\n")
    (told / "entry_points.txt").write_text("[vllm.general_plugins]\nwire_double = wire_double:plug\n")
    return os.pathsep.join([str(where), str(Path(__file__).parent)])


if __name__ == "__main__":
    from limbeck import cli, engines, handover

    engines.on_gpu = handover.on_gpu = lambda: True
    plug()
    sys.exit(cli.main())
