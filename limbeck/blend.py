"""What several teachers said, as one: each token by a teacher of its own, or by the mean of all.

Axes: N completion tokens of a pass, C rows of a chunk, V vocabulary, K outcomes of a token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from limbeck.lazy import Tensor, torch
from limbeck.targets import Logits, Rows, SampledRows, Targets, TopKRows


@dataclass(frozen=True)
class Routed(Targets):
    """Each token's own teacher: `which_N` says whose, `place_N` where in what that one said of its own tokens. int64."""

    parts: Sequence[Targets]
    which_N: Tensor
    place_N: Tensor
    fingerprint: str

    @property
    def says(self) -> frozenset[str]:
        """What all of them say."""
        return frozenset.intersection(*(part.says for part in self.parts))

    def rows(self, chunk: slice) -> Rows:
        """What each said, in the tokens' order."""
        which_C, place_C = self.which_N[chunk], self.place_N[chunk]
        breaks_C = (which_C.diff() != 0) | (place_C.diff() != 1)
        cuts = [0, *(breaks_C.nonzero().flatten() + 1).tolist(), len(which_C)]
        runs = [(int(which_C[a]), int(place_C[a]), b - a) for a, b in pairwise(cuts) if b > a]
        return _joined([self.parts[which].rows(slice(place, place + count)) for which, place, count in runs])

    def select(self, rows_N: Tensor) -> "Routed":
        """The same about these tokens only."""
        return replace(self, which_N=self.which_N[rows_N], place_N=self.place_N[rows_N])


@dataclass(frozen=True)
class Blend(Targets):
    """The mean of several teachers' probabilities, `sum_i weight_i p_i`; weights sum to 1.

    Of sampled teachers the entropy is the weighted mean of theirs, so that a forward KL is the weighted mean of those to
    each: above that to the mixture by a constant, with the same gradient.
    """

    parts: Sequence[Targets]
    weights: Sequence[float]
    fingerprint: str

    @property
    def says(self) -> frozenset[str]:
        """What all of them say."""
        return frozenset.intersection(*(part.says for part in self.parts))

    def rows(self, chunk: slice) -> Rows:
        """The mean, of whole distributions as log-probabilities."""
        said = [part.rows(chunk) for part in self.parts]
        if all(isinstance(each, SampledRows) for each in said):
            return _mean_of_draws([each for each in said if isinstance(each, SampledRows)], self.weights)
        logs = [each.block(slice(None)).log_probs() + math.log(w) for each, w in zip(said, self.weights, strict=True) if isinstance(each, Logits)]
        assert len(logs) == len(said), "only whole or only sampled distributions have a mean; the recipe should have been refused"
        return Logits(torch.stack(logs).logsumexp(0))

    def select(self, rows_N: Tensor) -> "Blend":
        """The same about these tokens only."""
        return replace(self, parts=[part.select(rows_N) for part in self.parts])


@dataclass(frozen=True)
class Steered(Targets):
    """What was said of a text, moved away from what is said without its prompt: guidance, as one distribution.

    `log p ∝ log p(y|x,c) + (scale - 1) [log p(y|x,c) - log p(y|x)]`, made chunk by chunk; a temperature softens the result.
    """

    said: Targets
    without: Targets
    scale: float
    fingerprint: str

    @property
    def says(self) -> frozenset[str]:
        """Every outcome's probability."""
        return frozenset({"distribution"})

    def rows(self, chunk: slice) -> Logits:
        """Logits of the guided distribution; at scale 1 those of what was said."""
        said, without = self.said.rows(chunk), self.without.rows(chunk)
        assert isinstance(said, Logits) and isinstance(without, Logits), "guidance needs whole distributions; the recipe should have been refused"
        log_p_CV, log_u_CV = said.block(slice(None)).log_probs(), without.block(slice(None)).log_probs()
        return Logits(log_p_CV.add(log_p_CV - log_u_CV, alpha=self.scale - 1))

    def select(self, rows_N: Tensor) -> "Steered":
        """The same about these tokens only."""
        return replace(self, said=self.said.select(rows_N), without=self.without.select(rows_N))


def _joined(said: Sequence[Rows]) -> Rows:
    """Rows one after the other; all of one kind."""
    if len(said) == 1:
        return said[0]
    if all(isinstance(each, Logits) for each in said):
        return Logits(torch.cat([each.block(slice(None)).logits_CV for each in said if isinstance(each, Logits)]))
    if all(isinstance(each, SampledRows) for each in said):
        return _draws_joined([each for each in said if isinstance(each, SampledRows)])
    top = [each for each in said if isinstance(each, TopKRows)]
    assert len(top) == len(said), "teachers of several kinds; the recipe should have been refused"
    ids_CK, log_p_CK, log_tail_C = (torch.cat([getattr(each, name) for each in top]) for name in ("ids_CK", "log_p_CK", "log_tail_C"))
    return TopKRows(ids_CK, log_p_CK, log_tail_C, top[0].temperature)


def _draws_joined(said: Sequence[SampledRows]) -> SampledRows:
    """Rows one after the other, those with fewer outcomes filled up with shares of 0."""
    most = max(each.ids_CK.shape[1] for each in said)
    room = [(0, most - each.ids_CK.shape[1]) for each in said]
    ids_CK = torch.cat([torch.nn.functional.pad(each.ids_CK, pad) for each, pad in zip(said, room, strict=True)])
    share_CK = torch.cat([torch.nn.functional.pad(each.share_CK, pad) for each, pad in zip(said, room, strict=True)])
    return SampledRows(ids_CK, share_CK, torch.cat([each.entropy_C for each in said]), said[0].temperature)


def _mean_of_draws(said: Sequence[SampledRows], weights: Sequence[float]) -> SampledRows:
    """All outcomes side by side, each teacher's shares by its weight; an outcome of several stands there several times."""
    share_CK = torch.cat([each.share_CK * w for each, w in zip(said, weights, strict=True)], 1)
    entropy_C = torch.stack([each.entropy_C * w for each, w in zip(said, weights, strict=True)]).sum(0)
    return SampledRows(torch.cat([each.ids_CK for each in said], 1), share_CK, entropy_C, said[0].temperature)
