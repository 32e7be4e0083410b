"""A folder of a store and its mirror on this disk: what is read is fetched, what was written is sent.

All work goes on in the mirror, with the files, locks and databases of a disk. What is sent is the difference between the
mirror and what was sent before, so that whatever a broken connection left out goes with the next. The order makes the store
at any moment one that a killed process could have left: logs first, then other files, then whole folders, then what is gone.
"""

import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from limbeck import disk
from limbeck.disk import BESIDE, DATABASE, Stat
from limbeck.errors import LimbeckError
from limbeck.joint import Joint, Joints
from limbeck.lease import NAME, Busy, Lease, Leases, made

MARK = ".undone"
"""The object in a folder of a store that says it is not whole: written first, removed last. What lies below is not read."""
AT_ONCE, SMALL_BYTES = 8, 2**26
FILLS = 5
"""How often a folder is read anew that changes while it is read."""

T = TypeVar("T")
Known = dict[str, list[Any]]
"""Of each object by its name below the folder: what the store calls its content (None where it was not asked), then how our file was."""


@dataclass
class Mirror:
    """`path` of the store `fs` is mirrored in `root`; beside it lies what is known of the store.

    only: of a folder that holds one file that was asked for: that file's name; what speaks of its licence comes with it.
    """

    url: str
    fs: Any
    path: str
    root: Path
    only: str | None = None
    filled: float = 0.0
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.home = self.root.parent
        self.home.mkdir(parents=True, exist_ok=True)
        self.leases = Leases(self.fs, self.path, self.url, self._owner())
        self.joints = Joints(self.home / "joint.json")

    def _owner(self) -> str:
        with self._turn():
            file = self.home / "owner"
            if not file.exists():
                disk.replaced(file, uuid.uuid4().hex.encode())
            return file.read_text()

    @contextmanager
    def _turn(self) -> Generator[None]:
        """One thread of one process at a time."""
        with self._lock, (self.home / ".turn").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # What is known

    def _known(self) -> Known:
        file = self.home / "sent.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _keep(self, known: Known) -> None:
        disk.replaced(self.home / "sent.json", json.dumps(known).encode())

    def whole(self, folder: Path) -> None:
        """Note that a folder is there whole or not at all, before it is."""
        with (self.home / "folders").open("a") as file:
            file.write(f"{folder.relative_to(self.root).as_posix()}\n")

    def _folders(self) -> set[str]:
        file = self.home / "folders"
        return set(file.read_text().splitlines()) if file.exists() else set()

    def _here(self) -> dict[str, Stat]:
        """Our files as they are."""
        return disk.files(self.root)

    def _there(self) -> dict[str, str]:
        """The store's objects, and what it calls the content of each."""
        self.fs.invalidate_cache()
        where = self.path.rstrip("/") + "/"
        if self.only is not None:
            found = {each["name"]: each for each in self._beside() if each["type"] == "file"}
        else:
            found = self.fs.find(self.path, detail=True)
        names = {name.removeprefix(where): _content(info) for name, info in found.items() if name.startswith(where)}
        return {name: content for name, content in names.items() if name and NAME not in name and self._wanted(name)}

    def _beside(self) -> list[dict[str, Any]]:
        try:
            return self.fs.ls(self.path, detail=True)
        except FileNotFoundError:
            return []

    def _wanted(self, name: str) -> bool:
        if self.only is None:
            return True
        told = (self.only, f"{Path(self.only).stem}.card.json", "card.json", "README.md")
        return name in told or name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))

    # Whose it is

    def take(self) -> bool:
        """Take the lease; whether the mirror is what the store holds, or ahead of it: filled under this very lease, and not left half filled."""
        self._awaited()
        return self.is_filled(self.leases.mine)

    def _awaited(self) -> None:
        """Take the lease; one that nobody renews is waited for until it has run out. Raises Busy where somebody renews it."""
        seen: float | None = None
        while True:
            try:
                self.leases.take()
                return
            except Busy as busy:
                if seen is not None and busy.until > seen:
                    raise
                if seen is None:
                    print(f"limbeck: {busy}; looking for up to {max(0.0, busy.until - time.time()):.0f} s whether it is alive", file=sys.stderr)
                seen = busy.until
                time.sleep(min(1.0, max(0.01, (busy.until - time.time()) / 20)))

    def is_filled(self, lease: Lease | None) -> bool:
        """Whether it was filled under this lease of ours."""
        file = self.home / "filled"
        return lease is not None and lease.owner == self.leases.owner and file.exists() and file.read_text() == str(lease.number)

    # From the store

    def fill(self, below: str = "") -> None:
        """Make the mirror, or what is below a folder of it, what the store holds, fetching what differs. What we had not sent is put aside."""
        with self._turn():
            for _ in range(FILLS):
                there = self._there()
                if not below:
                    self._put_aside()
                self._fetch(there, below)
                if _only(self._there(), below) == _only(there, below):
                    return None if below else self._is_as_the_store()
        raise LimbeckError(f"{self.url} changes while it is read; wait for whoever writes it")

    def _is_as_the_store(self) -> None:
        self.joints.keep({})
        self.filled = time.monotonic()
        if self.leases.mine is not None:
            disk.replaced(self.home / "filled", str(self.leases.mine.number).encode())

    def mend(self, below: str = "") -> None:
        """Fetch the rest of folders to which others brought files. Where one never became whole, go back to what was before it."""
        with self._turn():
            kept, waiting = self.joints.partial(), self.joints.waiting
            partial = {folder: others for folder, others in _only(kept, below).items() if folder not in waiting and (self.root / folder).exists()}
            if not partial:
                return
            there, known = self._there(), self._known()
            undone = {name.rpartition("/")[0] for name in there if name.endswith(f"/{MARK}")}
            broken = {folder for folder, others in partial.items() if folder in undone or any(f"{folder}/{name}" not in there for name in others)}
            if broken:  # and what came after them, such as the student, is only here
                broken |= self._folders() - {disk.within(name, self._folders() - undone) for name in there}
            for folder in broken:
                shutil.rmtree(self.root / folder, ignore_errors=True)
                known |= {name: [content] for name, content in there.items() if name.startswith(f"{folder}/")}
            lacking = partial.keys() - broken
            if broken:  # and what had given way to them is wanted again
                lacking |= {folder for folder in self._folders() - undone if not (self.root / folder).exists()}
            wanted = [name for name in _only(there, below) if disk.within(name, set(lacking)) and not (self.root / name).exists()]
            self._get_all(wanted)
            self._keep(known | {name: [there[name], *(disk.stat(self.root / name) or [])] for name in wanted})
            self.joints.keep({folder: others for folder, others in kept.items() if folder not in partial})

    def is_ahead(self) -> bool:
        """Whether this machine was the last to write, and something of it was not sent."""
        return bool(_changed(self._known(), self._here())) and self.is_filled(self.leases.newest())

    def _put_aside(self) -> None:
        """Keep what another machine's work took the place of."""
        known, here = self._known(), self._here()
        if any(known.get(name, [])[1:] != stat for name, stat in here.items()):
            aside = self.home / f"unsent-{time.time_ns()}"
            aside.mkdir()
            for path in [each for each in self.root.iterdir() if not each.name.startswith(".")]:  # locks stay
                os.replace(path, aside / path.name)
            print(f"limbeck: another machine went on with {self.url}; what this one had not sent lies in {aside}", flush=True)

    def _fetch(self, there: dict[str, str], below: str = "") -> None:
        known, here = self._known(), _only(self._here(), below)
        undone = {name.rpartition("/")[0] for name in there if name.endswith(f"/{MARK}")}
        for folder in undone - self._folders():
            self.whole(self.root / folder)
        whole = {name: content for name, content in _only(there, below).items() if not (disk.hidden(name) or disk.within(name, undone))}
        wanted = [name for name, content in whole.items() if name not in here or known.get(name) != [content, *here[name]]]
        self._get_all(wanted)
        for name in here.keys() - whole.keys():
            (self.root / name).unlink()
        disk.without_empty(self.root)
        here = self._here()
        others = {name: each for name, each in known.items() if not _only({name: each}, below)}
        self._keep(others | {name: [content, *here.get(name, [])] for name, content in _only(there, below).items()})

    def _get_all(self, names: list[str]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._get, names))

    def _get(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}{MARK}")
        self.fs.get_file(f"{self.path}/{name}", str(work))
        for beside in BESIDE:
            path.with_name(path.name + beside).unlink(missing_ok=True)
        os.replace(work, path)

    # To the store

    def send(self) -> bool:
        """Make the store what the mirror is; whether nothing changed on the way. Raises Lost where another has the folder."""
        with self._turn():
            self.leases.see()
            known = self._known()
            try:
                return self._send(known)
            finally:
                self._keep(known)

    def _send(self, known: Known) -> bool:
        here, folders = self._here(), self._folders()
        changed = _changed(known, here)
        inside = {name: folder for name in here.keys() | known.keys() if (folder := disk.within(name, folders))}
        plain = sorted((name for name in changed if name not in inside and name in here), key=lambda name: (not name.endswith(".jsonl"), name))
        done = [self._put(name, here[name], known) for name in plain]
        moved = sorted({inside[name] for name in changed if name in inside}, key=lambda folder: (not (self.root / folder).exists(), folder))
        for folder in moved:
            done.append(self._put_folder(folder, {name: stat for name, stat in here.items() if inside.get(name) == folder}, known))
            if self.joints.waiting.keys() & {folder}:  # nothing goes before others have brought theirs
                return False
        for name in sorted({name for name in changed if name not in inside and name not in here}):
            self._remove(name, known)
        return all(done)

    def _put_folder(self, folder: str, here: dict[str, Stat], known: Known) -> bool:
        """A folder, whole or not at all; its absence too. Whether it was still as it had been when we looked."""
        if self._below(folder) != here:
            return False
        mark = f"{folder}/{MARK}"
        joint = self.joints.of(folder, bool(here))
        if joint is None or not joint.asked:
            self._write(mark, b"")
            known.setdefault(mark, [None])
            gone = [name for name in known if name.startswith(f"{folder}/") and name not in here and name != mark]
            gone = gone if here and joint is None else list({*gone, *self._listed(folder).keys() - here.keys()})
            for name in gone:
                self._remove(name, known)
        if joint is not None and not joint.asked and joint.ask():
            self._write(mark, joint.token.encode())
        if not all(self._put(name, stat, known) for name, stat in here.items() if known.get(name, [None])[1:] != stat):
            return False
        if self._below(folder) != here or (joint is not None and not self._have_come(folder, joint)):
            return False
        self._remove(mark, known)
        self.joints.settle(folder, bool(here))
        return True

    def _have_come(self, folder: str, joint: Joint) -> bool:
        """Whether all that others bring is there."""
        there = self._listed(folder)
        joint.came = sum(there.get(f"{folder}/{name}") == size for name, size in joint.others.items())
        return joint.came == len(joint.others)

    def _below(self, folder: str) -> dict[str, Stat]:
        return {f"{folder}/{name}": stat for name, stat in disk.files(self.root / folder).items()}

    def _listed(self, folder: str) -> dict[str, int]:
        """The objects of a folder but for its mark, and their bytes."""
        self.fs.invalidate_cache()
        found = self.fs.find(f"{self.path}/{folder}", detail=True).items()
        names = {name.removeprefix(f"{self.path.rstrip('/')}/"): info["size"] for name, info in found}
        return {name: size for name, size in names.items() if not name.endswith(f"/{MARK}")}

    def _put(self, name: str, stat: Stat, known: Known) -> bool:
        """One file; whether it was still as it had been when we looked. A log may have grown, anything else goes the next time."""
        path = self.root / name
        now = disk.stat(path)
        if now is None or (now != stat and path.suffix != ".jsonl"):
            return False
        try:
            self.put(path)
        except FileNotFoundError:
            if path.exists():
                raise
            return False
        known[name] = [None, *now]
        return True

    def put(self, path: Path) -> None:
        """Send one file as it is; the object is the old one or the new one."""
        name = path.relative_to(self.root).as_posix()
        if path.suffix == DATABASE:
            with tempfile.TemporaryDirectory(dir=self.home) as work:
                return self.upload(name, disk.copied(path, Path(work) / path.name))
        self.upload(name, path)

    def upload(self, name: str, path: Path) -> None:
        """Make an object of a file, wherever that lies."""
        if path.stat().st_size <= SMALL_BYTES:
            return self._write(name, path.read_bytes())
        to = f"{self.path}/{name}"
        made(self.fs, to, lambda: self.fs.put_file(str(path), to))

    def _write(self, name: str, data: bytes) -> None:
        to = f"{self.path}/{name}"
        made(self.fs, to, lambda: self.fs.pipe_file(to, data))

    def _remove(self, name: str, known: Known) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")
        known.pop(name, None)

    def settle(self) -> None:
        """See that the store holds what we sent, and what it calls that, so that it need not be fetched again."""
        with self._turn():
            known, there = self._known(), self._there()
            if missing := [name for name, found in known.items() if name not in there or not _as_large(name, found, there[name])]:
                self._keep({name: found for name, found in known.items() if name not in missing})
                raise OSError(f"{len(missing)} of what was sent is not there, such as {missing[0]}")
            self._keep({name: [there[name], *found[1:]] for name, found in known.items()})


def _only(found: dict[str, T], below: str) -> dict[str, T]:
    """Of what is known by name, that which is a folder or lies in it."""
    return {name: each for name, each in found.items() if not below or name == below or name.startswith(f"{below}/")}


def _changed(known: Known, here: dict[str, Stat]) -> list[str]:
    """The files of ours that differ from what was sent, those that are gone among them."""
    changed = [name for name in here.keys() | known.keys() if known.get(name, [None])[1:] != here.get(name, [])]
    return changed + [name for name in known if name not in here and len(known[name]) == 1]  # what was left of a folder that was not whole


def _content(info: dict[str, Any]) -> str:
    """What a store calls the content of an object."""
    named = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "content_hash", "mtime", "created", "LastModified") if info.get(key)), "")
    return f"{info['size']} {named}"


def _as_large(name: str, known: list[Any], there: str) -> bool:
    return len(known) < 2 or name.endswith(DATABASE) or there.partition(" ")[0] == str(known[1])
