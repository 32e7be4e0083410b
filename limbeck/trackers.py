"""Sending metrics to TensorBoard, Weights & Biases, trackio or MLflow, through accelerate."""

from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError


class Trackers:
    """The experiment trackers of a run; none by default, and then nothing is imported."""

    def __init__(self, names: list[str], out: Path) -> None:
        self._accelerator: Any = _started(names, out) if names else None

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Send the numbers among these figures."""
        if self._accelerator is not None:
            self._accelerator.log({key: value for key, value in figures.items() if isinstance(value, int | float)}, step=step)

    def close(self) -> None:
        """Let the trackers write what they hold."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _started(names: list[str], out: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    there = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in there]:
        raise RecipeError(f"the tracker {missing[0]} is not installed; pip install {missing[0]}, or drop it from trackers")
    accelerator = Accelerator(log_with=[*names], project_dir=str(out))
    accelerator.init_trackers(out.name or "limbeck")
    return accelerator
