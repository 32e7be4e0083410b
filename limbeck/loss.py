"""One pass over the rows of completion tokens that serves every row term: logits, nats and gradients, a chunk at a time.

Axes: N completion tokens of a pass, C rows of a chunk, V vocabulary, D hidden width. The logits of a whole pass never
exist: each chunk is scored, differentiated and dropped, since the scale of the loss is known before. The matrix products
take a chunk at once; the arithmetic on its rows goes block by block, so that on a CPU it stays in the cores' caches, and
each block's gradient is written where its logits were. Feature terms stand outside: autograd differentiates them.
"""

# pyright: reportUnknownMemberType=false
# (torch leaves Function.apply half typed)

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from limbeck.batch import Batch
from limbeck.head import Head
from limbeck.insides import Features
from limbeck.objective import FeatureTerm, Joining, Objective, RowTerm, TokenRows, by_token, reach
from limbeck.spans import token_logs
from limbeck.targets import Logits, Rows, Targets

CHUNK_ROWS, CHUNK_BYTES = 512, 66 * 2**20
"""Student's logits that exist at once: as many rows as fast products need, where they fit."""
SAID_ROWS, SAID_BYTES = 192, 34 * 2**20
"""Teacher's logits that exist at once, on a CPU: its one product needs fewer rows than the student's three."""
BLOCK_ELEMENTS = 2**18
"""Logits of one block on a CPU: a handful of float32 tensors of 1 MiB. Elsewhere a chunk is one block."""
PRODUCT_BYTES = 8 * 2**20
"""Rows of the head whose weight gradient is made at once where it is added in another dtype."""


@dataclass(frozen=True)
class Outputs:
    """A student's forward pass: hidden states at the rows of completion tokens [N, D], and the head they have yet to meet.

    features: what was laid open on the way, where that was asked for.
    """

    hidden_ND: Tensor
    head: Head
    features: Features | None = None

    def touched(self) -> Tensor:
        """0, with a gradient of 0 on every weight of the model."""
        weights = [each for each in (self.head.weight_VD, self.head.bias_V) if each is not None]
        return 0.0 * torch.stack([self.hidden_ND.sum().double(), *(weight.sum().double() for weight in weights)]).sum()

    def apart(self) -> "Outputs":
        """The same with a head of its own, for when the model's may go away."""
        return replace(self, head=self.head.apart())


def slices(count: int, size: int) -> Iterator[slice]:
    """Cut `count` rows into as few pieces of at most `size` as there can be (of one row at least), all about as long."""
    pieces = -(-count // max(1, size))
    return (slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces))


@dataclass
class _Gradients:
    """Where a pass adds up its gradients; None where nobody asks for one."""

    to_hidden_ND: Tensor
    to_weight_VD: Tensor | None
    to_bias_V: Tensor | None

    def add(self, head: Head, hidden_CD: Tensor, rows: slice, gradient_CV: Tensor) -> None:
        """Add one chunk's part."""
        torch.mm(gradient_CV, head.weight_VD, out=self.to_hidden_ND[rows])
        if self.to_bias_V is not None:
            self.to_bias_V[: head.vocabulary] += gradient_CV.sum(0, dtype=self.to_bias_V.dtype)
        if self.to_weight_VD is not None:
            self._add_to_weight(self.to_weight_VD[: head.vocabulary], hidden_CD, gradient_CV)

    def _add_to_weight(self, weight_VD: Tensor, hidden_CD: Tensor, gradient_CV: Tensor) -> None:
        if weight_VD.dtype == gradient_CV.dtype:
            weight_VD.addmm_(gradient_CV.T, hidden_CD)
            return
        for some in slices(len(weight_VD), PRODUCT_BYTES // (hidden_CD.shape[1] * hidden_CD.element_size())):
            weight_VD[some] += torch.mm(gradient_CV[:, some].T, hidden_CD).to(weight_VD)  # an addition of two dtypes is slower than both steps


class _Work:
    """One pass to be scored: everything that `_RowLoss` needs beside the tensors it differentiates."""

    def __init__(self, objective: Objective, head: Head, said: Targets, batch: Batch, scale: float) -> None:
        self.objective, self.head, self.said, self.scale = objective, head, said, scale
        rows, device = len(batch.places_N), head.weight_VD.device
        self.nats = {term.name: torch.zeros(rows) for term in objective.row_terms}
        self.weights = {term.name: objective.weights(term, batch) for term in objective.row_terms}
        reached = {term.name: reach(term, self.weights[term.name], said) for term in objective.row_terms}
        self.factors = {name: (weights_N * scale).to(device)[:, None] for name, weights_N in reached.items()}
        credit_N = None if batch.credit_B is None else batch.credit_N.to(device)
        self.tokens = TokenRows(batch.tokens_N.to(device), credit_N, batch.logp_N.to(device))
        self.slopes = dict[str, Tensor]()
        self.log_rest_N = torch.zeros(rows, dtype=torch.float64, device=device)

    def run(self, hidden_ND: Tensor, gradients: _Gradients | None) -> None:
        """Pass over all chunks; where `gradients` are given, add to them."""
        head = self.head.prepared(hidden_ND.dtype)
        row_bytes = head.vocabulary * head.weight_VD.element_size()
        chunks = list(slices(len(hidden_ND), min(CHUNK_ROWS, CHUNK_BYTES // row_bytes)))
        room_CV = hidden_ND.new_empty(max((rows.stop - rows.start for rows in chunks), default=0), head.vocabulary)
        self._join(head, hidden_ND, chunks, room_CV)
        for rows in chunks:
            self._chunk(head, rows, hidden_ND[rows], room_CV[: rows.stop - rows.start], gradients)

    def _join(self, head: Head, hidden_ND: Tensor, chunks: list[slice], room_CV: Tensor) -> None:
        """Of terms that join rows: nats and slopes, from a pass that reads off the tokens' log-probabilities alone."""
        joining = [term for term in self.objective.terms if isinstance(term, Joining)]
        if not joining or not chunks:
            return
        log_q_N = torch.zeros_like(self.log_rest_N)
        for rows in chunks:
            raw_CV = head.product(hidden_ND[rows], room_CV[: rows.stop - rows.start])
            at_once = BLOCK_ELEMENTS // head.vocabulary if raw_CV.device.type == "cpu" else len(raw_CV)
            for here in slices(len(raw_CV), at_once):
                block = slice(rows.start + here.start, rows.start + here.stop)
                log_q_N[block], self.log_rest_N[block] = token_logs(Logits(raw_CV[here], head).block(slice(None)), self.tokens.tokens_C[block])
        said = self.said.rows(slice(0, len(hidden_ND)))
        for term in joining:
            nats_N, self.slopes[term.name] = term.joined(log_q_N, said)
            self.nats[term.name] = nats_N.to(self.nats[term.name])

    def _chunk(self, head: Head, rows: slice, hidden_CD: Tensor, raw_CV: Tensor, gradients: _Gradients | None) -> None:
        """Fill in the nats of these rows, and add to the gradients, which take the place of the product."""
        head.product(hidden_CD, raw_CV)
        at_once = min(SAID_ROWS, SAID_BYTES // raw_CV[0].nbytes) if raw_CV.device.type == "cpu" else len(raw_CV)
        for told in slices(len(raw_CV), at_once):
            self._told(slice(rows.start + told.start, rows.start + told.stop), Logits(raw_CV[told], head), gradients is not None)
        if gradients is not None:
            gradients.add(head, hidden_CD, rows, raw_CV)

    def _told(self, rows: slice, student: Logits, gradient: bool) -> None:
        """The same for as many rows as the teacher is asked about at once."""
        raw_CV, head, said = student.logits_CV, cast(Head, student.head), self.said.rows(rows)
        at_once = BLOCK_ELEMENTS // head.vocabulary if raw_CV.device.type == "cpu" else len(raw_CV)
        for here in slices(len(raw_CV), at_once):
            logits, block = student.block(here), slice(rows.start + here.start, rows.start + here.stop)
            gradient_CV = self._block(block, logits, None if said is None else said.block(here), gradient)
            if gradient_CV is not None:
                raw_CV[here] = head.pull_back(gradient_CV, logits.logits_CV)

    def _block(self, rows: slice, student: Logits, said: Rows, gradient: bool) -> Tensor | None:
        """Nats of a block's rows, and the gradient of the scaled, weighed sum on their logits."""
        total_CV = None
        for term in self.objective.row_terms:
            gradient_CV = self._of_term(term, rows, student, said, gradient)
            if gradient_CV is not None:
                gradient_CV.mul_(self.factors[term.name][rows].to(gradient_CV))
                total_CV = gradient_CV if total_CV is None else total_CV.add_(gradient_CV)
        return total_CV

    def _of_term(self, term: RowTerm, rows: slice, student: Logits, said: Rows, gradient: bool) -> Tensor | None:
        """One term's gradient on a block's logits, where it is asked for; its nats are filled in."""
        if term.name in self.slopes:
            slope_C, log_rest_C = self.slopes[term.name][rows], self.log_rest_N[rows]
            return by_token(student, self.tokens.tokens_C[rows], slope_C, log_rest_C) if gradient else None
        nats_C, gradient_CV = term.rows(student, said, self.tokens.block(rows))
        self.nats[term.name][rows] = nats_C.to(self.nats[term.name])
        return gradient_CV if gradient else None

    def loss(self) -> Tensor:
        """The scaled, weighed sum of all nats, in float64."""
        sums = [self.nats[name].double() @ weights_N.double() for name, weights_N in self.weights.items()]
        return self.scale * torch.stack(sums).sum()


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
        ctx.gradients = None  # held here too, autograd would copy the head's gradient before it keeps it
        if bool(upstream[0] == 1):  # as in every step: nothing to multiply, no copy of the head's gradient
            return *gradients, None
        return *(None if g is None else g * upstream[0].to(g) for g in gradients), None


def row_loss(outputs: Outputs, said: Targets, batch: Batch, objective: Objective, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one pass and the nats of its rows by term, of an objective's row terms, of which there must be one.

    Returns the scalar `scale * sum over terms and rows of weight * nats` (float64, differentiable), and for each term
    its unweighed nats [N] in float32 on the CPU. The caller divides by nothing: `scale` is one over the tokens of the whole step.
    """
    work = _Work(objective, outputs.head, said, batch, scale)
    loss = cast(Tensor, _RowLoss.apply(outputs.hidden_ND, outputs.head.weight_VD, outputs.head.bias_V, work))
    return loss, work.nats


def pass_loss(outputs: Outputs, said: Targets, batch: Batch, objective: Objective, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of all terms."""
    loss, nats = outputs.hidden_ND.new_zeros((), dtype=torch.float64), dict[str, Tensor]()
    if objective.row_terms:
        loss, nats = row_loss(outputs, said, batch, objective, scale)
    for term in objective.feature_terms:
        distance_N = _distances(outputs, said, term)
        loss = loss + scale * (distance_N.double() @ objective.weights(term, batch).to(distance_N.device).double())
        nats[term.name] = distance_N.detach().float().cpu()
    return loss, nats


def _distances(outputs: Outputs, said: Targets, term: FeatureTerm) -> Tensor:
    assert outputs.features is not None and said.features is not None, "layers that nobody laid open"
    return term.distances(outputs.features, said.features)


@torch.no_grad()
def measure(outputs: Outputs, said: Targets, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """The same nats [N] by term, without a gradient: what evaluation reports is what training reduces."""
    work = _Work(objective, outputs.head, said, batch, 1.0)
    if objective.row_terms:
        work.run(outputs.hidden_ND, None)
    return work.nats | {term.name: _distances(outputs, said, term).float().cpu() for term in objective.feature_terms}
