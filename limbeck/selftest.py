"""The start-up self-test: before a run spends anything, its numbers are seen to be right on a few tokens.

1) The teacher's terms have a gradient. 2) Each divergence is 0 where the student stands as its own teacher. 3) The
nats and gradients that come in chunks are those of the formula over all rows at once, in float64. 4) Terms of what stands
inside are 0 where a layer is compared with itself, and have a gradient.

Axes: N completion tokens of a few rows, V vocabulary, D hidden width.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck import loss
from limbeck.batch import WRITERS, Batch, Span, Text
from limbeck.distributed import is_sharded
from limbeck.divergence import Divergence, ForwardKL
from limbeck.errors import LimbeckError, RecipeError
from limbeck.loss import Outputs, measure, row_loss
from limbeck.objective import CrossEntropy, Objective, RowTerm, Term, TokenRows, reach
from limbeck.spans import PAIRS, Spans
from limbeck.student import Student
from limbeck.targets import Dense, Logits, Targets
from limbeck.teachers import Local, Teacher
from limbeck.vocabulary import PROBE, PROBE_TEXT, Vocabulary

if TYPE_CHECKING:
    from limbeck.opened import OpenModel

TOKENS = 24
"""Of each text: three texts are fewer than 100 tokens, and their logits in float64 are small."""
CHUNK_ROWS = 20
"""Small, so that even these rows are several chunks, the last one ragged."""

ZERO_NATS = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Above this, a divergence to oneself is not 0. Found: below 1e-6 in either, since both sides are one product."""
CHUNKED_RELATIVE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Largest difference between chunks and formula, of the largest value. Found: up to 1e-4 and 3e-3."""
ALIKE = 1e-5
"""Below this share of the text's own gradient, that of a forward KL is rounding. Found with copies: 1e-7 in float32; in
bfloat16 up to 3e-2, as much as of another model, so that weights are compared too."""


@dataclass(frozen=True)
class SelfTest:
    """What was found. gradient: of the teacher's terms, as a share of the text's own (None where no teacher is asked, or where all of
    them compare tokens that two vocabularies cut alike, and none of the few here is one).

    to_itself_nats: the largest nats of a divergence to oneself. chunked_relative: the largest difference of chunks from formula.
    """

    gradient: float | None
    to_itself_nats: float
    chunked_relative: float

    def __str__(self) -> str:
        asked = "" if self.gradient is None else f"the teacher's gradient is {self.gradient:.2g} of the text's; "
        return f"{asked}to oneself {self.to_itself_nats:.1g} nats; chunks differ from the formula by {self.chunked_relative:.1g}"


def self_test(student: Student, teacher: Teacher, objective: Objective, texts: Sequence[Text] = (), drawn: Batch | None = None) -> SelfTest:
    """Test a run's numbers on a few rows of `texts` and of our own: one forward pass each of student and teacher, nothing changed.

    drawn: what the source drew; where it is given its shortest sequences are taken, whole, in place of ours, one at least: for a model
    that can be asked about rows of the data alone. Raises RecipeError where the teacher teaches nothing, LimbeckError where the
    numbers are not those of the formulas.
    """
    whole = drawn if drawn is not None and len(drawn) else None
    batch = _batch(student.live.vocabulary, texts) if whole is None else _by_everybody(whole.select(_shortest(whole)))
    (said,) = teacher.score([batch])

    def look(model: "OpenModel") -> SelfTest:
        outputs = model.forward(batch, objective.opens[0])
        testing = _Testing(_detached(outputs), said, batch)
        _inside(outputs, said, objective)
        with _small_chunks():
            share = _teachers_share(testing, objective, student, teacher)
            return SelfTest(share, _to_itself(testing, objective), max((_chunked(testing, term) for term in objective.row_terms), default=0.0))

    return student.run(look)  # within a pass, as a head that ranks share is whole there alone


@dataclass(frozen=True)
class _Testing:
    """A pass that was made for the test: the student's outputs, and what the teacher said."""

    outputs: Outputs
    said: Targets
    batch: Batch

    @cached_property
    def of_text_ND(self) -> Tensor:
        """The gradient of the text's own cross-entropy: what others are measured by."""
        return self.learn(Objective([CrossEntropy()]))[0]

    def learn(self, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient on the hidden states [N, D] and the nats by term, as a step has them."""
        hidden_ND = self.outputs.hidden_ND.clone().requires_grad_()
        with torch.enable_grad():
            value, nats = row_loss(Outputs(hidden_ND, self.outputs.head), self.said, self.batch, objective, 1.0)
            (gradient_ND,) = torch.autograd.grad(value, hidden_ND)
        return gradient_ND.float(), nats

    def share(self, *terms: Term) -> float:
        """How large their gradient is beside the text's."""
        return float(self.learn(Objective([*terms]))[0].norm() / self.of_text_ND.norm())


def _batch(vocabulary: Vocabulary, texts: Sequence[Text]) -> Batch:
    """A few short rows, of which each term counts some tokens."""
    own = [PROBE_TEXT, *([vocabulary.chat(PROBE)] if vocabulary.has_template else [])]
    rows = [vocabulary.ids(text)[:TOKENS] for text in own] + [text.tokens[:TOKENS] for text in texts[:1]]
    return _by_everybody(Batch.of([Text(ids, [Span(1, len(ids))]) for ids in rows if len(ids) > 1], "student"))


def _shortest(batch: Batch) -> list[int]:
    """The shortest sequence, and the next ones as long as all together have few tokens."""
    order_B = batch.lengths_B.argsort(stable=True)
    return order_B[: max(1, int((batch.lengths_B[order_B].cumsum(0) <= TOKENS).sum()))].tolist()


def _by_everybody(batch: Batch) -> Batch:
    """The batch, its tokens by every writer in turn, and with credit."""
    turns_N = (torch.arange(len(batch.places_N)) % len(WRITERS)).to(batch.writers_N)
    return replace(batch, writers_N=turns_N, credit_B=torch.linspace(1.0, -0.5, len(batch)))


def _detached(outputs: Outputs) -> Outputs:
    """Outputs whose hidden states alone can be asked for a gradient: that of the head would be as large as the head."""
    head = outputs.head
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return Outputs(outputs.hidden_ND.detach(), replace(head, weight_VD=head.weight_VD.detach(), bias_V=bias_V))


@contextmanager
def _small_chunks() -> Generator[None]:
    """Have the loss head go through rows a few at a time, for as long as the block lasts."""
    usual = loss.CHUNK_ROWS
    loss.CHUNK_ROWS = CHUNK_ROWS
    try:
        yield
    finally:
        loss.CHUNK_ROWS = usual


def _teachers_share(testing: _Testing, objective: Objective, student: Student, teacher: Teacher) -> float | None:
    """How large the gradient of what is asked of the teacher is beside that of the text."""
    asked = [term for term in objective.row_terms if term.needs and not _unpaired(term, testing.said)]
    if not asked:
        return None
    share = testing.share(*asked)
    if not share < float("inf"):
        raise LimbeckError(f"the gradient of {_names(asked)} is {share}; give teacher and student the dtype float32, or look at their weights")
    anchored = len(asked) < len(objective.terms) or (isinstance(teacher, Local) and teacher.model == "@student")
    alike = isinstance(testing.said, Dense) and (testing.share(ForwardKL()) <= ALIKE or _same_weights(student, teacher))
    if (alike or share == 0) and not anchored:
        name = teacher.model if isinstance(teacher, Local) else type(teacher).__name__
        raise RecipeError(
            f"the teacher {name} says what the student {student.model} says already (the gradient of {_names(asked)} is {share:.1g} of the text's); "
            "name another teacher, an older generation, or a student that is not its copy"
        )
    return share


def _unpaired(term: Term, said: Targets) -> bool:
    """Whether a term has nothing to compare here: two vocabularies cut none of these tokens alike."""
    return isinstance(said, Spans) and not term.needs - PAIRS and not bool((said.pair_N >= 0).any())


def _same_weights(student: Student, teacher: Teacher) -> bool:
    """Whether the teacher says what its weights say, and they are the student's, read in the teacher's dtype."""
    if teacher.opened is None or teacher.echoes is None or is_sharded():
        return False
    mine, theirs = student.live.causal.state_dict(), teacher.opened.causal.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].shape == theirs[name].shape and torch.equal(mine[name].to(theirs[name].dtype), theirs[name]) for name in theirs
    )


def _names(terms: Sequence[Term]) -> str:
    return " + ".join(term.name for term in terms)


def _inside(outputs: Outputs, said: Targets, objective: Objective) -> None:
    """See that the distance of layers to themselves is 0, and that those to the teacher's are numbers, and not all of them 0."""
    if not objective.feature_terms:
        return
    assert outputs.features is not None and said.features is not None, "layers that nobody laid open"
    found = dict[str, float]()
    with torch.no_grad():
        for term in objective.feature_terms:
            found[term.name] = float(term.distances(outputs.features, said.features).abs().max())
            own = term.itself()
            to_itself = float(own.distances(outputs.features, outputs.features).abs().max())
            if not to_itself <= ZERO_NATS[outputs.hidden_ND.dtype]:
                raise LimbeckError(f"{term.name} of the student to itself is {to_itself:.3g}, and should be 0; {_OURS}")
    if not max(found.values()) < float("inf"):
        raise LimbeckError(f"{_told(found)}: give teacher and student the dtype float32, or look at their weights")
    if max(found.values()) == 0 and not objective.row_terms:
        raise RecipeError(f"{_told(found)}: the student's layers hold what the teacher's do; name another teacher, other layers, or add ForwardKL()")


def _told(found: dict[str, float]) -> str:
    return ", ".join(f"{name} is at most {value:.3g}" for name, value in found.items())


def _to_itself(testing: _Testing, objective: Objective) -> float:
    """The largest nats of a divergence between the student and itself."""
    terms, outputs = [term for term in objective.terms if isinstance(term, Divergence)], testing.outputs
    if not terms:
        return 0.0
    itself = Dense(outputs.hidden_ND, outputs.head, "itself")
    largest = {name: float(nats_N.abs().max()) for name, nats_N in measure(outputs, itself, testing.batch, Objective([*terms])).items()}
    least = {term.name: ZERO_NATS[outputs.hidden_ND.dtype] * _multiplied(term) for term in terms}
    for name, nats in largest.items():
        if not nats <= least[name]:
            raise LimbeckError(f"{name} of the student to itself is {nats:.3g} nats, and should be 0; {_OURS}")
    return max(largest.values())


_OURS = "nothing was spent; this is a fault of the program on this machine, please open an issue"


def _chunked(testing: _Testing, term: RowTerm) -> float:
    """How far a term's nats and gradients, chunk by chunk, are from its formula over all rows, relative to the largest.

    Near 0 there is rounding alone: nats count as no less than 0.1 (times what a temperature multiplies them with), gradients as no less
    than 1 % of the text's.
    """
    nats_N, gradient_ND = _direct(testing, term)
    found_ND, found = testing.learn(Objective([term]))
    measured_N = measure(testing.outputs, testing.said, testing.batch, Objective([term]))[term.name]
    least, nats = 0.01 * float(testing.of_text_ND.abs().max()), 0.1 * _multiplied(term)
    apart = [_apart(found[term.name], nats_N, nats), _apart(measured_N, nats_N, nats), _apart(found_ND, gradient_ND, least)]
    if not max(apart) <= CHUNKED_RELATIVE[testing.outputs.hidden_ND.dtype]:
        raise LimbeckError(f"{term.name} taken in chunks differs from its formula by {max(apart):.3g} of the largest row; {_OURS}")
    return max(apart)


def _multiplied(term: Term) -> float:
    """What a temperature above 1 multiplies nats with, and their rounding too."""
    return max(1.0, term.temperature**term.order) if isinstance(term, Divergence) else 1.0


def _apart(found: Tensor, wanted: Tensor, least: float) -> float:
    """The largest difference, as a share of the largest value."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=least))


def _direct(testing: _Testing, term: RowTerm) -> tuple[Tensor, Tensor]:
    """A term's nats [N], and the gradient of their weighed sum on the hidden states [N, D]: all logits at once, in float64."""
    outputs, said, batch = testing.outputs, testing.said, testing.batch
    head, device = outputs.head.prepared(outputs.hidden_ND.dtype), outputs.hidden_ND.device
    student, theirs = _double(Logits(head.product(outputs.hidden_ND), head)), said.rows(slice(0, len(batch.places_N)))
    tokens = TokenRows(batch.tokens_N.to(device), batch.credit_N.to(device), batch.logp_N.to(device))
    nats_N, gradient_NV = term.rows(student, _double(theirs) if isinstance(theirs, Logits) else theirs, tokens)
    gradient_NV = gradient_NV * reach(term, Objective([term]).weights(term, batch), said).to(gradient_NV)[:, None]
    gradient_NV = head.pull_back(gradient_NV, student.logits_CV)
    return nats_N, torch.mm(gradient_NV.to(head.weight_VD.dtype), head.weight_VD).float()


def _double(said: Logits) -> Logits:
    """The same in float64, scaled and capped."""
    whole_NV = said.logits_CV.double()
    return Logits(whole_NV if said.head is None else said.head.finished(whole_NV))
