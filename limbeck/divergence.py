"""Divergences between the teacher's next-token distribution p and the student's q, in nats, with their gradients.

Each is a sum over outcomes v of f(p_v, q_v). A class says f and its slope df / d(log q_v); the gradient on the
student's logits at temperature T follows for all of them: `slope_j - q_j * sum_v slope_v`, over T. (A multiple of q_v may
be left out of a slope: it cancels there.) With a temperature both sides are softened and the value is multiplied by T^2
(Hinton et al. 2015), by T where the divergence is linear near p = q, so that gradients keep their size.
"""

import math
from abc import abstractmethod
from dataclasses import field
from typing import ClassVar

from limbeck.config import part
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.objective import FULL, RowTerm, Term, TokenRows, check_ratio
from limbeck.targets import Distribution, Logits, Rows, SampledRows, TokenLogpRows, TopKRows

FAR = 80.0
"""Nats apart at which the lighter of two probabilities is nothing beside the other, and exp() in float32 still finite."""


@part
class Divergence(RowTerm):
    """Base of all: `temperature` softens both sides."""

    temperature: float = field(default=1.0, kw_only=True)

    needs: ClassVar[frozenset[str]] = FULL
    order: ClassVar[int] = 2
    """Near p = q the divergence grows like |p - q| to this power: T to this power keeps the gradient's size."""

    def __post_init__(self) -> None:
        Term.__post_init__(self)
        if not self.temperature > 0 or math.isinf(self.temperature):
            raise RecipeError(f"{type(self).__name__}.temperature must be above 0, found {self.temperature}")

    @abstractmethod
    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """f and its slope df / d(log q) at every outcome, in tensors of their own; one tensor where both are the same."""

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats of each row and their gradient on the student's logits."""
        assert isinstance(said, Logits), f"{type(self).__name__} needs whole distributions; the recipe should have been refused"
        q = student.at(self.temperature)
        value_CV, slope_CV = self.pointwise(said.at(self.temperature), q)
        value_C1 = value_CV.sum(-1, keepdim=True)
        slope_C1 = value_C1 if slope_CV is value_CV else slope_CV.sum(-1, keepdim=True)
        gradient_CV = slope_CV.addcmul_(q.prob, slope_C1, value=-1)
        if self.temperature == 1.0:
            return value_C1[:, 0], gradient_CV
        factor = self.temperature**self.order
        return factor * value_C1[:, 0], gradient_CV.mul_(factor / self.temperature)


@part
class ForwardKL(Divergence):
    """`KL(p || q) = sum p log(p / q)`: mode covering; gradient `q - p` (Hinton et al. 2015, arXiv 1503.02531).

    From a truncated teacher the tail is one more outcome, `sum_K p log(p/q) + t log(t/u)`: never above the full value.
    From a sampled one it is `-sum share log q` less the entropy of p: unbiased in value and gradient (arXiv 2503.16870).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distribution", "top k", "sampled"})

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`p (log p - log q)`, slope `-p`."""
        return (p.log - q.log).mul_(p.prob), -p.prob

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Whole distributions as every divergence; truncated ones with their tail, sampled ones with their entropy."""
        if not isinstance(said, TopKRows | SampledRows):
            return super().rows(student, said, tokens)
        assert said.temperature == self.temperature, "stored scores cannot be re-tempered"
        q = student.at(self.temperature)
        nats_C, gradient_CV = _from_top_k(q, said) if isinstance(said, TopKRows) else _from_sampled(q, said)
        if self.temperature == 1.0:
            return nats_C, gradient_CV
        return nats_C * self.temperature**2, gradient_CV.mul_(self.temperature)


def _from_top_k(q: Distribution, said: TopKRows) -> tuple[Tensor, Tensor]:
    log_q_CK, p_CK = q.log.gather(1, said.ids_CK), said.log_p_CK.exp()
    log_u_C = q.log.scatter(1, said.ids_CK, float("-inf")).logsumexp(-1)
    has_tail_C = said.log_tail_C > float("-inf")
    log_ratio_C = torch.where(has_tail_C, said.log_tail_C - log_u_C, 0.0)
    log_ratio_CK = torch.where(p_CK > 0, said.log_p_CK - log_q_CK, 0.0)
    nats_C = (p_CK * log_ratio_CK).sum(-1) + said.log_tail_C.exp() * log_ratio_C
    log_share_C = torch.where(has_tail_C, log_ratio_C, float("-inf"))  # q_j t / u as one exponential: neither factor overflows alone
    mass_C1 = (p_CK.sum(-1) + said.log_tail_C.exp())[:, None]  # 1, but for the rounding of what was stored
    gradient_CV = (q.prob * mass_C1).sub_((q.log + log_share_C[:, None]).exp_())
    gradient_CV.scatter_(1, said.ids_CK, mass_C1 * log_q_CK.exp())
    return nats_C, gradient_CV.scatter_add_(1, said.ids_CK, -p_CK.to(gradient_CV))  # added: an outcome that fills up a row stands there twice


def _from_sampled(q: Distribution, said: SampledRows) -> tuple[Tensor, Tensor]:
    share_CK = said.share_CK.to(q.prob)
    nats_C = -(share_CK * q.log_at(said.ids_CK)).sum(-1) - said.entropy_C
    return nats_C, q.prob.scatter_add(1, said.ids_CK, -share_CK)


@part
class ReverseKL(Divergence):
    """`KL(q || p) = sum q log(q / p)`: mode seeking; gradient `q_j (log(q_j / p_j) - KL)`."""

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`q (log q - log p)`, the same for its slope."""
        value = (q.log - p.log).mul_(q.prob)
        return value, value


@part
class JSD(Divergence):
    """Generalised Jensen-Shannon: `beta KL(p || m) + (1 - beta) KL(q || m)`, `m = beta p + (1 - beta) q` (GKD, arXiv 2306.13649).

    `beta` weighs the teacher p, as in the paper (two well-known programs weigh the student). It vanishes at both ends,
    like `beta KL(p || q)` at 0; `normalized` divides by `beta (1 - beta)`, which tends to ForwardKL at 0 and ReverseKL at 1.
    """

    beta: float = 0.5
    normalized: bool = False

    def __post_init__(self) -> None:
        Divergence.__post_init__(self)
        if not 0 < self.beta < 1:
            near = "ForwardKL()" if self.beta <= 0 else "ReverseKL()"
            raise RecipeError(f"JSD(beta={self.beta}): the formula vanishes at 0 and 1 and means nothing outside; use {near}")

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`beta p (log p - log m) + (1 - beta) q (log q - log m)`; its second half is the slope."""
        p_over_m, q_over_m = _over_mixture(p, q, self.beta)
        share = 1.0 / (self.beta * (1 - self.beta)) if self.normalized else 1.0
        slope = q_over_m.mul_(q.prob).mul_((1 - self.beta) * share)
        return torch.addcmul(slope, p_over_m, p.prob, value=self.beta * share), slope


@part
class Jeffreys(Divergence):
    """`(KL(p || q) + KL(q || p)) / 2`: covering and seeking at once."""

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`(p - q) (log p - log q) / 2`, slope `(q (log q - log p) - p) / 2`."""
        log_ratio = q.log - p.log
        return (q.prob - p.prob).mul_(log_ratio).mul_(0.5), log_ratio.mul_(q.prob).sub_(p.prob).mul_(0.5)


@part
class SkewKL(Divergence):
    """`KL(p || skew p + (1 - skew) q)` (DistiLLM, arXiv 2402.03898), skew 0.1 as there."""

    skew: float = 0.1

    def __post_init__(self) -> None:
        Divergence.__post_init__(self)
        _check_inside("skew", self.skew, type(self).__name__, "ForwardKL() is skew 0")

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`p (log p - log m)`, slope `-(1 - skew) p q / m`."""
        p_over_m, _ = _over_mixture(p, q, self.skew)
        slope = (q.log + p_over_m).exp_().mul_(self.skew - 1)
        return p_over_m.mul_(p.prob), slope


@part
class SkewReverseKL(Divergence):
    """`KL(q || (1 - skew) p + skew q)` (DistiLLM, arXiv 2402.03898), skew 0.1 as there."""

    skew: float = 0.1

    def __post_init__(self) -> None:
        Divergence.__post_init__(self)
        _check_inside("skew", self.skew, type(self).__name__, "ReverseKL() is skew 0")

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`q (log q - log m)`, slope `q (log q - log m - skew q / m)`."""
        _, q_over_m = _over_mixture(p, q, 1 - self.skew)
        return q.prob * q_over_m, (q_over_m - self.skew * q_over_m.exp()).mul_(q.prob)


@part
class TotalVariation(Divergence):
    """`sum |p - q| / 2`: one less the share of drafts that speculative decoding accepts (DistillSpec, arXiv 2310.08461)."""

    order: ClassVar[int] = 1

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`|p - q| / 2`, slope `q sign(q - p) / 2`."""
        gap = q.prob - p.prob
        return gap.abs().mul_(0.5), gap.sign_().mul_(q.prob).mul_(0.5)


@part
class AlphaDivergence(Divergence):
    """`(1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha))`: ForwardKL as alpha goes to 1, ReverseKL as it goes to 0."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        Divergence.__post_init__(self)
        _check_inside("alpha", self.alpha, type(self).__name__, "ReverseKL() is the limit at 0, ForwardKL() at 1")

    def pointwise(self, p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
        """`(alpha p + (1 - alpha) q - p^alpha q^(1 - alpha)) / (alpha (1 - alpha))`: never negative, without cancellation."""
        a, top = self.alpha, torch.maximum(p.log, q.log)
        x, y = p.log - top, q.log - top
        mixed = a * x + (1 - a) * y
        value = (a * x.expm1() + (1 - a) * y.expm1() - mixed.expm1()) * top.exp() / (a * (1 - a))
        return value, (mixed + top).exp().div_(-a)


@part
class SampledReverseKL(RowTerm):
    """`KL(q || p)` by the student's own tokens y ~ q alone, for a teacher that says no more than `log p(y)`.

    The value is `log q(y) - log p(y)`, unbiased (the estimator k1). As a loss its expected gradient would be 0, so the
    gradient is not its derivative but the score function's, `(log q(y) - log p(y)) d log q(y)`, the first factor held:
    unbiased for the gradient of `KL(q || p)`. Departs from the policy gradient of the whole answer's KL (MiniLLM, arXiv
    2306.08543): 1) a token earns only what it says itself, not what later ones say; 2) no baseline is taken off.

    ratio: weighs each token, its nats too, by `min(ratio, q / q_then)` for text that older weights wrote; see PolicyGradient.
    """

    ratio: float | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"distribution", "tokens"})
    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Term.__post_init__(self)
        check_ratio(type(self).__name__, self.ratio)

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats of each token; the gradient is `(log q(y) - log p(y)) (onehot(y) - q)`, both by the ratio."""
        q, places_C1 = student.at(), tokens.tokens_C[:, None]
        log_q_C1 = q.log_at(places_C1)
        log_ratio_C1 = log_q_C1 - _log_p_at(said, places_C1).to(q.prob)
        if self.ratio is not None:
            log_ratio_C1 = log_ratio_C1 * tokens.importance(log_q_C1[:, 0], self.ratio)[:, None]
        gradient_CV = (q.prob * -log_ratio_C1).scatter_add_(1, places_C1, log_ratio_C1)
        return log_ratio_C1[:, 0], gradient_CV


def _log_p_at(said: Rows, places_C1: Tensor) -> Tensor:
    """The teacher's log-probability of each token [C, 1], of whichever kind of what it says."""
    match said:
        case TokenLogpRows():
            return said.log_p_C[:, None]
        case TopKRows():
            is_token_CK = said.ids_CK == places_C1
            assert said.temperature == 1.0 and bool(is_token_CK.any(-1).all()), "truncated scores without the tokens themselves"
            return said.log_p_CK.masked_fill(~is_token_CK, float("-inf")).amax(-1, keepdim=True)
        case Logits():
            return said.at().log_at(places_C1)
        case _:
            raise AssertionError("SampledReverseKL needs the tokens' log-probabilities; the recipe should have been refused")


def _over_mixture(p: Distribution, q: Distribution, share: float) -> tuple[Tensor, Tensor]:
    """`log p - log m` and `log q - log m` for `m = share p + (1 - share) q`, against the heavier of the two.

    The mixture's own logarithm is never formed: its rounding, of the size of log V, would be all that is left near p = q.
    """
    odds = math.log(share) - math.log1p(-share)
    if share <= 0.5:
        gap = (p.log - q.log).clamp_(max=FAR)
        q_over_m = _log_share(gap, odds, -math.log1p(-share))
        return gap.add_(q_over_m), q_over_m
    gap = (q.log - p.log).clamp_(max=FAR)
    p_over_m = _log_share(gap, -odds, -math.log(share))
    return p_over_m, gap.add_(p_over_m)


def _log_share(gap: Tensor, odds: float, most: float) -> Tensor:
    """`most - log(1 + exp(gap + odds))`; odds are never positive.

    Not by torch's softplus or log1p: they take twice the time on a CPU, for digits that a difference of logarithms has not.
    """
    return torch.rsub((gap + odds if odds else gap).exp().add_(1.0).log_(), most)


def _check_inside(name: str, value: float, where: str, ends: str) -> None:
    if not 0 < value < 1:
        raise RecipeError(f"{where}.{name} must lie between 0 and 1, found {value}; {ends}")
