"""Stores: an S3-compatible server on loopback, and a disk that fails when it is told to."""

import copy
import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.config import conf, set_conf_env
from fsspec.implementations.local import LocalFileSystem

from limbeck import storage


class Faulty(LocalFileSystem):
    """A disk as a store: `faulty:///folder`. At its `moment`-th change it kills the process, before or after it; or it is away."""

    protocol = "faulty"
    cachable = False
    moment: int = 0
    after: bool = False
    away: bool = False
    changes: int = 0
    calls: int = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return LocalFileSystem._strip_protocol("/" + str(path).removeprefix("faulty://").lstrip("/"))

    def changed(self, name: str, *given: Any, **more: Any) -> Any:
        Faulty.changes += 1
        now = Faulty.changes == Faulty.moment  # another thread may change something meanwhile
        if now and not Faulty.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return getattr(self, f"_{name}")(*given, **more)
        finally:
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

    def _pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        """As stores do it: the old object or the new one, and made once where it is to be."""
        work = Path(self._strip_protocol(path)).parent / f".{uuid.uuid4().hex}.lease-work"
        work.write_bytes(data)
        try:
            os.link(work, self._strip_protocol(path)) if mode == "create" else os.replace(work, self._strip_protocol(path))
        finally:
            work.unlink(missing_ok=True)

    def _put_file(self, here: str, path: str, **more: Any) -> None:
        self._pipe_file(path, Path(here).read_bytes())

    def _rm_file(self, path: str) -> None:
        LocalFileSystem.rm_file(self, path)

    def asked(self) -> None:
        Faulty.calls += 1
        if Faulty.away:
            raise ConnectionError("the cable is out")

    def pipe_file(self, *given: Any, **more: Any) -> Any:
        self.asked()
        return self.changed("pipe_file", *given, **more)

    def put_file(self, *given: Any, **more: Any) -> Any:
        self.asked()
        return self.changed("put_file", *given, **more)

    def rm_file(self, *given: Any, **more: Any) -> Any:
        self.asked()
        return self.changed("rm_file", *given, **more)

    def ls(self, *given: Any, **more: Any) -> Any:
        self.asked()
        return super().ls(*given, **more)

    def cat_file(self, *given: Any, **more: Any) -> Any:
        self.asked()
        return super().cat_file(*given, **more)

    def get_file(self, *given: Any, **more: Any) -> Any:
        self.asked()
        return super().get_file(*given, **more)


fsspec.register_implementation("faulty", Faulty, clobber=True)


@contextmanager
def machine(home: Path) -> Iterator[None]:
    """Another machine: nothing is known here of what any other mirrored."""
    kept = dict(storage._kept)
    storage._kept.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.setattr(storage, "PAUSES", (0.01, 0.01))
        patch.setattr(storage, "FRESH_SECONDS", 0.0)
        try:
            yield
        finally:
            storage._kept.clear()
            storage._kept.update(kept)


@contextmanager
def s3(port: int = 0) -> Iterator[str]:
    """moto's server; the environment leads s3fs to it. Yields the URL of a bucket."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch, configured():
        for name, value in {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        try:
            _, port = server.get_host_and_port()
            led(patch, port)
            fsspec.filesystem("s3", skip_instance_cache=True).makedirs("bucket", exist_ok=True)  # what moto holds is of the process
            yield "s3://bucket"
        finally:
            server.stop()


@contextmanager
def configured() -> Iterator[None]:
    """What fsspec was told before is what it is told after."""
    before = copy.deepcopy(conf)
    try:
        yield
    finally:
        conf.clear()
        conf.update(before)


def led(patch: pytest.MonkeyPatch, port: int) -> None:
    """Where s3fs finds the server, and that it asks once: who asks again is tested."""
    patch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("FSSPEC_S3", json.dumps({"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 2}}))
    set_conf_env(conf)


def objects(url: str) -> dict[str, bytes]:
    """What lies in a store's folder, but for leases."""
    fs, path = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    names = [name for name in fs.find(path) if ".lease-" not in name]
    return {name.removeprefix(path.rstrip("/") + "/"): fs.cat_file(name) for name in names}


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for locks."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
