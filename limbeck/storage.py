"""Folders that lie in a store (`s3://`, `gs://`, any URL that fsspec knows): each has a mirror on this disk, and the rest of the house sees that.

`here` gives the mirror of a URL, `files.py` says what was written, a thread sends it. See `mirror.py` for what is sent in which
order, `lease.py` for who may write.
"""

import fcntl
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from limbeck import lease
from limbeck.errors import LimbeckError, Stopped, reason
from limbeck.joint import Files, Joint
from limbeck.lease import Lost
from limbeck.mirror import Mirror
from limbeck.urls import cache_folder, store_of, url_of

FILES = (".html", ".json", ".jsonl", ".parquet", ".yaml", ".yml", ".md", ".gguf")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between the attempts to reach a store, at the beginning and at the end of a command."""
EVERY_SECONDS = 30.0
"""How often what changed is sent of itself: logs and ledgers, which grow between commits."""
POLL_SECONDS = 0.5
"""How often it is asked whether other machines have brought what they bring to a folder."""
STOP_SECONDS = 20.0
"""Where somebody asked us to stop: how long other machines may bring nothing before we leave all the same."""
FRESH_SECONDS = 10.0
"""What was fetched so short a time ago is not looked for again."""
T = TypeVar("T")


_kept: "dict[str, Kept]" = {}
"""Every mirror that this process has looked into, by its URL."""


def here(place: str | Path, filled: bool = True) -> Path:
    """Where a place lies on this disk: as it is, or the mirror of a URL, holding what the store holds where it is to be `filled`.

    Raises LimbeckError for a store that cannot be reached, or whose package is not installed.
    """
    url = url_of(place)
    if url is None:
        return Path(place)
    for known, kept in _kept.items():
        if url == known or (kept.mirror.only is None and url.startswith(f"{known}/")):
            if filled:
                kept.refresh()
            return kept.place(url)
    _kept[url] = kept = Kept(_opened(url))
    try:
        if filled:
            kept.refresh()
    except BaseException:
        del _kept[url]
        raise
    return kept.place(url)


def _opened(url: str) -> Mirror:
    fs, path = store_of(url)
    home = cache_folder().resolve() / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16]
    is_file = persistently(url, lambda: fs.isfile(path) or (url.endswith(FILES) and not fs.exists(path)))
    parent, _, name = path.rpartition("/")
    if is_file:
        return Mirror(url.rpartition("/")[0], fs, parent, home / (parent.rpartition("/")[2] or "files"), only=name)
    return Mirror(url, fs, path, home / (name or "files"))


def persistently(url: str, work: Callable[[], T], pauses: tuple[float, ...] | None = None) -> T:
    """Do it, again after growing pauses where the store does not answer. Raises LimbeckError, in one line."""
    left = list(PAUSES if pauses is None else pauses)
    while True:
        try:
            return work()
        except LimbeckError:
            raise
        except Exception as error:  # stores raise many kinds
            refused = isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
            if refused or isinstance(error, FileNotFoundError) or not left:
                raise LimbeckError(f"{url} cannot be used: {reason(error)}; see to it, and give the same command again") from error
            time.sleep(left.pop(0))


def patience_seconds(ended: BaseException | None) -> float:
    """How long, at the end of work that ended so, other machines may bring nothing before they are given up."""
    return max(lease.seconds(), STOP_SECONDS) if ended is None else STOP_SECONDS if isinstance(ended, Stopped) else 0.0


class Kept:
    """A mirror that this process uses; while somebody writes into it, a thread sends and another renews the lease."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.writers, self.lost, self.away = 0, "", ""
        self._wake, self._stop = threading.Event(), threading.Event()
        self._threads, self._lock = list[threading.Thread](), threading.RLock()
        self._held: Any = None

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.mirror.url

    def place(self, url: str) -> Path:
        """The path of a URL at or below it."""
        return self.mirror.root / url.removeprefix(self.url).lstrip("/")

    def refresh(self) -> None:
        """Fetch what changed, unless it is ours: then the mirror is ahead of the store."""
        if self.writers or (time.monotonic() - self.mirror.filled < FRESH_SECONDS and self.mirror.filled):
            return

        def work() -> None:
            last = self.mirror.leases.newest() if self.mirror.only is None else None
            if self.mirror.is_filled(last):
                if self.is_free():  # whoever died here in the middle of what several machines save left a part of it
                    self.mirror.mend()
                self.mirror.filled = time.monotonic()
            else:
                self.mirror.fill()

        persistently(self.url, work)

    @contextmanager
    def writing(self) -> Generator[None]:
        """Have it for ourselves as long as the block lasts; at its end everything is sent. Raises LimbeckError where another has it."""
        with self._lock:
            if not self.writers:
                self._begin()
            self.writers += 1
        try:
            yield
        except BaseException as error:
            self._leave(pauses=PAUSES[:2], ended=error)
            raise
        self._leave(pauses=PAUSES, ended=None)

    def _begin(self) -> None:
        self._held = (self.mirror.home / ".held").open("w")
        fcntl.flock(self._held, fcntl.LOCK_SH)
        self.mirror.joints.waiting.clear()

        def work() -> None:
            if not self.mirror.take():
                self.mirror.fill()
            self.mirror.mend()

        try:
            persistently(self.url, work)
        except BaseException:
            self._held.close()
            raise
        self.lost = self.away = ""
        self._stop.clear()
        self._wake.set()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._sending, self._renewing)]
        for thread in self._threads:
            thread.start()

    def _leave(self, pauses: tuple[float, ...], ended: BaseException | None) -> None:
        with self._lock:
            self.writers -= 1
            if self.writers:
                return
            self._stop.set()
            self._wake.set()
            for thread in self._threads:
                thread.join()
            try:
                self._finish(pauses, patience_seconds(ended))
            except LimbeckError as error:
                if ended is None:
                    raise
                print(f"limbeck: {error}", file=sys.stderr)
            finally:
                self._held.close()

    def _send_all(self, patience: float) -> None:
        """Send the rest. Raises LimbeckError where other machines brought nothing of theirs for so many seconds."""
        came, moved_at, waiting = -1, time.monotonic(), self.mirror.joints.waiting
        while not self.mirror.send():
            if waiting and self.mirror.joints.came() == came:
                if time.monotonic() - moved_at >= patience:
                    raise LimbeckError(f"another machine's part of {', '.join(waiting)} has not come")
                self.mirror.leases.renew()  # those who do so elsewhere are gone at the end
                time.sleep(POLL_SECONDS)
            else:
                came, moved_at = self.mirror.joints.came(), time.monotonic()

    def flush(self, folder: Path) -> None:
        """Send what there is, if it is ours, and have here what others brought below a folder."""
        if self.writers:
            persistently(self.url, lambda: self._send_all(patience_seconds(None)))
            persistently(self.url, lambda: self.mirror.mend(self.name(folder)))

    def fetch(self, folder: Path) -> None:
        """Make what is below a folder what the store holds, whoever writes there."""
        persistently(self.url, lambda: self.mirror.fill(self.name(folder)))

    def name(self, folder: Path) -> str:
        """Of a folder below it; of itself nothing."""
        name = folder.relative_to(self.mirror.root).as_posix()
        return "" if name == "." else name

    def is_free(self) -> bool:
        """Whether no process of this machine writes into it."""
        with (self.mirror.home / ".held").open("w") as held, suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def _finish(self, pauses: tuple[float, ...], patience: float) -> None:
        """Send the rest, and give the lease back."""

        def work() -> None:
            self._send_all(patience)
            self.mirror.settle()
            self._give_back(self._held)

        try:
            persistently(self.url, work, pauses)
        except Lost:
            raise
        except LimbeckError as error:
            if self.mirror.joints.waiting:
                with suppress(Exception):
                    self._give_back(self._held)
            why = reason(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
            what = "it goes on from the checkpoint before" if self.mirror.joints.waiting else "it sends the rest"
            raise LimbeckError(f"all is in {self.mirror.root}, and not all in {self.url} ({why}); "
                               f"give the same command again on this machine: {what}") from error  # fmt: skip

    def _sending(self) -> None:
        failures = 0
        while not self._stop.is_set():
            every = POLL_SECONDS if self.mirror.joints.waiting else EVERY_SECONDS
            self._wake.wait(min(2.0**failures / 2, EVERY_SECONDS) if failures else every)
            self._wake.clear()
            if self._stop.is_set() or self.lost:
                return
            failures = 0 if self._sent() else failures + 1

    def _sent(self) -> bool:
        """Send what changed; whether it went. Says once that the store is away, and once that it is back."""
        try:
            if not self.mirror.send() and not self.mirror.joints.waiting:
                self._wake.set()
        except Lost as error:
            self.lost = str(error)
            return True
        except Exception as error:  # stores raise many kinds
            if not self.away:
                self.away = reason(error)
                print(f"limbeck: {self.url} does not answer ({self.away}); the work goes on, and what is not sent goes later", file=sys.stderr)
            return False
        if self.away:
            print(f"limbeck: {self.url} answers again; nothing was lost", file=sys.stderr)
        self.away = ""
        return True

    def _renewing(self) -> None:
        while not self._stop.wait(lease.seconds() / 4):
            try:
                self.mirror.leases.renew()
            except Lost as error:
                self.lost = str(error)
                return
            except Exception:  # whoever sends says so
                continue

    def told(self, path: Path) -> None:
        """Something at `path` was written or removed. Raises Lost where another has taken the folder."""
        if self.lost:
            raise Lost(self.lost)
        if self.mirror.only is not None:
            persistently(self.url, lambda: self.mirror.put(path))
        elif self.writers:
            self._wake.set()
        else:
            self._send_at_once()

    def _send_at_once(self) -> None:
        """Send what was written although nobody had the folder; what others did since we looked is fetched after it."""

        def work() -> None:
            ours = self.mirror.take()
            self.mirror.mend()
            while not self.mirror.send():
                pass
            self.mirror.settle() if ours else self.mirror.fill()
            self._give_back(held)

        with self._lock, (self.mirror.home / ".held").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            persistently(self.url, work)

    def _give_back(self, held: Any) -> None:
        """Let other machines have the folder, unless another process of this one goes on."""
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        self.mirror.leases.give_back()


def mirrored(path: Path) -> Kept | None:
    """The mirror that a path lies in."""
    return next((kept for kept in _kept.values() if path.is_relative_to(kept.mirror.root)), None) if _kept else None


def told(path: Path) -> None:
    """Whoever wrote or removed something says so; nothing happens where it lies on this disk alone."""
    if kept := mirrored(path):
        kept.told(path)


def settle(folder: Path) -> None:
    """Send what an earlier command of this machine could not."""
    if (kept := mirrored(folder)) and not kept.writers and persistently(kept.url, kept.mirror.is_ahead):
        kept.told(folder)


def whole(folder: Path) -> None:
    """Say of a folder, before it is put in its place or removed, that it is there whole or not at all."""
    if kept := mirrored(folder):
        kept.mirror.whole(folder)


def join(folder: Path, others: Files, token: str) -> None:
    """Say of a folder, before it is put in its place, what other machines bring to it, when they find this token in its mark."""
    kept = mirrored(folder)
    assert kept is not None, "machines that see other files have a store between them"
    kept.mirror.joints.expect(kept.name(folder), Joint(token, others))


def let_go(folder: Path) -> bool:
    """Whether a folder may be removed: not while other machines bring theirs to it."""
    joint = kept.mirror.joints.waiting.get(kept.name(folder)) if (kept := mirrored(folder)) else None
    return joint is None or joint.drop()


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Have a folder of a store for ourselves as long as the block lasts; nothing happens for one of this disk."""
    kept = mirrored(folder)
    if kept is None:
        yield
        return
    with kept.writing():
        yield


def named(text: str) -> str:
    """The text with URLs in place of their mirrors."""
    for kept in _kept.values():
        text = text.replace(str(kept.mirror.root), kept.url)
    return text
