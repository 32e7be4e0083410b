"""A folder of a store and its mirror on this disk: what is read is fetched, what was written is sent.

All work goes on in the mirror, with the files, locks and databases of a disk. What is sent is the difference between the
mirror and what was sent before, so that whatever a broken connection left out goes with the next. The order makes the store
at any moment one that a killed process could have left: logs first, then other files, then whole folders, then what is gone.
"""

import fcntl
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.lease import NAME, Busy, Lease, Leases, made

MARK = ".undone"
"""The object in a folder of a store that says it is not whole: written first, removed last. What lies below is not read."""
DATABASE = ".sqlite"
BESIDE = ("-wal", "-shm")
"""What SQLite has beside a database; a copy of the database holds what is in them."""
AT_ONCE, SMALL_BYTES = 8, 2**26
FILLS = 5
"""How often a folder is read anew that changes while it is read."""

Stat = list[int]
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

    def _owner(self) -> str:
        with self._turn():
            file = self.home / "owner"
            if not file.exists():
                _replaced(file, uuid.uuid4().hex.encode())
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
        _replaced(self.home / "sent.json", json.dumps(known).encode())

    def whole(self, folder: Path) -> None:
        """Note that a folder is there whole or not at all, before it is."""
        with (self.home / "folders").open("a") as file:
            file.write(f"{folder.relative_to(self.root).as_posix()}\n")

    def _folders(self) -> set[str]:
        file = self.home / "folders"
        return set(file.read_text().splitlines()) if file.exists() else set()

    def _here(self) -> dict[str, Stat]:
        """Our files as they are."""
        return _files(self.root)

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

    def fill(self) -> None:
        """Make the mirror what the store holds, fetching what differs. What we had not sent is put aside."""
        with self._turn():
            for _ in range(FILLS):
                there = self._there()
                self._put_aside()
                self._fetch(there)
                if self._there() == there:
                    self.filled = time.monotonic()
                    if self.leases.mine is not None:
                        _replaced(self.home / "filled", str(self.leases.mine.number).encode())
                    return
        raise LimbeckError(f"{self.url} changes while it is read; wait for whoever writes it")

    def _put_aside(self) -> None:
        """Keep what another machine's work took the place of."""
        known, here = self._known(), self._here()
        if any(known.get(name, [])[1:] != stat for name, stat in here.items()):
            aside = self.home / f"unsent-{time.time_ns()}"
            aside.mkdir()
            for path in [each for each in self.root.iterdir() if not each.name.startswith(".")]:  # locks stay
                os.replace(path, aside / path.name)
            print(f"limbeck: another machine went on with {self.url}; what this one had not sent lies in {aside}", flush=True)

    def _fetch(self, there: dict[str, str]) -> None:
        known, here = self._known(), self._here()
        undone = {name.rpartition("/")[0] for name in there if name.endswith(f"/{MARK}")}
        for folder in undone - self._folders():
            self.whole(self.root / folder)
        whole = {name: content for name, content in there.items() if not (_hidden(name) or _within(name, undone))}
        wanted = [name for name, content in whole.items() if name not in here or known.get(name) != [content, *here[name]]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._get, wanted))
        for name in here.keys() - whole.keys():
            (self.root / name).unlink()
        _without_empty(self.root)
        here = self._here()
        self._keep({name: [content, *here.get(name, [])] for name, content in there.items()})

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
        names = here.keys() | known.keys()
        inside = {name: folder for name in names if (folder := _within(name, folders))}
        changed = [name for name in names if known.get(name, [None])[1:] != here.get(name, [])]
        changed += [name for name in known if name not in here and len(known[name]) == 1]  # what was left of a folder that was not whole
        plain = sorted((name for name in changed if name not in inside and name in here), key=lambda name: (not name.endswith(".jsonl"), name))
        done = [self._put(name, here[name], known) for name in plain]
        moved = sorted({inside[name] for name in changed if name in inside}, key=lambda folder: (not (self.root / folder).exists(), folder))
        done += [self._put_folder(folder, {name: stat for name, stat in here.items() if inside.get(name) == folder}, known) for folder in moved]
        for name in sorted({name for name in changed if name not in inside and name not in here}):
            self._remove(name, known)
        return all(done)

    def _put_folder(self, folder: str, here: dict[str, Stat], known: Known) -> bool:
        """A folder, whole or not at all; its absence too. Whether it was still as it had been when we looked."""
        if self._below(folder) != here:
            return False
        mark = f"{folder}/{MARK}"
        self._write(mark, b"")
        known.setdefault(mark, [None])
        gone = [name for name in known if name.startswith(f"{folder}/") and name not in here and name != mark]
        gone = gone if here else list({*gone, *self._listed(folder)})
        for name in gone:
            self._remove(name, known)
        if not all(self._put(name, stat, known) for name, stat in here.items() if known.get(name, [None])[1:] != stat):
            return False
        if self._below(folder) != here:
            return False
        self._remove(mark, known)
        return True

    def _below(self, folder: str) -> dict[str, Stat]:
        return {f"{folder}/{name}": stat for name, stat in _files(self.root / folder).items()}

    def _listed(self, folder: str) -> Iterable[str]:
        self.fs.invalidate_cache()
        names = (name.removeprefix(f"{self.path.rstrip('/')}/") for name in self.fs.find(f"{self.path}/{folder}"))
        return [name for name in names if not name.endswith(f"/{MARK}")]

    def _put(self, name: str, stat: Stat, known: Known) -> bool:
        """One file; whether it was still as it had been when we looked. A log may have grown, anything else goes the next time."""
        path = self.root / name
        now = _stat(path)
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
                return self._upload(name, _copied(path, Path(work) / path.name))
        self._upload(name, path)

    def _upload(self, name: str, path: Path) -> None:
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


def _files(root: Path) -> dict[str, Stat]:
    """The files below a folder, without what is hidden."""
    found = dict[str, Stat]()
    for at, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(at) / name
            if not name.startswith(".") and not name.endswith(BESIDE) and (stat := _stat(path)):
                found[path.relative_to(root).as_posix()] = stat
    return found


def _content(info: dict[str, Any]) -> str:
    """What a store calls the content of an object."""
    named = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "content_hash", "mtime", "created", "LastModified") if info.get(key)), "")
    return f"{info['size']} {named}"


def _as_large(name: str, known: list[Any], there: str) -> bool:
    return len(known) < 2 or name.endswith(DATABASE) or there.partition(" ")[0] == str(known[1])


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _within(name: str, folders: set[str]) -> str:
    """The folder among these that a file lies in; empty where it is in none."""
    parts = name.split("/")
    return next((folder for end in range(1, len(parts)) if (folder := "/".join(parts[:end])) in folders), "")


def _stat(path: Path) -> Stat | None:
    """What tells a file from another and from itself before a change; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    beside = _stat(path.with_name(f"{path.name}-wal")) if path.suffix == DATABASE else None
    return [found.st_size, found.st_mtime_ns, found.st_ino, *(beside or [])]


def _copied(path: Path, to: Path) -> Path:
    """A database as it is at this moment, whoever writes into it."""
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=60)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
    return to


def _replaced(path: Path, data: bytes) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    work.write_bytes(data)
    os.replace(work, path)


def _without_empty(root: Path) -> None:
    """Remove folders that hold nothing."""
    for at, folders, files in os.walk(root, topdown=False):
        if not files and Path(at) != root and not any((Path(at) / name).exists() for name in folders):
            shutil.rmtree(at)
