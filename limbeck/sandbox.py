"""Strangers' programs, run where they can do no harm: bubblewrap, a filter of system calls, and limits. Linux on x86-64 and ARM64.

A program sees the interpreter, `/usr` and an empty `/tmp`, all but the last read-only; no network, no home, no `/proc`, none of our
environment, no other process. It may start threads, and no processes: so its limit of memory holds for all that it does.

It passes by a token, which is handed to it only after its tests have ended: leaving early and printing are no success. What remains is
what no test prevents that runs in the tested program's own interpreter: a program may alter what its tests rely on (builtins,
comparisons that are always true), or look for the file that holds the tests and the token among its open files, and repeat it.
"""

import inspect
import os
import platform
import secrets
import select
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

from limbeck.errors import RecipeError

START_SECONDS = 60
SHARED = "--ro-bind-try"
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Which number of a call below is the machine's, and the kernel's name for it (linux/audit.h)."""
DENIED = {
    "fork": (57, None),
    "vfork": (58, None),
    "shmget": (29, 194),  # memory that no limit of a process counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "unshare": (272, 97),  # new namespaces, and with them new rights
    "setns": (308, 268),
    "mount": (165, 40),
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
}
CLONE, CLONE3, X32 = (56, 220), 435, 0x40000000


def _inside() -> None:
    """What runs in the sandbox, its source being all that goes there: the program, its tests, and the token after both.

    Its arguments: bytes of memory, of the program and of the tests. Functions are taken before the program could exchange them.
    """
    import os
    import resource
    import sys
    import types

    memory, program_size, tests_size = map(int, sys.argv[1:])
    heard, report, nothing = os.dup(0), os.dup(1), os.open("/dev/null", os.O_RDWR)
    read, write, leave, run, build = os.read, os.write, os._exit, exec, compile
    for stream in range(3):
        os.dup2(nothing, stream)
    for limit, most in (resource.RLIMIT_AS, memory), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 64), (resource.RLIMIT_CORE, 0):
        resource.setrlimit(limit, (most, most))
    module = sys.modules["tested"] = types.ModuleType("tested")  # dataclasses look their module up
    space = vars(module)
    write(report, b"+")  # from here on whatever goes wrong is the program's fault
    run(build(read(heard, program_size), "program", "exec"), space)
    before = {**space}
    run(build(read(heard, tests_size), "tests", "exec"), space)
    made = {name: value for name, value in space.items() if before.get(name) is not value}
    for name, value in made.items():
        if name.startswith("test_") and isinstance(value, types.FunctionType):
            value()
    if unittest := sys.modules.get("unittest"):
        cases = [value for value in made.values() if isinstance(value, type) and issubclass(value, unittest.TestCase)]
        suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases))
        if not suite.run(unittest.TestResult()).wasSuccessful():
            leave(1)
    write(report, read(heard, 64))
    leave(0)  # whatever threads are left


def passes(program: str, tests: str, seconds: float, memory_mb: int) -> bool:
    """Whether Python's `program`, and then `tests` in its namespace, run to their end in time: `test_*` functions and unittests too.

    seconds: of the clock, from when the interpreter has started. memory_mb: address space, and as much in `/tmp`, in MiB.
    Raises RecipeError where the sandbox itself does not start.
    """
    token = secrets.token_hex(32)
    parts = [text.encode(errors="surrogatepass") for text in (program, tests)]
    ours, theirs = os.pipe()  # nothing is read before the end, so that no more than its buffer can be written
    with TemporaryFile() as told, TemporaryFile() as complaint, os.fdopen(ours, "rb", buffering=0) as report:
        told.write(b"".join(parts) + token.encode())
        told.seek(0)
        try:
            process = _started([memory_mb * 2**20, *map(len, parts)], told.fileno(), theirs, complaint.fileno())
        finally:
            os.close(theirs)
        begun = False
        with process:
            try:
                begun = _ready(report.fileno(), START_SECONDS) and report.read(1) == b"+"
                process.wait(seconds if begun else 0)
            except subprocess.TimeoutExpired:
                pass
            finally:
                process.kill()  # and with it all that runs in there
        if not begun:
            complaint.seek(0)
            lines = complaint.read(10_000).decode(errors="replace").strip().splitlines()
            raise RecipeError(f"the sandbox did not start: {lines[-1] if lines else f'nothing came in {START_SECONDS} seconds'}")
        return _ready(report.fileno(), 0) and report.read(len(token) + 1) == token.encode()


@cache
def probe() -> None:
    """See that programs can be run here, once a process. Raises RecipeError with what to do where they cannot."""
    try:
        works = passes("x = 1", "assert x == 1", START_SECONDS, 512) and not passes("x = 1", "assert x == 2", START_SECONDS, 512)
    except RecipeError as error:
        raise RecipeError(f"{error}; tests of programs need bubblewrap 0.7 and user namespaces (in a container, allow them)") from None
    assert works, "the sandbox runs programs, and tells right from wrong ones falsely"


def _started(numbers: list[int], told: int, report: int, complaint: int) -> subprocess.Popen[bytes]:
    """bubblewrap, with the interpreter in it. told, report, complaint: descriptors of its standard streams."""
    if (bwrap := shutil.which("bwrap")) is None:
        raise RecipeError("there is no bwrap; install the package bubblewrap")
    prefixes = sorted({"/usr", "/lib", "/lib64", "/nix/store", sys.base_prefix, sys.prefix, _home_of_python()})
    command = [
        *(bwrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *("--die-with-parent", "--new-session", "--hostname", "sandbox", "--chdir", "/"),
        *("--size", str(numbers[0]), "--perms", "0700", "--tmpfs", "/tmp"),
        *(word for path in prefixes for word in (SHARED, path, path)),
        *(word for path in ("null", "zero", "random", "urandom") for word in ("--dev-bind", f"/dev/{path}", f"/dev/{path}")),
        *(SHARED, "/etc/ld.so.cache", "/etc/ld.so.cache", SHARED, "/etc/alternatives", "/etc/alternatives", "--remount-ro", "/"),
    ]
    inside = f"{inspect.getsource(_inside)}\n_inside()"
    environment = {"HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    filtered = _filter()
    rules, written = os.pipe()
    try:
        os.write(written, filtered)
        os.close(written)
        command += ["--seccomp", str(rules), sys.executable, "-sPB", "-c", inside, *map(str, numbers)]
        return subprocess.Popen(command, stdin=told, stdout=report, stderr=complaint, pass_fds=[rules], env=environment)
    finally:
        os.close(rules)


def _home_of_python() -> str:
    """The folder of the interpreter that a virtual environment's links lead to."""
    return str(Path(sys.executable).resolve().parent.parent)


def _ready(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or an end, within that time."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


def _filter() -> bytes:
    """The rules of system calls, for the kernel's own small machine (seccomp(2), linux/filter.h): a call's number is compared with each in turn.

    What is denied fails with EPERM; clone3 seems not to exist, for its flags cannot be looked at, and C libraries then use clone.
    """
    if platform.machine() not in MACHINES:
        raise RecipeError(f"programs are run on {' and '.join(MACHINES)} only, found {platform.machine()}")
    which, architecture = MACHINES[platform.machine()]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, denied, unknown = 0x7FFF0000, 0x80000000, 0x00050000 + 1, 0x00050000 + 38  # 1: EPERM, 38: ENOSYS
    rules = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    rules += [(at_least, 0, 1, X32), (give, 0, 0, denied)] if which == 0 else []
    for number in (numbers[which] for numbers in DENIED.values()):
        rules += [] if number is None else [(equal, 0, 1, number), (give, 0, 0, denied)]
    rules += [(equal, 0, 1, CLONE3), (give, 0, 0, unknown), (equal, 0, 3, CLONE[which])]
    rules += [(load, 0, 0, 16), (any_bit, 1, 0, 0x10000), (give, 0, 0, denied), (give, 0, 0, allow)]  # CLONE_THREAD
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)
