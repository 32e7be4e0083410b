"""Settings for `arith_curriculum.py`: learning rate and pace, on development problems with a seed that is not published.

    python benchmarks/arith_curriculum_grid.py --work FOLDER

The best learning rate of the shuffled rows is for all; pace and start are those of the curriculum by length that is best at it.
Writes `arith_curriculum_grid.json`.
"""

from pathlib import Path
from typing import Any

from arith_curriculum import LOOKS, SHUFFLED, Setting, ran
from arith_lab import Figures, Lab, experiment, publish

TRIED = {
    **{f"{SHUFFLED}: {rate:g}": (SHUFFLED, Setting(rate)) for rate in (6e-3, 1.2e-2)},
    **{f"length: {rate:g}: pace {pace:g}: start {start:g}": ("length", Setting(rate, pace, start))
       for rate, pace, start in ((6e-3, 0.5, 0.1), (1.2e-2, 0.5, 0.1), (6e-3, 1.0, 0.1))},
}  # fmt: skip


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn with these settings."""
    way, setting = TRIED[arm]
    return ran(lab, way, seed, folder, setting, "development")


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write down what was tried."""
    publish(lab.name, {"reward": {arm: [by_seed["0"][f"reward at {when}"] for when in LOOKS] for arm, by_seed in arms.items()}})


if __name__ == "__main__":
    experiment("arith_curriculum_grid", __doc__, list(TRIED), make, told, seeds=range(1), roles=())
