"""What a machine brings to folders of a store that another one declares whole: its shards of a checkpoint.

They lie beside the mirror until the store has them, and are sent by a thread, where the mark of the folder says that they may come
(see `joint.py`). What a process that died had not brought is of no use: whoever goes on begins from what is whole.
"""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from limbeck.errors import LimbeckError, reason
from limbeck.mirror import MARK, Mirror
from limbeck.storage import POLL_SECONDS, mirrored, patience_seconds

PARTS = "parts"
LONGEST_PAUSE_SECONDS = 30.0


class Lender:
    """The parts that one machine brings to the folders of one mirror."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.box = mirror, mirror.home / PARTS
        self.fault = ""
        self._parts = dict[str, Path]()
        """By folder and token: where the part lies."""
        self._lock, self._wake, self._stop = threading.Lock(), threading.Event(), threading.Event()
        self._moved_at = 0.0
        self._thread = threading.Thread(target=self._sending, daemon=True)

    def begin(self) -> None:
        """Send from here on."""
        self.box.mkdir(exist_ok=True)
        self._thread.start()

    def room(self) -> Path:
        """An empty folder for a part."""
        return Path(tempfile.mkdtemp(dir=self.box))

    def lend(self, folder: Path, token: str, part: Path) -> None:
        """Bring what lies in `part`, when the folder has this token in its mark."""
        with self._lock:
            self._parts[f"{folder.relative_to(self.mirror.root).as_posix()}/{token}"] = part
        self._wake.set()

    def keep(self, folder: Path, names: set[str]) -> None:
        """Of what is directly below a folder, keep the parts of these alone: whoever was to declare others whole has let them go."""
        for key in self._left():
            place = self.mirror.root / key.rpartition("/")[0]
            if place.parent == folder and place.name not in names:
                self._drop(key)

    def _left(self) -> dict[str, Path]:
        with self._lock:
            return dict(self._parts)

    def _drop(self, key: str) -> None:
        with self._lock:
            part = self._parts.pop(key, None)
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)

    def end(self, patience: float) -> None:
        """Bring the rest. Raises LimbeckError where nothing moved for so many seconds."""
        self._moved_at = time.monotonic()
        while self._left() and time.monotonic() - self._moved_at < patience:
            self._wake.set()
            time.sleep(0.05)
        self._stop.set()
        self._wake.set()
        self._thread.join()
        if (parts := self._left()) and patience:
            left = sorted(key.rpartition("/")[0] for key in parts)
            why = self.fault or "it was not asked for"
            raise LimbeckError(f"{self.mirror.url}: this machine's part of {', '.join(left)} did not get there ({why}); "
                               "the same command goes on from the checkpoint before")  # fmt: skip

    def _sending(self) -> None:
        pause = POLL_SECONDS
        while not self._stop.is_set():
            self._wake.wait(pause if self._left() else None)
            self._wake.clear()
            pause = POLL_SECONDS if self._brought() else min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _brought(self) -> bool:
        """Bring what is asked for; whether the store answered. Says once that it is away, and once that it is back."""
        try:
            for key, part in self._left().items():
                if not self._stop.is_set() and self._bring(key, part):
                    self._drop(key)
        except Exception as error:  # stores raise many kinds
            if not self.fault:
                print(f"limbeck: {self.mirror.url} does not answer ({reason(error)}); this machine's part goes later", file=sys.stderr)
            self.fault = reason(error)
            return False
        if self.fault:
            print(f"limbeck: {self.mirror.url} answers again; nothing was lost", file=sys.stderr)
        self.fault = ""
        return True

    def _bring(self, key: str, part: Path) -> bool:
        """Send one part, if it may come; whether all of it is there."""
        folder, _, token = key.rpartition("/")
        for path in sorted(part.iterdir()):
            if self._stop.is_set() or not self._may_come(folder, token):
                return False
            self.mirror.upload(f"{folder}/{path.name}", path)
            path.unlink(missing_ok=True)
            self._moved_at = time.monotonic()
        return True

    def _may_come(self, folder: str, token: str) -> bool:
        try:
            return self.mirror.fs.cat_file(f"{self.mirror.path}/{folder}/{MARK}") == token.encode()
        except FileNotFoundError:
            return False


_lenders = dict[Path, Lender]()
"""By the root of the mirror."""


def forget(folder: Path) -> None:
    """Remove the parts that a process of this machine left when it died."""
    if (kept := mirrored(folder)) and kept.mirror.root not in _lenders:
        shutil.rmtree(kept.mirror.home / PARTS, ignore_errors=True)


@contextmanager
def lending(folder: Path) -> Generator[None]:
    """Be one who brings parts to folders below, as long as the block lasts; at its end all are there."""
    kept = mirrored(folder)
    if kept is None or kept.mirror.root in _lenders:
        yield
        return
    root = kept.mirror.root
    _lenders[root] = lender = Lender(kept.mirror)
    lender.begin()
    try:
        yield
    except BaseException as error:
        del _lenders[root]
        _quietly(lender, patience_seconds(error))
        raise
    del _lenders[root]
    lender.end(patience_seconds(None))


def _quietly(lender: Lender, patience: float) -> None:
    try:
        lender.end(patience)
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)


def lender_of(folder: Path) -> Lender | None:
    """Who brings this machine's part of a folder, if it is for this process to do so."""
    return next((lender for root, lender in _lenders.items() if folder.is_relative_to(root)), None)
