"""What a model writes with: a copy of its weights in the dtype of its arithmetic."""

import copy
from dataclasses import replace

import torch

from limbeck.models import Model


class Pen:
    """A model's weights as its arithmetic rounds them, for writing: narrowed once a text, where a pass narrows them for each token.

    It is made at the first text and filled anew for each. Where weights and arithmetic have one dtype, or weights are
    quantised, it is the model itself.
    """

    def __init__(self) -> None:
        self._copy: Model | None = None

    def of(self, model: Model) -> Model:
        """The model to write with, its weights as they are now."""
        kinds = {weight.dtype for weight in model.module.parameters()}
        if kinds == {model.compute} or not all(kind.is_floating_point for kind in kinds):
            return model
        if self._copy is None:
            self._copy = _narrow_copy(model)
        with torch.no_grad():
            for mine, theirs in zip(self._copy.module.parameters(), model.module.parameters(), strict=True):
                mine.copy_(theirs)
        return self._copy


def _narrow_copy(model: Model) -> Model:
    made = copy.deepcopy(model.module).requires_grad_(False)
    for weight in made.parameters():  # not the buffers: positions are made of them in float32
        weight.data, weight.grad = weight.data.to(model.compute), None
    return replace(model, module=made)
