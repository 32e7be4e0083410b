"""What a model writes with: a copy of its weights in the dtype of its arithmetic."""

import copy
from dataclasses import replace
from typing import TypeVar

import torch

from limbeck.models import Model
from limbeck.opened import OpenModel

Open = TypeVar("Open", bound=OpenModel)


class Pen:
    """A model's weights as its arithmetic rounds them, for writing: narrowed once a text, where a pass narrows them for each token.

    It is made at the first text and filled anew for each. Where weights and arithmetic have one dtype, or weights are
    quantised, it is the model itself, unless it is to be `apart`: then what moves is copied all the same, so that the model
    can learn while the pen writes; what never moves and is not narrowed is shared.
    """

    def __init__(self, apart: bool = False) -> None:
        self._apart = apart
        self._copy: Model | None = None

    def of(self, model: Model) -> Model:
        """The model to write with, its weights as they are now. Of its own copy, that copy."""
        if model is self._copy or (not self._apart and not _is_wider(model)):
            return model
        if self._copy is None:
            self._copy = copied(model, model.compute if _is_wider(model) else None)
        with torch.no_grad():
            for mine, theirs in zip(self._copy.module.parameters(), model.module.parameters(), strict=True):
                if mine is not theirs:
                    mine.copy_(theirs)
        return self._copy


def _is_wider(model: Model) -> bool:
    """Whether its weights, none of them quantised, are in another dtype than its arithmetic."""
    kinds = {weight.dtype for weight in model.module.parameters()}
    return kinds != {model.compute} and all(kind.is_floating_point for kind in kinds)


def copied(model: Open, dtype: torch.dtype | None) -> Open:
    """A copy whose weights have this dtype, each its own where none is given; weights that stay as they are are the model's."""
    still = {id(weight): weight for weight in model.module.parameters() if not weight.requires_grad and dtype in (None, weight.dtype)}
    made = copy.deepcopy(model.module, still).requires_grad_(False)
    for weight in made.parameters():  # not the buffers: positions are made of them in float32
        if id(weight) not in still:
            weight.data, weight.grad = weight.data.to(dtype or weight.dtype), None
    return replace(model, module=made)
