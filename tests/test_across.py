"""Terms across vocabularies: against slow float64 formulas, whatever the cut, and 0 where both say the same."""

import math

import numpy as np
import oracles
import pytest
import torch

import limbeck as lb
from limbeck import loss
from limbeck.alignment import joints
from limbeck.batch import WRITERS, Batch, Span, Text
from limbeck.errors import RecipeError
from limbeck.head import Head
from limbeck.loss import Outputs, measure, row_loss
from limbeck.objective import Objective, TokenRows
from limbeck.spans import Spans
from limbeck.targets import Dense, TokenLogp

N, M, V, W, D = 12, 10, 23, 31, 6
MINE, THEIRS = [1, 2, 1, 1, 3, 1, 1, 1, 2, 2, 1, 1], [1, 3, 1, 2, 1, 2, 3, 2, 1, 1]
"""Bytes of each token of two cuts of the same 17."""
COMMON = (torch.tensor([0, 2, 3, 5, 7, 11, 13, 17, 19, 22]), torch.tensor([1, 0, 4, 9, 16, 25, 30, 8, 6, 12]))


def rows(seed: int, count: int, size: int, sharp: float = 1.0) -> tuple[torch.Tensor, Head, np.ndarray]:
    """Hidden states and a head in float64, and their logits."""
    random = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, D, generator=random, dtype=torch.float64) * sharp**0.5 for n in (count, size))
    return hidden, Head(weight, size), (hidden @ weight.T).numpy()


def said(z: tuple[torch.Tensor, Head, np.ndarray], tokens: torch.Tensor) -> Spans:
    """What a teacher says of the 12 tokens in its own 10."""
    ends, row_m, pair = [0] * N, [0] * M, [-1] * N
    for joint in joints(MINE, THEIRS):
        for n in range(*joint.mine):
            ends[n] = joint.mine[1] - 1
        for m in range(*joint.theirs):
            row_m[m] = joint.mine[1] - 1
        if joint.mine[1] - joint.mine[0] == joint.theirs[1] - joint.theirs[0] == 1:
            pair[joint.mine[0]] = joint.theirs[0]
    made = [torch.tensor(each) for each in (ends, row_m, pair)]
    return Spans(Dense(z[0], z[1], "toy"), tokens, *made, COMMON, "toy")


def toy(seed: int = 0, sharp: float = 1.0) -> tuple[Outputs, Spans, Batch, np.ndarray, np.ndarray, torch.Tensor]:
    """A student's pass of two sequences and what was said of it."""
    student, teacher = rows(seed, N, V, sharp), rows(seed + 100, M, W, sharp)
    random = torch.Generator().manual_seed(seed + 200)
    mine, theirs = torch.randint(V, (N,), generator=random), torch.randint(W, (M,), generator=random)
    texts = [Text([0, *mine[:7].tolist()], [Span(1, 8)]), Text([0, 0, *mine[7:].tolist()], [Span(2, 7)])]
    batch = Batch.of(texts, "corpus")
    return Outputs(student[0], student[1]), said(teacher, theirs), batch, teacher[2], student[2], theirs


def learnt(outputs: Outputs, spans: Spans, batch: Batch, term: lb.Term) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each row, and the gradient of their weighed sum on the hidden states."""
    hidden = outputs.hidden_ND.clone().requires_grad_()
    value, nats = row_loss(Outputs(hidden, outputs.head), spans, batch, Objective([term]), 1.0)
    (gradient,) = torch.autograd.grad(value, hidden)
    return nats[term.name].numpy(), gradient.numpy()


def wanted_spans(batch: Batch, z: np.ndarray, s: np.ndarray, theirs: torch.Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Nats at the rows that end spans, and the gradient on the student's logits."""
    return oracles.span_likelihood(s, batch.tokens_N.numpy(), z, theirs.numpy(), MINE, THEIRS, temperature)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 100.0])
@pytest.mark.parametrize("sharp", [1.0, 6.0])
def test_span_likelihood_is_its_formula(temperature: float, sharp: float) -> None:
    outputs, spans, batch, z, s, theirs = toy(sharp=sharp)
    nats, gradient = learnt(outputs, spans, batch, lb.SpanLikelihood(temperature=temperature))
    wanted, slope = wanted_spans(batch, z, s, theirs, temperature)
    np.testing.assert_allclose(nats, wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, slope @ outputs.head.weight_VD.numpy(), rtol=1e-7, atol=1e-9)


def test_the_oracle_is_the_derivative_of_its_own_value() -> None:
    _, _, batch, z, s, theirs = toy()
    _, slope = wanted_spans(batch, z, s, theirs, 7.0)
    for n, v in [(0, 3), (2, int(batch.tokens_N[2])), (8, 1), (11, int(batch.tokens_N[11]))]:
        up, down = s.copy(), s.copy()
        up[n, v] += 1e-5
        down[n, v] -= 1e-5
        found = sum(sign * wanted_spans(batch, z, each, theirs, 7.0)[0].sum() for sign, each in ((1, up), (-1, down))) / 2e-5
        assert found == pytest.approx(slope[n, v], rel=1e-5, abs=1e-9)


def test_a_shift_by_one_between_the_two_is_caught() -> None:
    """The distribution that predicts a span's first token stands one position before it: with the next one's the numbers are others."""
    outputs, spans, batch, z, s, theirs = toy()
    shifted = Spans(
        Dense(spans.said.hidden_ND.roll(-1, 0), spans.said.head, "toy"), spans.tokens_M, spans.ends_N, spans.row_M, spans.pair_N, COMMON, ""
    )
    for term in (lb.SpanLikelihood(), lb.ULD(), lb.Gold()):
        right, wrong = (learnt(outputs, each, batch, term)[0] for each in (spans, shifted))
        assert abs(right - wrong).max() > 1e-3
    found = learnt(outputs, shifted, batch, lb.SpanLikelihood())[0]
    assert abs(found - wanted_spans(batch, z, s, theirs, 100.0)[0]).max() > 1e-3


def test_what_is_all_but_certain_keeps_its_digits() -> None:
    """Student and teacher give nearly all to the text: what is left is 1e-10, and float32 has it still."""
    batch = toy()[2]
    hidden = torch.zeros(N, D)
    weight = torch.zeros(V, D)
    for n, token in enumerate(batch.tokens_N.tolist()):
        weight[token, n % D] = 1.0
        hidden[n, n % D] = 26.0
    ends, row_m = torch.arange(N), torch.arange(N)
    told = Spans(TokenLogp(torch.full((N,), -1e-6, dtype=torch.float64), "toy"), torch.zeros(N), ends, row_m, torch.full((N,), -1), COMMON, "toy")
    nats, gradient = learnt(Outputs(hidden, Head(weight, V)), told, batch, lb.SpanLikelihood(temperature=1.0))
    wanted, slope = oracles.span_likelihood_of(hidden.numpy() @ weight.numpy().T, batch.tokens_N.numpy(), np.full(N, -1e-6), 1.0)
    np.testing.assert_allclose(nats, wanted, rtol=1e-4)
    np.testing.assert_allclose(gradient, slope @ weight.numpy(), rtol=1e-4, atol=1e-6)
    assert abs(gradient).max() > 0.4
    assert (nats > 0).all()


PAIRED = {
    "ULD": (lb.ULD(), lambda z, s: oracles.uld(z, s)),
    "Gold": (lb.Gold(), lambda z, s: oracles.gold(z, s, COMMON[0].numpy(), COMMON[1].numpy(), "jsd")),
    "Gold of ForwardKL": (lb.Gold(lb.ForwardKL()), lambda z, s: oracles.gold(z, s, COMMON[0].numpy(), COMMON[1].numpy(), "forward")),
    "Gold of ReverseKL": (lb.Gold(lb.ReverseKL()), lambda z, s: oracles.gold(z, s, COMMON[0].numpy(), COMMON[1].numpy(), "reverse")),
    "Gold of TotalVariation": (lb.Gold(lb.TotalVariation()), lambda z, s: oracles.gold(z, s, COMMON[0].numpy(), COMMON[1].numpy(), "variation")),
    "Gold weighed": (lb.Gold(common=0.3, rest=2.0), lambda z, s: oracles.gold(z, s, COMMON[0].numpy(), COMMON[1].numpy(), "jsd", 0.3, 2.0)),
}


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("size", [V, 40])
def test_paired_terms_are_their_formulas(name: str, size: int) -> None:
    """Of a student with the shorter vocabulary, and one with the longer."""
    _, spans, batch, z, _, _ = toy()
    hidden, head, s = rows(0, N, size)
    term, oracle = PAIRED[name]
    nats, gradient = learnt(Outputs(hidden, head), spans, batch, term)
    pairs = (spans.pair_N >= 0).nonzero().flatten().numpy()
    assert len(pairs) == 5
    wanted, slope = np.zeros(N), np.zeros(s.shape)
    wanted[pairs], slope[pairs] = oracle(z[spans.pair_N[pairs].numpy()], s[pairs])
    np.testing.assert_allclose(nats, wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, slope @ head.weight_VD.numpy(), rtol=1e-7, atol=1e-9)


TERMS = {**{name: term for name, (term, _) in PAIRED.items()}, "SpanLikelihood": lb.SpanLikelihood(), "sharper": lb.SpanLikelihood(temperature=1.0)}


@pytest.mark.parametrize("name", TERMS)
def test_cutting_rows_otherwise_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that reach over the ends of chunks, of what the teacher is asked at once, and of blocks."""
    outputs, spans, batch, *_ = toy()
    objective = TERMS[name] + 0.5 * lb.CrossEntropy()
    whole = learnt_of(outputs, spans, batch, objective)
    for chunk, told, block in ((5, 100, 10**6), (7, 3, 10**6), (100, 100, 2 * V), (1, 1, V)):
        monkeypatch.setattr(loss, "CHUNK_ROWS", chunk)
        monkeypatch.setattr(loss, "SAID_ROWS", told)
        monkeypatch.setattr(loss, "BLOCK_ELEMENTS", block)
        found = learnt_of(outputs, spans, batch, objective)
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def learnt_of(outputs: Outputs, spans: Spans, batch: Batch, objective: Objective) -> list[torch.Tensor]:
    hidden, weight = outputs.hidden_ND.clone().requires_grad_(), outputs.head.weight_VD.clone().requires_grad_()
    value, nats = row_loss(Outputs(hidden, Head(weight, V)), spans, batch, objective, 0.1)
    measured = measure(Outputs(hidden, Head(weight, V)), spans, batch, objective)
    for name, each in nats.items():
        torch.testing.assert_close(measured[name], each)
    return [value.detach(), *torch.autograd.grad(value, [hidden, weight]), *nats.values()]


@pytest.mark.parametrize("name", TERMS)
def test_one_pass_is_the_sum_of_its_sequences(name: str) -> None:
    outputs, spans, batch, *_ = toy()
    whole = learnt(outputs, spans, batch, TERMS[name])
    for b, part in ((0, slice(0, 7)), (1, slice(7, 12))):
        kept = torch.arange(N)[part]
        nats, gradient = learnt(Outputs(outputs.hidden_ND[part], outputs.head), spans.select(kept), batch.select([b]), TERMS[name])
        np.testing.assert_allclose(nats, whole[0][part], rtol=1e-6)
        np.testing.assert_allclose(gradient, whole[1][part], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_counts_one_writers_tokens(name: str) -> None:
    """A span counts as written by the writer of its last token, its gradient too."""
    outputs, spans, batch, *_ = toy()
    turns = torch.arange(N) % 2
    mixed = Batch.of([Text([0, *batch.tokens_N[:7].tolist()], [Span(1, 8)]), Text([0, 0, *batch.tokens_N[7:].tolist()], [Span(2, 7)])], "corpus")
    mixed.writers_N[:] = torch.where(turns == 0, WRITERS.index("student"), WRITERS.index("teacher")).to(torch.uint8)
    parts = [learnt_of(outputs, spans, mixed, Objective([TERMS[name].on(who)])) for who in ("student", "teacher")]
    whole = learnt_of(outputs, spans, batch, Objective([TERMS[name]]))
    for n in range(3):
        torch.testing.assert_close(parts[0][n] + parts[1][n], whole[n])
        assert parts[0][n].abs().max() > 1e-6 and parts[1][n].abs().max() > 1e-6


@pytest.mark.parametrize("name", TERMS)
def test_a_teacher_that_says_what_the_student_says_teaches_nothing(name: str) -> None:
    outputs, _, batch, *_ = toy()
    every = torch.arange(V)
    own = Spans(
        Dense(outputs.hidden_ND, outputs.head, "toy"), batch.tokens_N, torch.arange(N), torch.arange(N), torch.arange(N), (every, every), "toy"
    )
    nats, gradient = learnt(outputs, own, batch, TERMS[name])
    assert abs(nats).max() < 1e-12 and abs(gradient).max() < 1e-12


def test_what_the_teacher_has_no_word_for_counts_nothing() -> None:
    outputs, spans, batch, z, s, theirs = toy()
    ends, row_m, pair = spans.ends_N.clone(), spans.row_M.clone(), spans.pair_N.clone()
    silent = int(ends[4])
    row_m[row_m == silent] = -1
    ends[ends == silent] = -1
    nats, gradient = learnt(outputs, Spans(spans.said, spans.tokens_M, ends, row_m, pair, COMMON, "toy"), batch, lb.SpanLikelihood())
    wanted, slope = wanted_spans(batch, z, s, theirs, 100.0)
    heard = (ends >= 0).numpy()
    np.testing.assert_allclose(nats, np.where(heard, wanted, 0), rtol=1e-6)
    np.testing.assert_allclose(gradient, (slope * heard[:, None]) @ outputs.head.weight_VD.numpy(), rtol=1e-7, atol=1e-9)


def test_a_span_that_would_be_parted_is_our_mistake() -> None:
    _, spans, *_ = toy()
    first = int((spans.ends_N != torch.arange(N)).nonzero()[0])
    with pytest.raises(AssertionError, match="parted"):
        spans.select(torch.tensor([first]))


def test_joined_rows_alone_are_the_whole_pass() -> None:
    """`rows` over all rows, as the self-test takes it, is what `row_loss` makes in two passes."""
    outputs, spans, batch, *_ = toy()
    term = lb.SpanLikelihood()
    nats, slope = term.rows(lb.targets.Logits(outputs.hidden_ND @ outputs.head.weight_VD.T), spans.rows(slice(0, N)), TokenRows(batch.tokens_N, None))
    found = learnt(outputs, spans, batch, term)
    np.testing.assert_allclose(nats.numpy(), found[0], rtol=1e-6)
    np.testing.assert_allclose((slope @ outputs.head.weight_VD).numpy(), found[1], rtol=1e-9, atol=1e-12)


def test_settings_that_mean_nothing_are_refused() -> None:
    for make, words in (
        (lambda: lb.SpanLikelihood(temperature=0), "above 0"),
        (lambda: lb.SpanLikelihood(temperature=math.inf), "finite"),
        (lambda: lb.Gold(lb.SkewKL()), "SkewKL"),
        (lambda: lb.Gold(lb.Jeffreys()), "Jeffreys"),
        (lambda: lb.Gold(lb.JSD(temperature=2)), "temperature 1"),
        (lambda: lb.Gold(2 * lb.JSD()), "weigh"),
        (lambda: lb.Gold(common=0, rest=0), "not both 0"),
        (lambda: lb.Gold(rest=-1), "at least 0"),
    ):
        with pytest.raises(RecipeError, match=words):
            make()
