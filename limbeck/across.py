"""How far a student is from a teacher of another vocabulary: by the likelihood of spans, or by distributions at paired tokens.

Axes: N completion tokens of a pass, C rows of a chunk, V the student's vocabulary, W the teacher's, P rows that have a pair, K tokens
that both vocabularies have.
"""

from dataclasses import field
from typing import ClassVar

from limbeck.config import part
from limbeck.divergence import JSD, Divergence, ForwardKL, ReverseKL, TotalVariation
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.objective import Joining, RowTerm, Term, TokenRows
from limbeck.spans import PAIRS, SPANS, SpanRows
from limbeck.targets import Distribution, Logits, Rows


@part
class SpanLikelihood(Joining):
    """`T KL(p^(1/T) || q^(1/T))` of the two outcomes "this span" and "another": p, q the likelihoods of its bytes.

    Approximate likelihood matching (ALM, arXiv 2503.20083), at its T = 100; as T grows it tends to `a log(a / b) - a + b`,
    `a = -log p`, `b = -log q`. Departs: 1) spans are as short as can be, none is left out for cutting its bytes otherwise than
    the teacher would go on (no "outcome chunk debiasing"): where a text is cut off at its end, the last span's is the likelihood of a
    beginning; 2) multiplied by T, so that its size does not hang on T; 3) divided by the tokens of the step, not by spans;
    4) no constant is added to a likelihood. A span's nats stand at the row that ends it, and count as written by that token's writer.
    """

    temperature: float = 100.0
    needs: ClassVar[frozenset[str]] = SPANS

    def __post_init__(self) -> None:
        Term.__post_init__(self)
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"SpanLikelihood.temperature must be above 0 and finite, found {self.temperature}; 100 is usual")

    def carriers(self, said: Rows) -> Tensor:
        """The row that ends each row's span."""
        assert isinstance(said, SpanRows), "SpanLikelihood needs spans; the recipe should have been refused"
        return said.ends_C

    def joined(self, log_q_N: Tensor, said: Rows) -> tuple[Tensor, Tensor]:
        """Nats of each span at its last row, and their slope on the log-probability of each of its tokens."""
        assert isinstance(said, SpanRows), "SpanLikelihood needs spans; the recipe should have been refused"
        ends_N = said.ends_C.to(log_q_N.device)
        heard_N = ends_N >= 0
        log_p_N = said.log_p_C.to(log_q_N)
        span_N = torch.zeros_like(log_q_N).index_add_(0, ends_N[heard_N], log_q_N[heard_N])
        at_end_N = ends_N == torch.arange(len(ends_N), device=ends_N.device)
        nats_N, slope_N = _binary(log_p_N / self.temperature, span_N / self.temperature)
        nats_N = torch.where(at_end_N, self.temperature * nats_N, 0.0)
        return nats_N, torch.where(heard_N, slope_N[ends_N.clamp(min=0)], 0.0)


def _binary(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`KL` of two outcomes of log-probability a against b, and its slope on b: `(1 - e^a) / (1 - e^b) - 1`."""
    log_not_a, log_not_b = torch.log(-torch.expm1(a)), torch.log(-torch.expm1(b))
    same = a == b  # two certainties too
    first = torch.where(a > float("-inf"), a.exp() * (a - b), 0.0)
    second = torch.where(a < 0, -torch.expm1(a) * (log_not_a - log_not_b), 0.0)
    return torch.where(same, 0.0, first + second), torch.where(same, 0.0, torch.expm1(log_not_a - log_not_b))


class _Paired(RowTerm):
    """Base of terms that compare distributions where both vocabularies cut one token alike; elsewhere they say nothing."""

    needs: ClassVar[frozenset[str]] = PAIRS

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Of rows that have a pair; 0 at the others."""
        assert isinstance(said, SpanRows), f"{type(self).__name__} needs pairs; the recipe should have been refused"
        logits_CV = student.logits_CV
        nats_C, gradient_CV = logits_CV.new_zeros(len(logits_CV)), torch.zeros_like(logits_CV)
        pairs_P = said.pairs_P.to(logits_CV.device)
        if len(pairs_P):
            q = Logits(logits_CV[pairs_P]).at()
            value_P, slope_PV = self.pairwise(q, said.theirs.at(), said.spans.common)
            nats_C[pairs_P] = value_P
            gradient_CV[pairs_P] = slope_PV.addcmul_(q.prob, slope_PV.sum(-1, keepdim=True), value=-1)
        return nats_C, gradient_CV

    def pairwise(self, q: Distribution, p: Distribution, common: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Nats [P] and their slope d / d(log q) at every outcome of the student's [P, V]."""
        raise NotImplementedError


@part
class ULD(_Paired):
    """`sum_i |p_(i) - q_(i)|` over probabilities sorted downwards, the shorter vector filled up with zeros (arXiv 2402.12030).

    A distance of probabilities, between 0 and 2, where other terms say nats; there it stands beside `CrossEntropy()`, weighed 1.5.
    Departs: 1) rows go together where both vocabularies cut one token of the same bytes, not by their number, which drifts
    apart with the first token cut otherwise; 2) divided by the tokens of the step.
    """

    def pairwise(self, q: Distribution, p: Distribution, common: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The distance, and `sign q`."""
        return _sorted(q.prob, p.prob)


@part
class Gold(_Paired):
    """A divergence on the tokens that both vocabularies have, and ULD on the others (GOLD, general on-policy logit distillation, 2025).

    divergence: at temperature 1; over tokens that may hold less than all the mass, each outcome as it is and nothing renormalised:
    ForwardKL adds `sum q - p`, ReverseKL `sum p - q`, without which they could fall below 0. common, rest: the weights of both.
    Tokens are the same where they stand for the same bytes, or end a turn. Departs: 1) only where both cut one token
    alike; longer spans have no distribution of their own (there the product of the tokens' is taken); 2) fixed weights, not
    the share of the vocabulary that is common; 3) divided by the tokens of the step.
    """

    divergence: Divergence = field(default_factory=JSD)
    common: float = 1.0
    rest: float = 1.0

    def __post_init__(self) -> None:
        Term.__post_init__(self)
        if type(self.divergence) not in _OF_MEASURES:
            able = ", ".join(f"{each.__name__}()" for each in _OF_MEASURES)
            raise RecipeError(f"Gold cannot take {self.divergence.name} of a part of the outcomes; give one of {able}")
        if self.divergence.temperature != 1 or self.divergence.weight != 1 or self.divergence.writer:
            raise RecipeError("Gold.divergence stands at temperature 1 with no weight or writer of its own; weigh it by common, Gold(...) by both")
        if not 0 <= min(self.common, self.rest) <= max(self.common, self.rest) < float("inf") or not self.common + self.rest:
            raise RecipeError(f"Gold needs weights of at least 0, not both 0, found common={self.common} and rest={self.rest}")

    def pairwise(self, q: Distribution, p: Distribution, common: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Both, weighed."""
        mine_K, theirs_K = (ids_K.to(q.prob.device) for ids_K in common)
        slope_PV = torch.zeros_like(q.prob)
        value_P, slope_PK = self._on_common(_Part(q, mine_K), _Part(p, theirs_K))
        slope_PV[:, mine_K] = self.common * slope_PK
        mine_R, theirs_R = _others(mine_K, q.prob.shape[1]), _others(theirs_K, p.prob.shape[1])
        distance_P, slope_PR = _sorted(q.prob[:, mine_R], p.prob[:, theirs_R])
        slope_PV[:, mine_R] = self.rest * slope_PR
        return self.common * value_P + self.rest * distance_P, slope_PV

    def _on_common(self, q: Distribution, p: Distribution) -> tuple[Tensor, Tensor]:
        """The divergence of two measures; each outcome adds no less than 0."""
        value_PK, slope_PK = self.divergence.pointwise(p, q)
        more, steeper = _OF_MEASURES[type(self.divergence)]
        return value_PK.sum(-1) + more * (q.prob - p.prob).sum(-1), slope_PK + steeper * q.prob


_OF_MEASURES: dict[type[Divergence], tuple[float, float]] = {
    JSD: (0.0, 0.0),
    ForwardKL: (1.0, 1.0),
    ReverseKL: (-1.0, 0.0),
    TotalVariation: (0.0, 0.0),
}
"""What makes each a divergence of two measures, in multiples of `sum q - p` on its value and of q on its slope. ReverseKL's slope
leaves out such a multiple already, which over whole distributions cancels."""


class _Part(Distribution):
    """Some outcomes of a distribution, as they are."""

    def __init__(self, whole: Distribution, ids_K: Tensor) -> None:
        self.__dict__["log"], self.__dict__["prob"] = whole.log[:, ids_K], whole.prob[:, ids_K]


def _others(ids_K: Tensor, size: int) -> Tensor:
    """The outcomes that are none of these."""
    left = torch.ones(size, dtype=torch.bool, device=ids_K.device)
    left[ids_K] = False
    return left.nonzero().flatten()


def _sorted(q_PV: Tensor, p_PW: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_i |p_(i) - q_(i)|` [P], sorted downwards, and its slope on the log of each q [P, V].

    Of the longer vector only the largest are sorted: against zeros all others count as they are.
    """
    few = min(q_PV.shape[1], p_PW.shape[1])
    (q_PF, in_q_PF), (p_PF, in_p_PF) = q_PV.topk(few), p_PW.to(q_PV).topk(few)
    gap_PF = q_PF - p_PF
    rest_P = q_PV.scatter(1, in_q_PF, 0.0).sum(-1) + p_PW.to(q_PV).scatter(1, in_p_PF, 0.0).sum(-1)
    return gap_PF.abs().sum(-1) + rest_P, q_PV.scatter(1, in_q_PF, gap_PF.sign() * q_PF)
