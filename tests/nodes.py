"""Machines without a common disk: processes forked from this one, each with mirrors of its own, that meet with gloo and may be killed."""

import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import stores

from limbeck import lending, storage

SECONDS = 40.0


@dataclass(frozen=True)
class Death:
    """Of a machine, at its first change of the store of an object whose name matches: before it is done, or after.

    once: what must be in its mirrors by then.
    """

    name: str
    change: str = "pipe_file"
    after: bool = False
    once: str = ""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def job(work: Callable[[], object], homes: Sequence[Path], deaths: Mapping[int, Death] | None = None, sharded: bool = True,
        signalled: Callable[[], bool] | None = None) -> list[tuple[int, str]]:  # fmt: skip
    """Do it on as many machines as there are homes, the first of them first; how each ended, and what it said."""
    port, children = free_port(), list[int]()
    said = [home.parent / f"said-{rank}-{port}" for rank, home in enumerate(homes)]
    for rank, home in enumerate(homes):
        child = os.fork()
        if child == 0:
            _be(rank, len(homes), home, port, sharded, said[rank])
            _dies(deaths[rank] if deaths and rank in deaths else None)
            try:
                work()
                os._exit(0)
            except SystemExit as ended:
                os._exit(int(ended.code or 0))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return [(code, path.read_text()) for code, path in zip(_ended(children, signalled), said, strict=True)]


def _be(rank: int, ranks: int, home: Path, port: int, sharded: bool, said: Path) -> None:
    """A rank of its own machine."""
    from accelerate import PartialState

    PartialState._reset_state()
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port), "ACCELERATE_USE_FSDP": str(sharded).lower(), "XDG_CACHE_HOME": str(home)})  # fmt: skip
    storage._kept.clear()
    storage.PAUSES, storage.FRESH_SECONDS, storage.POLL_SECONDS, lending.POLL_SECONDS = (0.05,) * 6, 0.0, 0.05, 0.05
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)


def _dies(death: Death | None) -> None:
    """From here on this process dies of it."""
    real = stores.Faulty.changed

    def changed(self: stores.Faulty, name: str, *given: str, **more: object) -> object:
        now = death is not None and name == death.change and re.search(death.name, str(given)) is not None
        while now and death.once and not [*Path(os.environ["XDG_CACHE_HOME"]).glob(f"limbeck/mirrors/*/{death.once}")]:
            time.sleep(0.01)
        if now and not death.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(self, name, *given, **more)
        finally:
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

    stores.Faulty.changed = changed
    stores.Faulty.moment = 0


def _ended(children: list[int], signalled: Callable[[], bool] | None) -> list[int]:
    """How each ended; killed where they never do. SIGTERM goes to all when it is time."""
    until, codes = time.monotonic() + SECONDS, dict[int, int]()
    while len(codes) < len(children):
        for child in [child for child in children if child not in codes]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        if signalled and signalled():
            signalled = None
            for child in children:
                os.kill(child, signal.SIGTERM)
        if time.monotonic() > until:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]
