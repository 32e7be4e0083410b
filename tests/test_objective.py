"""The one pass over rows against the direct formula, and what must not change a gradient."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck import JSD, CrossEntropy, Divergence, ForwardKL, Objective, PolicyGradient, ReverseKL, Student, Term, TotalVariation
from limbeck.batch import Batch, Span, Text
from limbeck.config import build
from limbeck.errors import RecipeError
from limbeck.head import Head
from limbeck.loss import Outputs, measure, row_loss
from limbeck.models import Model
from limbeck.objective import CustomTerm
from limbeck.targets import Dense, Logits, Nothing, Targets, TopK
from limbeck.teachers import Local

Toy, Leaves = Callable[..., str], tuple[Tensor, Tensor, Tensor | None]
V = 258
"""Tokens of the toy vocabulary; toy heads have 272 rows unless told otherwise."""
quick = settings(deadline=None, max_examples=60, database=None, derandomize=True)


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows to a chunk, three told at once, two to a block, and a head's weight gradient in pieces."""
    for name, value in {"CHUNK_ROWS": 7, "SAID_BYTES": 12 * V + 5, "BLOCK_ELEMENTS": 2 * V + 5, "PRODUCT_BYTES": 2**12}.items():
        monkeypatch.setattr(f"limbeck.loss.{name}", value)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The folder of a toy model, made once."""
    made = dict[tuple[Any, ...], str]()

    def folder(kind: str = "llama", seed: int = 0, rows: int = 272) -> str:
        key = (kind, seed, rows)
        if key not in made:
            made[key] = toys.folder(tmp_path_factory.mktemp("toy"), kind, seed, rows=rows)
        return made[key]

    return folder


def written(seed: int = 0, sequences: int = 6) -> Batch:
    """Dialogues of uneven lengths, one or two spans each, by three writers, with credit."""
    draw = np.random.default_rng(seed)
    texts = list[Text]()
    for length in draw.integers(12, 30, sequences):
        first, last = int(draw.integers(1, 4)), int(length) - int(draw.integers(1, 7))
        spans = [Span(first, first + 3), Span(last, int(length))]
        texts.append(Text(draw.integers(0, V, int(length)).tolist(), spans[int(draw.integers(0, 2)) :]))
    batch = Batch.of(texts, "corpus")
    writers_N = torch.tensor(draw.integers(0, 3, len(batch.places_N)), dtype=torch.uint8)
    return replace(batch, writers_N=writers_N, credit_B=torch.tensor(draw.normal(size=sequences), dtype=torch.float32))


def learner(folder: str) -> Student:
    return Student(model=folder, dtype="float32").load(1)


def gradients(student: Student) -> dict[str, Tensor]:
    """Taken off the weights, so that the next pass starts from none."""
    taken = {name: weight.grad for name, weight in student.live.module.named_parameters() if weight.grad is not None}
    student.live.module.zero_grad(set_to_none=True)
    return taken


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative to the size of what was wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Gradients to 5e-6 of their size, nats and their sum to 4e-6, which is what float32 leaves of log-probabilities up to 30."""
    assert found.keys() == wanted.keys()
    for name in found:
        if name.startswith("d"):
            assert error(found[name], wanted[name]) < 5e-6, name
        else:
            torch.testing.assert_close(found[name].double(), wanted[name].double(), rtol=4e-6, atol=4e-6)


# The chunked pass against everything at once


def my_distance(log_q_CV: Tensor, log_p_CV: Tensor) -> Tensor:
    """A user's own: Renyi's of order 2."""
    return (2 * log_p_CV - log_q_CV).logsumexp(-1)


def total_of(log_q_CV: Tensor, log_p_CV: Tensor) -> Tensor:
    return my_distance(log_q_CV, log_p_CV).sum()


def jsd(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    lm = (beta * lp.exp() + (1 - beta) * lq.exp()).log()
    return (beta * lp.exp() * (lp - lm) + (1 - beta) * lq.exp() * (lq - lm)).sum(-1)


def formula(term: Term, z: Tensor, s: Tensor, batch: Batch) -> Tensor:
    """Nats of each row, as one would write them down."""
    T = getattr(term, "temperature", 1.0)
    lp, lq = (z / T).log_softmax(-1), (s / T).log_softmax(-1)
    p, q, token = lp.exp(), lq.exp(), -lq[torch.arange(len(lq)), batch.tokens_N]
    return {
        ForwardKL: T**2 * (p * (lp - lq)).sum(-1),
        ReverseKL: T**2 * (q * (lq - lp)).sum(-1),
        JSD: T**2 * jsd(lp, lq, getattr(term, "beta", 0.5)),
        TotalVariation: T * (p - q).abs().sum(-1) / 2,
        CustomTerm: my_distance(lq, lp),
        PolicyGradient: torch.stack([batch.credit_B[int(b)] for b in batch.sequence_N]) * token,
        CrossEntropy: token,
    }[type(term)]


def plain_logits(head: Head, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    raw = head.scale * (hidden @ weight[:V].T + (0 if bias is None else bias[:V]))
    return raw if head.cap is None else head.cap * torch.tanh(raw / head.cap)


def leaves(outputs: Outputs, hidden: torch.dtype = torch.float32, weight: torch.dtype = torch.float32) -> Leaves:
    """Hidden states, head weight and bias to be differentiated, with a dtype of their own."""
    bias = outputs.head.bias_V
    made = (outputs.hidden_ND.detach().to(hidden), outputs.head.weight_VD.detach().to(weight), None if bias is None else bias.detach().to(weight))
    return tuple(None if x is None else x.clone().requires_grad_() for x in made)


def chunked(at: Leaves, head: Head, said: Targets, batch: Batch, objective: Objective, scale: float = 0.37) -> dict[str, Tensor]:
    """Loss, nats and gradients of the library's pass."""
    loss, nats = row_loss(Outputs(at[0], replace(head, weight_VD=at[1], bias_V=at[2])), said, batch, objective, scale)
    loss.backward()
    return {"loss": loss.detach(), **nats, **{f"d{n}": x.grad for n, x in enumerate(at) if x is not None}}


def direct(at: Leaves, head: Head, said: Dense, batch: Batch, objective: Objective, scale: float = 0.37) -> dict[str, Tensor]:
    """The same in float64 by autograd, from logits of all rows at once. Narrow weights are first rounded as the pass rounds them."""
    wide = [None if x is None else x.detach().double().requires_grad_() for x in at]
    used = [None if x is None else x + (x.detach().to(at[0].dtype).double() - x).detach() for x in wide]
    s = plain_logits(head, *used)
    other = [None if x is None else x.detach().to(said.hidden_ND.dtype).double() for x in (said.hidden_ND, said.head.weight_VD, said.head.bias_V)]
    z = plain_logits(said.head, *other)
    nats = {term.name: formula(term, z, s, batch) for term in objective.terms}
    names = [("corpus", "teacher", "student")[int(writer)] for writer in batch.writers_N]
    counted = [torch.tensor([term.writer in (None, name) for name in names]) for term in objective.terms]
    loss = sum(scale * t.weight * (nats[t.name] * c).sum() for t, c in zip(objective.terms, counted, strict=True))
    loss.backward()
    return {"loss": loss.detach(), **{n: x.detach() for n, x in nats.items()}, **{f"d{n}": x.grad for n, x in enumerate(wide) if x is not None}}


def pass_of(toy: Toy, kind: str) -> tuple[Model, Batch, Outputs, Dense]:
    """A toy student, a batch, and what it and its teacher say of it; more sure of themselves than toys are."""
    batch, student = written(), learner(toy(kind))
    outputs, said = student.live.forward(batch), next(Local(model=toy(kind, 1), dtype="float32").load(student).score([batch]))
    return student.live, batch, replace(outputs, hidden_ND=5 * outputs.hidden_ND), replace(said, hidden_ND=5 * said.hidden_ND)


MIXED = ForwardKL(temperature=2.0) + 0.5 * ReverseKL().on("student") + 0.3 * PolicyGradient().on("student") + 0.1 * CrossEntropy().on("corpus")
OBJECTIVES = [
    Objective([ForwardKL()]),
    Objective([3 * ReverseKL(temperature=0.5)]),
    JSD(0.3).on("teacher") + TotalVariation(temperature=2.0),
    CustomTerm("test_objective:my_distance") + 2 * CustomTerm("test_objective:my_distance").on("student"),
    Objective([PolicyGradient()]),
    MIXED,
]


@pytest.mark.usefixtures("many_chunks")
@pytest.mark.parametrize("kind", toys.KINDS)
def test_every_head_gives_the_direct_formula_and_its_padding_learns_nothing(kind: str, toy: Toy) -> None:
    model, batch, outputs, said = pass_of(toy, kind)
    at = leaves(outputs)
    found, wanted = chunked(at, model.head, said, batch, MIXED), direct(at, model.head, said, batch, MIXED)
    assert ("d2" in found) == (kind == "gptj")  # the one with a bias
    assert_same(found, wanted)
    assert len(found["d1"]) == 272
    for gradient in (found[name] for name in ("d1", "d2") if name in found):
        assert torch.count_nonzero(gradient[V:]) == 0 and torch.count_nonzero(gradient[:V]) > 0


@pytest.mark.usefixtures("many_chunks")
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda made: "+".join(term.name for term in made.terms))
def test_every_sum_of_terms_gives_the_direct_formula(objective: Objective, toy: Toy) -> None:
    model, batch, outputs, said = pass_of(toy, "gptj")
    at = leaves(outputs)
    assert_same(chunked(at, model.head, said, batch, objective), direct(at, model.head, said, batch, objective))


@pytest.mark.usefixtures("many_chunks")
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", toys.KINDS)
def test_bfloat16_costs_its_roundings_and_no_more(kind: str, weight: torch.dtype, toy: Toy) -> None:
    """The product rounds each logit by half a step of bfloat16, and each outcome's weight by the error of its logits."""
    model, batch, outputs, said = pass_of(toy, kind)
    at = leaves(outputs, torch.bfloat16, weight)
    objective = ForwardKL() + CrossEntropy()
    found, wanted = chunked(at, model.head, said, batch, objective), direct(at, model.head, said, batch, objective)
    eps = torch.finfo(torch.bfloat16).eps
    largest = float(plain_logits(model.head, *(None if x is None else x.detach().double() for x in at)).abs().max())
    for name in ("ForwardKL", "CrossEntropy"):  # a nat moves at most twice as far as the logits do, and so for its gradient
        assert float((found[name] - wanted[name]).abs().max()) < eps * largest, name
    for name in (name for name in found if name.startswith("d")):
        assert error(found[name], wanted[name]) < eps * max(1.0, largest / 2), name


def test_what_comes_after_the_loss_scales_its_gradient(toy: Toy) -> None:
    model, batch, outputs, said = pass_of(toy, "llama")
    at, wanted = leaves(outputs), leaves(outputs)
    (-3 * row_loss(Outputs(at[0], replace(model.head, weight_VD=at[1])), said, batch, MIXED, 1.0)[0]).backward()
    chunked(wanted, model.head, said, batch, MIXED, scale=-3.0)
    torch.testing.assert_close(at[0].grad, wanted[0].grad)
    torch.testing.assert_close(at[1].grad, wanted[1].grad)


def test_a_frozen_head_is_left_alone(toy: Toy) -> None:
    model, batch, outputs, said = pass_of(toy, "gptj")
    at, frozen = leaves(outputs), leaves(outputs)
    frozen = (frozen[0], *(x.requires_grad_(False) for x in frozen[1:]))
    wanted, found = (chunked(x, model.head, said, batch, MIXED) for x in (at, frozen))
    assert found["d1"] is None and found["d2"] is None
    torch.testing.assert_close(found["d0"], wanted["d0"])


@pytest.mark.usefixtures("many_chunks")
def test_measuring_says_what_learning_reduces(toy: Toy) -> None:
    _, batch, outputs, said = pass_of(toy, "gemma2")
    _, nats = row_loss(outputs, said, batch, MIXED, 0.01)
    measured = measure(outputs, said, batch, MIXED)
    assert list(measured) == ["ForwardKL", "ReverseKL@student", "PolicyGradient@student", "CrossEntropy@corpus"]
    for name in measured:
        assert torch.equal(measured[name], nats[name])
        assert measured[name].shape == batch.places_N.shape and not measured[name].requires_grad


def test_a_custom_term_must_answer_for_each_row(toy: Toy) -> None:
    _, batch, outputs, said = pass_of(toy, "llama")
    with pytest.raises(RecipeError, match=r"test_objective:total_of gave shape \(\) for \d+ rows; return nats of each row"):
        row_loss(outputs, said, batch, Objective([CustomTerm("test_objective:total_of")]), 1.0)
    with pytest.raises(RecipeError, match='cannot import "test_objective:absent"'):
        row_loss(outputs, said, batch, Objective([CustomTerm("test_objective:absent")]), 1.0)


# The whole model: against transformers, under other cuts, against itself


def one_hot_dense(batch: Batch) -> Dense:
    """A teacher that is sure of each token of the text."""
    return Dense(200 * torch.nn.functional.one_hot(batch.tokens_N, V).float(), Head(torch.eye(V), V), "toy")


def one_hot_top_k(batch: Batch) -> TopK:
    rows = len(batch.places_N)
    return TopK(batch.tokens_N[:, None], torch.zeros(rows, 1), torch.full((rows,), float("-inf")), "toy")


def of_transformers(model: Model, batch: Batch) -> Tensor:
    """transformers' own mean cross-entropy of the completion tokens."""
    sequences = batch.sequences()
    labels = [torch.full_like(tokens, -100) for tokens in sequences]
    for place, b in zip(batch.places_N.tolist(), batch.sequence_N.tolist(), strict=True):
        at = place - int(batch.starts_B[b])
        labels[b][at] = sequences[b][at]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(tokens) for tokens in sequences], batch_first=True)
    return model.causal(input_ids=pad(sequences, batch_first=True), attention_mask=mask, labels=pad(labels, True, -100), use_cache=False).loss


@pytest.mark.parametrize("kind", toys.KINDS)
@pytest.mark.parametrize("lesson", ["text", "dense", "top k"])
def test_loss_and_gradient_are_those_of_transformers(kind: str, lesson: str, toy: Toy) -> None:
    student, batch = learner(toy(kind, rows=V)), written()
    said = {"text": Nothing(), "dense": one_hot_dense(batch), "top k": one_hot_top_k(batch)}[lesson]
    term = CrossEntropy() if lesson == "text" else ForwardKL()
    wanted = of_transformers(student.live, batch)
    wanted.backward()
    directly = gradients(student)
    nats = student.learn(batch, said, Objective([term]), scale=1 / len(batch.places_N))
    assert float(nats[term.name].mean()) == pytest.approx(float(wanted.detach()), rel=2e-6)
    for name, gradient in gradients(student).items():
        assert error(gradient, directly.pop(name)) < 5e-6, name
    assert not directly


def learnt(student: Student, teacher: Local, parts: list[Batch], objective: Objective) -> dict[str, Tensor]:
    total = sum(len(part.tokens_N) for part in parts)
    for part, said in zip(parts, teacher.score(parts), strict=True):
        student.learn(part, said, objective, scale=1 / total)
    return gradients(student)


@pytest.mark.parametrize("kind", toys.KINDS)
def test_cuts_and_orders_change_no_gradient(kind: str, toy: Toy) -> None:
    student, batch = learner(toy(kind)), written(sequences=7)
    teacher = Local(model=toy(kind, 1), dtype="float32").load(student)
    whole = learnt(student, teacher, [batch], MIXED)
    cuts = [batch.split(tokens) for tokens in (1, 40, 65, 10**6)]
    assert [len(parts) for parts in (cuts[0], cuts[-1])] == [7, 1] and len(cuts[0]) > len(cuts[1]) > len(cuts[2]) > 1
    for parts in [*cuts, [batch.select([4, 0, 6]), batch.select([2, 5, 1, 3])]]:
        for name, gradient in learnt(student, teacher, parts, MIXED).items():
            assert error(gradient, whole[name]) < 1e-5, name


EVERY = [build(f"{name}()", Term) for name in Divergence.known() if name != "Divergence"]


@pytest.mark.parametrize("kind", ["llama-tied", "gemma2", "gptj"])
@pytest.mark.parametrize("term", [*EVERY, ForwardKL(temperature=3.0), JSD(0.1, normalized=True)], ids=lambda term: term.name)
def test_a_teacher_that_is_the_student_teaches_nothing(kind: str, term: Term, toy: Toy) -> None:
    student, batch = learner(toy(kind)), written()
    same, other = (Local(model=toy(kind, seed), dtype="float32").load(student) for seed in (0, 1))
    assert float(student.measure(batch, next(same.score([batch])), Objective([term]))[term.name].abs().max()) < 1e-6
    nothing, something = (learnt(student, teacher, [batch], Objective([term])) for teacher in (same, other))
    for name in something:
        assert float(nothing[name].norm()) < 1e-5 * float(something[name].norm()), name


def test_a_truncated_self_teaches_nothing(toy: Toy) -> None:
    student, batch = learner(toy()), written()
    log_p_NV = Logits(student.live.head.logits(student.live.forward(batch).hidden_ND)[:, :V].detach()).log_probs()
    nats = student.learn(batch, TopK.of(log_p_NV, 5, "toy"), Objective([ForwardKL()]), 1.0)
    assert float(nats["ForwardKL"].abs().max()) < 1e-6
    assert all(float(gradient.norm()) < 1e-5 for gradient in gradients(student).values())


# Batches: every token carries its own number, so that what travels with it can be told


@st.composite
def numbered(draw: st.DrawFn) -> Batch:
    """A batch whose token t is t, written with log-probability -t, of which was said t; sequence b has credit b."""
    texts, at = list[Text](), 0
    for b in range(draw(st.integers(1, 8))):
        inside = draw(st.lists(st.booleans(), min_size=1, max_size=12))
        places = [place for place, chosen in enumerate(inside, 1) if chosen]
        tokens = list(range(at, at + len(inside) + 1))
        texts.append(Text(tokens, [Span(p, p + 1) for p in places], {"number": b}, [-float(tokens[p]) for p in places]))
        at += len(tokens)
    batch = Batch.of(texts, draw(st.sampled_from(["corpus", "teacher", "student"])))
    ids_N1 = batch.tokens_N[:, None]
    said = TopK(ids_N1, -ids_N1.float(), -ids_N1[:, 0].float(), "toy")
    return replace(batch, said=said, credit_B=torch.arange(len(texts)).float(), writers_N=(batch.tokens_N % 3).to(torch.uint8))


def consistent(batch: Batch) -> bool:
    """Whether everything about a token still is about it."""
    assert isinstance(batch.said, TopK)
    tokens_N, numbers = batch.tokens_N, torch.tensor([row["number"] for row in batch.columns_B])
    return (
        torch.equal(batch.said.ids_NK[:, 0], tokens_N)
        and torch.equal(batch.said.log_tail_N, -tokens_N.float())
        and torch.equal(batch.logp_N, -tokens_N.float())
        and torch.equal(batch.writers_N, (tokens_N % 3).to(torch.uint8))
        and torch.equal(batch.credit_N, numbers[batch.sequence_N].float())
        and bool((batch.places_N.diff() > 0).all())
        and not set(batch.places_N.tolist()) & set(batch.starts_B.tolist())
        and int(batch.lengths_B.sum()) == len(batch.tokens_T)
    )


def told_apart(batch: Batch) -> dict[int, tuple[list[int], list[int]]]:
    """By number of sequence: its tokens, and those of them that are completions."""
    return {
        row["number"]: (tokens.tolist(), batch.tokens_N[batch.sequence_N == b].tolist())
        for b, (row, tokens) in enumerate(zip(batch.columns_B, batch.sequences(), strict=True))
    }


@quick
@given(batch=numbered(), data=st.data())
def test_selecting_takes_all_that_belongs_to_a_sequence(batch: Batch, data: st.DataObject) -> None:
    chosen = data.draw(st.permutations(range(len(batch)))) [: data.draw(st.integers(0, len(batch)))]  # fmt: skip
    part = batch.select(chosen)
    assert consistent(batch) and consistent(part)
    assert [row["number"] for row in part.columns_B] == chosen
    assert told_apart(part) == {b: told_apart(batch)[b] for b in chosen}


@quick
@given(batch=numbered(), tokens_per_pass=st.integers(1, 60))
def test_splitting_keeps_every_sequence_once(batch: Batch, tokens_per_pass: int) -> None:
    parts = batch.split(tokens_per_pass)
    assert all(consistent(part) for part in parts)
    assert {b: text for part in parts for b, text in told_apart(part).items()} == told_apart(batch)
    assert sum(len(part) for part in parts) == len(batch)
    longest = [int(part.lengths_B.max()) for part in parts]
    assert longest == sorted(longest, reverse=True)
    for part, length in zip(parts, longest, strict=True):
        assert len(part) == 1 or len(part) * length <= tokens_per_pass
    for before, _ in pairwise(parts):  # else it would have fitted into the one before
        assert (len(before) + 1) * int(before.lengths_B.max()) > tokens_per_pass
