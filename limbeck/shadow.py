"""The moving average of a model's weights."""

import torch
from torch import Tensor

from limbeck.distributed import is_sharded
from limbeck.errors import RecipeError
from limbeck.opened import OpenModel
from limbeck.pen import copied


class Shadow:
    """A copy whose weights follow a model's: after each step `average = decay * average + (1 - decay) * weight`, in the weights' dtype.

    It begins as the model. What never moves (the weights below adapters) is the model's own. Copies on several ranks move
    alike, as the models do. Raises RecipeError where ranks hold shares of the model.
    """

    def __init__(self, model: OpenModel, decay: float) -> None:
        if is_sharded():
            raise RecipeError("the moving average of a student that ranks share is not kept; launch without --use_fsdp, or take another teacher")
        self.model, self.decay = copied(model, None), decay
        mine, theirs = self.model.module.named_parameters(), model.module.named_parameters()
        self._pairs = {name: (own, weight) for (name, own), (_, weight) in zip(mine, theirs, strict=True) if weight.requires_grad}

    @torch.no_grad()
    def follow(self) -> None:
        """Move after a step of the model."""
        for mine, theirs in self._pairs.values():
            mine.lerp_(theirs, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The averages, by a name of their own; what is read into them is taken back."""
        return {f"average.{self.decay}.{name}": mine.detach() for name, (mine, _) in self._pairs.items()}
