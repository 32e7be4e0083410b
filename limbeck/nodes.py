"""The machines of a job: which ranks see the same files, and how what the first rank writes comes to the others.

The ranks of one machine see the same files, and those of several where they have a common disk. A folder of a store has a mirror on
each machine. The first rank alone has its lease and writes; the first rank of any other machine fetches what that wrote, and
brings its machine's shares of checkpoints.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from limbeck import distributed, storage
from limbeck.errors import LimbeckError
from limbeck.files import UNDONE, write_text
from limbeck.lending import forget, lending

LOOK_SECONDS = 3.0
"""How long a file may take to be seen by other machines on a common disk."""

WAIT_SECONDS = 0.1


def here(place: Path | str) -> Path:
    """Where a place lies for this rank: see `storage.here`. Other machines than the first rank's have it filled by `bring`."""
    distributed.start()
    return storage.here(place, filled=distributed.rank() == 0)


def firsts(folder: Path) -> list[int]:
    """Of each rank the first one that sees the same files below a folder; every rank must call."""
    kept = storage.mirrored(folder)
    owners = distributed.gathered(kept.mirror.leases.owner if kept else "")
    return [owners.index(owner) for owner in owners]


def befriend(folder: Path) -> None:
    """Before the first rank claims a folder: a lease that a machine of ours left behind is over, if nobody is at work there; all must call."""
    kept = storage.mirrored(folder)
    found = distributed.gathered((kept.mirror.leases.owner, kept.is_free()) if kept else ("", False))
    if kept:
        kept.mirror.leases.friends = frozenset(owner for owner, is_free in found if is_free)


@contextmanager
def together(folder: Path) -> Generator[None]:
    """Once the first rank has claimed a folder: every machine has what is in it and, as long as the block lasts, may bring its shares.

    Every rank must call. Raises LimbeckError where a machine does not see a folder of a disk.
    """
    first, rank = firsts(folder), distributed.rank()
    if storage.mirrored(folder) is None:
        _see(folder)
    if first[rank] == rank:
        forget(folder)
    bring(folder)
    with lending(folder) if first[rank] == rank != 0 else nullcontext():
        yield


def bring(folder: Path) -> None:
    """Have what the first rank has below a folder on every machine, sent and fetched; every rank must call."""
    first, rank, kept = firsts(folder), distributed.rank(), storage.mirrored(folder)
    if kept is None or set(first) == {0}:
        return
    _all_wait_for(partial(kept.flush, folder) if rank == 0 else None)
    _all_wait_for(partial(kept.fetch, folder) if first[rank] == rank != 0 else None)


def _all_wait_for(work: Callable[[], None] | None) -> None:
    """Do what some ranks have to do, each by itself; all go on when it is done. Meanwhile who is gone is missed, and who is asked to stop heard."""
    found = Future[None]()

    def done() -> None:
        try:
            found.set_result(work() if work else None)
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=done, daemon=True).start()
    while not all(distributed.gathered(found.done())):
        distributed.agree()
        time.sleep(WAIT_SECONDS)
    found.result()


def _see(folder: Path) -> None:
    """See that every rank sees what the first one writes."""
    if distributed.ranks() == 1:
        return
    name = distributed.first_says(f".seen-{uuid.uuid4().hex}{UNDONE}")
    if distributed.rank() == 0:
        write_text(folder / name, "")
    distributed.wait()
    seen = distributed.gathered(_appears(folder / name))
    if distributed.rank() == 0:
        (folder / name).unlink()
    if not all(seen):
        raise LimbeckError(f"process {seen.index(False)} of this job does not see {folder} as the first one does; give an --out on a disk that all "
                           "machines share, or a URL: s3://bucket/run")  # fmt: skip


def _appears(path: Path) -> bool:
    until = time.monotonic() + LOOK_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(WAIT_SECONDS)
    return True


def see_one_machine(folder: Path) -> None:
    """Raise LimbeckError where a launcher started processes on several machines for what those of one can do in a store."""
    kept, world = storage.mirrored(folder), int(os.environ.get("WORLD_SIZE", "1"))
    if kept and world > int(os.environ.get("LOCAL_WORLD_SIZE", str(world))):
        raise LimbeckError(f"{kept.url} is filled by the processes of one machine, and this job has several; launch it on one, or with --on ray, or "
                           "give a folder on a disk that all machines share")  # fmt: skip
