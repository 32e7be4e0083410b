"""A textbook's five exercises at a size that runs on one core, on docstrings of Python's standard library (exercises_text.py).

    python benchmarks/exercises.py --work FOLDER

Each is a pipeline, as docs/exercises.md has it for models of real size. A student has a layer of width 64; a teacher two of 128.
1 logits: the student from nothing by the text, and by the strong teacher; the same after it has learnt source code; all as many steps.
2 synthetic: after source code, docstrings of people, as many of the strong teacher's own, half of each, and both together.
3 temperature: from nothing, by a confident teacher and by an uncertain one, at several temperatures of the loss.
4 generations: three of self-distillation, beside the first again in another order of the text, and twice as long.
5 gap: a tiny student (a layer of width 32) by the strong teacher, by an assistant's hand, and by the text alone; the first and the
last also for as many steps as the two of the assistant's way.
A seed is another start, another order of the text, and other text of the teacher's own; the teachers stay the same. Seed 0 was for
settings, and sees development modules alone. Writes `exercises.json` and a plot of each.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from platform import python_version
from typing import Any

from arith_lab import Figures, Lab, Point, difference, draw, experiment, plot, publish, summary
from arithmetic import opened
from exercises_cast import CAST, LOOKED_AT, SEQUENCES, TextLab, learner, recipe
from exercises_text import Size, code, human, looked_at, windows, write_rows, written

import limbeck as lb

STEPS, LEARNING_RATE = 150, 1.2e-2
OWN, TINY = Size(1, 64, spread=0.1), Size(1, 32, spread=0.1)
TEMPERATURES = (1, 2, 4, 10, 20)
GENERATIONS = 3
WRITTEN = 800
"""Windows of a person's and of the teacher's text in the second exercise."""


def text(folder: Path) -> str:
    """All docstrings to learn from."""
    return write_rows(folder / "human" / "text.jsonl", human("learning"))


def taught_by(model: str) -> lb.Local:
    """A model as the teacher, by its folder or as an earlier stage."""
    return lb.Local(model, dtype="float32")


def on_code(folder: Path, seed: int, start: str) -> lb.Recipe:
    """The student learns source code."""
    some = write_rows(folder / "code" / "text.jsonl", windows(code())[: STEPS * SEQUENCES])
    return recipe(learner(start, LEARNING_RATE), some, lb.Silent(), STEPS, seed)


def on_text(data: Any, seed: int) -> Callable[..., lb.Recipe]:
    """What makes a stage of a student, a teacher, and how many times the steps."""

    def stage(model: str, teacher: lb.Teacher, times: int = 1) -> lb.Recipe:
        return recipe(learner(model, LEARNING_RATE), data, teacher, times * STEPS, seed)

    return stage


def logits(lab: Lab, seed: int, folder: Path) -> lb.Pipeline:
    """Scratch, fine-tuned, distilled."""
    start, human_text, strong = OWN.folder(folder / "start", seed), text(folder), taught_by(lab.model("strong"))

    stage = on_text(human_text, seed)
    return lb.Pipeline(
        {
            "scratch": stage(start, lb.Silent()),
            "scratch-twice": stage(start, lb.Silent(), 2),
            "distilled": stage(start, strong),
            "code": on_code(folder, seed, start),
            "fine-tuned": stage("@code", lb.Silent()),
            "code-distilled": stage("@code", strong),
        }
    )


def synthetic(lab: Lab, seed: int, folder: Path) -> lb.Pipeline:
    """Text of people, of the teacher, of both."""
    start, all_human = OWN.folder(folder / "start", seed), human("learning")
    first = seed * WRITTEN % (len(all_human) - WRITTEN)
    pools = {"human": all_human[first : first + WRITTEN], "own": written(opened(lab.model("strong")), WRITTEN, seed)}
    theirs, own = (lb.Data(write_rows(folder / name / "text.jsonl", some)) for name, some in pools.items())
    half = [lb.Data(write_rows(folder / f"half-{name}" / "text.jsonl", some[: WRITTEN // 2])) for name, some in pools.items()]

    def stage(data: list[lb.Data]) -> lb.Recipe:
        return recipe(learner("@code", LEARNING_RATE), data, lb.Silent(), STEPS, seed)

    return lb.Pipeline(
        {
            "code": on_code(folder, seed, start),
            "human": stage([theirs]),
            "synthetic": stage([own]),
            "half": stage(half),
            "both": stage([theirs, own]),
        }
    )


def temperature(lab: Lab, seed: int, folder: Path) -> lb.Pipeline:
    """The same student, by two teachers at several temperatures."""
    start, human_text = OWN.folder(folder / "start", seed), text(folder)
    return lb.Pipeline(
        {
            f"{role}-{each}": recipe(learner(start, LEARNING_RATE), human_text, taught_by(lab.model(role)), STEPS, seed, each)
            for role in ("confident", "uncertain") for each in TEMPERATURES
        }
    )  # fmt: skip


def generations(lab: Lab, seed: int, folder: Path) -> lb.Pipeline:
    """A student by the text, and those that follow it."""
    start, human_text = OWN.folder(folder / "start", seed), text(folder)
    own = learner(start, LEARNING_RATE)
    born = recipe(own, human_text, taught_by("@generation-0"), STEPS, seed + 100)
    return lb.Pipeline(
        {
            "generation-0": recipe(own, human_text, lb.Silent(), STEPS, seed),
            **lb.Generations(GENERATIONS).stages(born),
            "again": recipe(own, human_text, lb.Silent(), STEPS, seed + 100),
            "twice": recipe(own, human_text, lb.Silent(), 2 * STEPS, seed),
        }
    )


def gap(lab: Lab, seed: int, folder: Path) -> lb.Pipeline:
    """A tiny student in one step, in two, and without a teacher."""
    tiny, middle = TINY.folder(folder / "tiny", seed), OWN.folder(folder / "middle", seed + 1000)
    human_text, strong = text(folder), taught_by(lab.model("strong"))

    stage = on_text(human_text, seed)
    return lb.Pipeline(
        {
            "text": stage(tiny, lb.Silent()),
            "text-twice": stage(tiny, lb.Silent(), 2),
            "one-step": stage(tiny, strong),
            "one-step-twice": stage(tiny, strong, 2),
            "assistant": stage(middle, strong),
            "by-assistant": stage(tiny, taught_by("@assistant")),
        }
    )


PIPELINES = {"1": logits, "4": generations, "5": gap, "2": synthetic, "3": temperature}
PAIRS = {
    "1": [("distilled", "scratch"), ("fine-tuned", "scratch"), ("distilled", "fine-tuned"), ("code-distilled", "fine-tuned"),
          ("distilled", "scratch-twice"), ("fine-tuned", "scratch-twice"), ("code-distilled", "distilled")],
    "2": [("synthetic", "human"), ("half", "human"), ("both", "human"), ("human", "code"), ("synthetic", "code")],
    "3": [(f"{role}-{each}", f"{role}-1") for role in ("confident", "uncertain") for each in TEMPERATURES[1:]],
    "4": [("generation-1", "generation-0"), ("generation-2", "generation-1"), ("generation-3", "generation-2"), ("again", "generation-0"),
          ("generation-3", "again"), ("generation-3", "twice")],
    "5": [("one-step", "text"), ("by-assistant", "text"), ("by-assistant", "one-step"), ("by-assistant", "one-step-twice"),
          ("by-assistant", "text-twice"), ("one-step-twice", "text-twice"), ("assistant", "one-step")],
}  # fmt: skip
"""Which stages are compared: a difference below zero says that the first is the better one."""


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """An exercise of one seed: the figures of each stage's student."""
    pipeline = PIPELINES[arm](lab, seed, folder)
    lb.distill_stages(pipeline, folder / "run")
    part = "development" if seed == 0 else "test"
    return {"stages": {name: looked_at(opened(folder / "run" / name / "student"), part) for name in pipeline.stages}}


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    settings = {"steps": STEPS, "sequences": SEQUENCES, "learning_rate": LEARNING_RATE, "temperatures": TEMPERATURES, "written": WRITTEN,
                "own": vars(OWN), "tiny": vars(TINY), "windows": {part: len(human(part)) for part in ("learning", "development", "test")},
                "described_on": LOOKED_AT, "python": python_version()}  # fmt: skip
    found = {arm: _exercise(arm, by_seed) for arm, by_seed in sorted(arms.items())}
    publish("exercises", {"settings": settings, "cast": lab.cast(), "exercises": found})
    for arm, each in found.items():
        draw(f"exercises_{arm}", plot(_series(arm, each["summary"]), *LABELS[arm], joined=arm in ("3", "4"), log_x=arm == "3"))


def _exercise(arm: str, by_seed: Mapping[str, Figures]) -> Figures:
    """Means and paired differences of its stages, and the perplexities of each seed."""
    names = list(next(iter(by_seed.values()))["stages"])
    stages = {name: {seed: each["stages"][name] for seed, each in by_seed.items()} for name in names}
    differences = [{"of": better, "less": worse, **difference(stages, better, worse, "perplexity"),
                    "bits_per_byte": difference(stages, better, worse, "bits_per_byte")} for better, worse in PAIRS[arm]]  # fmt: skip
    return {"summary": {name: summary(each) for name, each in stages.items()}, "differences": differences,
            "perplexities": {name: {seed: each["perplexity"] for seed, each in some.items()} for name, some in stages.items()}}  # fmt: skip


LABELS = {
    "1": ("", "perplexity", "A student of one layer, by how it learnt"),
    "2": ("", "perplexity", "Fine-tuned on text of people and of the teacher"),
    "3": ("temperature of the loss", "perplexity", "Temperature and the student's perplexity"),
    "4": ("generation", "perplexity", "Generations of self-distillation"),
    "5": ("", "perplexity", "A tiny student, by how it learnt"),
}
"""Of the axes, and the title."""


def _series(arm: str, means: Mapping[str, Figures]) -> dict[str, list[Point]]:
    """What is drawn: lines over temperatures or generations, else a point for each way to learn."""
    if arm == "3":
        return {role: [_point(each, means[f"{role}-{each}"]) for each in TEMPERATURES] for role in ("confident", "uncertain")}
    if arm == "4":
        lines = {"generations": [_point(n, means[f"generation-{n}"]) for n in range(GENERATIONS + 1)]}
        return {**lines, "another order": [_point(0, means["again"])], "twice as long": [_point(0, means["twice"])]}
    shown = [name for name in means if name not in ("code", "assistant")]
    return {name: [_point(place, means[name])] for place, name in enumerate(shown)}


def _point(x: float, mean: Figures) -> Point:
    low, high = mean["perplexity"]["interval"] or [mean["perplexity"]["mean"]] * 2
    return (x, mean["perplexity"]["mean"], low, high)


if __name__ == "__main__":
    experiment("exercises", __doc__, list(PIPELINES), make, told, roles=tuple(CAST), kind=TextLab)
