"""A step that learns from a cache beside a step of plain cross-entropy, and what reading the cache takes of it.

    python benchmarks/cache_steps.py --teacher FOLDER --student FOLDER --data gsm8k-train.jsonl

A teacher of SmolLM2-135M-Instruct and a student of 10 of its layers; 8 rows of GSM8K a step, AdamW, masters in float32,
arithmetic in `--dtype`. One student takes a step of each kind in turn on the same text, round by round, medians: cross-entropy
on the text, and forward KL from a cache of what is kept of the teacher. A step is drawing, reading, learning and moving the
weights; its ratio is the median over rounds of its seconds by those of cross-entropy.
Aimed at: from `sampled:50` at most 1.10 times a step of cross-entropy; reading and decoding at most 2 % of a step, also where
nothing was read before.

Reading is timed apart: cold, from a cache opened anew, its files dropped from the system's memory, and warm, the same text
again. Cold, a step of shuffled rows reads up to as many groups of 64 rows as it has sequences. Opening (keys and, of hidden
states, the teacher's head) happens once a run and stands beside. Below the steps stands the loss head alone, at N = 1024,
V = 49,152, D = 576.
Writes `benchmarks/results/cache_steps.json` and `benchmarks/results/cache_steps.svg`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loss_head import SHAPE, Case
from measure import bars, in_turn, machine, seconds, summary

import limbeck as lb
from limbeck.annotate import Annotation, annotate
from limbeck.batch import Batch
from limbeck.files import write_json, write_text
from limbeck.head import Head
from limbeck.keep import kept
from limbeck.loss import Outputs, row_loss
from limbeck.objective import CrossEntropy, Objective
from limbeck.sources import Share
from limbeck.targets import Nothing, Sampled, Targets, TopK
from limbeck.teachers import Cached, Silent, Teacher

HERE = Path(__file__).parent
SEQUENCES = 8
KEEPS = ("sampled:50", "top:64", "hidden")
TEXT, KL = Objective([CrossEntropy()]), Objective([lb.ForwardKL()])
OUTCOMES = 10
"""Of a sampled row of the loss head alone: as many as 50 draws give on text like this."""


def rows_of(data: str, count: int, path: Path) -> str:
    """The first rows of GSM8K as prompts with completions, in a file."""
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()[:count]]
    write_text(path, "".join(json.dumps({"prompt": row["question"], "completion": row["answer"]}) + "\n" for row in rows))
    return str(path)


def filled(teacher: str, data: str, keep: str, dtype: Any, work: Path) -> Path:
    """A cache of this text. The teacher's arithmetic shows in hidden states alone: what else is kept serves for both."""
    folder = work / (f"{keep}-{dtype}" if kept(keep).word == "hidden" else keep)
    if not folder.exists():
        annotate(Annotation(lb.Local(teacher, dtype=dtype), lb.Data(data), keep), folder)
    return folder


class Steps:
    """One student, and steps of several kinds by hand."""

    def __init__(self, student: str, data: str, dtype: Any) -> None:
        self.student = lb.Student(student, lb.AdamW(1e-6, schedule="constant", warmup=0.0), dtype=dtype).load(steps=1000)
        self.source = lb.Corpus(data, sequences=SEQUENCES).load(self.student.live.vocabulary, Share(0))

    def draw(self, step: int) -> Batch:
        """The text of a step."""
        return self.source.draw(step, self.student)

    def take(self, step: int, teacher: Teacher, objective: Objective) -> dict[str, float]:
        """Draw, read, learn, move: seconds of each, and of all."""
        found, drawn = {"read": 0.0, "learn": 0.0}, list[Batch]()
        found["draw"] = seconds(lambda: drawn.append(self.draw(step)))
        parts = drawn[0].split(2048)
        scores, said = teacher.score(parts), list[Targets]()
        for part in parts:
            found["read"] += seconds(lambda: said.append(next(scores)))
            scale = 1 / len(drawn[0].places_N)
            found["learn"] += seconds(lambda part=part, scale=scale: self.student.learn(part, said.pop(), objective, scale))
        found["move"] = seconds(lambda: self.student.step(0))
        return {**found, "all": sum(found.values())}


class Kind:
    """Steps of one kind, one after the other."""

    def __init__(self, steps: Steps, teacher: Teacher, objective: Objective) -> None:
        self.steps, self.teacher, self.objective = steps, teacher.load(steps.student), objective
        self.taken = list[dict[str, float]]()

    def take(self) -> float:
        """The next step."""
        self.taken.append(self.steps.take(len(self.taken), self.teacher, self.objective))
        return self.taken[-1]["all"]


def compared(steps: Steps, folders: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Whole steps of every kind in turn."""
    kinds = {"CrossEntropy": Kind(steps, Silent(), TEXT)} | {keep: Kind(steps, Cached(str(folder)), KL) for keep, folder in folders.items()}
    found = in_turn({name: kind.take for name, kind in kinds.items()}, rounds)
    return {name: _figures(kind.taken[1:], found["CrossEntropy"]) for name, kind in kinds.items()}


def _figures(taken: list[dict[str, float]], plain: list[float]) -> dict[str, Any]:
    """Seconds of a step and of its parts, and how many times a step of cross-entropy it takes."""
    ratios = [step["all"] / other for step, other in zip(taken, plain, strict=True)]
    parts = {part: round(statistics.median(step[part] for step in taken), 5) for part in taken[0] if part != "all"}
    return {"seconds": summary([step["all"] for step in taken]), "parts": parts, "times_cross_entropy": summary(ratios)}


def reading(steps: Steps, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of `Cached.score` alone over the text of a step: of a cache just opened, and again."""
    found: dict[str, list[float]] = {"open": [], "cold": [], "warm": []}
    groups = list[int]()
    for step in range(rounds):
        parts = steps.draw(step).split(2048)
        _drop_from_memory(folder)
        began = time.perf_counter()
        teacher = _opened(steps, folder)
        found["open"].append(time.perf_counter() - began)
        for when in ("cold", "warm"):
            found[when].append(seconds(partial(_all_said, teacher, parts)))
        groups.append(len(teacher._caches[0]._groups))
    return {**{name: summary(values) for name, values in found.items()}, "groups_of_rows_read": statistics.median(groups)}


def _opened(steps: Steps, folder: Path) -> Cached:
    """A cache that nothing was read of but its keys and, where it has one, the teacher's head: those are read once a run."""
    teacher = Cached(str(folder)).load(steps.student)
    teacher._caches[0].head  # noqa: B018  # made when first asked for
    return teacher


def _all_said(teacher: Cached, parts: list[Batch]) -> None:
    for _ in teacher.score(parts):
        pass


def _drop_from_memory(folder: Path) -> None:
    """Have the system forget the bytes of all files, so that they come from the disk again."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def of_steps(asked: argparse.Namespace, data: str, dtype: str, work: Path) -> dict[str, Any]:
    """Steps and readings in one arithmetic."""
    folders = {keep: filled(asked.teacher, data, keep, dtype, work) for keep in KEEPS}
    steps = Steps(asked.student, data, dtype)
    found = compared(steps, folders, asked.rounds)
    for keep, folder in folders.items():
        read = reading(steps, folder, asked.rounds)
        step = found[keep]["seconds"]["median"]
        shares = {f"{when}_percent_of_a_step": round(100 * read[when]["median"] / step, 2) for when in ("cold", "warm")}
        found[keep]["reading"] = {**read, **shares}
    print(json.dumps({"dtype": dtype, **found}), flush=True)
    return found


class Heads(Case):
    """The loss head alone, by what was said of the rows."""

    def __init__(self, dtype: str) -> None:
        super().__init__(**SHAPE, dtype=dtype)
        log_p_NV = self.said.head.logits(self.said.hidden_ND).log_softmax(-1)
        self.kinds: dict[str, tuple[Targets, Objective]] = {
            "CrossEntropy": (Nothing(), TEXT),
            f"Sampled, {OUTCOMES} outcomes": (_sampled(log_p_NV), KL),
            "TopK, 64": (TopK.of(log_p_NV, 64, "random"), KL),
            "Dense": (self.said, KL),
        }

    def pass_of(self, name: str) -> None:
        """Forward and backward of one kind."""
        said, objective = self.kinds[name]
        outputs = Outputs(self.hidden_ND, Head(self.weight_VD, len(self.weight_VD)))
        row_loss(outputs, said, self.batch, objective, 1 / len(self.hidden_ND))[0].backward()


def _sampled(log_p_NV: torch.Tensor) -> Sampled:
    """Rows of a few outcomes with equal shares."""
    ids_NK = torch.rand_like(log_p_NV).topk(OUTCOMES).indices
    entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return Sampled(ids_NK, torch.full(ids_NK.shape, 1 / OUTCOMES), entropy_N, "random")


def of_heads(dtype: str, rounds: int) -> dict[str, Any]:
    """Seconds of the loss head, by kind."""
    heads = Heads(dtype)
    takes: dict[str, Callable[[], float]] = {name: partial(seconds, partial(heads.pass_of, name)) for name in heads.kinds}
    taken = in_turn(takes, rounds)
    plain = taken["CrossEntropy"]
    found = {
        name: {**summary(values), "times_cross_entropy": round(statistics.median(a / b for a, b in zip(values, plain, strict=True)), 3)}
        for name, values in taken.items()
    }
    print(json.dumps({"dtype": dtype, "loss_head": found}), flush=True)
    return found


def figure(results: dict[str, Any]) -> str:
    """Seconds of steps and heads as bars."""
    steps = {f"step, {dtype}": {name: each["seconds"]["median"] for name, each in by.items()} for dtype, by in results["steps"].items()}
    heads = {f"loss head, {dtype}": {name: each["median"] for name, each in by.items()} for dtype, by in results["loss_head"].items()}
    return bars({**steps, **heads}, "s", "Learning from a cache beside cross-entropy: 8 rows of GSM8K, 10 layers of SmolLM2-135M")


def main() -> None:
    """Measure and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of SmolLM2-135M-Instruct as safetensors")
    parser.add_argument("--student", required=True, help="folder of a student with the same vocabulary")
    parser.add_argument("--data", required=True, help="GSM8K as JSONL: question, answer")
    parser.add_argument("--rows", type=int, default=512, help="annotated, and drawn from")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    asked = parser.parse_args()
    dtypes = asked.dtype or ["bfloat16", "float32"]
    with tempfile.TemporaryDirectory(prefix="limbeck-cache-steps-") as folder:
        work = Path(folder)
        data = rows_of(asked.data, asked.rows, work / "text.jsonl")
        steps = {dtype: of_steps(asked, data, dtype, work) for dtype in dtypes}
    heads = {dtype: of_heads(dtype, asked.rounds) for dtype in dtypes}
    asked_for = {"rows": asked.rows, "rounds": asked.rounds, "sequences": SEQUENCES, "loss_head": SHAPE}
    results = {"machine": machine(), "settings": asked_for, "steps": steps, "loss_head": heads}
    write_json(HERE / "results" / "cache_steps.json", results)
    write_text(HERE / "results" / "cache_steps.svg", figure(results))


if __name__ == "__main__":
    main()
