"""An evaluation of all kinds on toys, and one on a cluster whose workers write down what they do."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import toys

import limbeck as lb
from limbeck.files import append_jsonl, read_json, read_jsonl
from limbeck.spread.transfer import Evaluating
from limbeck.spread.work import Begun, Done
from limbeck.transfer.robustness import Robustness
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import Who
from limbeck.transfer.tasks import TasksAsked

LOG = "pieces.jsonl"
SMALL = {"prompts": 8, "passes": 2}
MMLU = [{"question": f"Which is number {n}?", "choices": ["one", "two", "three"], "answer": n % 3} for n in range(8)]


def prepare(home: Path) -> None:
    """A run whose student was taught two steps, held-out rows and tasks, below `home`, where tests are."""
    toys.jsonl(home / "held.jsonl", toys.rows(20, seed=2))
    toys.jsonl(home / "own.jsonl", toys.rows(40, seed=3))
    toys.jsonl(home / "mmlu.jsonl", MMLU)
    student, source = lb.Student(str(home / "student"), dtype="float32"), lb.Corpus(str(home / "held.jsonl"), sequences=4)
    teacher = lb.Local(str(home / "teacher"), dtype="float32")
    lb.distill(lb.Recipe(student, source, teacher, lb.ForwardKL(), steps=2, save_every=None), home / "run")


def asked(home: Path) -> tuple[Who, Asked, TasksAsked, Robustness]:
    """Who is measured, on what: texts, tasks, edits, a suffix."""
    tasks = TasksAsked([f'{home}/own.jsonl:Regex("[a-m]")', f"{home}/mmlu.jsonl"], max_tokens=4)
    whom = Who([home / "run"], None, None)
    return whom, Asked(str(home / "held.jsonl"), each=2, max_tokens=6, tokens_per_pass=200), tasks, Robustness(("upper", "truncated"), adversarial=1)


class Watched(Evaluating):
    """One of which no piece is done before two workers are at work in its round, and each says what it did."""

    def piece(self, number: int, begun: Begun, desk: Any) -> Done:
        """Between two lines."""
        line = {"round": begun.what, "number": number, "pieces": begun.pieces, "who": os.getpid()}
        append_jsonl(self.out / LOG, {**line, "done": False})
        until = time.monotonic() + 60
        while begun.pieces > 1 and len({each["who"] for each in pieces(self.out) if each["round"] == begun.what}) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        found = super().piece(number, begun, desk)
        append_jsonl(self.out / LOG, {**line, "done": True})
        return found


def pieces(out: Path) -> list[dict[str, Any]]:
    """What workers wrote down."""
    return read_jsonl(out / LOG)


def kept(out: Path) -> dict[str, Any]:
    """All that an evaluation leaves but clocks, of which it leaves the names; what it says of its own folder is left out."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in _files(out)}
    found = read_json(out / "evaluation.json")
    return {**files, "evaluation.json": {**found, "speeds": sorted(found["speeds"])}}


def _files(out: Path) -> Iterator[Path]:
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in (".lock", LOG, "evaluation.json", "speeds.json"):
            yield path
