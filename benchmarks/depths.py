"""Which layers stay: the most influential ones, or one in every so many (arXiv 2403.03853), at four depths of SmolLM2-135M-Instruct.

    python benchmarks/depths.py --work FOLDER    # ten minutes of one core; what is in FOLDER is not made again

`limbeck shrink` leaves 24, 18, 12 or 6 of thirty layers, `--by influence` or `--by even`. Influence is measured on the answers that the
students then learn from, never on held-out text. Said of each: KL of the teacher to the student and perplexity on the teacher's answers to
other prompts, as cut, with 95 % intervals of the bootstrap over sequences, paired where two are compared; and, of 12 and 6 layers, after a
short distillation by forward KL, means over seeds with t intervals, compared seed by seed. Steps and learning rate are one pair of usual
numbers for all, tuned on nothing; a seed is another order of the rows, the same for both ways.
Hoped for: a KL by influence that is lower, the whole of the interval of the difference above 0.
Writes `benchmarks/results/depths.json` and `.svg`.
"""

import argparse
import copy
import math
import os
import statistics
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
from arith_lab import plot, t_interval
from layers import once, parted
from measure import machine

import limbeck as lb
from limbeck import prune
from limbeck.batch import Batch
from limbeck.evaluate.likelihood import interval
from limbeck.files import new_folder, write_json, write_text
from limbeck.licences import of_model, record
from limbeck.loss import Outputs, measure
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.objective import CrossEntropy, Objective
from limbeck.quickstart import converted, packaged_teacher
from limbeck.shrink import LONGEST, LOOKED_AT, PASS
from limbeck.sources import texts_of
from limbeck.targets import Dense

RESULTS = Path(__file__).parent / "results"
Way = Literal["influence", "even"]
WAYS: tuple[Way, Way] = ("influence", "even")
DEPTHS, TAUGHT, WHOLE, SEEDS = (24, 18, 12, 6), (12, 6), 30, (1, 2, 3)
STEPS, SEQUENCES, TOKENS, RATE = 20, 4, 96, 3e-4
FIGURES = ("kl_nats", "ce_nats")
READ = 128
"""Tokens of a sequence that a student is measured on."""
Sums = dict[str, list[float]]
"""Of every sequence: tokens, nats of KL(teacher || student), nats of the text."""


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
    """Text, the teacher and its cuts, and what was found of them, below one folder."""

    def __init__(self, work: Path) -> None:
        self.work, self.teacher = work, str(converted(packaged_teacher()))
        self.data = parted(work, self.teacher)
        self.whole = open_model(self.teacher, Opening("float32"))
        held = Batch.of(texts_of(self.data["held-out"], self.whole.vocabulary, READ, 64), "teacher")
        self.places = held.cuts(2048)
        self.parts = [held.select(cut) for cut in self.places]
        self.said = [Dense(each.hidden_ND, each.head, "whole") for each in map(self.read, repeat(self.whole), self.parts)]

    @staticmethod
    @torch.no_grad()
    def read(model: Model, part: Batch) -> Outputs:
        """A pass."""
        return model.forward(part)

    def of_sequences(self, model: Model) -> Sums:
        """What a student is worth on each held-out sequence."""
        found = dict[int, tuple[float, ...]]()
        for places, part, said in zip(self.places, self.parts, self.said, strict=True):
            nats = measure(self.read(model, part), said, part, Objective([lb.ForwardKL(), CrossEntropy()]))
            columns = [torch.bincount(part.sequence_N, weights=each_N.double(), minlength=len(part)).tolist()
                       for each_N in (torch.ones(len(part.places_N)), nats["ForwardKL"], nats["CrossEntropy"])]  # fmt: skip
            found |= dict(zip(places, zip(*columns, strict=True), strict=True))
        return {name: [found[place][n] for place in sorted(found)] for n, name in enumerate(("tokens", "kl_nats", "ce_nats"))}

    @cached_property
    def influence(self) -> list[float]:
        """Of each layer, on what students learn from: as `limbeck shrink --data` measures it."""

        def found() -> dict[str, Any]:
            texts = texts_of(self.data["learn"], self.whole.vocabulary, LONGEST, LOOKED_AT)
            return {"by_layer": rounded(prune.influence(self.whole, Batch.of(texts, "teacher").split(PASS)).tolist())}

        return once(self.work / "depths" / "influence.json", found)["by_layer"]

    def kept(self, depth: int, way: Way) -> list[int]:
        """Which layers stay."""
        return prune.evenly(WHOLE, depth) if way == "even" else prune.least_influential(torch.tensor(self.influence), depth)

    def cut(self, depth: int, way: Way) -> Model:
        """The student, open."""
        made = copy.copy(self.whole)
        made.module = copy.deepcopy(self.whole.module)
        prune.by_depth(made, self.kept(depth, way))
        return made

    def folder(self, depth: int, way: Way) -> str:
        """The student as a folder, made where it is not there."""
        folder = self.work / "cuts" / f"{way}-{depth}"
        if not folder.exists():
            with new_folder(folder) as made:
                prune.save(self.cut(depth, way), made)
                record(made, of_model(self.teacher))
        return str(folder)

    def before(self, depth: int, way: Way) -> Sums:
        """On held-out text, as cut."""
        found = once(self.work / "depths" / f"{way}-{depth}-cut.json", lambda: self.of_sequences(self.cut(depth, way)))
        print(way, depth, as_cut(found), flush=True)
        return found

    def after(self, depth: int, way: Way, seed: int) -> Sums:
        """On held-out text, once it has learnt."""
        name = f"{way}-{depth}-{seed}"

        def learnt() -> Sums:
            out = self.work / "runs" / name
            if not (out / "student").exists():
                lb.distill(recipe(self.folder(depth, way), self.teacher, self.data["learn"], seed), out)
            return self.of_sequences(open_model(str(out / "student"), Opening("float32")))

        found = once(self.work / "depths" / f"{name}.json", learnt)
        print(name, round(mean(found, "kl_nats"), 4), flush=True)
        return found


def main() -> None:
    """Cut, measure, learn, measure again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of text and runs; what is there is not made again")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    bench, depths = Bench(parser.parse_args().work), dict[str, Any]()
    cuts = {depth: {way: bench.before(depth, way) for way in WAYS} for depth in DEPTHS}
    for depth, cut in cuts.items():
        depths[str(depth)] = {"kept": {way: bench.kept(depth, way) for way in WAYS}, "as_cut": {way: as_cut(cut[way]) for way in WAYS},
                              "influence_lower_by": {"as_cut": {figure: lower_by(*cut.values(), figure) for figure in FIGURES}}}  # fmt: skip
    publish(depths, bench)
    for depth in TAUGHT:
        taught = {way: [bench.after(depth, way, seed) for seed in SEEDS] for way in WAYS}
        depths[str(depth)]["taught"] = {way: after(taught[way]) for way in WAYS}
        depths[str(depth)]["influence_lower_by"]["taught"] = {figure: seed_by_seed(*taught.values(), figure) for figure in FIGURES}
        publish(depths, bench)


def publish(depths: dict[str, Any], bench: Bench) -> None:
    """What is known so far."""
    tokens = [len(part.tokens_N) for part in bench.parts]
    settings = {"teacher_layers": WHOLE, "steps": STEPS, "sequences": SEQUENCES, "max_tokens": TOKENS, "learning_rate": RATE, "seeds": list(SEEDS),
                "held_out_sequences": sum(map(len, bench.parts)), "held_out_tokens": sum(tokens)}  # fmt: skip
    write_json(RESULTS / "depths.json", {"machine": machine(), "settings": settings, "influence": bench.influence, "depths": depths})
    lines = {f"{way}, {what}": [(float(depth), each[key][way]["kl_nats"], *each[key][way]["interval"])
                                for depth, each in depths.items() if key in each]
             for key, what in (("as_cut", "as cut"), ("taught", f"after {STEPS} steps")) for way in WAYS}  # fmt: skip
    drawn = {name: line for name, line in lines.items() if line}
    title = f"KL of SmolLM2 to students of some of its {WHOLE} layers"
    write_text(RESULTS / "depths.svg", plot(drawn, "layers that stay", "nats a token, held out", title))


if __name__ == "__main__":
    main()
