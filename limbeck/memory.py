"""What a model remembers of text being written: layers that grow in place, and whose rows come and go.

Axes: B rows, H heads, S columns (places of the longest row; shorter ones begin further right), D width.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

ROOM = 64
"""Places that a layer has ahead, when its room is made anew."""


def memory(config: Any) -> DynamicCache:
    """An empty memory whose layers of keys and values grow in place.

    Layers that look back over a window keep all there is: the mask cuts the window, and rows of any length can stand side by side.
    """
    made = DynamicCache(config=config)
    made.layers = [RoomyLayer() if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer for layer in made.layers]
    return made


def is_mixable(cache: DynamicCache) -> bool:
    """Whether rows that were read apart can go on side by side: not where a layer counts its past for all rows at once."""
    return all(type(layer) in (RoomyLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, DummyLayer) for layer in cache.layers)


def gathered(parts: Sequence[tuple[DynamicCache, Tensor]], width: int) -> DynamicCache:
    """These rows of these memories as one, their last `width` columns; a row may be taken more than once."""
    made = copy.copy(parts[0][0])
    made.layers = [_joined([(cache.layers[n], rows) for cache, rows in parts], width) for n in range(len(made.layers))]
    return made


def _joined(parts: Sequence[tuple[Any, Tensor]], width: int) -> Any:
    """The same of one layer: states row by row, keys and values in columns that end together."""
    made = copy.copy(parts[0][0])
    if isinstance(made, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            states = {n: [getattr(layer, name)[n] for layer, _ in parts] for n in range(made.number_of_states)}
            setattr(made, name, {n: _rows(each, parts) for n, each in states.items()})
    if isinstance(made, DynamicLayer) and made.is_initialized:
        made.keys, made.values = (_columns([getattr(layer, name) for layer, _ in parts], parts, width) for name in ("keys", "values"))
    return made


def _rows(states: list[Tensor | None], parts: Sequence[tuple[Any, Tensor]]) -> Tensor | None:
    there = [state.index_select(0, rows) for state, (_, rows) in zip(states, parts, strict=True) if state is not None]
    return torch.cat(there) if there else None


def _columns(past: list[Tensor], parts: Sequence[tuple[Any, Tensor]], width: int) -> Tensor:
    """[B, H, width, D], with room behind it. Columns before a row's first are zero: they are masked, and must be numbers all the same."""
    count = sum(len(rows) for _, rows in parts)
    like = past[0]
    room, begin = like.new_empty(count, like.shape[1], width + ROOM, like.shape[3]), 0
    for each, (_, rows) in zip(past, parts, strict=True):
        here, wide = room[begin : begin + len(rows)], min(width, each.shape[2])
        here[:, :, : width - wide] = 0
        torch.index_select(each[:, :, each.shape[2] - wide :], 0, rows, out=here[:, :, width - wide : width])
        begin += len(rows)
    return room[:, :, :width]


class RoomyLayer(DynamicLayer):
    """A layer that appends where it has room; concatenation copies all of the past for each token."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and give all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (new.new_empty(*new.shape[:2], 0, new.shape[3]) for new in (key_states, value_states))
        self.keys, self.values = _appended(self.keys, key_states), _appended(self.values, value_states)
        return self.keys, self.values


def _appended(past: Tensor, new: Tensor) -> Tensor:
    """[B, H, S + Q, D] of S columns and Q new ones: in the room behind them, or in a larger one."""
    before, after = past.shape[2], past.shape[2] + new.shape[2]
    if after > _room(past):
        room = new.new_empty(*new.shape[:2], after + ROOM, new.shape[3])
        room[:, :, :before] = past
    else:
        room = past.as_strided((*past.shape[:2], after, past.shape[3]), past.stride())
    room[:, :, before:after] = new
    return room[:, :, :after]


def _room(past: Tensor) -> int:
    """Columns that a view has room for: those of the tensor that it is cut from."""
    return past.stride(1) // past.shape[3] if past.numel() and past.stride(3) == 1 and past.stride(2) == past.shape[3] else 0
