"""Saving where a run stands, and going on from there. Safetensors and JSON; a folder is there whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

from limbeck.errors import CheckpointError
from limbeck.files import new_folder, read_json, write_json
from limbeck.lazy import Tensor


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint, atomically."""
    from safetensors.torch import save_file

    with new_folder(folder) as work:
        save_file(_apart(tensors), work / "state.safetensors")
        write_json(work / "state.json", state)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as the format asks; 8-bit moments share their code book."""
    seen, found = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        found[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    return found


def restore(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint. Raises CheckpointError for one that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "state.safetensors"), read_json(folder / "state.json")
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read ({error}); remove it to go on from the one before") from None


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
            shutil.rmtree(place(folder, step))
