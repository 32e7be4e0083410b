"""Many processes, on one machine or on many: Ray started or joined, its resources seen, work spread over it in pieces.

The driver, which is the command that was given, sends numbers of pieces and gets counts back. A worker has the settings of the
work: it opens data and models itself, and writes into a folder that all machines see. So no row passes through the driver.
Work is a fixed cut of the data, whoever does it: what comes of it is what one process makes.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import uuid
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.config import Part, part
from limbeck.errors import LimbeckError, RecipeError
from limbeck.files import write_text
from limbeck.progress import warn

ADDRESS_SECONDS = 5.0
"""So long a cluster may take to answer at its address."""
PROBE_SECONDS = 60.0
"""So long its machines may take to look into a folder."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TQDM": "0", "RAY_DISABLE_IMPORT_WARNING": "1",
}  # fmt: skip
"""Settings of Ray's own that keep it out of what a command prints, where nobody has set others."""


@part
class Resources(Part):
    """What one worker of a cluster, or one stage of a pipeline, is given.

    workers: how many there are; by default as many as the cluster has room for. num_cpus, num_gpus: of each; less than 1
    shares one. memory: bytes. custom: what machines of the cluster were started with by other names, and how much of it.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: float | None = None
    custom: dict[str, float] = field(default_factory=dict[str, float])
    workers: int | None = None

    def __post_init__(self) -> None:
        found = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": self.memory or 0.0, **self.custom}
        for name, much in found.items():
            if not 0 <= much < math.inf:
                raise RecipeError(f"a worker needs {name} of at least 0 and finite, found {much}")
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"workers must be at least 1, found {self.workers}")

    @property
    def wanted(self) -> dict[str, float]:
        """By Ray's names, as far as there is any."""
        named = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory or 0.0, **self.custom}
        return {name: much for name, much in named.items() if much}

    @property
    def options(self) -> dict[str, Any]:
        """As tasks and actors take them."""
        given = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": self.memory, "resources": self.custom or None}
        return {name: value for name, value in given.items() if value is not None}

    def room(self, machine: Mapping[str, float]) -> int:
        """How many workers a machine with so much has room for."""
        return min((int(machine.get(name, 0.0) / much + 1e-9) for name, much in self.wanted.items()), default=os.cpu_count() or 1)

    @staticmethod
    def of(settings: list[str], workers: int | None = None) -> "Resources":
        """Those that a command line asks for, each as name=number. Raises RecipeError."""
        own, custom = dict[str, float](), dict[str, float]()
        for each in settings:
            name, equals, much = each.partition("=")
            try:
                (own if name in ("num_cpus", "num_gpus", "memory") else custom)[name] = float(much)
            except ValueError:
                equals = ""
            if not (name and equals):
                raise RecipeError(f'cannot read "{each}"; write what a worker needs like num_gpus=1')
        return Resources(**own, custom=custom, workers=workers)


@dataclass(frozen=True)
class Where:
    """Where the driver is: its folder, and where it finds Python's modules."""

    folder: str
    modules: tuple[str, ...]

    @staticmethod
    def here() -> "Where":
        """This process's."""
        return Where(os.getcwd(), tuple(sys.path))

    def settle(self) -> None:
        """Be there too, so that relative paths and modules of the user's own mean the same. Raises LimbeckError where that cannot be."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            said = f"{socket.gethostname()} does not see {self.folder} ({error.strerror})"
            raise LimbeckError(f"{said}; work in a folder on a disk that all machines share") from None
        sys.path.extend(each for each in self.modules if each not in sys.path)
        quiet()


def quiet() -> None:
    """Keep what Ray says of itself out of what is printed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def ray() -> Any:
    """Ray itself. Raises LimbeckError where it is not installed."""
    if find_spec("ray") is None:
        raise LimbeckError("clusters are Ray's, and it is not installed; pip install 'limbeck[ray]'")
    if "ray.data" not in sys.modules:
        quiet()
        with muted():
            import_module("ray.data")  # as it sets up its logger when it is imported
        quiet()
    return sys.modules["ray"]


@contextmanager
def muted() -> Generator[None]:
    """Without Ray's warnings, for as long as the block lasts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _unheard() -> Generator[None]:
    """Without what Ray's own C++ says when it begins, before its settings are read: straight to the file that errors go to."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass
class Cluster:
    """Ray as it was joined. address: host and port that answer for as long as it is there."""

    resources: Resources
    address: tuple[str, int]

    @property
    def machines(self) -> list[dict[str, Any]]:
        """Those that are alive: `NodeID`, `NodeManagerHostname`, `Resources`."""
        return [each for each in ray().nodes() if each["Alive"]]

    def workers(self, most: int, resources: Resources | None = None) -> int:
        """How many of them there is work and room for. Raises RecipeError where no machine can hold one."""
        asked = resources or self.resources
        machines = [each["Resources"] for each in self.machines]
        room = sum(asked.room(each) for each in machines)
        if not room:
            raise RecipeError(_roomless(asked, machines))
        if asked.workers and asked.workers > room:
            warn(f"{asked.workers} workers were asked for, and the cluster has room for {room}")
        return max(1, min(most, room, asked.workers or room))

    def see_folder(self, folder: Path) -> None:
        """See that every machine reads and writes the folder that we do. Raises LimbeckError that names one that does not."""
        token, probe = uuid.uuid4().hex, folder.resolve() / f".probe-{uuid.uuid4().hex[:8]}"
        write_text(probe, token)
        try:
            told = self.everywhere(_look, str(probe), token)
        finally:
            probe.unlink(missing_ok=True)
        for machine, why in told.items():
            if why:
                raise LimbeckError(
                    f"{machine} does not see {folder.resolve()} as this machine does ({why}); give an --out on a disk that all machines share"
                )

    def everywhere(self, work: Any, *given: Any) -> dict[str, Any]:
        """What a function says on each machine, by the machine's name."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there, task = self.machines, ray().remote(work)
        at = [NodeAffinitySchedulingStrategy(each["NodeID"], soft=False) for each in there]
        asked = [task.options(num_cpus=0, scheduling_strategy=place).remote(*given) for place in at]
        try:
            return dict(zip((each["NodeManagerHostname"] for each in there), ray().get(asked, timeout=PROBE_SECONDS), strict=True))
        except ray().exceptions.RayError as error:
            raise LimbeckError(f"the machines of the cluster do not work ({' '.join(str(error).split())[:160]}); see to them: ray status") from None

    def see_alive(self) -> None:
        """Raises LimbeckError where nobody is there any more."""
        if not self.answers():
            host, port = self.address
            raise LimbeckError(f"the cluster at {host}:{port} went away; what was done is saved: begin it again, and the same command goes on")

    def answers(self) -> bool:
        """Whether anybody is still there."""
        try:
            socket.create_connection(self.address, timeout=ADDRESS_SECONDS).close()
        except OSError:
            return False
        return True


def _look(probe: str, token: str) -> str:
    """Why a machine does not see a file, or cannot write beside it; nothing where all is well."""
    try:
        found = Path(probe).read_text()
        Path(f"{probe}-{uuid.uuid4().hex[:8]}").touch()
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for each in Path(probe).parent.glob(f"{Path(probe).name}-*"):
            each.unlink(missing_ok=True)
    return "" if found == token else "another file is there"


def _roomless(asked: Resources, machines: list[Mapping[str, float]]) -> str:
    lacking = {name: max((each.get(name, 0.0) for each in machines), default=0.0) for name, much in asked.wanted.items()}
    name = next((name for name, there in lacking.items() if there < asked.wanted[name]), next(iter(lacking), "CPU"))
    most = f"no machine of the cluster has more than {lacking[name]:g}"
    return f"a worker asks for {asked.wanted[name]:g} {name}, and {most}; ask for less, or join another"


@contextmanager
def joined(on: str, resources: Resources | None = None) -> Generator[Cluster]:
    """Ray for as long as the block lasts: the cluster of this address, or of RAY_ADDRESS, else one of this machine's own.

    on: "ray", "auto" or HOST:PORT. A process that is in a cluster already stays there. Raises LimbeckError
    where nobody answers.
    """
    mine = not ray().is_initialized()
    found = join(on, resources)
    with _mourned(found) if mine else contextlib.nullcontext():
        try:
            yield found
        finally:
            if mine:
                _end()


@contextmanager
def _mourned(cluster: Cluster) -> Generator[None]:
    """Have it said in one line, by a process that only waits, if we end within the block: where a cluster goes away, Ray ends its drivers at once."""
    host, port = cluster.address
    said = f"limbeck: ended from outside, as when the cluster at {host}:{port} goes away; what was done is saved, and the same command goes on"
    waiting = subprocess.Popen(["sh", "-c", 'read -r bye || echo "$0" >&2', said], stdin=subprocess.PIPE, start_new_session=True)
    assert waiting.stdin is not None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            waiting.stdin.write(b"bye\n")
            waiting.stdin.close()
        waiting.wait()


def join(on: str, resources: Resources | None = None) -> Cluster:
    """Ray until this process ends: see `joined`."""
    if not ray().is_initialized():
        _begin(on, resources or Resources())
    return Cluster(resources or Resources(), _address())


def _begin(on: str, resources: Resources) -> None:
    address = _asked(on)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        settings["include_dashboard"] = False
        settings["num_cpus"] = max(os.cpu_count() or 1, math.ceil((resources.workers or 0) * resources.num_cpus))
    try:
        with muted(), _unheard():
            ray().init(**settings)
        import ray._private.worker as inside

        inside.print_to_stdstream = lambda *said, **how: None  # deaths of workers, which we tell of ourselves where they matter
    except Exception as error:
        where = f"the cluster at {address} cannot be joined" if address else "no cluster can be started on this machine"
        secret = ", such as RAY_AUTH_MODE=token where it wants one," if address and "RAY_AUTH_MODE" not in os.environ else ""
        raise LimbeckError(f"{where} ({' '.join(str(error).split())[:200]}); see to it{secret} or give another --on") from None
    finally:
        with contextlib.suppress(ValueError):  # another thread than the first has no say in signals
            for number, handler in before.items():
                signal.signal(number, handler)


def _end() -> None:
    with muted(), contextlib.suppress(Exception):
        ray().shutdown()


def _asked(on: str) -> str | None:
    """The address of the cluster that is meant, seen to answer; None where there is none to be joined."""
    if on not in ("ray", "auto") and not _parted(on):
        raise RecipeError(f'"{on}" is no cluster; give --on ray, auto or HOST:PORT')
    named = os.environ.get("RAY_ADDRESS") or None if on == "ray" else on
    if named is None or named == "local":
        return None
    if named.startswith("ray://"):
        raise LimbeckError(
            f"{named} is the door of Ray's client, and Ray Data does not go through it; give the command on a machine of the cluster with "
            "--on HOST:PORT, or from outside: ray job submit -- limbeck ... --on ray"
        )
    answering = _on_this_machine() if named == "auto" else named
    if not (place := _parted(answering)):
        raise RecipeError(f'RAY_ADDRESS is "{named}", which is no HOST:PORT; set it to one')
    try:
        socket.create_connection(place, timeout=ADDRESS_SECONDS).close()
    except OSError as error:
        raise LimbeckError(f"no cluster answers at {answering} ({error.strerror or error}); begin it (ray start), or give another --on") from None
    return named


def _on_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address

    if (found := canonicalize_bootstrap_address("auto")) is None:
        raise LimbeckError("no cluster runs on this machine; begin one (ray start --head), or give --on ray, which starts one for the command")
    return found


def _parted(address: str) -> tuple[str, int] | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def _address() -> tuple[str, int]:
    place = _parted(ray().get_runtime_context().gcs_address)
    assert place is not None
    return place
