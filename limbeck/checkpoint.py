"""Saving where a run stands, and going on from there: torch.distributed.checkpoint in its safetensors format, and JSON.

A folder is there whole or not at all. Where ranks hold shares of the weights, each writes its own slices, and where these
begin stands in the head of each file; any number of ranks reads back what it is to hold. Nothing is pickled, and nothing
but the files and their names is asked when they are read.
"""

import uuid
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from limbeck import distributed, nodes, storage
from limbeck.errors import CheckpointError
from limbeck.files import new_folder, read_json, remove_folder, write_json
from limbeck.lazy import Tensor, torch
from limbeck.lending import lender_of

FILE_BYTES = 2**29
"""Of a share, as much as goes into one file: a file is made in memory, beside the tensors."""


def save(folder: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint, atomically; every rank must call. Machines without a common disk bring their shares together in the store."""
    first, rank = nodes.firsts(folder), distributed.rank()
    leads = first[rank] == rank
    lender = lender_of(folder) if distributed.is_sharded() else None
    with new_folder(folder) if rank == 0 else nullcontext() as made:
        work = Path(str(distributed.gathered(lender.room() if lender else made)[first[rank]]))
        if distributed.is_sharded() or rank == 0:
            _write(work, _apart(tensors))
        distributed.wait()
        found = distributed.gathered(_sizes(work) if leads else {})
        token = distributed.first_says(uuid.uuid4().hex)
        if rank == 0:
            write_json(work / "state.json", {**state, "files": {name: size for each in found for name, size in each.items()}})
            if others := {name: size for each in found[1:] for name, size in each.items()}:
                storage.join(folder, others, token)
        if lender and found[rank]:
            lender.lend(folder, token, work)
        distributed.wait()
    distributed.wait()


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_all

    if tensors:
        writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        with _plainly():
            save_all(dict(tensors), storage_writer=writer, no_dist=not distributed.is_sharded())


def _files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """In which file each tensor goes, from 1: the same on all ranks, which hold like shares."""
    placed, file, taken = dict[str, int](), 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // (distributed.ranks() if distributed.is_share(tensor) else 1)
        if taken and taken + size > FILE_BYTES:
            file, taken = file + 1, 0
        placed[name], taken = file, taken + size
    return placed


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as the format asks; 8-bit moments share their code book."""
    seen, found = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        found[name] = each = tensor.detach()
        if not distributed.is_share(each):
            found[name] = each.clone() if each.data_ptr() in seen and each.numel() else each.contiguous()
            seen.add(each.data_ptr())
    return found


@contextmanager
def _plainly() -> Generator[None]:
    """Errors as they are, without the library's wrapping of those of all ranks; and no word about one process being one."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


class Saved:
    """The tensors of a checkpoint, lying there: read where they are to be filled in, no more of them than that takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known = dict[str, Tensor]()
        """Shape and dtype of each, without memory."""
        with _readable(folder):
            self._see_files(read_json(folder / "state.json")["files"])
            for name, found in self._reader().read_metadata().state_dict_metadata.items():
                self.known[name] = torch.empty(found.size, dtype=found.properties.dtype, device="meta")

    def _see_files(self, files: dict[str, int]) -> None:
        there = {name: (self.folder / name).stat().st_size for name in files if (self.folder / name).is_file()}
        if missing := [name for name in files if name not in there]:
            raise ValueError(f"{len(there)} of {len(files)} files are there; {missing[0]} is not")
        if cut := [name for name, size in files.items() if there[name] != size]:
            raise ValueError(f"{cut[0]} has {there[cut[0]]:,} bytes of {files[cut[0]]:,}")

    def _reader(self) -> Any:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        return HuggingFaceStorageReader(str(self.folder))

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Read into these tensors, of shares what this rank holds. Raises CheckpointError where they are not those that were saved."""
        from torch.distributed.checkpoint.state_dict_loader import load

        with _readable(self.folder), _plainly():
            for name in [*tensors, *self.known]:
                mine, theirs = tensors.get(name), self.known.get(name)
                if mine is None or theirs is None or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                    raise ValueError(f"it holds {_traits(theirs)} as {name}, and {_traits(mine)} is asked for")
            if tensors:
                load(dict(tensors), storage_reader=self._reader(), no_dist=True)

    def whole(self) -> dict[str, Tensor]:
        """All of them, in memory."""
        made = {name: torch.empty_like(each, device="cpu") for name, each in self.known.items()}
        self.fill(made)
        return made


def _traits(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@contextmanager
def _readable(folder: Path) -> Generator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read ({error}); remove it to go on from the one before") from None


def restore(folder: Path) -> tuple[Saved, dict[str, Any]]:
    """A checkpoint: its tensors, yet to be read, and all else. Raises CheckpointError for one that is damaged."""
    saved = Saved(folder)
    return saved, {key: value for key, value in read_json(folder / "state.json").items() if key != "files"}


def steps(folder: Path) -> list[int]:
    """The steps after which there is a checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint after so many steps lies."""
    return folder / f"step-{step:08d}"


def let_go(folder: Path) -> None:
    """On machines that bring shares, drop those of checkpoints that the first rank has not any more; every rank must call."""
    kept = distributed.first_says({place(folder, step).name for step in steps(folder)})
    if lender := lender_of(folder):
        lender.keep(folder, kept)


def prune(folder: Path, last: int, also: int | None) -> None:
    """Keep the newest `last` checkpoints, and the one after `also` steps; one to which other machines bring theirs stays until they have."""
    for step in steps(folder)[: -last or None]:
        if step != also and storage.let_go(place(folder, step)):
            remove_folder(place(folder, step))
