"""The keys and values of text being written, in layers that grow in place."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Places that a layer has ahead, when its room is made anew."""


def memory(config: Any) -> DynamicCache:
    """An empty memory of keys and values, whose plain layers grow in place."""
    made = DynamicCache(config=config)
    made.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in made.layers]
    return made


class RoomyLayer(DynamicLayer):
    """A layer that appends where it has room; concatenation copies all of the past for each token."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms = dict[str, Tensor]()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and give all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._appended("keys", key_states), self._appended("values", value_states)
        return self.keys, self.values

    def _appended(self, name: str, new: Tensor) -> Tensor:
        past, room = getattr(self, name), self._rooms.get(name)
        before = past.shape[-2] if past.numel() else 0
        after = before + new.shape[-2]
        if room is None or past.data_ptr() != room.data_ptr() or past.stride() != room.stride() or after > room.shape[-2]:
            room = new.new_empty(*new.shape[:-2], after + ROOM, new.shape[-1])
            if before:
                room[..., :before, :] = past
            self._rooms[name] = room
        room[..., before:after, :] = new
        return room[..., :after, :]
