"""Who may write to a folder of a store: one at a time, by numbered objects of which the highest counts.

A lease is taken by making the next number, which only one can do where the store makes an object once (S3's If-None-Match,
Google's generations, a disk); elsewhere we look first. Its owner alone writes it again, to renew and to give it back.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from limbeck.errors import LimbeckError

SECONDS = 300.0
"""How long a lease holds after it was renewed, four times as often: so long another machine waits for one that was switched off."""
NAME = ".lease-"


class Lost(LimbeckError):
    """Another machine has the folder."""


class Busy(LimbeckError):
    """Another has the folder, as far as its lease says; `until` when, in seconds since 1970."""

    def __init__(self, message: str, until: float) -> None:
        super().__init__(message)
        self.until = until


@dataclass(frozen=True)
class Lease:
    """owner: the mirror that has it. until: seconds since 1970; 0 where it was given back."""

    number: int
    owner: str
    where: str
    since: str
    until: float


def seconds() -> float:
    """How long a lease holds."""
    return float(os.environ.get("LIMBECK_LEASE_SECONDS", SECONDS))


class Leases:
    """Those of one folder (`path`) of a store, as one owner sees them."""

    def __init__(self, fs: Any, path: str, url: str, owner: str) -> None:
        self.fs, self.path, self.url, self.owner = fs, path, url, owner
        self.mine: Lease | None = None
        self.friends = frozenset[str]()
        """Owners whose machines are known to have nobody at work here: a lease of theirs is over."""

    def newest(self) -> Lease | None:
        """The one that counts; None where there never was one."""
        for _ in range(5):
            numbers = self._numbers()
            if not numbers:
                return None
            try:
                return Lease(numbers[-1], **json.loads(self.fs.cat_file(self._name(numbers[-1]))))
            except FileNotFoundError:  # a newer one was made meanwhile
                continue
            except (ValueError, TypeError):  # on a disk it may be half written
                time.sleep(0.05)
        raise LimbeckError(f"{self.url}/{NAME}* cannot be read; let one process go on, or remove it where none is left")

    def _numbers(self) -> list[int]:
        self.fs.invalidate_cache()
        try:
            names = self.fs.ls(self.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(found[1]) for name in names if (found := re.search(rf"/{re.escape(NAME)}(\d+)$", name)))

    def _name(self, number: int) -> str:
        return f"{self.path}/{NAME}{number:08d}"

    def take(self) -> bool:
        """Take the folder; whether we had it last, so that nobody else can have changed it. Raises LimbeckError where another has it."""
        last = self.newest()
        if last is not None and last.owner == self.owner:
            self.mine = self._written(last.number, False)
            return True
        if last is not None and last.until > time.time() and last.owner not in self.friends:
            raise self._busy(last)
        try:
            self.mine = self._written(last.number + 1 if last else 1, True)
        except FileExistsError:
            raise self._busy(self.newest()) from None
        for number in self._numbers():
            if number < self.mine.number:
                self.fs.rm_file(self._name(number))
        return False

    def _busy(self, last: Lease | None) -> Busy:
        who, until = (f"{last.where} since {last.since}", last.until) if last else ("another process", time.time() + seconds())
        return Busy(f"{self.url} is in use by {who}; wait for it, or give another place", until)

    def _written(self, number: int, new: bool) -> Lease:
        since = self.mine.since if self.mine else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        lease = Lease(number, self.owner, f"{platform.node()}, process {os.getpid()}", since, time.time() + seconds())
        self._put(lease, new)
        return lease

    def _put(self, lease: Lease, new: bool) -> None:
        data = json.dumps({name: value for name, value in asdict(lease).items() if name != "number"}).encode()
        if not new:
            return self.fs.pipe_file(self._name(lease.number), data)
        try:
            made(self.fs, self._name(lease.number), lambda: self.fs.pipe_file(self._name(lease.number), data, mode="create"))
        except (NotImplementedError, TypeError):  # a store that cannot make an object once
            if self.fs.exists(self._name(lease.number)):
                raise FileExistsError(self._name(lease.number)) from None
            self.fs.pipe_file(self._name(lease.number), data)

    def see(self) -> None:
        """Raise Lost where another took the folder, since ours had run out."""
        last = self.newest()
        if self.mine is None or last is None or last.number != self.mine.number:
            who = f"{last.where} since {last.since}" if last else "somebody who removed our lease"
            raise Lost(f"{self.url} was taken over by {who}; what this process did since is not sent")

    def renew(self) -> None:
        """Hold it for longer. Raises Lost."""
        self.see()
        assert self.mine is not None
        self.mine = self._written(self.mine.number, False)

    def give_back(self) -> None:
        """Let others have the folder; that it was ours last stays written."""
        if self.mine is not None:
            self._put(Lease(**{**asdict(self.mine), "until": 0.0}), False)
        self.mine = None


def made(fs: Any, name: str, write: Callable[[], object]) -> None:
    """Write, making folders where the store is one that has them; buckets are never made."""
    try:
        write()
    except FileNotFoundError:
        if not fs.exists("/" if name.startswith("/") else name.partition("/")[0]):
            raise
        fs.makedirs(name.rpartition("/")[0], exist_ok=True)
        write()
