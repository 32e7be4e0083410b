"""A signal while a server is at work: what is paid for is waited for and recorded, and nothing is asked twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys
from faulty import Faulty, faulty

from limbeck.ledger import Ledger


def begun(there: Faulty, folder: Path) -> subprocess.Popen:
    """A command that has eight calls under way."""
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    toys.jsonl(folder / "prompts.jsonl", [{"prompt": f"question {n}"} for n in range(60)])
    asked = ["write", "--teacher", there.url, "--model", "toy", "--prompts", "prompts.jsonl", "--out", "out", "--similarity", "1"]
    command = [sys.executable, "-m", "limbeck", *asked, "--accept-license", "unknown licence of toy"]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": path})


def wait_for(enough, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not enough():
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.01)


def recorded(folder: Path) -> int:
    with Ledger(folder / "out" / "ledger.sqlite") as ledger:
        return len(ledger)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_calls_under_way_are_recorded_and_nothing_is_asked_twice(number: signal.Signals, tmp_path) -> None:
    with faulty(pause=0.5) as there:
        process = begun(there, tmp_path)
        wait_for(lambda: there.delivered.total() >= 8 and there.at_once == 8)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}[number] and "the same command goes on" in said
        assert 16 <= there.asked.total() == there.delivered.total() == recorded(tmp_path) < 60
        there.pause = 0.0
        again = begun(there, tmp_path)
        again.communicate(timeout=60)
        assert again.returncode == 0 and recorded(tmp_path) == 60 and set(there.asked.values()) == {1}


def test_a_call_that_fails_is_not_tried_again_after_a_signal(tmp_path) -> None:
    with faulty(faults=["500"], share=0.5, pause=0.2) as there:
        process = begun(there, tmp_path)
        wait_for(lambda: there.delivered.total() >= 4)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 75 and there.delivered.total() == recorded(tmp_path)


def test_a_second_signal_does_not_wait(tmp_path) -> None:
    with faulty(pause=60.0) as there:
        process = begun(there, tmp_path)
        wait_for(lambda: there.at_once == 8)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the first waits"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == 130
