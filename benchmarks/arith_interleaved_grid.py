"""Settings for `arith_interleaved.py`: SKD's K and how many problems, on development problems with a seed that is not published.

    python benchmarks/arith_interleaved_grid.py --work FOLDER

Writes `arith_interleaved_grid.json`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from arith_interleaved import STARTS, TEACHER, WAYS, Setting, looked, ran
from arith_lab import Figures, Lab, experiment, publish

EVERY = 25
SLOW = Setting("infant", 1e-3, 5, 2000, 100)
MANY = Setting("infant", 3e-3, 3, 2000, 200)
FEW = STARTS["bad start"]
TRIED = [
    *((SLOW, way) for way in WAYS),
    *((MANY, way) for way in WAYS),
    (replace(MANY, k=1), "SKD"),
    (FEW, "supervised"),
    (FEW, "SKD"),
    (Setting("student", 1e-3, 1, 2000, 200), "supervised"),
]


def name(setting: Setting, way: str) -> str:
    """Of an arm."""
    how = f" with K {setting.k}" if way == "SKD" else ""
    return f"{setting.role}: {way}{how}: {setting.learning_rate:g}: {setting.problems}: {setting.steps}"


ARMS = {name(setting, way): (setting, way) for setting, way in TRIED}


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn with these settings."""
    setting, way = ARMS[arm]
    return ran(lab, setting, way, seed, folder, EVERY, "development")


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write down what was tried."""
    name = looked(0).removesuffix("0")
    curves = {arm: [[int(figure.removeprefix(name)), value] for figure, value in by_seed["0"].items() if figure.startswith(name)]
              for arm, by_seed in arms.items()}  # fmt: skip
    publish(lab.name, {"step_and_reward": curves})


if __name__ == "__main__":
    roles = (TEACHER, *(setting.role for setting in STARTS.values()))
    experiment("arith_interleaved_grid", __doc__, list(ARMS), make, told, seeds=range(1), roles=roles)
