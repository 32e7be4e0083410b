"""What a teacher of another vocabulary said: the likelihood of spans, and distributions at tokens that both cut alike.

Axes: N the student's completion tokens of a pass, C a chunk of them, M the teacher's, P those that go in pairs, K tokens that
both vocabularies have, V a vocabulary (the teacher's here).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from limbeck.lazy import Tensor, torch
from limbeck.targets import Logits, Nothing, OtherRows, Targets, TokenLogpRows

ROWS_BYTES = 32 * 2**20
"""The teacher's logits that exist at once while its tokens are read off."""

SPANS = frozenset({"spans"})
PAIRS = frozenset({"pairs"})


def token_logs(logits: Logits, tokens_C: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each token and of all others together [C], in nats, float64.

    The others are summed themselves: of a token that is all but certain, its own log-probability is made of theirs, which keeps the
    digits that a sum near 1 has not.
    """
    at = logits.at()
    places_C1 = tokens_C[:, None]
    log_q_C = at.log_at(places_C1)[:, 0].double()
    whole_C = logits.logits_CV.logsumexp(-1)
    log_rest_C = (logits.logits_CV.scatter(1, places_C1, float("-inf")).logsumexp(-1) - whole_C).double()
    return torch.where(log_rest_C < -1.0, torch.log1p(-log_rest_C.exp()), log_q_C), log_rest_C


@dataclass(frozen=True)
class Spans(Targets):
    """Of each span the log-probability that a teacher of another vocabulary gives its bytes, the sum over its own tokens.

    said: what the teacher said of its own M tokens, tokens_M. ends_N, row_M, pair_N: see `alignment.Pass`. common: the tokens that
    both have, ids of the student's and of the teacher's [K]. The distributions [M, V] never exist at once: they are made
    for the few tokens of a chunk that are asked about.
    """

    said: Targets
    tokens_M: Tensor
    ends_N: Tensor
    row_M: Tensor
    pair_N: Tensor
    common: tuple[Tensor, Tensor]
    fingerprint: str

    @property
    def says(self) -> frozenset[str]:
        """Spans, and pairs of distributions where the teacher says distributions."""
        return SPANS | (PAIRS if "distribution" in self.said.says else frozenset[str]())

    @cached_property
    def log_p_N(self) -> Tensor:
        """The teacher's log-probability of each span, in nats, at the row that ends it, float64; 0 at the other rows."""
        heard_M = self.row_M >= 0
        into_N = torch.zeros(len(self.ends_N), dtype=torch.float64, device=self._log_p_M.device)
        return into_N.index_add_(0, self.row_M[heard_M].to(into_N.device), self._log_p_M[heard_M.to(into_N.device)])

    @cached_property
    def _log_p_M(self) -> Tensor:
        """The teacher's log-probability of each of its own tokens, a few rows at a time."""
        if isinstance(self.said, Nothing) or not len(self.tokens_M):
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([self._of_tokens(rows) for rows in self._slices()])

    def _slices(self) -> Iterator[slice]:
        first = self.said.rows(slice(0, 1))
        size = max(1, ROWS_BYTES // first.logits_CV[0].nbytes) if isinstance(first, Logits) else len(self.tokens_M)
        return (slice(start, min(start + size, len(self.tokens_M))) for start in range(0, len(self.tokens_M), size))

    def _of_tokens(self, rows: slice) -> Tensor:
        said = self.said.rows(rows)
        if isinstance(said, TokenLogpRows):
            return said.log_p_C.double()
        assert isinstance(said, Logits), "spans need the log-probabilities of the teacher's tokens"
        whole = said.block(slice(None))
        return token_logs(whole, self.tokens_M[rows].to(whole.logits_CV.device))[0]

    def rows(self, chunk: slice) -> "SpanRows":
        """Of these tokens; what is asked of it is made then."""
        start, stop, _ = chunk.indices(len(self.ends_N))
        return SpanRows(self, start, stop)

    def select(self, rows_N: Tensor) -> "Spans":
        """The same about these tokens only; a span must not be parted."""
        place_N = torch.full((len(self.ends_N) + 1,), -1, dtype=torch.int64)
        place_N[rows_N] = torch.arange(len(rows_N))
        ends_N = place_N[self.ends_N[rows_N]]
        assert bool((ends_N >= 0).eq(self.ends_N[rows_N] >= 0).all()), "a span was parted"
        return replace(self, ends_N=ends_N, row_M=place_N[self.row_M], pair_N=self.pair_N[rows_N])


@dataclass
class SpanRows(OtherRows):
    """What was said of the tokens from `start` to `stop` of a pass."""

    spans: Spans
    start: int
    stop: int
    _whole: "SpanRows | None" = None

    def block(self, rows: slice) -> "SpanRows":
        """A few of these tokens; their distributions are made with all the others' here."""
        start, stop, _ = rows.indices(self.stop - self.start)
        return SpanRows(self.spans, self.start + start, self.start + stop, self._whole or self)

    @cached_property
    def ends_C(self) -> Tensor:
        """The row that ends each token's span, counted from `start`; below 0 where nothing is said."""
        ends_C = self.spans.ends_N[self.start : self.stop]
        return torch.where(ends_C >= 0, ends_C - self.start, -1)

    @property
    def log_p_C(self) -> Tensor:
        """The log-probability of the span that each token ends, in nats, float64; 0 where it ends none."""
        return self.spans.log_p_N[self.start : self.stop]

    @cached_property
    def pairs_P(self) -> Tensor:
        """The tokens, counted from `start`, that the teacher has a distribution for."""
        return (self.spans.pair_N[self.start : self.stop] >= 0).nonzero().flatten()

    @cached_property
    def theirs(self) -> Logits:
        """The teacher's logits at `pairs_P` [P, V], in float32 (float64 stays)."""
        if self._whole is not None:
            before = int((self._whole.pairs_P < self.start - self._whole.start).sum())
            return self._whole._raw.block(slice(before, before + len(self.pairs_P)))
        return self._raw.block(slice(None))

    @cached_property
    def _raw(self) -> Logits:
        """What the head's product left at all pairs."""
        pair_P = self.spans.pair_N[self.start : self.stop][self.pairs_P]
        said = self.spans.said.select(pair_P).rows(slice(0, len(pair_P)))
        assert isinstance(said, Logits), "pairs need whole distributions; the recipe should have been refused"
        return said
