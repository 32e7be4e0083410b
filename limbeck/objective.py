"""How far the student is from what was said: terms and their weighted sum.

Axes: N completion tokens of a pass, C rows of a chunk, V vocabulary. Row terms give nats per row and the gradient of those
nats on the student's logits; feature terms compare what stands inside both models, row by row, and autograd differentiates them.
None reduces over rows, averages over them, masks or shifts. `loss.py` takes them over the rows of a pass.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

from limbeck.batch import WRITERS, Batch
from limbeck.config import Part, build, import_object, part, plain
from limbeck.errors import RecipeError
from limbeck.insides import CLOSED, Build, Features, Layers
from limbeck.lazy import Tensor, torch
from limbeck.reward import blaming
from limbeck.spans import token_logs
from limbeck.targets import Logits, Rows, Targets

FULL = frozenset({"distribution"})
"""What a divergence needs to be told: every outcome's probability."""


@dataclass(frozen=True)
class TokenRows:
    """The tokens of a chunk and what is known of them; see `Batch`."""

    tokens_C: Tensor
    credit_C: Tensor | None
    logp_C: Tensor | None = None

    def block(self, rows: slice) -> "TokenRows":
        """A few of them."""
        credit_C, logp_C = (None if each is None else each[rows] for each in (self.credit_C, self.logp_C))
        return TokenRows(self.tokens_C[rows], credit_C, logp_C)

    def importance(self, log_q_C: Tensor, most: float) -> Tensor:
        """How much likelier each token is now than when it was written, `min(most, q / q_then)`, held; 1 where nobody knows [C].

        log_q_C: nats, at temperature 1 and before any narrowing, as `Batch.logp_N` is: what sampling changed is not corrected.
        """
        assert self.logp_C is not None, "tokens without the log-probabilities they were written with"
        log_ratio_C = (log_q_C.detach() - self.logp_C.to(log_q_C)).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
        return log_ratio_C.exp_().clamp_(max=most)


def check_ratio(name: str, ratio: float | None) -> None:
    """See that a truncation leaves something. Raises RecipeError."""
    if ratio is not None and not ratio > 0:
        raise RecipeError(f"{name}.ratio must be above 0, found {ratio}; ratio=2 is usual, null weighs nothing")


@part
class Term(Part, ABC):
    """One way to say how far, of two kinds: `RowTerm` and `FeatureTerm`.

    `2 * term` weighs it, `a + b` adds, `term.on("teacher")` counts only that writer's tokens.
    """

    weight: float = field(default=1.0, kw_only=True)
    writer: str | None = field(default=None, kw_only=True)

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the teacher must say: any one of these; the empty set asks nothing of it."""
    on_policy: ClassVar[bool] = False
    """Whether it is only right on tokens that the student wrote."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise RecipeError(f"{type(self).__name__}.weight must be finite, found {self.weight}")
        if self.writer is not None and self.writer not in WRITERS:
            raise RecipeError(f'{type(self).__name__}.on("{self.writer}"): tokens are written by one of {", ".join(WRITERS)}')

    @property
    @abstractmethod
    def opens(self) -> tuple[Layers, Layers]:
        """Which layers of student and teacher must be laid open for it."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        return type(self).__name__ + (f"@{self.writer}" if self.writer else "")

    @property
    def unit(self) -> str:
        """What its values are, before its name in metrics: "nats" wherever they are."""
        return "nats"

    def on(self, writer: str) -> Self:
        """Count only tokens of this writer: "corpus", "teacher" or "student"."""
        return replace(self, writer=writer)

    def __add__(self, other: "Term | Objective") -> "Objective":
        return Objective([self]) + other

    def __mul__(self, factor: float) -> Self:
        return replace(self, weight=self.weight * factor)

    __rmul__ = __mul__


class RowTerm(Term):
    """A term of next-token distributions: all of them are taken in one pass over chunks of rows."""

    @abstractmethod
    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats of each row [C], unweighted, and their gradient on the student's logits [C, V] (a tensor of its own)."""

    @property
    def opens(self) -> tuple[Layers, Layers]:
        """None: it is about what the models say."""
        return CLOSED, CLOSED


class FeatureTerm(Term):
    """A term of what stands inside the models. `load` makes it for a pair, whose layers and widths it must know."""

    @abstractmethod
    def load(self, student: Build, teacher: Build, seed: int) -> Self:
        """The term alive, for models that are built so. Raises RecipeError where they cannot be compared."""

    @abstractmethod
    def distances(self, student: Features, teacher: Features) -> Tensor:
        """How far each row is [N], unweighted, differentiable by what is the student's."""

    @abstractmethod
    def itself(self) -> Self:
        """The same between the student's layers and themselves, without what is learnt: all 0."""

    @property
    def projections(self) -> "torch.nn.ModuleDict":
        """What it learns beside the student; empty where that is nothing."""
        return torch.nn.ModuleDict()


@part
class Joining(RowTerm):
    """A term whose nats join several rows, through nothing but the log-probabilities of their tokens.

    `loss.py` reads those off in a pass of its own, since what a row's gradient is hangs on rows of other chunks.
    """

    @abstractmethod
    def joined(self, log_q_N: Tensor, said: Rows) -> tuple[Tensor, Tensor]:
        """Nats of each row of a whole pass [N], and the slope of their sum on each token's log-probability [N], both in float64."""

    @abstractmethod
    def carriers(self, said: Rows) -> Tensor:
        """The row whose nats each row's token bears on [N]: it says whose weight the slope has. Below 0 where it bears on none."""

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats and gradient of rows that hold all that is joined."""
        log_q_C, log_rest_C = token_logs(student, tokens.tokens_C)
        nats_C, slope_C = self.joined(log_q_C, said)
        return nats_C, by_token(student, tokens.tokens_C, slope_C, log_rest_C)


def by_token(student: Logits, tokens_C: Tensor, slope_C: Tensor, log_rest_C: Tensor) -> Tensor:
    """A gradient on the log-probability of each token as one on the logits [C, V]: `slope (onehot - q)`.

    log_rest_C: that of all other outcomes together, which keeps digits where a token is all but certain.
    """
    q_CV = student.at().prob
    gradient_CV = q_CV * -slope_C.to(q_CV)[:, None]
    return gradient_CV.scatter_(1, tokens_C[:, None], (slope_C * log_rest_C.exp()).to(q_CV)[:, None])


def reach(term: Term, weights_N: Tensor, said: Targets) -> Tensor:
    """What the gradient of each row counts for, given what its nats count for [N]."""
    if not isinstance(term, Joining) or not len(weights_N):
        return weights_N
    return weights_N[term.carriers(said.rows(slice(0, len(weights_N)))).to(weights_N.device)]  # below 0: a slope of 0, whatever it is weighed by


def counted(term: Term, batch: Batch) -> Tensor:
    """1 for each row of a pass that a term counts, 0 where another wrote the token [N]."""
    if term.writer is None:
        return torch.ones(len(batch.places_N))
    return (batch.writers_N == WRITERS.index(term.writer)).float()


@part
class Objective(Part):
    """A weighted sum of terms."""

    terms: list[Term]

    @classmethod
    def adopt(cls, value: object) -> object:
        """A term alone, or a list of them, may stand where an objective is asked for."""
        match value:
            case Term():
                return cls([value])
            case list():
                return cls(cast(list[Term], value))
            case Mapping() if cast(Mapping[str, object], value).get("type", "Objective") != "Objective":
                return cls([build(cast(Mapping[str, object], value), Term)])
            case _:
                return value

    def __post_init__(self) -> None:
        if not self.terms:
            raise RecipeError("an objective needs a term; start with ForwardKL()")
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise RecipeError(f"an objective with two terms of one name cannot be read in metrics: {', '.join(names)}; add their weights")

    def __plain__(self) -> Any:
        """One term stands alone, several are a list."""
        terms = [plain(term) for term in self.terms]
        return terms[0] if len(terms) == 1 else terms

    def __add__(self, other: "Term | Objective") -> "Objective":
        return Objective([*self.terms, *(other.terms if isinstance(other, Objective) else [other])])

    def __mul__(self, factor: float) -> "Objective":
        return Objective([factor * term for term in self.terms])

    __rmul__ = __mul__

    @property
    def needs(self) -> frozenset[str]:
        """What the teacher must be able to say."""
        return frozenset[str]().union(*(term.needs for term in self.terms))

    @property
    def row_terms(self) -> list[RowTerm]:
        """Those of next-token distributions."""
        return [term for term in self.terms if isinstance(term, RowTerm)]

    @property
    def projections(self) -> "torch.nn.ModuleDict":
        """What is learnt beside the student, by term; empty where that is nothing."""
        return torch.nn.ModuleDict({term.name: term.projections for term in self.feature_terms if term.projections})

    @property
    def feature_terms(self) -> list[FeatureTerm]:
        """Those of what stands inside."""
        return [term for term in self.terms if isinstance(term, FeatureTerm)]

    @property
    def opens(self) -> tuple[Layers, Layers]:
        """Which layers of student and teacher must be laid open."""
        mine, theirs = CLOSED, CLOSED
        for term in self.terms:
            mine, theirs = mine | term.opens[0], theirs | term.opens[1]
        return mine, theirs

    def load(self, student: Build, teacher: Build, seed: int) -> "Objective":
        """The objective alive: its feature terms made for models that are built so."""
        return Objective([term.load(student, teacher, seed) if isinstance(term, FeatureTerm) else term for term in self.terms])

    def weights(self, term: Term, batch: Batch) -> Tensor:
        """What each row of a pass counts for in this term [N]: its weight, or 0 where another wrote the token."""
        return term.weight * counted(term, batch)


@part
class CrossEntropy(RowTerm):
    """`-log q(token)`: fine-tuning on the text, whoever wrote it. The tokens are the lesson; nothing is asked of a teacher."""

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats of each token; the gradient is `q - onehot(token)`."""
        q, places_C1 = student.at(), tokens.tokens_C[:, None]
        gradient_CV = q.prob.scatter_add(1, places_C1, q.prob.new_full(places_C1.shape, -1.0))
        return -q.log_at(places_C1)[:, 0], gradient_CV


@part
class PolicyGradient(RowTerm):
    """`-credit * log q(token)` on the student's own tokens (REINFORCE; the reward term of GKD, arXiv 2306.13649 eq. 5).

    Credit is the source's: a reward less its baseline, the same for every token of a completion.

    ratio: weighs each token by `min(ratio, q / q_then)`, held, for text that older weights wrote (`Prefetch`): truncated
    importance sampling (IMPALA, arXiv 1802.01561; between engines, Yao et al. 2025). null weighs none: right where a step learns
    once from what it has just written. Departs from the exact ratio: 1) each token has its own, not that of all up to it, whose
    variance grows with the length; what came before a token keeps the probability with which it was written.
    """

    ratio: float | None = None
    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Term.__post_init__(self)
        check_ratio(type(self).__name__, self.ratio)

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats weighed by credit; the gradient is `credit * (q - onehot(token))`, both by the ratio."""
        assert tokens.credit_C is not None
        nats_C, gradient_CV = CrossEntropy().rows(student, said, tokens)
        weight_C = tokens.credit_C if self.ratio is None else tokens.credit_C * tokens.importance(-nats_C, self.ratio)
        return weight_C * nats_C, gradient_CV.mul_(weight_C[:, None])


@part
class CustomTerm(RowTerm):
    """A user's own distance, `module:function`, called with (log_q_CV, log_p_CV) in nats, returning nats [C].

    Differentiated by autograd, chunk by chunk.
    """

    function: str
    needs: ClassVar[frozenset[str]] = FULL

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """What the function says, and its gradient by autograd."""
        assert isinstance(said, Logits)
        with torch.enable_grad():
            logits_CV = student.logits_CV.detach().requires_grad_()
            with blaming(self.function):
                nats_C = import_object(self.function)(torch.log_softmax(logits_CV, -1), said.log_probs())
            if getattr(nats_C, "shape", None) != logits_CV.shape[:1]:
                found = f"shape {tuple(nats_C.shape)}" if hasattr(nats_C, "shape") else type(nats_C).__name__
                raise RecipeError(f"{self.function} gave {found} for {len(logits_CV)} rows; return nats of each row")
            if not nats_C.requires_grad:
                raise RecipeError(f"{self.function} gave nats that do not depend on log_q; compute them of it, without detach()")
            (gradient_CV,) = torch.autograd.grad(nats_C.sum(), logits_CV)
        return nats_C.detach(), gradient_CV

    @property
    def name(self) -> str:
        """What metrics call it."""
        return self.function.partition(":")[2] + (f"@{self.writer}" if self.writer else "")
