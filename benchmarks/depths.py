"""Which layers stay: the most influential ones, or one in every so many (arXiv 2403.03853), at four depths of SmolLM2-135M-Instruct.

    python benchmarks/depths.py --work FOLDER    # half an hour of one core; what is in FOLDER is not made again

`limbeck shrink` leaves 24, 18, 12 or 6 of thirty layers, `--by influence` or `--by even`. Influence is measured on the answers that the
students then learn from, never on held-out text. Said of each: KL of the teacher to the student and perplexity on the teacher's answers to
other prompts, as cut, with 95 % intervals of the bootstrap over sequences, paired where two are compared; and after a short distillation by
forward KL, means over seeds with t intervals, compared seed by seed. Steps and learning rate are one pair of usual numbers for all, tuned on
nothing; a seed is another order of the rows, the same for both ways.
Published: by influence is better without training; with it, little is left of that.
Writes `benchmarks/results/depths.json` and `.svg`.
"""

import argparse
import math
import os
import statistics
from pathlib import Path
from typing import Any, Literal

import torch
from arith_lab import plot, t_interval
from layers import once, parted
from measure import machine

import limbeck as lb
from limbeck.batch import Batch
from limbeck.evaluate.likelihood import interval
from limbeck.files import write_json, write_text
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.objective import CrossEntropy, Objective
from limbeck.quickstart import converted, packaged_teacher
from limbeck.shrink import Shape, shrink
from limbeck.sources import texts_of

RESULTS = Path(__file__).parent / "results"
Way = Literal["influence", "even"]
WAYS: tuple[Way, Way] = ("influence", "even")
DEPTHS, WHOLE, SEEDS = (24, 18, 12, 6), 30, (1, 2, 3)
STEPS, SEQUENCES, TOKENS, RATE = 20, 4, 96, 3e-4
READ = 256
"""Tokens of a sequence that a student is measured on."""
Sums = dict[str, list[float]]
"""Of every sequence: tokens, nats of KL(teacher || student), nats of the text."""


def of_sequences(student: str, teacher: str, text: str) -> Sums:
    """What a student is worth on each sequence."""
    who, scorer = recipe(student, teacher, text).open_pair()
    batch, found = Batch.of(texts_of(text, who.live.vocabulary, READ, 64), "teacher"), list[tuple[float, ...]]()
    cuts = batch.cuts(2048)
    parts = [batch.select(cut) for cut in cuts]
    places = [place for cut in cuts for place in cut]
    for part, said in zip(parts, scorer.score(parts), strict=True):
        nats = who.measure(part, said, Objective([lb.ForwardKL(), CrossEntropy()]))
        columns = [torch.bincount(part.sequence_N, weights=each_N.double(), minlength=len(part)).tolist()
                   for each_N in (torch.ones(len(part.places_N)), nats["ForwardKL"], nats["CrossEntropy"])]  # fmt: skip
        found += zip(*columns, strict=True)
    ordered = [each for _, each in sorted(zip(places, found, strict=True))]
    return {name: [each[place] for each in ordered] for place, name in enumerate(("tokens", "kl_nats", "ce_nats"))}


def recipe(student: str, teacher: str, text: str, seed: int = 0) -> lb.Recipe:
    """A short distillation by forward KL."""
    source = lb.Corpus(text, sequences=SEQUENCES, max_tokens=TOKENS, written_by="teacher")
    learns = lb.Student(student, lb.AdamW(RATE), dtype="float32")
    return lb.Recipe(learns, source, lb.Local(teacher), lb.ForwardKL(), steps=STEPS, seed=seed, save_every=None)


def mean(sums: Sums, figure: str) -> float:
    """Nats a token."""
    return sum(sums[figure]) / sum(sums["tokens"])


def lower_by(one: Sums, other: Sums, figure: str) -> dict[str, Any]:
    """How much lower the first is, nats a token; bootstrap over sequences, both on the same ones."""
    differences = [theirs - mine for mine, theirs in zip(one[figure], other[figure], strict=True)]
    return {"mean": round(sum(differences) / sum(one["tokens"]), 4), "interval": rounded(interval(differences, one["tokens"]))}


def rounded(values: list[float]) -> list[float]:
    """As they are written down."""
    return [round(value, 4) for value in values]


def as_cut(sums: Sums) -> dict[str, Any]:
    """Figures before any training."""
    ce = interval(sums["ce_nats"], sums["tokens"])
    return {"kl_nats": round(mean(sums, "kl_nats"), 4), "interval": rounded(interval(sums["kl_nats"], sums["tokens"])),
            "perplexity": float(f"{math.exp(mean(sums, 'ce_nats')):.4g}"),
            "perplexity_interval": [float(f"{math.exp(bound):.4g}") for bound in ce]}  # fmt: skip


def after(several: list[Sums]) -> dict[str, Any]:
    """Figures after training, over seeds."""
    kl, ce = ([mean(each, figure) for each in several] for figure in ("kl_nats", "ce_nats"))
    bounds = t_interval(ce)
    assert bounds
    return {"kl_nats": round(statistics.mean(kl), 4), "interval": t_interval(kl), "by_seed": rounded(kl),
            "perplexity": float(f"{math.exp(statistics.mean(ce)):.4g}"),
            "perplexity_interval": [float(f"{math.exp(bound):.4g}") for bound in bounds]}  # fmt: skip


def seed_by_seed(one: list[Sums], other: list[Sums], figure: str) -> dict[str, Any]:
    """How much lower the first is with the same seed."""
    found = [mean(theirs, figure) - mean(mine, figure) for mine, theirs in zip(one, other, strict=True)]
    return {"mean": round(statistics.mean(found), 4), "interval": t_interval(found)}


class Bench:
    """Text, students and what was found of them, below one folder."""

    def __init__(self, work: Path) -> None:
        self.work, self.teacher = work, str(converted(packaged_teacher()))
        self.data = parted(work, self.teacher)

    def cut(self, depth: int, way: Way) -> str:
        """A student of so many layers, made where it is not there."""
        folder = self.work / f"{way}-{depth}"
        if not folder.exists():
            shrink(self.teacher, Shape(layers=depth, by=way), folder, self.data["learn"])
        return str(folder)

    def before(self, depth: int, way: Way) -> Sums:
        """On held-out text, as cut."""
        name = self.work / "depths" / f"{way}-{depth}-cut.json"
        return once(name, lambda: of_sequences(self.cut(depth, way), self.teacher, self.data["held-out"]))

    def after(self, depth: int, way: Way, seed: int) -> Sums:
        """On held-out text, once it has learnt."""
        name = f"{way}-{depth}-{seed}"

        def learnt() -> Sums:
            out = self.work / "runs" / name
            if not (out / "student").exists():
                lb.distill(recipe(self.cut(depth, way), self.teacher, self.data["learn"], seed), out)
            return of_sequences(str(out / "student"), self.teacher, self.data["held-out"])

        found = once(self.work / "depths" / f"{name}.json", learnt)
        print(name, round(mean(found, "kl_nats"), 4), flush=True)
        return found

    def kept(self, depth: int, way: Way) -> list[int]:
        """Which layers a student has, found by their weights."""
        whole, some = (open_model(name, Opening("float32")).causal.get_decoder().layers for name in (self.teacher, self.cut(depth, way)))
        weights = [layer.mlp.up_proj.weight for layer in whole]
        return [next(place for place, each in enumerate(weights) if torch.equal(each, layer.mlp.up_proj.weight)) for layer in some]


def main() -> None:
    """Cut, measure, learn, measure again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of text and runs; what is there is not made again")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    bench, depths = Bench(parser.parse_args().work), dict[str, Any]()
    cuts = {depth: {way: bench.before(depth, way) for way in WAYS} for depth in DEPTHS}
    for depth, cut in cuts.items():
        taught = {way: [bench.after(depth, way, seed) for seed in SEEDS] for way in WAYS}
        depths[str(depth)] = {
            "kept": {way: bench.kept(depth, way) for way in WAYS},
            "as_cut": {way: as_cut(cut[way]) for way in WAYS},
            "taught": {way: after(taught[way]) for way in WAYS},
            "influence_lower_by": {
                "as_cut": {figure: lower_by(*cut.values(), figure) for figure in ("kl_nats", "ce_nats")},
                "taught": {figure: seed_by_seed(*taught.values(), figure) for figure in ("kl_nats", "ce_nats")},
            },
        }
        publish(depths, cut["even"])


def publish(depths: dict[str, Any], sums: Sums) -> None:
    """What is known so far."""
    settings = {"teacher_layers": WHOLE, "steps": STEPS, "sequences": SEQUENCES, "max_tokens": TOKENS, "learning_rate": RATE, "seeds": list(SEEDS),
                "held_out_sequences": len(sums["tokens"]), "held_out_tokens": int(sum(sums["tokens"]))}  # fmt: skip
    write_json(RESULTS / "depths.json", {"machine": machine(), "settings": settings, "depths": depths})
    lines = {f"{way}, {what}": [(float(depth), each[key][way]["kl_nats"], *each[key][way]["interval"]) for depth, each in depths.items()]
             for key, what in (("as_cut", "as cut"), ("taught", f"after {STEPS} steps")) for way in WAYS}  # fmt: skip
    title = f"KL of SmolLM2 to students of some of its {WHOLE} layers"
    write_text(RESULTS / "depths.svg", plot(lines, "layers that stay", "nats a token, held out", title))


if __name__ == "__main__":
    main()
