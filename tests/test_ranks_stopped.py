"""Several processes in which something happens: asked to stop in the middle of a step that takes minutes, one of them killed, a port in use."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import toys
from test_ranks import near, same_student
from test_runs import recipe

import limbeck as lb
from limbeck import checkpoint
from limbeck.files import read_jsonl

HERE = Path(__file__).parent
SECONDS = 20.0
"""Within which all are out; a scheduler gives 30. An unhindered step would take 60."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> lb.Recipe:
    """Each row is a pass of its own."""
    home = tmp_path_factory.mktemp("toys")
    toy = {"student": toys.folder(home / "student", seed=1, width=16), "teacher": toys.folder(home / "teacher", seed=2, width=16),
           "prompts": toys.jsonl(home / "prompts.jsonl", toys.rows(300))}  # fmt: skip
    made = recipe("on_policy", toy, steps=2, save_every=1, tokens_per_pass=1)
    return replace(made, source=replace(made.source, sequences=2, sampling=lb.Sampling(max_tokens=6)))


def long(made: lb.Recipe, where: str, ranks: int) -> lb.Recipe:
    """The same, with 150 tokens or passes a process in a step."""
    if where == "writing":
        return replace(made, source=replace(made.source, sampling=lb.Sampling(max_tokens=150)))
    return replace(made, source=replace(made.source, sequences=150 * ranks))


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def launched(made: lb.Recipe, work: Path, where: str, ranks: int, port: int, sharded: bool = False) -> Iterator[list[subprocess.Popen]]:
    """The command in so many processes, as a launcher starts them."""
    (work / "recipe.yaml").write_text(made.yaml)
    command = [sys.executable, str(HERE / "slow.py"), where, "distill", str(work / "recipe.yaml"), "--out", str(work / "run")]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "ACCELERATE_USE_FSDP": str(sharded).lower()}  # fmt: skip
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**shared, "RANK": str(n), "LOCAL_RANK": str(n)})
        for n in range(ranks)
    ]
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.communicate()


def slow(run: Path, processes: list[subprocess.Popen]) -> None:
    """Wait until the slow step is under way."""
    deadline = time.monotonic() + 200
    while len(read_jsonl(run / "metrics.jsonl")) < 1 and all(each.poll() is None for each in processes):
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.05)
    time.sleep(2.0)


def ended(processes: list[subprocess.Popen], within: float = SECONDS) -> list[str]:
    """What each said."""
    deadline = time.monotonic() + within
    return [each.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for each in processes]


@pytest.mark.parametrize(("where", "ranks", "sharded"), [("writing", 1, False), ("passes", 2, False), ("writing", 2, True)])
def test_asked_to_stop_in_a_step_of_a_minute_all_save_at_once(where: str, ranks: int, sharded: bool, made: lb.Recipe, tmp_path: Path, port) -> None:
    asked = long(made, where, ranks)
    with launched(asked, tmp_path, where, ranks, port, sharded) as processes:
        slow(tmp_path / "run", processes)
        for each in processes if where == "writing" else processes[1:]:  # all are told, or one alone
            each.send_signal(signal.SIGTERM)
            if ranks > 1:
                each.send_signal(signal.SIGTERM)  # the launcher's echo of the scheduler's
        said = ended(processes)
    assert [each.returncode for each in processes] == [75] * ranks, said
    line = f"limbeck: {tmp_path / 'run'}: stopped by SIGTERM after 1 of 2 steps, which are saved; the same command goes on from there\n"
    assert said[0].endswith(line) and not any("stopped" in each or "Traceback" in each for each in said[1:])
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 1
    lb.distill(asked, tmp_path / "run")
    lb.distill(asked, tmp_path / "whole")
    for row, other in zip(read_jsonl(tmp_path / "whole" / "metrics.jsonl"), read_jsonl(tmp_path / "run" / "metrics.jsonl"), strict=True):
        near(row, other)
    same_student(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("dies", "ranks"), [(0, 2), (1, 3)])
def test_where_one_dies_the_others_end_in_a_line(dies: int, ranks: int, made: lb.Recipe, tmp_path: Path, port) -> None:
    with launched(long(made, "passes", ranks), tmp_path, "passes", ranks, port) as processes:
        slow(tmp_path / "run", processes)
        processes[dies].kill()
        said = ended(processes)
    assert sorted(each.returncode for each in processes) == [-9, *[2] * (ranks - 1)]
    assert "Traceback" not in "".join(said)
    line = f"limbeck: {tmp_path / 'run'}: another process of this job is gone; the same command goes on from what was saved\n"
    assert "".join(said).count(line) == 1, said
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 1


def test_a_port_in_use_is_one_line(made: lb.Recipe, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with launched(made, tmp_path, "passes", 2, port) as processes:
            processes[1].kill()
            said = ended(processes[:1], 120)
    assert said == [f"limbeck: the processes cannot meet at 127.0.0.1:{port}, which is in use; set another MASTER_PORT\n"]
    assert processes[0].returncode == 2


def test_processes_without_rows_are_said_once(made: lb.Recipe, tmp_path: Path, port) -> None:
    few = replace(made, source=replace(made.source, sequences=1))
    with launched(few, tmp_path, "passes", 2, port) as processes:
        said = ended(processes, 200)
    assert [each.returncode for each in processes] == [0, 0], said
    line = "run: step 1 has no rows for 1 of 2 processes; raise the sequences of a step to 2 or more, or launch fewer\n"
    assert "".join(said).count("has no rows") == 1 and line in said[0]
