"""What a model remembers of text being written: layers that grow in place, and whose rows come and go.

Axes: B rows, H heads, S columns (places of the longest row; shorter ones begin further right), D width.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

ROOM = 64
"""Places that a layer has ahead, when its room is made anew."""
NOTHING: type = getattr(cache_utils, "DummyLayer", type(None))
"""A layer that remembers nothing: only newer versions of transformers give such a layer a place."""


def memory(config: Any) -> DynamicCache:
    """An empty memory whose layers of keys and values grow in place.

    Layers that look back over a window keep all there is: the mask cuts the window, and rows of any length can stand side by side.
    """
    made = DynamicCache(config=config)
    made.layers = [RoomyLayer() if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer for layer in made.layers]
    return made


def is_mixable(cache: DynamicCache) -> bool:
    """Whether rows that were read apart can go on side by side: not where a layer counts its past for all rows at once."""
    return all(type(layer) in (RoomyLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, NOTHING) for layer in cache.layers)


def is_revocable(cache: DynamicCache) -> bool:
    """Whether what a row was fed can be taken back for that row alone: not where a layer keeps a state of all it was fed."""
    return all(type(layer) in (RoomyLayer, NOTHING) for layer in cache.layers)


Part = tuple[DynamicCache, Tensor, Tensor | None]
"""A memory, which of its rows, and which columns of each of these [B, width]; None for the last ones."""


def gathered(parts: Sequence[Part], width: int) -> DynamicCache:
    """These rows of these memories as one, `width` columns of each; a row may be taken more than once."""
    made = copy.copy(parts[0][0])
    made.layers = [_joined([(cache.layers[n], rows, which) for cache, rows, which in parts], width) for n in range(len(made.layers))]
    return made


def shorten(cache: DynamicCache, columns: int) -> None:
    """Drop the last columns of all rows."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer) and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = (past[:, :, : past.shape[2] - columns] for past in (layer.keys, layer.values))


def _joined(parts: Sequence[tuple[Any, Tensor, Tensor | None]], width: int) -> Any:
    """The same of one layer: states row by row, keys and values in columns that end together."""
    made = copy.copy(parts[0][0])
    if isinstance(made, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            states = {n: [(getattr(layer, name)[n], rows) for layer, rows, _ in parts] for n in range(made.number_of_states)}
            setattr(made, name, {n: _rows(each) for n, each in states.items()})
    if isinstance(made, DynamicLayer) and made.is_initialized:
        made.keys, made.values = (
            _columns([(getattr(layer, name), rows, which) for layer, rows, which in parts], width) for name in ("keys", "values")
        )
    return made


def _rows(states: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    there = [state.index_select(0, rows) for state, rows in states if state is not None]
    return torch.cat(there) if there else None


def _columns(parts: Sequence[tuple[Tensor, Tensor, Tensor | None]], width: int) -> Tensor:
    """[B, H, width, D], with room behind it. Columns before a row's first are masked, and must be numbers all the same: zeros, or others'."""
    like, begin = parts[0][0], 0
    room = like.new_empty(sum(len(rows) for _, rows, _ in parts), like.shape[1], width + ROOM, like.shape[3])
    for past, rows, columns_BW in parts:
        here, wide = room[begin : begin + len(rows), :, :width], min(width, past.shape[2])
        if columns_BW is None:
            here[:, :, : width - wide] = 0
            torch.index_select(past[:, :, past.shape[2] - wide :], 0, rows, out=here[:, :, width - wide :])
        else:
            where = columns_BW[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3])
            here[:, :, : width - wide] = 0
            here[:, :, width - wide :] = past.index_select(0, rows).gather(2, where)
        begin += len(rows)
    return room[:, :, :width]


class RoomyLayer(DynamicLayer):
    """A layer that appends where it has room; concatenation copies all of the past for each token."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and give all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (new.new_empty(*new.shape[:2], 0, new.shape[3]) for new in (key_states, value_states))
        assert self.keys is not None and self.values is not None
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
