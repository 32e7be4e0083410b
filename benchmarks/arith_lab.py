"""What the experiments on arithmetic share: runs that are made once, means with intervals over seeds, FLOPs, and plots with axes.

FLOPs are counted as 2 x parameters for each token that a model reads or writes and 4 x parameters for each that it learns
from (the way back): a token of the student's own that a teacher scores costs 2 S to write, 2 S + 4 S to learn and 2 T to
score. Prompts are counted each time they are read.
"""

import argparse
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from arithmetic import CAST, SHORT, looked_at, opened, problems, prompt_tokens
from measure import COLOURS, machine

import limbeck as lb
from limbeck.files import read_json, read_jsonl, write_json, write_text
from limbeck.student import Student

RESULTS = Path(__file__).parent / "results"
TESTED = 250
"""Problems of the test."""
PASS = 8192
SEEDS = range(1, 6)
"""That are published. Settings were chosen with seed 0."""
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a two-sided 95 % interval, by the count of values."""

Figures = dict[str, Any]
Make = Callable[["Lab", str, int, Path], Figures]
"""Given an arm, a seed and an empty folder to work in, what was found."""


def test_set(size: int = SHORT) -> list[str]:
    """The problems of the test, the same for all."""
    return problems(TESTED, 1, "test", size)


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean over seeds; None of a single one."""
    if len(values) < 2:
        return None
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return [round(statistics.mean(values) - half, 4), round(statistics.mean(values) + half, 4)]


@dataclass(frozen=True)
class Lab:
    """One experiment: a folder below `work` with a JSON file for each arm and seed, and the cast of models beside it."""

    name: str
    work: Path
    roles: tuple[str, ...]

    def model(self, role: str) -> str:
        """Folder of one of the cast, trained where it is not there."""
        return CAST[role].made(self.work, role)

    def parameters(self, role: str) -> int:
        """How many weights it has."""
        return opened(self.model(role)).parameters_total

    def once(self, name: str, make: Callable[[], Figures]) -> Figures:
        """What stands in a file of this name, made where it is not there."""
        path = self.work / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, make())
        return read_json(path)

    def cast(self) -> Figures:
        """What the models of the cast are and can do before all."""
        return {role: self.once(f"cast/{role}", lambda role=role: self._looked_at(role)) for role in self.roles}

    def _looked_at(self, role: str) -> Figures:
        tested = test_set(CAST[role].operands)
        return {"parameters": self.parameters(role), "steps": CAST[role].steps, **looked_at(opened(self.model(role)), tested)}

    def run(self, arm: str, seed: int, make: Make) -> Figures:
        """One arm and seed, once; what it wrote on the way is dropped."""
        name = f"{self.name}/{arm}, {seed}".replace(" ", "-").replace(",", "").replace(":", "")
        folder = self.work / f"{name}-run"

        def fresh() -> Figures:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            began = time.monotonic()
            found = make(self, arm, seed, folder)
            shutil.rmtree(folder)
            return {"arm": arm, "seed": seed, **found, "seconds": round(time.monotonic() - began, 1)}

        return self.once(name, fresh)

    def finished(self, arms: Iterable[str]) -> dict[str, dict[str, Figures]]:
        """Figures by arm and seed, as far as they are there."""
        found = [read_json(path) for path in (self.work / self.name).glob("*.json")]
        by_arm = {arm: sorted((each for each in found if each["arm"] == arm), key=lambda each: each["seed"]) for arm in arms}
        left_out = ("arm", "seed")
        return {
            arm: {str(each["seed"]): {name: value for name, value in each.items() if name not in left_out} for each in some}
            for arm, some in by_arm.items() if some
        }  # fmt: skip


def summary(by_seed: Mapping[str, Figures]) -> Figures:
    """Means over seeds and their t intervals, of every figure that is a number."""
    first = next(iter(by_seed.values()))
    numbers = [name for name, value in first.items() if isinstance(value, int | float) and name != "seconds"]
    values = {name: [float(each[name]) for each in by_seed.values()] for name in numbers}
    return {"seeds": len(by_seed), **{name: {"mean": round(statistics.mean(some), 4), "interval": t_interval(some)} for name, some in values.items()}}


def difference(arms: Mapping[str, Mapping[str, Figures]], better: str, worse: str, figure: str = "accuracy") -> Figures:
    """How much better one arm is than another, seed by seed, with its t interval."""
    both = [seed for seed in arms.get(better, {}) if seed in arms.get(worse, {})]
    found = [arms[better][seed][figure] - arms[worse][seed][figure] for seed in both]
    return {"figure": figure, "seeds": len(found), "mean": round(statistics.mean(found), 4) if found else None, "interval": t_interval(found)}


def taught(recipe: lb.Recipe, out: Path) -> tuple[Student, Figures]:
    """Run a recipe; the student, and what it did to the held-out problems."""
    made = lb.distill(recipe, out)
    return made, looked_at(made.live, test_set())


def tokens_read(out: Path, sequences: int) -> list[int]:
    """Tokens of each step of a run, prompts of short problems among them. sequences: of a step."""
    return [row["tokens"] + sequences * prompt_tokens(SHORT) for row in read_jsonl(out / "metrics.jsonl") if "evaluation" not in row]


def looks(out: Path, figure: str) -> dict[int, float]:
    """A figure at the steps at which a run was looked at."""
    return {int(step): each["solved"][figure] for step, each in read_json(out / "evaluations.json").items()}


def mean_curve(by_seed: Mapping[str, Figures]) -> list["Point"]:
    """Means over seeds at each look but the first, with their intervals."""
    found = list[Point]()
    for points in zip(*(each["curve"][1:] for each in by_seed.values()), strict=True):
        rewards = [each["reward"] for each in points]
        mean = {"mean": statistics.mean(rewards), "interval": t_interval(rewards)}
        found.append(point(statistics.mean(each["gflops"] for each in points), mean))
    return found


def publish(name: str, figures: Figures) -> None:
    """Write an experiment's results."""
    write_json(RESULTS / f"{name}.json", {"machine": machine(), **figures})


def experiment(name: str, about: str | None, arms: Sequence[str], make: Make, told: Callable[[Lab, dict[str, dict[str, Figures]]], None],
               seeds: range = SEEDS, roles: tuple[str, ...] = ("strong", "weak", "student"), kind: type[Lab] = Lab) -> None:  # fmt: skip
    """The command line of an experiment: as many runs as there is time for, results written after each."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of models and runs, kept between calls and shared by the experiments")
    parser.add_argument("--minutes", type=float, default=20.0, help="no run begins after them")
    parser.add_argument("--seeds", type=int, default=len(seeds), help="of all, the first so many")
    parser.add_argument("--arm", action="append", choices=arms, help="of all, these")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    lab, began = kind(name, asked.work, roles), time.monotonic()
    lab.cast()
    for seed in seeds[: asked.seeds]:
        for arm in asked.arm or arms:
            if time.monotonic() - began > 60 * asked.minutes:
                print("no time for more: the same command goes on", flush=True)
                return told(lab, lab.finished(arms))
            found = lab.run(arm, seed, make)
            print(arm, seed, {key: value for key, value in found.items() if isinstance(value, float)}, flush=True)
        told(lab, lab.finished(arms))


# Plots: 700 units wide.

LEFT, RIGHT, TOP, TALL = 70, 470, 50, 300
Point = tuple[float, float, float, float]
"""x, y, and how far down and up it may be."""


def plot(series: Mapping[str, Sequence[Point]], x: str, y: str, title: str, log_x: bool = False, joined: bool = True) -> str:
    """An SVG of points with intervals, one colour for each series, joined by lines or not."""
    points = [point for some in series.values() for point in some]
    across = (lambda value: math.log10(value)) if log_x else (lambda value: value)
    x_low, x_high = _bounds([across(point[0]) for point in points])
    y_low, y_high = _bounds([bound for point in points for bound in point[1:]])

    def to_x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (across(value) - x_low) / (x_high - x_low)

    def to_y(value: float) -> float:
        return TOP + TALL * (y_high - value) / (y_high - y_low)

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {TOP + TALL + 50}" font-family="sans-serif" font-size="12">',
             f'<rect width="700" height="{TOP + TALL + 50}" fill="#ffffff"/>', f'<text x="10" y="22" font-size="15">{escape(title)}</text>',
             f'<path d="M{LEFT} {TOP}V{TOP + TALL}H{RIGHT}" fill="none" stroke="#5b616b"/>',
             f'<text x="{(LEFT + RIGHT) / 2}" y="{TOP + TALL + 40}" text-anchor="middle">{escape(x)}</text>',
             f'<text x="{LEFT}" y="{TOP - 10}" text-anchor="middle">{escape(y)}</text>']  # fmt: skip
    for value in _ticks(y_low, y_high):
        lines.append(f'<text x="{LEFT - 6}" y="{to_y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in [10**tick for tick in _ticks(x_low, x_high)] if log_x else _ticks(x_low, x_high):
        lines.append(f'<text x="{to_x(value):.1f}" y="{TOP + TALL + 18}" text-anchor="middle">{value:.2g}</text>')
    for place, (name, some) in enumerate(series.items()):
        colour = COLOURS[place % len(COLOURS)]
        if joined:
            line = " ".join(f"{to_x(each[0]):.1f},{to_y(each[1]):.1f}" for each in some)
            lines.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for each in some:
            here = to_x(each[0])
            lines.append(f'<path d="M{here:.1f} {to_y(each[2]):.1f}V{to_y(each[3]):.1f}" stroke="{colour}" stroke-width="1" opacity="0.6"/>')
            lines.append(f'<circle cx="{here:.1f}" cy="{to_y(each[1]):.1f}" r="3.5" fill="{colour}"/>')
        lines.append(f'<circle cx="{RIGHT + 20}" cy="{TOP + 20 * place}" r="5" fill="{colour}"/>')
        lines.append(f'<text x="{RIGHT + 32}" y="{TOP + 20 * place + 4}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>\n"])


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Least and most, with a margin."""
    margin = 0.05 * ((max(values) - min(values)) or 1.0)
    return min(values) - margin, max(values) + margin


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers between."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def draw(name: str, picture: str) -> None:
    """Write a plot."""
    write_text(RESULTS / f"{name}.svg", picture)


def point(x: float, mean: Figures) -> Point:
    """A mean over seeds as a point of a plot."""
    low, high = mean["interval"] or [mean["mean"]] * 2
    return (x, mean["mean"], max(0.0, low), min(1.0, high))
