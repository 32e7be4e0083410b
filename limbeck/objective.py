"""How far the student is from what was said: terms, their weighted sum, and the one pass over rows that serves them all.

Axes: N completion tokens of a pass, C rows of a chunk, V vocabulary, D hidden width. Terms give nats per row and the
gradient of those nats on the student's logits; they never reduce, average, mask or shift. The head's logits of a whole
pass never exist: each chunk of rows is scored, differentiated and dropped, since the scale of the loss is known before.
"""

# pyright: reportUnknownMemberType=false
# (torch leaves Function.apply half typed)

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from limbeck.batch import WRITERS, Batch
from limbeck.config import Part, build, import_object, part, plain
from limbeck.errors import RecipeError
from limbeck.head import Head
from limbeck.targets import Logits, Rows, Targets

CHUNK_ELEMENTS = 2**22
"""Rows x vocabulary of one chunk: 16 MiB of float32, small enough to stay near the caches."""

FULL = frozenset({"distribution"})
"""What a divergence needs to be told: every outcome's probability."""


@dataclass(frozen=True)
class TokenRows:
    """The tokens of a chunk and what is known of them; see `Batch`."""

    tokens_C: Tensor
    credit_C: Tensor | None


@part
class Term(Part, ABC):
    """One way to say how far. `2 * term` weighs it, `a + b` adds, `term.on("teacher")` counts only that writer's tokens."""

    weight: float = field(default=1.0, kw_only=True)
    writer: str | None = field(default=None, kw_only=True)

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the teacher must say: any one of these; the empty set asks nothing of it."""
    on_policy: ClassVar[bool] = False
    """Whether it is only right on tokens that the student wrote."""

    def __post_init__(self) -> None:
        if self.writer is not None and self.writer not in WRITERS:
            raise RecipeError(f'{type(self).__name__}.on("{self.writer}"): tokens are written by one of {", ".join(WRITERS)}')

    @abstractmethod
    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats of each row [C], unweighted, and their gradient on the student's logits [C, V] (a tensor of its own)."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        return type(self).__name__ + (f"@{self.writer}" if self.writer else "")

    def on(self, writer: str) -> Self:
        """Count only tokens of this writer: "corpus", "teacher" or "student"."""
        return replace(self, writer=writer)

    def __add__(self, other: "Term | Objective") -> "Objective":
        return Objective([self]) + other

    def __mul__(self, factor: float) -> Self:
        return replace(self, weight=self.weight * factor)

    __rmul__ = __mul__


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
                return cls([build(item, Term) for item in cast(list[object], value)])
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

    def weights(self, term: Term, batch: Batch) -> Tensor:
        """What each row of a pass counts for in this term [N]: its weight, or 0 where another wrote the token."""
        return term.weight * counted(term, batch)


@part
class CrossEntropy(Term):
    """`-log q(token)`: fine-tuning on the text, whoever wrote it. The tokens are the lesson; nothing is asked of a teacher."""

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats of each token; the gradient is `q - onehot(token)`."""
        log_q_CV = student.log_probs()
        gradient_CV = log_q_CV.exp()
        places_C1 = tokens.tokens_C[:, None]
        gradient_CV.scatter_add_(1, places_C1, gradient_CV.new_full(places_C1.shape, -1.0))
        return -log_q_CV.gather(1, places_C1)[:, 0], gradient_CV


@part
class PolicyGradient(Term):
    """`-credit * log q(token)` on the student's own tokens (REINFORCE; the reward term of GKD, arXiv 2306.13649 eq. 5).

    Credit is the source's: a reward less its baseline, the same for every token of a completion. Departs: 1) no ratio
    between the weights that wrote and those that learn, since a step learns once from what it has just written.
    """

    on_policy: ClassVar[bool] = True

    def rows(self, student: Logits, said: Rows, tokens: TokenRows) -> tuple[Tensor, Tensor]:
        """Nats weighed by credit; the gradient is `credit * (q - onehot(token))`."""
        assert tokens.credit_C is not None
        nats_C, gradient_CV = CrossEntropy().rows(student, said, tokens)
        return tokens.credit_C * nats_C, gradient_CV.mul_(tokens.credit_C[:, None])


@part
class CustomTerm(Term):
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
            nats_C = import_object(self.function)(torch.log_softmax(logits_CV, -1), said.log_probs())
            if nats_C.shape != logits_CV.shape[:1]:
                raise RecipeError(f"{self.function} gave shape {tuple(nats_C.shape)} for {len(logits_CV)} rows; return nats of each row")
            (gradient_CV,) = torch.autograd.grad(nats_C.sum(), logits_CV)
        return nats_C.detach(), gradient_CV

    @property
    def name(self) -> str:
        """What metrics call it."""
        return self.function.partition(":")[2] + (f"@{self.writer}" if self.writer else "")


@dataclass(frozen=True)
class Outputs:
    """A student's forward pass: hidden states at the rows of completion tokens [N, D], and the head they have yet to meet."""

    hidden_ND: Tensor
    head: Head


def chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Cut N rows into chunks that hold about `CHUNK_ELEMENTS` logits each."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


@dataclass
class _Gradients:
    """Where a pass adds up its gradients; None where nobody asks for one."""

    to_hidden_ND: Tensor
    to_weight_VD: Tensor | None
    to_bias_V: Tensor | None
    product_VD: Tensor | None = None
    """One chunk's part of a weight gradient that is wider than the arithmetic; made once, since fresh memory costs more."""

    def add(self, head: Head, hidden_CD: Tensor, rows: slice, gradient_CV: Tensor) -> None:
        """Add one chunk's part."""
        if self.to_bias_V is not None:
            self.to_bias_V[: head.vocabulary] += gradient_CV.sum(0)
        gradient_CV = gradient_CV.to(head.weight_VD.dtype)
        self.to_hidden_ND[rows] = gradient_CV @ head.weight_VD
        if self.to_weight_VD is None:
            return
        weight_VD = self.to_weight_VD[: head.vocabulary]
        if weight_VD.dtype == gradient_CV.dtype:
            weight_VD.addmm_(gradient_CV.T, hidden_CD)
            return
        if self.product_VD is None:
            self.product_VD = torch.empty_like(head.weight_VD)
        weight_VD += torch.mm(gradient_CV.T, hidden_CD, out=self.product_VD)


@dataclass
class _Work:
    """One pass to be scored: everything that `_RowLoss` needs beside the tensors it differentiates."""

    objective: Objective
    head: Head
    said: Targets
    batch: Batch
    scale: float
    nats: dict[str, Tensor]

    def chunk(self, rows: slice, logits_CV: Tensor, weights: dict[str, Tensor], gradient: bool) -> Tensor | None:
        """Fill in the nats of these rows; return the gradient of the scaled, weighed sum on their logits."""
        student, said = Logits(logits_CV), self.said.rows(rows)
        device = logits_CV.device
        credit_C = None if self.batch.credit_B is None else self.batch.credit_N[rows].to(device)
        tokens = TokenRows(self.batch.tokens_N[rows].to(device), credit_C)
        total_CV = None
        for term in self.objective.terms:
            nats_C, gradient_CV = term.rows(student, said, tokens)
            self.nats[term.name][rows] = nats_C.to(self.nats[term.name])
            if gradient:
                gradient_CV.mul_((weights[term.name][rows] * self.scale).to(gradient_CV)[:, None])
                total_CV = gradient_CV if total_CV is None else total_CV.add_(gradient_CV)
        return total_CV

    def run(self, hidden_ND: Tensor, gradients: _Gradients | None) -> None:
        """Pass over all chunks; where `gradients` are given, add to them."""
        head = self.head.prepared(hidden_ND.dtype)
        weights = {term.name: self.objective.weights(term, self.batch) for term in self.objective.terms}
        for rows in chunks(len(hidden_ND), head.vocabulary):
            logits_CV = head.logits(hidden_ND[rows])
            gradient_CV = self.chunk(rows, logits_CV, weights, gradients is not None)
            if gradients is not None and gradient_CV is not None:
                gradients.add(head, hidden_ND[rows], rows, head.pull_back(gradient_CV, logits_CV))

    def loss(self) -> Tensor:
        """The scaled, weighed sum of all nats, in float64."""
        return sum((self.scale * (self.nats[t.name].double() @ self.objective.weights(t, self.batch).double()) for t in self.objective.terms),
                   start=torch.zeros((), dtype=torch.float64))  # fmt: skip


class _RowLoss(torch.autograd.Function):
    """The sum of a pass's scaled nats; its gradients are made on the way forward and handed out on the way back."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, work: _Work) -> Tensor:
        to_hidden = torch.zeros_like(hidden_ND)
        to_weight = torch.zeros_like(weight_VD) if weight_VD.requires_grad else None
        to_bias = torch.zeros_like(bias_V) if bias_V is not None and bias_V.requires_grad else None
        work.run(hidden_ND.detach(), _Gradients(to_hidden, to_weight, to_bias))
        ctx.gradients = (to_hidden, to_weight, to_bias)
        return work.loss().to(hidden_ND.device)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradients = cast(tuple[Tensor | None, ...], ctx.gradients)
        if bool(upstream[0] == 1):  # as in every step: nothing to multiply, no copy of the head's gradient
            return *gradients, None
        return *(None if g is None else g * upstream[0].to(g) for g in gradients), None


def row_loss(outputs: Outputs, said: Targets, batch: Batch, objective: Objective, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one pass and the nats of its rows by term.

    Returns the scalar `scale * sum over terms and rows of weight * nats` (float64, differentiable), and for each term
    its unweighed nats [N] in float32 on the CPU. The caller divides by nothing: `scale` is one over the tokens of the whole step.
    """
    work = _Work(objective, outputs.head, said, batch, scale, _empty(objective, len(batch.places_N)))
    loss = cast(Tensor, _RowLoss.apply(outputs.hidden_ND, outputs.head.weight_VD, outputs.head.bias_V, work))
    return loss, work.nats


@torch.no_grad()
def measure(outputs: Outputs, said: Targets, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """The same nats [N] by term, without a gradient: what evaluation reports is what training reduces."""
    work = _Work(objective, outputs.head, said, batch, 1.0, _empty(objective, len(batch.places_N)))
    work.run(outputs.hidden_ND, None)
    return work.nats


def _empty(objective: Objective, rows: int) -> dict[str, Tensor]:
    return {term.name: torch.zeros(rows) for term in objective.terms}
