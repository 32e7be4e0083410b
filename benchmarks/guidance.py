"""Guidance in one pass: a student that learnt from a guided teacher, against the teacher without guidance.

    python benchmarks/guidance.py [--seeds 2]

Claimed: on held-out prompts the student, which makes one pass for each token, is nearer to the guided teacher, which makes two,
than the same teacher without guidance is: KL(guided || unguided) - KL(guided || student) > 0, in nats a token, and so is the whole of
its interval (paired bootstrap over sequences: both are measured on the same). The student starts as a copy of the teacher. Twice:
SmolLM2-135M on its own answers to prompts, and toys of two layers that learnt to repeat the colour of their prompt six times
in ten.

Writes `benchmarks/results/guidance.json` and `.svg`. About eight minutes of one core.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import bars, machine

import limbeck as lb
from limbeck.batch import Batch
from limbeck.data import Data
from limbeck.decoding import write
from limbeck.evaluate.statistics import interval
from limbeck.files import write_json, write_jsonl, write_text
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.quickstart import HELDOUT, PROMPTS, converted, packaged_teacher
from limbeck.sources import texts_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import toys  # noqa: E402

SCALE, TOY_SCALE = 1.5, 2.0
WRITTEN, TRAINED, HELD, STEPS, TOY_STEPS = 24, 160, 35, 40, 60
COLOURS = ("red", "blue", "pink", "grey")


def answers(teacher: str, prompts: Path, count: int, seed: int, out: Path) -> str:
    """The teacher's own answers, without guidance, to so many prompts of a file, evenly spaced."""
    model, data = open_model(teacher, Opening()), Data(str(prompts))
    rows = data.rows()
    ids = [model.vocabulary.prompt(rows[n * len(rows) // count], data) for n in range(count)]
    written = write(model, ids, lb.Sampling(max_tokens=WRITTEN), seed, 0, range(count))
    write_jsonl(out, [{"prompt_ids": prompt, "completion_ids": new.tokens} for prompt, new in zip(ids, written, strict=True)])
    return str(out)


def nats(model: str, teacher: lb.Guided, held: str, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """KL from the guided teacher to a model, summed over each held-out sequence, and the tokens of each."""
    student = lb.Student(model, **more).load(1)
    live, texts = teacher.load(student), texts_of(held, student.live.vocabulary, 1024, 10**6)
    sums, counts, batch = np.zeros(len(texts)), np.zeros(len(texts)), Batch.of(texts, "corpus")
    for cut in batch.cuts(1024):
        part = batch.select(cut)
        found = student.measure(part, live.about(part), lb.Objective([lb.ForwardKL()]))["ForwardKL"].double()
        sums[cut] = torch.bincount(part.sequence_N, weights=found, minlength=len(part))
        counts[cut] = torch.bincount(part.sequence_N, minlength=len(part))
    return sums, counts


def mean(sums: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Nats a token, with its interval over sequences."""
    return {"kl_nats": float(sums.sum() / counts.sum()), "kl_nats_interval": interval(sums.tolist(), counts.tolist())}


def guided(teacher: str, train: str, held: str, scale: float, seed: int, steps: int, rate: float, out: Path, **more: Any) -> dict[str, Any]:
    """A copy of the teacher learns from it guided; KL from the guided teacher of both, on held-out text, and their difference."""
    student, source = lb.Student(teacher, lb.AdamW(rate), **more), lb.Corpus(train, sequences=8)
    scorer = lb.Guided(lb.Local(teacher, **more), scale)
    lb.distill(lb.Recipe(student, source, scorer, lb.Objective([lb.ForwardKL()]), steps=steps, seed=seed), out)
    (unguided, counts), (learnt, _) = (nats(model, scorer, held, **more) for model in (teacher, str(out / "student")))
    return {"unguided": mean(unguided, counts), "student": mean(learnt, counts), "nearer by": mean(unguided - learnt, counts)}


def colours(count: int, seed: int, out: Path) -> str:
    """Rows that repeat the colour of their prompt, each word with probability 0.6."""
    draw = random.Random(seed)
    rows = list[dict[str, str]]()
    for _ in range(count):
        own = draw.choice(COLOURS)
        rows.append({"prompt": own, "completion": " ".join(own if draw.random() < 0.6 else draw.choice(COLOURS) for _ in range(4))})
    return toys.jsonl(out, rows)


def toy(seed: int, work: Path) -> dict[str, Any]:
    """The same of a toy that was taught to listen to its prompt."""
    train, held = colours(400, 2 * seed, work / "train.jsonl"), colours(100, 2 * seed + 1, work / "held.jsonl")
    fresh = toys.folder(work / "fresh", seed=seed, sharp=2.0, width=64)
    taught = lb.Recipe(lb.Student(fresh, lb.AdamW(5e-3), dtype="float32"), lb.Corpus(train, sequences=16), steps=100, seed=seed)
    lb.distill(taught, work / "taught")
    return guided(str(work / "taught" / "student"), train, held, TOY_SCALE, seed, TOY_STEPS, 1e-3, work / "guided", dtype="float32")


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    seeds = range(parser.parse_args().seeds)
    teacher = str(converted(packaged_teacher()))
    found: dict[str, Any] = {"toy": {"scale": TOY_SCALE, "steps": TOY_STEPS}, "SmolLM2-135M": {"scale": SCALE, "steps": STEPS}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for seed in range(3):
            (work / f"toy-{seed}").mkdir()
            found["toy"][f"seed {seed}"] = toy(seed, work / f"toy-{seed}")
        train, held = answers(teacher, PROMPTS, TRAINED, 0, work / "train.jsonl"), answers(teacher, HELDOUT, HELD, 1, work / "held.jsonl")
        for seed in seeds:
            found["SmolLM2-135M"][f"seed {seed}"] = guided(teacher, train, held, SCALE, seed, STEPS, 1e-4, work / f"smol-{seed}")
    found["machine"] = machine()
    write_json(HERE / "results" / "guidance.json", found)
    groups = {
        f"{what}, {name}": {who: by[who]["kl_nats"] for who in ("unguided", "student")}
        for what in ("SmolLM2-135M", "toy")
        for name, by in found[what].items()
        if name.startswith("seed")
    }
    write_text(HERE / "results" / "guidance.svg", bars(groups, "nats", "KL from the guided teacher, on held-out text, in nats a token"))


if __name__ == "__main__":
    main()
