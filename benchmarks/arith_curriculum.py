"""Curricula beside the same rows shuffled, on additions of four sizes (arXiv 1903.09848).

    python benchmarks/arith_curriculum.py --work FOLDER

A student of 94,000 weights learns from nothing: right answers to problems of 4, 6, 8 and 10 digits, as many of each, and beside them the
distributions of a teacher who was taught such a mixture (forward KL). The rows, the start, the rows of a step and the learning rate are the
same; what differs is which rows come when: shuffled; easy to hard by length, by how unsure the teacher is, by a column (the sum, as large
sums are the rarest tokens); or sizes in proportion to what the student still lacks. Short rows have fewer tokens: equal steps are fewer
tokens where they come first, so that "length, as many tokens" goes on until it has learnt from as many as the shuffled run; the tokens
of all stand beside them. Reward (share of draws at temperature 1 whose sum is right) and greedy accuracy are looked at halfway and at
the end, by size, on problems that nobody learnt from; their mean over sizes is the figure. Learning rate and pace were chosen by
`arith_curriculum_grid.py`, with seed 0 on development problems; the arms called longer are as long as the runs there. A seed is other rows,
another start and another order.
Hoped for: easy to hard is above shuffled, the whole of the interval. Writes `arith_curriculum.json` and `.svg`.
"""

import random
import statistics
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, looks, plot, point, publish, summary
from arithmetic import Row, Size, operands, problems, reward, sample, solution, student, write_rows

import limbeck as lb
from limbeck.evaluate import Evaluation
from limbeck.files import read_jsonl
from limbeck.sources import Share
from limbeck.student import Student
from limbeck.teachers import Teacher

SIZES, OWN = (4, 6, 8, 10), Size(2, 64)
LOOKS = ("the middle", "the end")
SHUFFLED, MORE = "shuffled", "length, as many tokens"


@dataclass(frozen=True)
class Setting:
    """How all learn; pace: of the steps, after which share of them a curriculum has reached all rows; start: the share of rows it begins with."""

    learning_rate: float = 6e-3
    pace: float = 1.0
    start: float = 0.1
    steps: int = 400
    rows: int = 4000
    sequences: int = 32
    every: int = 50


SETTING = Setting()
LONGER = Setting(steps=800, rows=8000, sequences=64)
"""As long as the runs by which settings were chosen; dearer, and so of two orders alone."""
CURRICULA: dict[str, dict[str, Any]] = {
    "length": {"by": "length"},
    MORE: {"by": "length"},
    "teacher_entropy": {"by": "teacher_entropy"},
    "column: the sum": {"by": "sum"},
    "student_gap": {"by": "student_gap", "column": "size"},
}
LONG = ", longer"
ARMS = [SHUFFLED, *CURRICULA, f"{SHUFFLED}{LONG}", f"length{LONG}"]


def mixed(count: int, seed: int) -> list[Row]:
    """Problems of all sizes, as many of each, with right answers."""
    by = random.Random(seed)
    asked = [problem for size in SIZES for problem in problems(count // len(SIZES), seed, size=size)]
    return [{"prompt": each, "completion": solution(each, by), "size": len(operands(each)), "sum": sum(operands(each))} for each in asked]


@lb.part
class BySize(Evaluation):
    """Reward and greedy accuracy on held-out problems of each size, and their means over sizes."""

    rows: int = 100
    part: str = "test"
    name: str = "solved"

    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """Ask the student."""
        found = dict[str, float]()
        for size in SIZES:
            asked = problems(self.rows, 1, self.part, size)
            for figure, texts in (("reward", sample(student.live, asked, each=4)[0]), ("accuracy", sample(student.live, asked, temperature=0)[0])):
                right = [reward(text, {"prompt": problem}) for problem, several in zip(asked, texts, strict=True) for text in several]
                found[f"{figure} of {size}"] = statistics.mean(right)
        means = {figure: statistics.mean(found[f"{figure} of {size}"] for size in SIZES) for figure in ("reward", "accuracy")}
        return {name: round(value, 4) for name, value in {**means, **found}.items()}


def teacher(lab: Lab) -> str:
    """Who was taught right answers to problems of all sizes; trained where it is not there."""
    folder = lab.work / "cast" / "mixed"
    if not (folder / "student").exists():
        data = write_rows(lab.work / "cast" / "mixed.jsonl", mixed(32000, 1001))
        who = student(Size(3, 96).folder(lab.work / "cast" / "mixed-untaught", 1), 2e-3)
        lb.distill(lb.Recipe(who, lb.Corpus(data, sequences=64), steps=1800, tokens_per_pass=PASS, save_every=None, seed=1), folder)
    return str(folder / "student")


def source(arm: str, setting: Setting, path: str) -> lb.Source:
    """The rows, in the order of an arm."""
    rows = lb.Corpus(path, sequences=setting.sequences)
    if arm == SHUFFLED:
        return rows
    pace = max(1, round(setting.pace * setting.steps))
    return lb.Curriculum(rows, steps=pace, start=setting.start, every=setting.every, **CURRICULA[arm])


def as_many_tokens(mine: lb.Source, other: lb.Source, steps: int, who: lb.Student, seed: int) -> int:
    """After how many of its steps one source has given the tokens that another gives in `steps`."""
    learner = who.load(steps)
    first, second = (each.load(learner.live.vocabulary, Share(seed)) for each in (mine, other))
    wanted = sum(len(second.draw(step, learner).tokens_N) for step in range(steps))
    counts = accumulate(len(first.draw(step, learner).tokens_N) for step in range(2 * steps))
    return 1 + next(step for step, count in enumerate(counts) if count >= wanted)


def ran(lab: Lab, arm: str, seed: int, folder: Path, setting: Setting, part: str = "test", tested: int = 100) -> Figures:
    """One run: tokens, and the figures halfway and at the end."""
    path = write_rows(folder / "text.jsonl", mixed(setting.rows, 700 + seed))
    learns, who = student(OWN.folder(folder / "own", seed), setting.learning_rate), lb.Local(teacher(lab), dtype="float32")
    rows, steps = source(arm, setting, path), setting.steps
    if arm == MORE:
        steps = 2 * -(-as_many_tokens(rows, source(SHUFFLED, setting, path), steps, learns, seed) // 2)
    recipe = lb.Recipe(learns, rows, who, lb.ForwardKL(), steps=steps, tokens_per_pass=PASS, seed=seed, save_every=None,
                       evaluations=[BySize(tested, part)], evaluate_every=steps // 2)  # fmt: skip
    lb.distill(recipe, folder / "run")
    tokens = list(accumulate(row["tokens"] for row in read_jsonl(folder / "run" / "metrics.jsonl") if "evaluation" not in row))
    figures: Figures = {"steps": steps}
    for place, when in enumerate(LOOKS, 1):
        step = place * steps // len(LOOKS)
        figures[f"tokens at {when}"] = tokens[step - 1]
        for name in ("reward", "accuracy", *(f"{figure} of {size}" for figure in ("reward", "accuracy") for size in SIZES)):
            figures[f"{name} at {when}"] = looks(folder / "run", name)[step]
    return figures


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """One arm."""
    return ran(lab, arm.removesuffix(LONG), seed, folder, LONGER if arm.endswith(LONG) else SETTING)


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means = {arm: summary(by_seed) for arm, by_seed in arms.items()}
    gains = {arm: {figure: difference(arms, arm, f"{SHUFFLED}{LONG}" if arm.endswith(LONG) else SHUFFLED, figure)
                   for when in LOOKS for figure in (f"reward at {when}", f"accuracy at {when}")}
             for arm in arms if not arm.startswith(SHUFFLED)}  # fmt: skip
    settings = {"sizes": SIZES, "student": asdict(OWN), "tested": BySize().rows, **asdict(SETTING), "longer": asdict(LONGER)}
    knows = lab.once("cast/mixed", lambda: BySize().run(lb.Student(teacher(lab), dtype="float32").load(1), lb.Silent()))
    publish(lab.name, {"settings": settings, "teacher": knows, "above_shuffled": gains, "summary": means, "arms": arms})
    lines = {
        arm: [(0.0, 0.0, 0.0, 0.0), *(point(each[f"tokens at {when}"]["mean"] / 1000, each[f"reward at {when}"]) for when in LOOKS)]
        for arm, each in means.items()
    }
    draw(lab.name, plot(lines, "thousand tokens learnt from", "reward", "Additions of 4 to 10 digits, by the order of the rows"))


if __name__ == "__main__":
    experiment("arith_curriculum", __doc__, ARMS, make, told, seeds=range(1, 4), roles=())
