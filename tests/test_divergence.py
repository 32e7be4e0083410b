"""Every divergence against its slow double, its gradient too, and what is known of it in mathematics."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import (
    JSD,
    AlphaDivergence,
    CrossEntropy,
    Divergence,
    ForwardKL,
    Jeffreys,
    Objective,
    PolicyGradient,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    Term,
    TotalVariation,
)  # fmt: skip
from limbeck.config import build, plain
from limbeck.errors import RecipeError
from limbeck.objective import TokenRows
from limbeck.targets import Logits, TopK

EPS = float(np.finfo(np.float32).eps)
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
NO_TOKENS = TokenRows(torch.empty(0, dtype=torch.int64), None)
quick = settings(deadline=None, max_examples=60, database=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors, many tests: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    kind: Callable[..., Divergence]
    oracle: oracles.Oracle
    settings: dict[str, Any] = field(default_factory=dict)
    bend: float = 0.5
    """Near p = q and softened without end, the value tends to `bend` times the variance of the difference of logits."""

    def __str__(self) -> str:
        return self.kind.__name__ + "".join(f"-{value}" for value in self.settings.values())

    def term(self, temperature: float = 1.0) -> Divergence:
        return self.kind(**self.settings, temperature=temperature)


CASES = [
    Case(ForwardKL, oracles.forward_kl),
    Case(ReverseKL, oracles.reverse_kl),
    Case(Jeffreys, oracles.jeffreys),
    Case(TotalVariation, oracles.total_variation),
    *(Case(JSD, oracles.jsd, {"beta": beta}, beta * (1 - beta) / 2) for beta in (0.1, 0.5, 0.9)),
    *(Case(JSD, oracles.jsd, {"beta": beta, "normalized": True}) for beta in (0.1, 0.5, 0.9)),
    *(Case(SkewKL, oracles.skew_kl, {"skew": skew}, (1 - skew) ** 2 / 2) for skew in (0.1, 0.5)),
    *(Case(SkewReverseKL, oracles.skew_reverse_kl, {"skew": skew}, (1 - skew) ** 2 / 2) for skew in (0.1, 0.5)),
    *(Case(AlphaDivergence, oracles.alpha_divergence, {"alpha": alpha}) for alpha in (0.1, 0.5, 0.9)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def scored(term: Term, z: np.ndarray, s: np.ndarray) -> oracles.Answer:
    """Nats and gradient of a term, computed in the dtype of the logits."""
    nats_C, gradient_CV = term.rows(Logits(torch.tensor(s)), Logits(torch.tensor(z)), NO_TOKENS)
    return nats_C.numpy(), gradient_CV.numpy()


def scored_top_k(z: np.ndarray, s: np.ndarray, k: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats, gradient and kept outcomes of the truncated forward KL."""
    said = TopK.of(Logits(torch.tensor(z)).log_probs(temperature), k, "toy", temperature).rows(slice(None))
    nats_C, gradient_CV = ForwardKL(temperature=temperature).rows(Logits(torch.tensor(s)), said, NO_TOKENS)
    return nats_C.numpy(), gradient_CV.numpy(), said.ids_CK.numpy()


# The library's float32 against the oracle's float64 on the same logits

SHAPES = (1.0, 30.0, 1e4, "one-hot teacher", "one-hot both")


@lru_cache(maxsize=32)
def drawn(vocabulary: int, shape: float | str) -> tuple[np.ndarray, np.ndarray, float]:
    """The teacher's logits, the student's, and their size. Nearly one-hot: e^30 between the first and any other."""
    draw, rows = np.random.default_rng(vocabulary), 2 if vocabulary < 10**5 else 1
    size = float(shape) if not isinstance(shape, str) else 1.0
    z, s = draw.uniform(-size, size, (2, rows, vocabulary))
    if isinstance(shape, str):
        z[:, 0] += 30
        s[:, 1] += 30 if shape == "one-hot both" else 0
        size += 30
    return z.astype(np.float32), s.astype(np.float32), size


def assert_near(found: oracles.Answer, wanted: oracles.Answer, vocabulary: int, size: float, temperature: float, order: int = 2) -> None:
    """Log-probabilities are of the size of the tempered logits, S / T, or log V where those are flat.

    Of S / T float32 may lose 1e-6, of log V two roundings. The value is then multiplied by T^2 (T where the divergence
    is linear), and its error with it; the gradient by T less, so one bound serves both. It is never above
    1e-6 max(1, S) max(1, T^2) but for flat logits of large vocabularies, where log V alone rounds to 1e-6.
    """
    bound = temperature**order * max(1e-6 * max(1.0, size / temperature), 2 * EPS * math.log(vocabulary))
    for what, got, want in zip(("value", "gradient"), found, wanted, strict=True):
        error = np.abs(got.astype(np.float64) - want).max()
        assert error <= bound, f"{what} off by {error:.2e}, allowed {bound:.2e}"


every_size = pytest.mark.parametrize("vocabulary", [2, 5, 1000, 49152, 262144])
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


@every_case
@every_size
@every_shape
@every_temperature
def test_value_and_gradient_in_float32(case: Case, vocabulary: int, shape: float | str, temperature: float) -> None:
    z, s, size = drawn(vocabulary, shape)
    found, wanted = scored(case.term(temperature), z, s), case.oracle(z, s, temperature, **case.settings)
    assert found[0].dtype == found[1].dtype == np.float32
    assert_near(found, wanted, vocabulary, size, temperature, case.kind.order)


@pytest.mark.parametrize(("vocabulary", "k"), [(2, 1), (5, 1), (5, 5), (1000, 64), (49152, 1), (49152, 64), (262144, 5)])
@every_shape
@every_temperature
def test_truncated_value_and_gradient_in_float32(vocabulary: int, k: int, shape: float | str, temperature: float) -> None:
    z, s, size = drawn(vocabulary, shape)
    nats_C, gradient_CV, ids_CK = scored_top_k(z, s, k, temperature)
    assert_near((nats_C, gradient_CV), oracles.forward_kl_top_k(z, s, temperature, ids=ids_CK), vocabulary, size, temperature)


@every_size
@every_shape
def test_cross_entropy_in_float32(vocabulary: int, shape: float | str) -> None:
    _, s, size = drawn(vocabulary, shape)
    tokens = np.arange(len(s)) % vocabulary
    nats_C, gradient_CV = CrossEntropy().rows(Logits(torch.tensor(s)), None, TokenRows(torch.tensor(tokens), None))
    assert_near((nats_C.numpy(), gradient_CV.numpy()), oracles.cross_entropy(tokens, s), vocabulary, size, 1.0)


@pytest.mark.parametrize("temperature", [0.3, 3.0, 7.0])
def test_temperatures_that_are_no_powers_of_two(temperature: float) -> None:
    z, s, size = drawn(1000, 1e4)
    assert_near(scored(ForwardKL(temperature=temperature), z, s), oracles.forward_kl(z, s, temperature), 1000, size, temperature)


@pytest.mark.parametrize("vocabulary", [49152, 262144])
def test_probabilities_sum_to_one_in_float32(vocabulary: int) -> None:
    """A likely outcome beside very many unlikely ones: each is too small to change the sum alone."""
    _, s, _ = drawn(vocabulary, "one-hot both")
    whole = Logits(torch.tensor(s)).log_probs(2.0).double().exp().sum(-1)
    assert float((whole - 1).abs().max()) < 4 * EPS


def test_truncated_gradient_where_the_student_is_sure_of_a_kept_token() -> None:
    """The tail's share of the gradient, `t q / u`, stays finite where u is below the smallest float."""
    z, s = np.array([[2, 1, 0.5, 0]], np.float32), np.array([[200, 0, -1, -2]], np.float32)
    nats_C, gradient_CV, ids_CK = scored_top_k(z, s, 1)
    assert np.isfinite(gradient_CV).all()
    assert_near((nats_C, gradient_CV), oracles.forward_kl_top_k(z, s, ids=ids_CK), 4, 200, 1.0)


# The oracles themselves


def truncated(z: np.ndarray, s: np.ndarray, temperature: float) -> oracles.Answer:
    return oracles.forward_kl_top_k(z, s, temperature, ids=np.array([[1, 3]]))


@pytest.mark.parametrize("oracle", [*CASES, truncated], ids=lambda made: str(made) if isinstance(made, Case) else "truncated")
@every_temperature
def test_oracles_gradients_by_central_differences(oracle: Any, temperature: float) -> None:
    z, s = np.random.default_rng(5).normal(0, 1.5, (2, 1, 5)).astype(np.longdouble)
    whole = oracle if not isinstance(oracle, Case) else lambda z, s, t: oracle.oracle(z, s, t, **oracle.settings)
    step = 1e-5 * np.eye(5, dtype=np.longdouble)
    slopes = [(whole(z, s + step[j], temperature)[0] - whole(z, s - step[j], temperature)[0])[0] / 2e-5 for j in range(5)]
    np.testing.assert_allclose(whole(z, s, temperature)[1][0], slopes, rtol=0, atol=1e-8)


def test_oracle_of_cross_entropy_by_central_differences() -> None:
    s, tokens, step = np.random.default_rng(5).normal(0, 1.5, (1, 5)), np.array([2]), 1e-5 * np.eye(5)
    slopes = [(oracles.cross_entropy(tokens, s + step[j])[0] - oracles.cross_entropy(tokens, s - step[j])[0])[0] / 2e-5 for j in range(5)]
    np.testing.assert_allclose(oracles.cross_entropy(tokens, s)[1][0], slopes, rtol=0, atol=1e-8)


# What is known in mathematics; in float64, where rounding does not hide it


def logits_up_to(size: float) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Two rows of logits over the same few outcomes."""
    one = st.floats(-size, size)
    return st.lists(st.tuples(one, one), min_size=2, max_size=12).map(lambda pairs: tuple(np.array(pairs).T[:, None, :]))


wild, mild = logits_up_to(40), logits_up_to(2)
temperatures = st.sampled_from(TEMPERATURES)


@every_case
@quick
@given(logits=wild, temperature=temperatures)
def test_never_negative_and_blind_to_a_constant(case: Case, logits: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    nats_C, gradient_CV = scored(case.term(temperature), *logits)
    assert nats_C >= -1e-12
    assert abs(gradient_CV.sum()) < 1e-10  # the same added to every logit changes nothing


@every_case
@quick
@given(logits=wild, temperature=temperatures)
def test_zero_where_the_student_says_the_same(case: Case, logits: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    same = logits[0].astype(np.float32)
    nats_C, gradient_CV = scored(case.term(temperature), same, same)
    assert abs(nats_C) < 2e-5 * temperature**2
    assert np.abs(gradient_CV).max() < 2e-5 * temperature


@every_case
@quick
@given(logits=mild, temperature=temperatures)
def test_temperature_softens_both_and_keeps_the_size(case: Case, logits: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    nats_C, gradient_CV = scored(case.term(), *(x / temperature for x in logits))
    factor = temperature**case.kind.order
    np.testing.assert_allclose(scored(case.term(temperature), *logits)[0], factor * nats_C, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scored(case.term(temperature), *logits)[1], factor / temperature * gradient_CV, rtol=1e-9, atol=1e-12)


@every_case
@quick
@given(logits=mild)
def test_softened_without_end_all_are_alike(case: Case, logits: tuple[np.ndarray, np.ndarray]) -> None:
    """`T^2 D` tends to half the variance of the difference of logits (Hinton et al. 2015, section 2.1); `T TV` to half its mean size."""
    gap = logits[1] - logits[0]
    limit = np.abs(gap - gap.mean()).mean() / 2 if case.kind is TotalVariation else case.bend * gap.var()
    np.testing.assert_allclose(scored(case.term(1e4), *logits)[0], limit, rtol=0, atol=4e-3)


@pytest.mark.parametrize(
    ("near", "factor", "limit"),
    [
        (JSD(1e-8, normalized=True), 1, ForwardKL()),
        (JSD(1 - 1e-8, normalized=True), 1, ReverseKL()),
        (JSD(1e-8), 1e8, ForwardKL()),
        (JSD(1 - 1e-8), 1e8, ReverseKL()),
        (AlphaDivergence(1 - 1e-8), 1, ForwardKL()),
        (AlphaDivergence(1e-8), 1, ReverseKL()),
        (SkewKL(1e-8), 1, ForwardKL()),
        (SkewReverseKL(1e-8), 1, ReverseKL()),
    ],
    ids=lambda made: made.name if isinstance(made, Term) else None,
)
@quick
@given(logits=mild)
def test_limits(near: Term, factor: float, limit: Term, logits: tuple[np.ndarray, np.ndarray]) -> None:
    for found, wanted in zip(scored(near, *logits), scored(limit, *logits), strict=True):
        np.testing.assert_allclose(factor * found, wanted, rtol=1e-5, atol=1e-5)


@quick
@given(logits=wild)
def test_symmetric_ones(logits: tuple[np.ndarray, np.ndarray]) -> None:
    for term in (JSD(0.5), Jeffreys(), TotalVariation(), AlphaDivergence(0.5)):
        np.testing.assert_allclose(scored(term, *logits)[0], scored(term, *logits[::-1])[0], rtol=1e-9, atol=1e-12)


@quick
@given(logits=wild)
def test_upper_bounds(logits: tuple[np.ndarray, np.ndarray]) -> None:
    assert scored(TotalVariation(), *logits)[0] <= 1 + 1e-12
    assert scored(JSD(0.5), *logits)[0] <= math.log(2) + 1e-12
    assert scored(SkewKL(0.1), *logits)[0] <= math.log(10) + 1e-12
    assert scored(AlphaDivergence(0.5), *logits)[0] <= 4 + 1e-12
    assert 2 * scored(TotalVariation(), *logits)[0] ** 2 <= scored(ForwardKL(), *logits)[0] + 1e-12  # Pinsker


@quick
@given(logits=wild, temperature=temperatures)
def test_the_tail_is_a_lower_bound_that_closes(logits: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    """More kept outcomes never say less, all of them say what the whole distribution says."""
    whole_C, gradient_CV = scored(ForwardKL(temperature=temperature), *logits)
    kept = [scored_top_k(*logits, k, temperature) for k in range(1, logits[0].shape[-1] + 1)]
    values = [0.0, *(nats_C.item() for nats_C, _, _ in kept)]
    assert all(fewer <= more + 1e-9 for fewer, more in zip(values, [*values[1:], whole_C.item()], strict=True))
    np.testing.assert_allclose(kept[-1][0], whole_C, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kept[-1][1], gradient_CV, rtol=1e-9, atol=1e-12)


@quick
@given(logits=mild, data=st.data())
def test_the_tails_gradient(logits: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    """`q - p` on K, `q (1 - t / u)` off K."""
    k = data.draw(st.integers(1, logits[0].shape[-1] - 1))
    _, gradient_CV, ids_CK = scored_top_k(*logits, k)
    p, q = (np.exp(oracles.log_softmax(x))[0] for x in logits)
    on_k = np.isin(np.arange(len(p)), ids_CK[0])
    wanted = np.where(on_k, q - p, q * (1 - p[~on_k].sum() / q[~on_k].sum()))
    np.testing.assert_allclose(gradient_CV[0], wanted, rtol=0, atol=1e-12)


# Sums, weights and writers


def test_a_weight_multiplies_and_leaves_the_rest() -> None:
    term = 2 * (3 * JSD(0.3, normalized=True, temperature=2.0)).on("teacher")
    assert term == JSD(0.3, normalized=True, temperature=2.0, weight=6.0, writer="teacher")
    assert term == JSD(0.3, normalized=True, temperature=2.0).on("teacher") * 6
    assert term.name == "JSD@teacher"


def test_terms_add_up_and_are_scaled_together() -> None:
    assert ForwardKL() + 2 * ReverseKL() + CrossEntropy() == Objective([ForwardKL(), ReverseKL(weight=2.0), CrossEntropy()])
    assert ForwardKL() + (ReverseKL() + Jeffreys()) == Objective([ForwardKL(), ReverseKL(), Jeffreys()])
    assert 0.5 * (ForwardKL() + 3 * ReverseKL()) == Objective([ForwardKL(weight=0.5), ReverseKL(weight=1.5)])


def test_an_objective_is_read_as_it_is_written() -> None:
    read = build('SkewKL().on("teacher") + 0.5 * SkewReverseKL(0.2).on("student") + ForwardKL(temperature=2)', Objective)
    assert read == SkewKL().on("teacher") + 0.5 * SkewReverseKL(0.2).on("student") + ForwardKL(temperature=2)
    assert build(plain(read), Objective) == read


def test_what_a_teacher_must_say() -> None:
    assert (CrossEntropy() + PolicyGradient()).needs == frozenset()
    assert ReverseKL().needs == {"distribution"}
    assert ForwardKL().needs == {"distribution", "top k", "sampled"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JSD(0), r"JSD\(beta=0.0\): the formula vanishes at 0 and 1.*; use ForwardKL\(\)"),
        (lambda: JSD(-0.5), r"JSD\(beta=-0.5\).*; use ForwardKL\(\)"),
        (lambda: JSD(1), r"JSD\(beta=1.0\).*; use ReverseKL\(\)"),
        (lambda: ForwardKL(temperature=0), r"ForwardKL.temperature must be above 0, found 0.0"),
        (lambda: JSD(temperature=-1), r"JSD.temperature must be above 0, found -1.0"),
        (lambda: ReverseKL(temperature=math.inf), r"ReverseKL.temperature must be above 0, found inf"),
        (lambda: ReverseKL(temperature=math.nan), r"ReverseKL.temperature must be above 0, found nan"),
        (lambda: SkewKL(0), r"SkewKL.skew must lie between 0 and 1, found 0.0; ForwardKL\(\) is skew 0"),
        (lambda: SkewKL(1), r"SkewKL.skew must lie between 0 and 1, found 1.0"),
        (lambda: SkewReverseKL(1.5), r"SkewReverseKL.skew must lie between 0 and 1, found 1.5; ReverseKL\(\) is skew 0"),
        (lambda: AlphaDivergence(1), r"AlphaDivergence.alpha must lie between 0 and 1, found 1.0; ReverseKL\(\) is the limit at 0"),
        (lambda: ForwardKL(temprature=2), r'ForwardKL has no setting "temprature"; did you mean "temperature"\?'),
        (lambda: build("ForwardKl()", Term), r'there is no \w+ "ForwardKl"; did you mean "ForwardKL"\?'),
        (lambda: build({"type": "reversekl"}, Term), r'there is no Term "reversekl"; did you mean "ReverseKL"\?'),
        (lambda: ForwardKL() + JSD(0.1) + JSD(0.9), r"two terms of one name cannot be read in metrics: ForwardKL, JSD, JSD; add their weights"),
        (lambda: Objective([]), r"an objective needs a term; start with ForwardKL\(\)"),
        (lambda: ForwardKL().on("nobody"), r'ForwardKL.on\("nobody"\): tokens are written by one of corpus, teacher, student'),
    ],
)  # fmt: skip
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_one_divergence_for_each_writer_is_no_repetition() -> None:
    assert [term.name for term in (JSD().on("teacher") + JSD().on("student")).terms] == ["JSD@teacher", "JSD@student"]
