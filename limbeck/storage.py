"""Folders that lie in a store (`s3://`, `gs://`, any URL that fsspec knows): each has a mirror on this disk, and the rest of the house sees that.

`here` gives the mirror of a URL, `files.py` says what was written, a thread sends it. See `mirror.py` for what is sent in which
order, `lease.py` for who may write.
"""

import fcntl
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from limbeck import lease
from limbeck.errors import LimbeckError
from limbeck.lease import Lost
from limbeck.mirror import Mirror

URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}(?=[^/])")
"""How a URL begins; also one of which `Path` has taken a slash."""
NOT_STORES = ("http", "https")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""What of ours brings the package that a scheme needs."""
FILES = (".html", ".json", ".jsonl", ".parquet", ".yaml", ".yml", ".md", ".gguf")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between the attempts to reach a store, at the beginning and at the end of a command."""
EVERY_SECONDS = 30.0
"""How often what changed is sent of itself: logs and ledgers, which grow between commits."""
FRESH_SECONDS = 10.0
"""What was fetched so short a time ago is not looked for again."""
T = TypeVar("T")


def cache_folder() -> Path:
    """Where what is made once for a user is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


_kept: "dict[str, Kept]" = {}
"""Every mirror that this process has looked into, by its URL."""


def url_of(place: str | Path) -> str | None:
    """The URL that is meant; None for a place on this disk."""
    text = str(place)
    found = URL.match(text)
    if found is None or found[1] in NOT_STORES:
        return None
    slashes = ":///" if found[1] in ("file", "local") else "://"
    return (found[1] + slashes + text[found.end() :]).rstrip("/")


def here(place: str | Path) -> Path:
    """Where a place lies on this disk: as it is, or the mirror of a URL, holding what the store holds.

    Raises LimbeckError for a store that cannot be reached, or whose package is not installed.
    """
    url = url_of(place)
    if url is None:
        return Path(place)
    for known, kept in _kept.items():
        if url == known or (kept.mirror.only is None and url.startswith(f"{known}/")):
            kept.refresh()
            return kept.place(url)
    _kept[url] = kept = Kept(_opened(url))
    try:
        kept.refresh()
    except BaseException:
        del _kept[url]
        raise
    return kept.place(url)


def _opened(url: str) -> Mirror:
    fs, path = _store(url)
    home = cache_folder().resolve() / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16]
    is_file = persistently(url, lambda: fs.isfile(path) or (url.endswith(FILES) and not fs.exists(path)))
    parent, _, name = path.rpartition("/")
    if is_file:
        return Mirror(url.rpartition("/")[0], fs, parent, home / (parent.rpartition("/")[2] or "files"), only=name)
    return Mirror(url, fs, path, home / (name or "files"))


def _store(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        return fs, str(path).rstrip("/")
    except ImportError as error:
        scheme = url.partition(":")[0]
        what = f"limbeck[{EXTRAS[scheme]}]" if scheme in EXTRAS else f"a package ({' '.join(str(error).split())})"
        raise LimbeckError(f"{url} needs what is not installed; pip install '{what}'") from None
    except ValueError as error:
        raise LimbeckError(f"{url}: {' '.join(str(error).split())}; give a folder, or a URL that fsspec knows, such as s3://bucket/folder") from None


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


def reason(error: Exception) -> str:
    """Why a store could not do it, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(".").removesuffix(": ")


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
        except BaseException:
            self._leave(pauses=PAUSES[:2], quiet=True)
            raise
        self._leave(pauses=PAUSES, quiet=False)

    def _begin(self) -> None:
        self._held = (self.mirror.home / ".held").open("w")
        fcntl.flock(self._held, fcntl.LOCK_SH)

        def work() -> None:
            if not self.mirror.take():
                self.mirror.fill()

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

    def _leave(self, pauses: tuple[float, ...], quiet: bool) -> None:
        with self._lock:
            self.writers -= 1
            if self.writers:
                return
            self._stop.set()
            self._wake.set()
            for thread in self._threads:
                thread.join()
            try:
                self._finish(pauses)
            except LimbeckError as error:
                if not quiet:
                    raise
                print(f"limbeck: {error}", file=sys.stderr)
            finally:
                self._held.close()

    def _finish(self, pauses: tuple[float, ...]) -> None:
        """Send the rest, and give the lease back."""

        def work() -> None:
            while not self.mirror.send():
                pass
            self.mirror.settle()
            self._give_back(self._held)

        try:
            persistently(self.url, work, pauses)
        except Lost:
            raise
        except LimbeckError as error:
            why = reason(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
            raise LimbeckError(f"all is in {self.mirror.root}, and not all in {self.url} ({why}); "
                               "give the same command again on this machine: it sends the rest") from error  # fmt: skip

    def _sending(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._wake.wait(min(2.0**failures / 2, EVERY_SECONDS) if failures else EVERY_SECONDS)
            self._wake.clear()
            if self._stop.is_set() or self.lost:
                return
            failures = 0 if self._sent() else failures + 1

    def _sent(self) -> bool:
        """Send what changed; whether it went. Says once that the store is away, and once that it is back."""
        try:
            if not self.mirror.send():
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


def _of(path: Path) -> Kept | None:
    """The mirror that a path lies in."""
    return next((kept for kept in _kept.values() if path.is_relative_to(kept.mirror.root)), None) if _kept else None


def told(path: Path) -> None:
    """Whoever wrote or removed something says so; nothing happens where it lies on this disk alone."""
    if kept := _of(path):
        kept.told(path)


def whole(folder: Path) -> None:
    """Say of a folder, before it is put in its place or removed, that it is there whole or not at all."""
    if kept := _of(folder):
        kept.mirror.whole(folder)


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Have a folder of a store for ourselves as long as the block lasts; nothing happens for one of this disk."""
    kept = _of(folder)
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
