"""How the weights move: AdamW, its schedule and clipping."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from limbeck.config import Part, part
from limbeck.errors import ModelError, RecipeError
from limbeck.lazy import torch


@part
class AdamW(Part):
    """AdamW (arXiv 1711.05101) with warm-up and a schedule over the steps of the run.

    warmup: share of the steps in which the rate climbs from 0. clip: largest norm of the whole gradient; null clips
    nothing. weight_decay acts on matrices alone. eight_bit keeps its moments in 8 bits (bitsandbytes).
    """

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    clip: float | None = 1.0
    weight_decay: float = 0.0
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-8
    eight_bit: bool = False

    def __post_init__(self) -> None:
        for name, above in (("learning_rate", self.learning_rate), ("epsilon", self.epsilon), ("clip", 1.0 if self.clip is None else self.clip)):
            if not 0 < above < math.inf:
                raise RecipeError(f"{name} must be above 0 and finite{', or null' * (name == 'clip')}, found {above}")
        if not 0 <= self.weight_decay < math.inf:
            raise RecipeError(f"weight_decay must be at least 0 and finite, found {self.weight_decay}")
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1):
            raise RecipeError(f"beta_1 and beta_2 must lie from 0 to below 1, found {self.beta_1} and {self.beta_2}")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"warmup is a share of the steps, from 0 to below 1, found {self.warmup}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`; the last one is still above 0."""
        climb = round(self.warmup * steps)
        if step < climb:
            return self.learning_rate * (step + 1) / (climb + 1)
        done = (step - climb) / max(1, steps - climb)
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return self.learning_rate * fall[self.schedule]

    def groups(self, weights: Iterable["torch.nn.Parameter"]) -> list[dict[str, Any]]:
        """These weights as torch's optimizers take them: those that decay, and the others."""
        moving = list(weights)
        return [
            {"params": [w for w in moving if w.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [w for w in moving if w.ndim < 2], "weight_decay": 0.0},
        ]

    def build(self, weights: Iterable["torch.nn.Parameter"]) -> "torch.optim.Optimizer":
        """The optimizer over these weights."""
        groups = self.groups(weights)
        options: dict[str, Any] = {"lr": self.learning_rate, "betas": (self.beta_1, self.beta_2), "eps": self.epsilon}
        if self.eight_bit:
            return _eight_bit(groups, options)
        return torch.optim.AdamW(groups, fused=True, **options)


def _eight_bit(groups: list[dict[str, Any]], options: dict[str, Any]) -> "torch.optim.Optimizer":
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError:
        raise ModelError("AdamW(eight_bit=true) needs bitsandbytes; pip install 'limbeck[quantization]'") from None
    return AdamW8bit(groups, **options)
