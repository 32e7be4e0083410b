"""FLOPs to equal reward: distillation on the student's own text against reinforcement learning with the exact verifier.

    python benchmarks/arith_reward_grid.py --work FOLDER
    python benchmarks/arith_reward.py --work FOLDER

Distillation is reverse KL to a teacher of three times the student's size on the student's answers; reinforcement learning is
REINFORCE less the mean of a group of answers to one problem. Sums of ten operands: one reward at the end of 21 tokens. Both start
from the same student, read the same problems, have one grid of learning rates, each with several shapes of a step, and are
compared at their best on the development problems, where they were chosen with a seed that is not published.
Both pay for every token: 2 S to write it, 6 S to learn from it and, in distillation, 2 T for the teacher to score it, S and T
the parameters. Answers without credit (of groups that are all right or all wrong) have no gradient: reinforcement is charged 2 S
for them, and not 8 S. The reward is the share of draws at temperature 1 that are right, looked at along the way on test problems;
FLOPs to a reward are those at which it is first reached, between two looks by a straight line.
Aimed at: a tenth of the FLOPs; a fifth at least. A seed is other problems, draws and another order. Writes `arith_reward.json`
and `.svg`.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, draw, experiment, looks, mean_curve, plot, publish, t_interval
from arithmetic import LONG, Solved, answer_tokens, problems, prompt_tokens, student, write_rows

import limbeck as lb
from limbeck.batch import Batch
from limbeck.files import append_jsonl, read_json, read_jsonl
from limbeck.sources import Share
from limbeck.vocabulary import Vocabulary

PROBLEMS = 20000
METHODS = ("distillation", "reinforcement")
SHORTER = "shorter reinforcement"
"""The rate falls to nothing at the end of a run, so that a run of half the length may be sooner at a low reward."""
STARTS = ("beginner", "novice")
"""Of the cast: what the student knows when either begins."""
TEACHER = "master"
GFLOPS, LOOKS = {"distillation": 80, "reinforcement": 320, SHORTER: 160}, 10
"""What a run may spend, and how often the student is looked at on the way."""
TARGETS = {"novice": (0.05, 0.1), "beginner": (0.22, 0.24, 0.26, 0.28, 0.3, 0.32)}
ARMS = [f"{method}, {start}" for start in STARTS for method in GFLOPS]
RESULT = Path(__file__).parent / "results" / "arith_reward_grid.json"


@dataclass(frozen=True)
class Way:
    """Settings of a method. problems: of a step. group: answers to each."""

    method: str
    rate: float
    problems: int
    group: int = 1

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.method}, rate {self.rate:g}, {self.problems} x {self.group}"


@lb.part
class Charged(lb.Source):
    """Another source; for each step a line in a file says how many tokens were read and written, and how many of them have credit."""

    source: lb.Source
    path: str

    @property
    def writers(self) -> frozenset[str]:
        """The other's."""
        return self.source.writers

    @property
    def rewarded(self) -> bool:
        """Where the other is."""
        return self.source.rewarded

    def load(self, vocabulary: Vocabulary, share: Share) -> "Charged":
        """Open the other."""
        return replace(self, source=self.source.load(vocabulary, share))

    def draw(self, step: int, student: lb.Student) -> Batch:
        """Let the other draw, and count."""
        batch = self.source.draw(step, student)
        learnt_B = batch.lengths_B if batch.credit_B is None else batch.lengths_B * (batch.credit_B != 0)
        append_jsonl(Path(self.path), {"step": step, "written": int(batch.lengths_B.sum()), "learnt": int(learnt_B.sum())})
        return batch


def recipe(lab: Lab, way: Way, start: str, seed: int, folder: Path, part: str, gflops: float) -> lb.Recipe:
    """A method's run, looked at on problems of this part."""
    path = write_rows(folder / "asked.jsonl", [{"prompt": problem} for problem in problems(PROBLEMS, 500 + seed, size=LONG)])
    own = lb.OnPolicy(path, sequences=way.problems, group=way.group, sampling=lb.Sampling(max_tokens=answer_tokens(LONG)))
    flops = 8 * lab.parameters(start) + (2 * lab.parameters(TEACHER) if way.method == "distillation" else 0)
    steps = int(1e9 * gflops / (flops * way.problems * way.group * (prompt_tokens(LONG) + answer_tokens(LONG))))
    learns = student(lab.model(start), way.rate)
    shared: dict[str, Any] = {"steps": steps, "tokens_per_pass": PASS, "seed": seed, "save_every": None,
                              "evaluations": [Solved(part=part, size=LONG, whole=True)], "evaluate_every": max(1, steps // LOOKS)}  # fmt: skip
    charges = str(folder / "charges.jsonl")
    if way.method == "distillation":
        return lb.Recipe(learns, Charged(own, charges), lb.Local(lab.model(TEACHER), dtype="float32"), lb.ReverseKL(), **shared)
    return lb.Recipe(learns, Charged(replace(own, reward="arithmetic:whole"), charges), objective=lb.PolicyGradient(), **shared)


def learnt(lab: Lab, way: Way, start: str, seed: int, folder: Path, part: str, gflops: float) -> Figures:
    """Reward against FLOPs of a method."""
    lb.distill(recipe(lab, way, start, seed, folder, part, gflops), folder / "run")
    of_student, scored = lab.parameters(start), 2 * lab.parameters(TEACHER) if way.method == "distillation" else 0
    steps = {each["step"]: each for each in read_jsonl(folder / "charges.jsonl")}  # a first draw may be taken twice
    paid = [0, *accumulate((2 * of_student + scored) * each["written"] + 6 * of_student * each["learnt"] for each in steps.values())]
    plain = [0, *accumulate((8 * of_student + scored) * each["written"] for each in steps.values())]
    curve = [{"step": step, "gflops": round(1e-9 * paid[step], 3), "gflops_all_learnt": round(1e-9 * plain[step], 3), "reward": earned}
             for step, earned in looks(folder / "run", "reward").items()]  # fmt: skip
    return {"way": asdict(way), "curve": curve}


def reached(curve: list[Figures], target: float, cost: str = "gflops") -> float | None:
    """GFLOPs at which a curve first reaches a reward; None where it never does."""
    for before, after in pairwise(curve):
        if before["reward"] < target <= after["reward"]:
            share = (target - before["reward"]) / (after["reward"] - before["reward"])
            return before[cost] + share * (after[cost] - before[cost])
    return None


def chosen() -> dict[str, Way]:
    """The ways that were best on development problems."""
    return {method: Way(**way) for method, way in read_json(RESULT)["chosen"].items()}


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn by one of the methods, from one of the starts."""
    method, start = arm.split(", ")
    return learnt(lab, chosen()[method.removeprefix("shorter ")], start, seed, folder, "test", GFLOPS[method])


def compared(arms: Mapping[str, Mapping[str, Figures]], start: str, target: float, cost: str = "gflops") -> Figures:
    """FLOPs of either method to a reward, and how many times as many reinforcement takes, seed by seed (geometric mean).

    times_at_least: the same where reinforcement, wherever it does not reach it, is taken to do so at its end: a lower bound.
    """
    mine, theirs, shorter = (arms[f"{method}, {start}"] for method in GFLOPS)
    pairs = [(reached(mine[seed]["curve"], target, cost), _sooner(reached(theirs[seed]["curve"], target, cost), reached(shorter[seed]["curve"],
              target, cost)), theirs[seed]["curve"][-1][cost]) for seed in mine if seed in theirs and seed in shorter]  # fmt: skip
    both = [math.log(late / soon) for soon, late, _ in pairs if soon and late]
    bounds = [math.log((late or end) / soon) for soon, late, end in pairs if soon]
    return {
        "reward": target,
        "seeds": len(pairs),
        "distillation_gflops": [soon and round(soon, 2) for soon, _, _ in pairs],
        "reinforcement_gflops": [late and round(late, 2) for _, late, _ in pairs],
        "seeds_where_distillation_reaches_it": len(bounds),
        "seeds_where_both_reach_it": len(both),
        "times": _geometric(both) if len(both) == len(pairs) else None,
        "times_at_least": _geometric(bounds) if len(bounds) == len(pairs) else None,
    }


def _sooner(*costs: float | None) -> float | None:
    """The least of what is there."""
    return min((cost for cost in costs if cost is not None), default=None)


def _geometric(logs: list[float]) -> Figures:
    """Geometric mean and 95 % interval."""
    bound = t_interval(logs)
    return {"mean": round(math.exp(statistics.mean(logs)), 2), "interval": bound and [round(math.exp(each), 2) for each in bound]}


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    starts = [start for start in STARTS if all(f"{method}, {start}" in arms for method in GFLOPS)]
    against = {cost: {start: [compared(arms, start, target, cost) for target in TARGETS[start]] for start in starts}
               for cost in ("gflops", "gflops_all_learnt")}  # fmt: skip
    settings = {"problems": PROBLEMS, "operands": LONG, "gflops": GFLOPS, "looks": LOOKS, "teacher": TEACHER,
                "ways": {method: asdict(way) for method, way in chosen().items()}}  # fmt: skip
    publish(lab.name, {"settings": settings, "cast": lab.cast(), "to_equal_reward": against["gflops"],
                       "to_equal_reward_where_all_is_learnt": against["gflops_all_learnt"], "arms": arms})  # fmt: skip
    curves = {arm: mean_curve(by_seed) for arm, by_seed in arms.items()}
    draw(lab.name, plot(curves, "GFLOPs of student and teacher", "reward", "Reward against FLOPs", log_x=True))


if __name__ == "__main__":
    experiment("arith_reward", __doc__, ARMS, make, told, roles=(TEACHER, *STARTS))
