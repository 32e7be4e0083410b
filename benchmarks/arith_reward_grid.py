"""Settings for `arith_reward.py`: one grid of learning rates for both methods, and shapes of a step, on development problems.

    python benchmarks/arith_reward_grid.py --work FOLDER

One seed, which is not published, from one of the starts: the best rate of a grid that both share and its neighbours with one
shape of a step, and other shapes with the best rate. The best way of a method goes furthest up TARGETS, and there at the lowest cost.
Writes `arith_reward_grid.json`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from arith_lab import Figures, Lab, experiment, publish
from arith_reward import METHODS, TARGETS, TEACHER, Way, learnt, reached

RATES = {"distillation": (1e-4, 3e-4, 1e-3), "reinforcement": (3e-5, 1e-4, 3e-4)}
"""Of one grid of four, the best of a method and its neighbours."""
SHAPES = {"distillation": (16, 1), "reinforcement": (16, 8)}
"""Problems of a step and answers to each."""
OTHERS = [Way("distillation", 3e-4, 8), Way("reinforcement", 1e-4, 8, 8), Way("reinforcement", 1e-4, 4, 8)]
LATE = Way("distillation", 3e-4, 4)
"""Tried when the others were chosen from and published."""
GFLOPS = {"distillation": 80, "reinforcement": 160}
"""What a run may spend here, at most."""
START = "beginner"
WAYS = {way.name: way for way in [*(Way(method, rate, *SHAPES[method]) for method in METHODS for rate in RATES[method]), *OTHERS, LATE]}


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn in one of the ways."""
    return learnt(lab, WAYS[arm], START, seed, folder, "development", GFLOPS[WAYS[arm].method])


def best(arms: dict[str, dict[str, Any]], method: str) -> Way | None:
    """Which way of a method goes furthest up the targets, and then at the lowest cost."""

    def merit(way: Way) -> tuple[int, float]:
        costs = [reached(arms[way.name]["0"]["curve"], target) for target in TARGETS[START]]
        found = [cost for cost in costs if cost is not None]
        return len(found), -found[-1] if found else 0.0

    return max((way for way in WAYS.values() if way.method == method and way != LATE and way.name in arms), key=merit, default=None)


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write down what was tried and what was chosen."""
    found = {method: asdict(way) for method in METHODS if (way := best(arms, method))}
    settings = {"rates": RATES, "gflops": GFLOPS, "targets": TARGETS[START], "start": START}
    curves = {arm: [[point["gflops"], point["reward"]] for point in by_seed["0"]["curve"]] for arm, by_seed in arms.items()}
    publish(lab.name, {"settings": settings, "chosen": found, "gflops_and_reward": curves})


if __name__ == "__main__":
    experiment("arith_reward_grid", __doc__, list(WAYS), make, told, seeds=range(1), roles=(TEACHER, START))
