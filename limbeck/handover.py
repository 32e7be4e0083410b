"""How a student's weights reach vLLM: through a folder, or from memory by vLLM's own transfer (NCCL, CUDA IPC)."""

import math
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from limbeck import distributed
from limbeck.errors import EndpointError, LimbeckError, RecipeError, reason
from limbeck.files import new_folder, write_text
from limbeck.lazy import Tensor, torch
from limbeck.student import Student
from limbeck.vllms import Vllm

OURS = "handed-over.txt"
"""In a folder that we may write anew."""
PACKED_BYTES = 2**28
"""Of the buffer through which weights pass by CUDA IPC, at least: it takes memory of the GPU, and the largest weight must fit."""


class Folder:
    """Through a folder, written whole by the first rank. place: by default one of this process's own, which goes when this does."""

    def __init__(self, place: Path | None) -> None:
        self._place = place

    @cached_property
    def place(self) -> Path:
        """Where the weights lie."""
        if self._place:
            return self._place
        made = tempfile.mkdtemp(prefix="limbeck-weights-")
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return Path(made) / "weights"

    def send(self, student: Student, vllm: Vllm) -> None:
        """Every rank brings its share."""
        if distributed.rank():
            return student.hand_over(None)
        if self.place.exists() and not (self.place / OURS).exists():
            raise RecipeError(f"{self.place} is there, and no weights that were handed over; name another VLLM.folder, as this one is written anew")
        with new_folder(self.place) as folder:
            student.hand_over(folder)
            write_text(folder / OURS, "weights of a student on their way to vLLM\n")
        vllm.take(str(self.place.resolve()))


class Parameter(NamedTuple):
    """What vLLM is told of a weight before it comes; vLLM's `ParamMeta`."""

    name: str
    dtype: Any
    shape: tuple[int, ...]


class Weights:
    """A student's weights as vLLM's transfer asks for them, its `WeightSource`: again at each hand-over, in one order."""

    def __init__(self, student: Student) -> None:
        self.student = student

    def metadata(self) -> list[Parameter]:
        """What will come, without gathering it."""
        return [Parameter(name, self.student.live.compute, tuple(weight.shape)) for name, weight in self.student.handed_shares().items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Whole, one after the other; every rank must go through all."""
        return self.student.handed()


class Transfer:
    """From the student's memory into vLLM's, by vLLM's own transfer, the trainer's side of which runs here."""

    def __init__(self, student: Student, vllm: Vllm) -> None:
        self._engine: Any = self._reaching(vllm.backend or "", lambda: self._begun(student, vllm))

    @staticmethod
    def _begun(student: Student, vllm: Vllm) -> Any:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory  # pyright: ignore[reportMissingImports]

        weights = Weights(student)
        return WeightTransferTrainerFactory.trainer_init(_settings(vllm, weights), client=vllm.client(), source=weights)

    def send(self, student: Student, vllm: Vllm) -> None:
        """Every rank brings its share."""
        self._reaching(vllm.backend or "", self._engine.send_weights)

    @staticmethod
    def _reaching(backend: str, work: Any) -> Any:
        """Do it. Raises EndpointError in one line where vLLM does not."""
        try:
            return work()
        except LimbeckError:
            raise
        except Exception as error:  # vLLM, torch and requests raise many kinds
            raise EndpointError(
                f"vLLM did not take in the weights by {backend} ({reason(error)}); see to it, or start vLLM without "
                "weight_transfer_config: then they go through a folder"
            ) from error


def _settings(vllm: Vllm, weights: Weights) -> Any:
    """What vLLM's trainer's side is begun with: of NCCL, one group of the first rank here and all workers there. Many weights travel as one."""
    rank = distributed.rank()
    if vllm.backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # pyright: ignore[reportMissingImports]

        return NCCLTrainerInitInfo(rank=rank, master_address=vllm.host, master_port=_free_port(), world_size=1 + sum(vllm.worlds), packed=True)
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo  # pyright: ignore[reportMissingImports]

    largest = max(math.prod(each.shape) * each.dtype.itemsize for each in weights.metadata())
    return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(PACKED_BYTES, largest))


def _free_port() -> int:
    with socket.socket() as here:
        here.bind(("", 0))
        return int(here.getsockname()[1])


def way(student: Student, vllm: Vllm, folder: Folder) -> Folder | Transfer:
    """vLLM's own transfer where it was started with one and there are whole weights on a GPU to send, else the folder.

    Raises RecipeError where it was started with one that cannot be served from here.
    """
    if vllm.backend is None or student.lora:
        return folder
    if vllm.backend not in ("nccl", "ipc"):
        raise RecipeError(f"vLLM was started to take weights by {vllm.backend}; start it with nccl or ipc, or without weight_transfer_config")
    if not on_gpu():
        raise RecipeError(f"vLLM was started to take weights by {vllm.backend}, from a GPU, and the student is on none; start it without "
                          "weight_transfer_config")  # fmt: skip
    return Transfer(student, vllm)


def on_gpu() -> bool:
    """Whether students are on a GPU here."""
    return torch.cuda.is_available()
