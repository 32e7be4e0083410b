"""The one place that writes files: a reader sees the old file or the new one, never half of either."""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck import storage
from limbeck.errors import LimbeckError

UNDONE = ".undone"
"""How the name of a file or folder ends while it is being written."""


TODO = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EACCES: "make it writable, or give another folder",
    errno.EPERM: "make it writable, or give another folder",
    errno.EROFS: "give a folder that can be written to",
}
"""What to do about a write that fails."""


@contextmanager
def _one_line(path: Path) -> Generator[None]:
    """Say in one line what stands in the way of writing `path`."""
    try:
        yield
    except OSError as error:
        raise _unwritten(path, error.errno or 0, error.strerror or str(error)) from error
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors says it
        if found is None:
            raise
        raise _unwritten(path, int(found[1]), os.strerror(int(found[1]))) from error


def _unwritten(path: Path, number: int, reason: str) -> LimbeckError:
    return LimbeckError(f"cannot write {path}: {reason}; {TODO.get(number, 'see to it')}, and give the same command again: what was saved is there")


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically."""
    with _one_line(path):
        _write_bytes(path, data)
    storage.told(path)


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNDONE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace `path` by one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a log; a torn last line of a killed process is mended by `read_jsonl`."""
    with _one_line(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a log of our own; a line cut short by a kill is not there."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def mend_jsonl(path: Path) -> None:
    """Cut a line that a killed process left half written off a log, so that lines can be added to it."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block ends well, replacing what was there."""
    with _one_line(path), _new_folder(path) as work:
        yield work
    storage.told(path)


@contextmanager
def _new_folder(path: Path) -> Generator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNDONE))
    try:
        yield work
        os.chmod(work, 0o755)
        for file in work.rglob("*"):
            sync(file)
        storage.whole(path)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".old.{path.name}."))
            os.replace(path, old / path.name)
            os.replace(work, path)
            shutil.rmtree(old)
        else:
            os.replace(work, path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it; it is there whole or not at all."""
    storage.whole(path)
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNDONE))
    os.replace(path, old / path.name)
    shutil.rmtree(old)
    storage.told(path)


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Have a folder for ourselves, made where it is not there, for as long as the block lasts; in a store too, where it lies in one.

    Raises LimbeckError where another process has it, or it cannot be written to.
    """
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock is not None:
            lock.close()
        busy = isinstance(error, BlockingIOError)
        why = f"{folder} is in use by another process; wait for it" if busy else f"cannot write to {folder} ({error.strerror})"
        raise LimbeckError(f"{why}{', or ' if busy else '; '}give another --out") from None
    with lock, storage.writing(folder):
        yield


@contextmanager
def alone_with(path: Path) -> Generator[None]:
    """Have a file for ourselves, made where it is not there, for as long as the block lasts; waits for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):  # else it was removed while we waited
                yield
                return


def sweep(folder: Path, seconds: float = 0.0) -> None:
    """Remove what a killed process left half written below a folder.

    seconds: how long ago at least; where others may be writing, longer than anybody writes one file.
    """
    for path in [*folder.rglob(f".*{UNDONE}")]:
        if seconds and time.time() - path.stat().st_mtime <= seconds:
            continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
