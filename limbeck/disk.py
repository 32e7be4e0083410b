"""The files of a mirror as they are on this disk: which there are, what tells one from another, and writing them whole."""

import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

DATABASE = ".sqlite"
BESIDE = ("-wal", "-shm")
"""What SQLite has beside a database; a copy of the database holds what is in them."""

Stat = list[int]


def files(root: Path) -> dict[str, Stat]:
    """The files below a folder, without what is hidden."""
    found = dict[str, Stat]()
    for at, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(at) / name
            if not name.startswith(".") and not name.endswith(BESIDE) and (known := stat(path)):
                found[path.relative_to(root).as_posix()] = known
    return found


def stat(path: Path) -> Stat | None:
    """What tells a file from another and from itself before a change; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    beside = stat(path.with_name(f"{path.name}-wal")) if path.suffix == DATABASE else None
    return [found.st_size, found.st_mtime_ns, found.st_ino, *(beside or [])]


def hidden(name: str) -> bool:
    """Whether a file, or a folder on the way to it, is none of the work's."""
    return any(part.startswith(".") for part in name.split("/"))


def within(name: str, folders: set[str]) -> str:
    """The folder among these that a file lies in; empty where it is in none."""
    parts = name.split("/")
    return next((folder for end in range(1, len(parts)) if (folder := "/".join(parts[:end])) in folders), "")


def copied(path: Path, to: Path) -> Path:
    """A database as it is at this moment, whoever writes into it."""
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=60)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
    return to


def replaced(path: Path, data: bytes) -> None:
    """Write a small file whole."""
    work = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    work.write_bytes(data)
    os.replace(work, path)


def without_empty(root: Path) -> None:
    """Remove folders that hold nothing."""
    for at, folders, files in os.walk(root, topdown=False):
        if not files and Path(at) != root and not any((Path(at) / name).exists() for name in folders):
            shutil.rmtree(at)
