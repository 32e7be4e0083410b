"""What stands inside a model while it reads: hidden states and attention, of the layers that somebody asked for.

Axes: N completion tokens of a pass, n a few of them from one sequence, S padded length, D hidden width, d width of a head, H heads, G
heads of keys, K keys. Layers count from 0: the first is the one after the embedding. Row n is about completion token n: hidden states and
attention are those of the position before it, which predicts it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from limbeck.lazy import Tensor, torch

INSIDE = frozenset({"states", "attentions"})
"""What only a model that is open here can say, and nobody can join."""
ROWS = 256
"""Rows of attention that are compared at once."""


class Block(NamedTuple):
    """Rows of one sequence: which sequence, where among the rows of the pass, and how many keys the last of them sees."""

    sequence: int
    rows: slice
    keys: int


@dataclass(frozen=True)
class Layers:
    """Which layers are to be laid open: hidden states that leave them, attention within them."""

    states: frozenset[int] = frozenset()
    attentions: frozenset[int] = frozenset()

    def __or__(self, other: "Layers") -> "Layers":
        return Layers(self.states | other.states, self.attentions | other.attentions)

    def __bool__(self) -> bool:
        return bool(self.states or self.attentions)


CLOSED = Layers()
"""None of them: nothing is recorded, and nothing paid."""


class Opens:
    """Who can lay layers of a model open beside what it says."""

    opened_layers: Layers = CLOSED

    @property
    def inside(self) -> "Build | None":
        """How the model is built whose layers it lays open, where that is not on this machine."""
        return None

    def lay_open(self, layers: Layers) -> None:
        """From now on these."""
        self.opened_layers = layers


@dataclass(frozen=True)
class Build:
    """How a model is built: its layers, its hidden width, and over how many tokens each layer looks back (None: over all)."""

    name: str
    width_D: int
    windows: tuple[int | None, ...]

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.windows)


@dataclass(frozen=True)
class Attention:
    """What the rows of attention of one layer are made of: the rows themselves, [H, K] for each token, exist a few at a time.

    queries: of each sequence [H, S, d]. keys: [G, S, d], each for H / G heads. position_N: of each row's token in its sequence, int64.
    blocks: the rows, cut where a sequence ends and after `ROWS`. mask: as the model had it, [B or 1, H or 1, S, S], boolean or
    to be added; None where a token sees itself and all before it, `window` of them at most where that is given.
    """

    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    position_N: Tensor
    blocks: Sequence[Block]
    scale: float
    mask: Tensor | None = None
    window: int | None = None
    cap: float | None = None

    def rows(self, block: Block) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the keys in float32 (float64 stays) [H, n, K], 0 where a key is not seen; and which are seen, boolean."""
        b, some, keys = block
        at_n = self.position_N[some]
        query_HnD, key_GKD = wide(self.queries[b][:, at_n]), wide(self.keys[b][:, :keys])
        heads, count, groups = *query_HnD.shape[:2], len(key_GKD)
        scores_HnK = (query_HnD.reshape(groups, -1, query_HnD.shape[-1]) @ key_GKD.mT).reshape(heads, count, keys) * self.scale
        if self.cap is not None:
            scores_HnK = torch.tanh(scores_HnK / self.cap) * self.cap
        seen, bias = self._seen(b, at_n, keys)
        if bias is not None:
            scores_HnK = scores_HnK + bias
        seen = seen.expand_as(scores_HnK)
        return scores_HnK.masked_fill(~seen, float("-inf")).log_softmax(-1).masked_fill(~seen, 0.0), seen

    def _seen(self, b: int, at_n: Tensor, keys: int) -> tuple[Tensor, Tensor | None]:
        """Which keys these tokens see [H or 1, n, K], and what the mask adds to the scores of those."""
        if self.mask is None:
            back_nK = at_n[:, None] - torch.arange(keys, device=at_n.device)
            return ((back_nK >= 0) & (back_nK < (self.window or keys)))[None], None
        mask = self.mask[min(b, len(self.mask) - 1)][:, at_n, :keys]
        if mask.dtype == torch.bool:
            return mask, None
        seen = mask > torch.finfo(mask.dtype).min / 2
        return seen, wide(mask).masked_fill(~seen, 0.0)


@dataclass(frozen=True)
class Features:
    """What a pass laid open: hidden states [N, D] and attention by layer."""

    states: Mapping[int, Tensor]
    attentions: Mapping[int, Attention]


def wide(values: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def blocks(sequence_N: Sequence[int], position_N: Sequence[int]) -> list[Block]:
    """Rows cut where a sequence ends, and after `ROWS`. The rows of one sequence stand together, in its order."""
    cuts = list[Block]()
    for n, (b, position) in enumerate(zip(sequence_N, position_N, strict=True)):
        begun = bool(cuts) and cuts[-1].sequence == b and n - cuts[-1].rows.start < ROWS
        start = cuts.pop().rows.start if begun else n
        cuts.append(Block(b, slice(start, n + 1), position + 1))
    return cuts
