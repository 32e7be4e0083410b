"""Settings for `arith_curriculum.py`: learning rate and pace, on development problems with a seed that is not published.

    python benchmarks/arith_curriculum_grid.py --work FOLDER

The best learning rate of the shuffled rows is for all, curricula too; pace and start are those of the best curriculum by length.
Writes `arith_curriculum_grid.json`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from arith_curriculum import LONGER, LOOKS, SHUFFLED, ran
from arith_lab import Figures, Lab, experiment, publish

TRIED = {
    **{f"{SHUFFLED}: {rate:g}": (SHUFFLED, replace(LONGER, learning_rate=rate)) for rate in (1.5e-3, 3e-3, 6e-3)},
    **{f"length: 0.003: pace {pace:g}: start {start:g}": ("length", replace(LONGER, learning_rate=3e-3, pace=pace, start=start))
       for pace, start in ((0.5, 0.1), (0.5, 0.3), (1.0, 0.1))},
}  # fmt: skip


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn with these settings."""
    way, setting = TRIED[arm]
    return ran(lab, way, seed, folder, setting, "development", tested=200)


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write down what was tried."""
    publish(lab.name, {"reward": {arm: [by_seed["0"][f"reward at {when}"] for when in LOOKS] for arm, by_seed in arms.items()}})


if __name__ == "__main__":
    experiment("arith_curriculum_grid", __doc__, list(TRIED), make, told, seeds=range(1), roles=())
