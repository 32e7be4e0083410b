"""Programs that would rather not be tested: what passes, what does not, and what they reach."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from test_verifiers import one

from limbeck import sandbox
from limbeck.errors import RecipeError
from limbeck.verifiers import UnitTests


def test_programs_are_refused_where_there_is_no_sandbox(monkeypatch, tmp_path) -> None:
    sandbox.probe.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="there is no bwrap; install the package bubblewrap"):
        UnitTests().load()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(RecipeError, match=r"No permissions to create new namespace; .* user namespaces"):
        UnitTests().load()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(RecipeError, match="x86_64 and aarch64 only, found riscv64"):
        UnitTests().load()


def unable() -> str:
    """Why this machine has no sandboxes, asked of bubblewrap itself: a fault of ours is no reason to skip."""
    if not shutil.which("bwrap"):
        return "there is no bwrap"
    return subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "/bin/true"], capture_output=True, text=True).stderr


sandboxed = pytest.mark.skipif(bool(unable()), reason=unable() or "never")
PROMPT = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """The sum."""\n'
CHECK = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
HUMANEVAL = {"prompt": PROMPT, "test": CHECK, "entry_point": "total"}
RIGHT = "def total(numbers):\n    return sum(numbers)\n"
WRITTEN = [
    ("    return sum(numbers)\n", 1.0),
    ("    return max(numbers)\n", 0.0),
    ("Sure:\n```python\n" + PROMPT + "    return sum(numbers)\n```\nTry it:\n```python\nprint(total([1]))\n```\n```sh\npip install x\n```", 1.0),
    ("1. So:\n   ```\n   def total(numbers: List[int]):\n       return sum(numbers)\n   ```", 1.0),
    ("<think>\n    return 0\n</think>\n\n```py\n" + RIGHT + "```", 1.0),
    ("I cannot write that.", 0.0),
    ("    return sum(\ud800numbers)\0", 0.0),
    ("(" * 50_000, 0.0),
]


@sandboxed
def test_programs_are_tested() -> None:
    rows = [HUMANEVAL] * len(WRITTEN)
    assert UnitTests().judge([code for code, _ in WRITTEN], rows) == [mark for _, mark in WRITTEN]
    statements = {"prompt": "Write total.", "test": ["assert total([1, 2]) == 3", "assert total([]) == 0"]}
    functions = {"prompt": "Write total.", "test": "def test_one():\n    assert total([1, 2]) == 3\n\ndef test_none():\n    assert total([]) == 0"}
    cases = "import unittest\nclass Tests(unittest.TestCase):\n    def test_none(self):\n        self.assertEqual(total([]), 0)\n"
    for row in (statements, functions, {"prompt": "Write total.", "test": cases}):
        assert UnitTests().judge([RIGHT, "def total(numbers): return 3"], [row, row]) == [1.0, 0.0]


SECRET = "a-secret-of-the-tests"
FOUL = {
    "leaves at once": "import sys; sys.exit(0)",
    "leaves at once, harder": "import os; os._exit(0)",
    "leaves when asked": "import os\ndef total(numbers): os._exit(0)",
    "leaves by a signal": "import os; os.kill(os.getpid(), 9)",
    "becomes another": "import os; os.execv('/usr/bin/env', ['env', 'true'])",
    "never ends": "while True: pass",
    "never ends, whatever comes": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleeps": "import time; time.sleep(1000)",
    "floods": "while True: print('1' * 10**6, flush=True)",
    "floods every descriptor": "import os\nwhile True:\n  for fd in range(20):\n    try: os.write(fd, b'+' * 65536)\n    except OSError: pass",
    "says that it has passed": "print('+' + '0' * 64, flush=True); raise SystemExit(0)",
    "says so everywhere": "import os\nfor fd in range(20):\n    try: os.write(fd, b'0' * 64)\n    except OSError: pass\ndef total(numbers): return 0",
    "exchanges how tests are read": "import os, builtins\nos.read = lambda *a: b''\nbuiltins.exec = print\ndef total(numbers): return 0",
    "takes memory": "import mmap; held = mmap.mmap(-1, 2**30)",
    "takes memory in files": "for n in range(1000): open(f'/tmp/{n}', 'wb').write(bytes(10**7))",
    "forks": "import os\nfor _ in range(4): os.fork()",
    "starts programs": "import subprocess; subprocess.run(['/usr/bin/env'])",
    "starts processes": "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
    "recurs": "def total(numbers): return total(numbers)",
    "ends the interpreter": "import ctypes; ctypes.string_at(0)",
    "redefines check": "def check(candidate): pass\ndef total(numbers): return 0",
}


@sandboxed
def test_foul_programs_do_not_pass() -> None:
    began = time.monotonic()
    programs = [code if "def total" in code else f"{code}\n{RIGHT}" for code in FOUL.values()]
    marks = dict(zip(FOUL, UnitTests(seconds=1).judge(programs, [{**HUMANEVAL, "prompt": ""}] * len(FOUL)), strict=True))
    assert marks == dict.fromkeys(FOUL, 0.0)
    assert time.monotonic() - began < 40


REACHES = {
    "the network": "import socket; socket.create_connection(('127.0.0.1', {port}), 1).close()",
    "a socket of this machine": "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}'); s.close()",
    "the home": "open({home!r} + '/written', 'w')",
    "a file of ours": "with open({file!r}) as file: file.read()",
    "the interpreter's own files": "open({python!r} + '/written', 'w')",
    "the root": "open('/written', 'w')",
    "the system's files": "open('/usr/written', 'w')",
    "users": "open('/etc/passwd').read()",
    "other processes": "import os; os.listdir('/proc/self')",
    "our environment": f"import os; assert any({SECRET!r} in value for value in os.environ.values())",
    "our process": "import os; os.kill({pid}, 0)",
    "new namespaces": "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); assert libc.unshare(0x10000000) == 0",
    "a process by another call": "import ctypes; pid = ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0); assert pid >= 0",
    "memory beside the limit": "import os; os.memfd_create('x')",
}


@sandboxed
def test_programs_reach_nothing_of_ours(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    (tmp_path / "ours").write_text("ours")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0limbeck-{os.getpid()}")
        local.listen()
        places = {"port": server.getsockname()[1], "name": f"limbeck-{os.getpid()}", "home": os.path.expanduser("~")}
        places |= {"file": str(tmp_path / "ours"), "python": sys.prefix, "pid": os.getpid()}
        codes = {name: code.format(**places) for name, code in REACHES.items()}
        exec("\n".join(codes[name] for name in ("the network", "a socket of this machine", "a file of ours", "our environment", "our process")), {})
        marks = UnitTests(seconds=3).judge(list(codes.values()), [{"test": "assert True"}] * len(codes))
    assert dict(zip(codes, marks, strict=True)) == dict.fromkeys(codes, 0.0)
    allowed = "import dataclasses, tempfile, threading\nt = threading.Thread()\nt.start(); t.join()\ntempfile.TemporaryFile().write(b'1')"
    assert one(UnitTests(), f"{allowed}\n@dataclasses.dataclass\nclass A:\n    x: int\n", test="assert A(1).x == 1") == 1.0


@sandboxed
def test_a_sandbox_that_ends_early_is_no_verdict(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/no-such-python")
    with pytest.raises(RecipeError, match=r"the sandbox did not start: .*no-such-python"):
        sandbox.passes("x = 1", "assert x", 1, 512)
