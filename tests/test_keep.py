"""What is kept of a teacher: coded and read back as it was taken, near to float64, and unbiased with stated power.

Axes: N tokens of a pass, V vocabulary, S draws, K entries of a token, R repetitions of one token.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import chunked, error, leaves, written
from torch import Tensor

from limbeck import ForwardKL, Objective, ReverseKL
from limbeck.errors import LimbeckError, ModelError
from limbeck.head import Head
from limbeck.keep import ENTROPY_STEP, LOG_P_STEP, LOGSUMEXP_STEP, All, Columns, Draws, Hidden, Keep, Strata, Top, _gaps, _ids, kept
from limbeck.loss import Outputs, measure
from limbeck.objective import TokenRows
from limbeck.targets import Dense, Logits, Sampled, SampledRows, Targets, Whole

Array = np.ndarray[Any, Any]
quick = settings(deadline=None, max_examples=60, database=None, derandomize=True)
NO_TOKENS = TokenRows(torch.empty(0, dtype=torch.int64), None)
ROUNDING = 4e-6
"""What float32 leaves of nats up to 100."""


@dataclass(frozen=True)
class Pass:
    """Float32 logits [N, V] of several sequences, end to end."""

    logits_NV: Array
    tokens_B: list[int]
    temperature: float
    seed: int = 0

    @property
    def said(self) -> Whole:
        return Whole(torch.from_numpy(self.logits_NV), "toy")

    @property
    def states(self) -> Dense:
        """The same of a teacher whose hidden states are its logits."""
        return Dense(torch.from_numpy(self.logits_NV), Head(torch.eye(self.logits_NV.shape[1]), self.logits_NV.shape[1]), "toy")

    @property
    def log_p_NV(self) -> Array:
        return oracles.log_softmax(self.logits_NV, self.temperature)

    def uniforms(self, keep: Keep) -> list[Array]:
        return [keep.uniforms(np.random.default_rng([self.seed, b]), tokens) for b, tokens in enumerate(self.tokens_B)]

    def columns(self, keep: Keep) -> Columns:
        """A few tokens at a time, where there are few."""
        said = self.states if isinstance(keep, Hidden) else self.said
        with patch("limbeck.keep.CHUNK_ELEMENTS", 100 if len(self.logits_NV) < 100 else 2**22):
            return keep.of(said, len(self.logits_NV), self.temperature, np.concatenate(self.uniforms(keep)))

    def kept(self, keep: Keep) -> Targets:
        """Taken, cut into sequences, laid end to end in another order and back, and read."""
        rows = list(keep.cut(self.columns(keep), self.tokens_B))
        assert [len(row["entropy"]) for row in rows] == self.tokens_B
        together = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return keep.targets(together, None, "toy", self.temperature)


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    """Sequences of uneven lengths; distributions from nearly flat to all but certain."""
    tokens_B, outcomes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5)), draw(st.integers(3, 40))
    seed = draw(st.integers(0, 2**32))
    z_NV = np.random.default_rng(seed).normal(size=(sum(tokens_B), outcomes)) * draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    return Pass(z_NV.astype(np.float32), tokens_B, draw(st.sampled_from([0.5, 1.0, 2.0])), seed)


# Coding


@quick
@given(tokens=st.lists(st.sets(st.integers(0, 2**18), max_size=6), max_size=8))
def test_ids_come_back_from_their_gaps(tokens: list[set[int]]) -> None:
    per_token, ids = np.array([len(each) for each in tokens], np.int64), np.array([id for each in tokens for id in sorted(each)], np.int64)
    gaps = _gaps(ids, per_token)
    assert gaps.dtype == np.int32 and (gaps >= 0).all()
    assert np.array_equal(_ids(gaps, per_token), ids)


@quick
@given(made=passes(), kind=st.sampled_from([Draws, Strata]), count=st.sampled_from([1, 7, 50]))
def test_draws_are_where_their_random_numbers_fall(made: Pass, kind: type[Draws], count: int) -> None:
    """Each random number lies in the step of the float64 cumulative sum that its outcome is: nothing else is that."""
    keep = kind(count)
    said, below_NV = made.kept(keep), np.exp(made.log_p_NV).cumsum(-1)
    assert isinstance(said, Sampled) and said.temperature == made.temperature
    for ids_K, share_K, uniform_S, below_V in zip(
        said.ids_NK.numpy(), said.share_NK.numpy(), np.concatenate(made.uniforms(keep)), below_NV, strict=True
    ):
        there_K, counts_K = share_K > 0, np.rint(share_K * count).astype(int)
        assert counts_K.sum() == count and np.allclose(share_K * count, counts_K) and (np.diff(ids_K[there_K]) > 0).all()
        drawn_S = ids_K.repeat(counts_K)
        assert (np.append(0, below_V)[drawn_S] - 1e-6 <= uniform_S).all() and (uniform_S <= below_V[drawn_S] + 1e-6).all()


@quick
@given(made=passes(), kind=st.sampled_from([Draws, Strata]))
def test_random_numbers_ascend_and_strata_have_one_each(made: Pass, kind: type[Draws]) -> None:
    for uniform_NS in made.uniforms(kind(20)):
        assert (np.diff(uniform_NS) >= 0).all() and (uniform_NS >= 0).all() and (uniform_NS <= 1).all()
        if kind is Strata:
            assert (np.floor(uniform_NS * 20).astype(int) == np.arange(20)).all()


@quick
@given(made=passes(), data=st.data())
def test_the_likeliest_and_their_tail_are_those_of_float64(made: Pass, data: st.DataObject) -> None:
    outcomes = made.logits_NV.shape[1]
    keep = Top(data.draw(st.integers(1, outcomes - 1)))
    said = made.kept(keep).rows(slice(None))
    for ids_K, log_p_K, log_tail, log_p_V in zip(said.ids_CK.numpy(), said.log_p_CK.numpy(), said.log_tail_C.numpy(), made.log_p_NV, strict=True):
        rest_V = np.delete(log_p_V, ids_K)
        assert len(set(ids_K)) == len(ids_K) and (np.diff(log_p_K) <= 0).all() and log_p_V[ids_K].min() >= rest_V.max() - ROUNDING
        assert abs(log_p_K - log_p_V[ids_K]).max() <= LOG_P_STEP / 2 + ROUNDING
        assert abs(log_tail - oracles.log_sum_exp(rest_V)) <= LOG_P_STEP / 2 + ROUNDING


@pytest.mark.parametrize("log_tail", [-27.6, -80.0])
def test_a_tail_far_below_rounding_is_kept(log_tail: float) -> None:
    """Of 1e-12 and less; one less the sum of the others would be 0 or noise."""
    logits_NV = np.array([[0.0, -1.0, *[log_tail] * 30]], np.float32)
    made = Pass(logits_NV, [1], 1.0)
    said = made.kept(Top(2)).rows(slice(None))
    assert float(said.log_tail_C) == pytest.approx(float(oracles.log_sum_exp(made.log_p_NV[0, 2:])), abs=LOG_P_STEP / 2 + ROUNDING)


@quick
@given(made=passes(), words=st.sampled_from(["sampled:5", "stratified:5", "top:2", "hidden", "dense"]))
def test_entropy_and_logsumexp_are_those_of_float64(made: Pass, words: str) -> None:
    columns, log_p_NV = made.columns(kept(words)), made.log_p_NV
    scaled_NV = made.logits_NV.astype(np.float64) / made.temperature
    wanted = [oracles.log_sum_exp(row) for row in scaled_NV]
    assert abs(columns["entropy"] + (np.exp(log_p_NV) * log_p_NV).sum(-1)).max() <= ENTROPY_STEP / 2 + ROUNDING
    assert abs(columns["logsumexp"] - wanted).max() <= LOGSUMEXP_STEP / 2 + 4 * ROUNDING


def test_a_large_vocabulary_costs_no_digits() -> None:
    """Among 262,144 outcomes half the mass on rare ones: a float32 sum of them is off by more than a step."""
    logits_NV = np.random.default_rng(0).normal(size=(2, 2**18)).astype(np.float32)
    logits_NV[1, 7] = np.float32(np.log(2**18) + 0.5)
    made = Pass(logits_NV, [2], 1.0)
    columns, log_p_NV = made.columns(Top(64)), made.log_p_NV
    assert abs(columns["entropy"] + (np.exp(log_p_NV) * log_p_NV).sum(-1)).max() <= ENTROPY_STEP / 2 + 2 * ROUNDING
    assert abs(columns["logsumexp"] - [oracles.log_sum_exp(row) for row in logits_NV.astype(float)]).max() <= LOGSUMEXP_STEP / 2 + ROUNDING


@quick
@given(made=passes())
def test_all_probabilities_are_float16_of_float64(made: Pass) -> None:
    found = made.kept(All()).rows(slice(None)).logits_CV.numpy()
    assert found.dtype == np.float32
    assert (abs(found - made.log_p_NV) <= 2**-11 * abs(made.log_p_NV) + ROUNDING).all()


@quick
@given(made=passes(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_states_come_back_to_the_bit(made: Pass, dtype: torch.dtype) -> None:
    said = replace(made.states, hidden_ND=made.states.hidden_ND.to(dtype), head=made.states.head.prepared(dtype))
    columns = Hidden().of(said, len(made.logits_NV), made.temperature, np.empty((len(made.logits_NV), 0)))
    rows = list(Hidden().cut(columns, made.tokens_B))
    found = Hidden().targets({"hidden": np.concatenate([row["hidden"] for row in rows])}, said.head, "toy", 1.0)
    assert found.hidden_ND.dtype == dtype and torch.equal(found.hidden_ND, said.hidden_ND)


@pytest.mark.parametrize("words", ["sampled:5", "top:2", "hidden", "dense"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_distribution_is_not_kept(value: float, words: str) -> None:
    logits_NV = np.zeros((3, 9), np.float32)
    logits_NV[1, 4] = value
    with pytest.raises(ModelError, match="the teacher says nan where probabilities should be"):
        Pass(logits_NV, [3], 1.0).columns(kept(words))


def test_an_outcome_of_one_in_a_billion_is_drawn_where_it_stands() -> None:
    """A float32 sum of 1 and 1e-9 is 1."""
    columns = Draws(2).of(Pass(np.log([[1.0, 1e-9]]).astype(np.float32), [1], 1.0).said, 1, 1.0, np.array([[1 - 2e-9, 1 - 5e-10]]))
    assert columns["id_gaps"].tolist() == [0, 1] and columns["counts"].tolist() == [1, 1]


def test_outcomes_that_cannot_be_are_never_drawn() -> None:
    """Logits of -inf, at both ends too, where a random number of 0 or 1 falls."""
    logits_V = np.where(np.arange(40) % 3 == 1, np.float32(0), np.float32(-np.inf))
    for kind in (Draws, Strata):
        assert set(repeated(kind(50), 50, logits_V).rows(slice(None)).ids_CK.unique().tolist()) <= {0, *range(1, 40, 3)}
    columns = Draws(4).of(Pass(logits_V[None], [1], 1.0).said, 1, 1.0, np.array([[0.0, 1e-300, 1 - 2**-53, 1.0]]))
    assert columns["id_gaps"].tolist() == [1, 36] and columns["counts"].tolist() == [2, 2]
    assert float(columns["entropy"][0]) == pytest.approx(np.log(13), abs=ENTROPY_STEP / 2 + ROUNDING)


@pytest.mark.parametrize("words", ["sampled:50", "stratified:7", "top:64", "hidden", "dense"])
def test_what_is_kept_goes_by_a_name(words: str) -> None:
    assert str(kept(words)) == words and type(kept(words)).word == words.partition(":")[0]


@pytest.mark.parametrize("count", [0, 1001])
@pytest.mark.parametrize("word", ["sampled", "stratified", "top"])
def test_a_number_that_cannot_be_is_refused(word: str, count: int) -> None:
    with pytest.raises(LimbeckError, match=f"keep {word}:{count}: give a number from 1 to 1000"):
        kept(f"{word}:{count}")


# What a student learns of draws


def drawn(tokens: int, outcomes: int, temperature: float = 1.0, count: int = 16, seed: int = 0) -> tuple[Sampled, Array]:
    """Draws from distributions of all kinds, so that tokens differ in how many outcomes they have; and a student's logits, float64."""
    draw = np.random.default_rng(seed)
    z_NV = draw.normal(size=(tokens, outcomes)) * draw.uniform(0.1, 12, (tokens, 1))
    said = Pass(z_NV.astype(np.float32), [tokens], temperature, seed).kept(Draws(count))
    assert isinstance(said, Sampled) and len((said.share_NK == 0).sum(-1).unique()) > 2
    return said, draw.normal(size=(tokens, outcomes)) * 2


def direct(s_NV: Tensor, said: SampledRows, temperature: float) -> Tensor:
    """`T^2 (-sum share log q - H)` of each token, float64."""
    log_q_NV = (s_NV / temperature).log_softmax(-1)
    return temperature**2 * (-(said.share_CK.double() * log_q_NV.gather(1, said.ids_CK)).sum(-1) - said.entropy_C.double())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_forward_kl_is_the_formula_and_autograd_its_gradient(temperature: float) -> None:
    said, s_NV = drawn(40, 30, temperature)
    rows, s = said.rows(slice(None)), torch.from_numpy(s_NV).requires_grad_()
    wanted = direct(s, rows, temperature)
    wanted.sum().backward()
    nats_C, gradient_CV = ForwardKL(temperature=temperature).rows(Logits(s.detach()), rows, NO_TOKENS)
    torch.testing.assert_close(nats_C, wanted.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_CV, s.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_gradient_is_that_of_finite_differences(temperature: float) -> None:
    said, s_NV = drawn(6, 9, temperature)
    term, rows, s, step = ForwardKL(temperature=temperature), said.rows(slice(None)), torch.from_numpy(s_NV), 1e-5
    _, gradient_CV = term.rows(Logits(s), rows, NO_TOKENS)
    for v in range(9):
        moved = step * torch.nn.functional.one_hot(torch.tensor(v), 9)
        up, down = (term.rows(Logits(s + sign * moved), rows, NO_TOKENS)[0] for sign in (1, -1))
        torch.testing.assert_close((up - down) / (2 * step), gradient_CV[:, v], rtol=1e-6, atol=1e-7)


def test_shares_of_nothing_change_nothing() -> None:
    said, s_NV = drawn(20, 15)
    rows, s = said.rows(slice(None)), torch.from_numpy(s_NV)
    more = replace(rows, ids_CK=torch.nn.functional.pad(rows.ids_CK, (0, 5), value=3), share_CK=torch.nn.functional.pad(rows.share_CK, (0, 5)))
    for found, wanted in zip(ForwardKL().rows(Logits(s), more, NO_TOKENS), ForwardKL().rows(Logits(s.clone()), rows, NO_TOKENS), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_head_learns_from_draws_in_chunks(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows to a chunk, two to a block; a head of more rows than outcomes, with a bias."""
    for name, value in {"CHUNK_ROWS": 7, "SAID_BYTES": 4000, "BLOCK_ELEMENTS": 600, "PRODUCT_BYTES": 2**12}.items():
        monkeypatch.setattr(f"limbeck.loss.{name}", value)
    batch, generator = written(), torch.Generator().manual_seed(0)
    N = len(batch.places_N)
    said, _ = drawn(N, 258, temperature)
    head = Head(torch.randn(272, 16, generator=generator), 258, torch.randn(272, generator=generator))
    outputs, term = Outputs(torch.randn(N, 16, generator=generator), head), ForwardKL(temperature=temperature)
    found = chunked(leaves(outputs), head, said, batch, Objective([term]))
    hidden, weight, bias = (x.detach().double().requires_grad_() for x in leaves(outputs))
    nats_N = direct((hidden @ weight.T + bias)[:, :258], said.rows(slice(None)), temperature)
    (0.37 * nats_N.sum()).backward()
    torch.testing.assert_close(found["ForwardKL"].double(), nats_N.detach(), rtol=4e-6, atol=2e-5)
    assert max(error(found[f"d{n}"], x.grad) for n, x in enumerate((hidden, weight, bias))) < 5e-6
    assert torch.equal(measure(outputs, said, batch, Objective([term]))["ForwardKL"], found["ForwardKL"])


def test_what_was_not_sampled_cannot_be_told_of_draws() -> None:
    said, s_NV = drawn(10, 12)
    with pytest.raises(AssertionError, match="needs whole distributions"):
        ReverseKL().rows(Logits(torch.from_numpy(s_NV)), said.rows(slice(None)), NO_TOKENS)
    with pytest.raises(AssertionError, match="cannot be re-tempered"):
        ForwardKL(temperature=2.0).rows(Logits(torch.from_numpy(s_NV)), said.rows(slice(None)), NO_TOKENS)


# Without bias

SPREAD = np.random.default_rng(5).permutation(np.linspace(0, -6, 40)).astype(np.float32)
"""Logits of one token, its rarest outcome of probability 4e-4."""


def repeated(keep: Keep, R: int, logits_V: Array = SPREAD, temperature: float = 1.0, seed: int = 0) -> Targets:
    """The same token again and again, each time with random numbers of its own."""
    return Pass(np.tile(logits_V, (R, 1)), [R], temperature, seed).kept(keep)


def frequencies(said: Targets) -> Array:
    rows = said.rows(slice(None))
    return torch.zeros(40, dtype=torch.float64).index_add_(0, rows.ids_CK.flatten(), rows.share_CK.double().flatten()).numpy() / len(rows.ids_CK)


def chance(share_V: Array, draws: int) -> float:
    """How often draws from SPREAD itself are as far from it as these (chi-square)."""
    p_V = np.exp(oracles.log_softmax(SPREAD))
    statistic = draws * ((share_V - p_V) ** 2 / p_V).sum()
    return float(torch.special.gammaincc(torch.tensor(39 / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)))


@pytest.mark.parametrize("kind", [Draws, Strata])
def test_outcomes_are_drawn_as_often_as_the_teacher_says(kind: type[Draws]) -> None:
    """200,000 draws. The same test finds a teacher cut to its top 12, and one 3 % too hot but once in a million times."""
    assert chance(frequencies(repeated(kind(50), 4000)), 200_000) > 0.01
    top_12 = np.where(SPREAD.argsort().argsort() >= 28, SPREAD, np.float32(-1e4))
    assert chance(frequencies(repeated(kind(50), 4000, top_12)), 200_000) < 1e-12
    p_V, hot_V = (np.exp(oracles.log_softmax(SPREAD, temperature)) for temperature in (1.0, 1.03))
    assert 200_000 * ((hot_V - p_V) ** 2 / p_V).sum() > 150  # five deviations above what is refused
    assert chance(frequencies(repeated(kind(50), 4000, temperature=1.03)), 200_000) < 0.01


def deviation(kind: type[Draws], R: int, times: int, count: int, student_V: Tensor) -> Array:
    """Squared distance of the mean gradient over R tokens from the full one, once for each of `times`."""
    said = repeated(kind(count), R * times, seed=R).rows(slice(None))
    full = ForwardKL().rows(Logits(student_V[None].clone()), Logits(torch.from_numpy(SPREAD)[None].double()), NO_TOKENS)[1][0]
    _, gradient_CV = ForwardKL().rows(Logits(student_V.expand(R * times, -1).clone()), said, NO_TOKENS)
    return ((gradient_CV.reshape(times, R, -1).mean(1) - full) ** 2).sum(-1).numpy()


def test_the_mean_gradient_converges_to_the_full_one() -> None:
    """Its mean square is `(1 - sum p^2) / (S R)` within 4 deviations; so its root falls by 2 from each R to four times as many."""
    p_V, S, times = np.exp(oracles.log_softmax(SPREAD)), 8, 64
    student_V = torch.from_numpy(np.random.default_rng(1).normal(size=40))
    covariance = np.diag(p_V) - np.outer(p_V, p_V)
    spread = np.sqrt(2 * (covariance**2).sum() / np.trace(covariance) ** 2 / times)  # of a sum of squares, relative to itself
    measured = [deviation(Draws, R, times, S, student_V).mean() for R in (16, 64, 256, 1024)]
    for R, square in zip((16, 64, 256, 1024), measured, strict=True):
        assert square == pytest.approx((1 - (p_V**2).sum()) / (S * R), rel=4 * spread), R
    for before, after in pairwise(measured):
        assert 2 * np.sqrt(1 - 4 * spread) < np.sqrt(before / after) < 2 * np.sqrt(1 + 6 * spread)
    assert 4 * spread < 0.4


def test_strata_have_the_noise_within_slices_alone() -> None:
    """Mean square `sum over slices and outcomes of p (1 - p)`, over `S^2 R`: that between slices, 0.45 of the whole, is gone."""
    p_V, S, R, times = np.exp(oracles.log_softmax(SPREAD)), 8, 64, 64
    ends_V, edges_S1 = p_V.cumsum(), np.arange(S)[:, None] / S
    within_SV = S * np.clip(np.minimum(ends_V, edges_S1 + 1 / S) - np.maximum(ends_V - p_V, edges_S1), 0, None)
    wanted = (within_SV * (1 - within_SV)).sum() / (S**2 * R)
    assert deviation(Strata, R, times, S, torch.zeros(40, dtype=torch.float64)).mean() == pytest.approx(wanted, rel=0.35)
    assert wanted < 0.6 * (1 - (p_V**2).sum()) / (S * R)


@pytest.mark.parametrize("kind", [Draws, Strata])
def test_the_mean_value_is_the_full_divergence(kind: type[Draws]) -> None:
    student_V = torch.from_numpy(np.random.default_rng(1).normal(size=40))
    wanted, _ = oracles.forward_kl(SPREAD[None], student_V.numpy()[None])
    nats_C, _ = ForwardKL().rows(Logits(student_V.expand(4000, -1).clone()), repeated(kind(8), 4000).rows(slice(None)), NO_TOKENS)
    assert abs(float(nats_C.mean()) - wanted[0]) < 4 * float(nats_C.std()) / 4000**0.5 + ENTROPY_STEP / 2
    assert 4 * float(nats_C.std()) / 4000**0.5 < 0.04 * wanted[0]
