"""What a completion earned: a verifier's reward, and the credit that is left when a baseline is taken from it."""

import math
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.config import import_object
from limbeck.errors import LimbeckError, RecipeError, is_out_of_memory
from limbeck.lazy import Tensor, torch

Verifier = Callable[[str, dict[str, Any]], float]
"""Given a completion's text and its row's columns (with `prompt`, as text), how good it is."""


@contextmanager
def blaming(path: str) -> Generator[None]:
    """Say in one line what goes wrong inside a user's own `module:function`, and in which of its lines."""
    try:
        yield
    except LimbeckError:
        raise
    except Exception as error:  # it may raise whatever it likes
        if is_out_of_memory(error):
            raise
        module = path.partition(":")[0].rpartition(".")[2]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).stem == module]
        where = f" in line {lines[-1]}" if lines else ""
        raise RecipeError(f"{path} raised {type(error).__name__}{where}: {error}; mend it, or name another") from error


def verifier(path: str) -> Verifier:
    """A user's own, by `module:function`. Raises RecipeError for what is no function, and where it gives no number."""
    with blaming(path):
        found = import_object(path)
    if not callable(found):
        raise RecipeError(f'"{path}" is no function; a verifier is called with (completion, row) and returns a number')

    def judge(completion: str, row: dict[str, Any]) -> float:
        with blaming(path):
            given: Any = found(completion, row)
            if given is not None and not isinstance(given, str) and math.isfinite(given):
                return float(given)
        raise RecipeError(f"{path} gave {str(given)[:80]!r} for a completion; return a finite number")

    return judge


def group_credit(reward_B: Tensor, group: int) -> Tensor:
    """Reward less the mean of the group that answered the same prompt [B].

    Departs from GRPO (arXiv 2402.03300): 1) no division by the group's deviation, which favours prompts that are nearly
    always or nearly never answered well (arXiv 2503.20783).
    """
    groups = reward_B.view(len(reward_B) // group, group)
    return (groups - groups.mean(1, keepdim=True)).flatten()


class RunningBaseline:
    """The mean of all rewards so far, for credit where each prompt is answered once."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def credit(self, reward_B: Tensor, total: float, count: int) -> Tensor:
        """Reward less the mean of those before this step [B]; in the first step, less its own mean.

        total, count: of all rewards of the step, over all ranks.
        """
        mean = self.total / self.count if self.count else total / max(1, count)
        self.total += total
        self.count += count
        return reward_B - torch.tensor(mean, dtype=reward_B.dtype)
