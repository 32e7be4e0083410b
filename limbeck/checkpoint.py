"""Saving where a run stands, and going on from there. Safetensors and JSON; a folder is there whole or not at all.

Where ranks hold shares of the weights, each writes its own (`state-0-of-2.safetensors`, cut along the first axis); any
number of ranks reads them back.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from limbeck import distributed
from limbeck.errors import CheckpointError
from limbeck.files import new_folder, read_json, remove_folder, write_json
from limbeck.lazy import Tensor, torch


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint, atomically; every rank must call."""
    from safetensors.torch import save_file

    with new_folder(folder) if distributed.rank() == 0 else nullcontext() as made:
        work = Path(str(distributed.gathered(made)[0]))
        if distributed.is_sharded():
            name = f"state-{distributed.rank()}-of-{distributed.ranks()}.safetensors"
            save_file(_apart({name: _share(tensor) for name, tensor in tensors.items()}), work / name)
        elif distributed.rank() == 0:
            save_file(_apart(tensors), work / "state.safetensors")
        if distributed.rank() == 0:
            write_json(work / "state.json", state)
        distributed.wait()
    distributed.wait()


def _share(tensor: Any) -> Tensor:
    """What this rank holds of a tensor; of one that all hold, the first rank has it and the others nothing."""
    if distributed.is_share(tensor):
        return tensor.to_local()
    return tensor if distributed.rank() == 0 else torch.empty(0)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as the format asks; 8-bit moments share their code book."""
    seen, found = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        found[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    return found


def restore(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, its tensors whole. Raises CheckpointError for one that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        shares = [load_file(path) for path in _files(folder)]
        return {name: _joined([share[name] for share in shares]) for name in shares[0]}, read_json(folder / "state.json")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read ({error}); remove it to go on from the one before") from None


def _files(folder: Path) -> list[Path]:
    """The file of a checkpoint, or those of all its ranks in their order."""
    found = sorted(folder.glob("state-*-of-*.safetensors"), key=lambda path: int(path.name.split("-")[1]))
    ranks = int(found[0].stem.split("-")[3]) if found else 0
    if len(found) != ranks:
        raise ValueError(f"{len(found)} of {ranks} shares are there")
    return found or [folder / "state.safetensors"]


def _joined(shares: list[Tensor]) -> Tensor:
    filled = [share for share in shares if share.numel()]
    return cast(Tensor, torch.cat(filled)) if len(filled) > 1 else (filled or shares)[0]


def steps(folder: Path) -> list[int]:
    """The steps after which there is a checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint after so many steps lies."""
    return folder / f"step-{step:08d}"


def prune(folder: Path, last: int, also: int | None) -> None:
    """Keep the newest `last` checkpoints, and the one after `also` steps."""
    for step in steps(folder)[: -last or None]:
        if step != also:
            remove_folder(place(folder, step))
