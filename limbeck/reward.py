"""What a completion earned: a verifier's reward, and the credit that is left when a baseline is taken from it."""

from collections.abc import Callable
from typing import Any, cast

from limbeck.config import import_object
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch

Verifier = Callable[[str, dict[str, Any]], float]
"""Given a completion's text and its row's columns (with `prompt`, as text), how good it is."""


def verifier(path: str) -> Verifier:
    """A user's own, by `module:function`."""
    found = import_object(path)
    if not callable(found):
        raise RecipeError(f'"{path}" is no function; a verifier is called with (completion, row) and returns a number')
    return cast(Verifier, found)


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
