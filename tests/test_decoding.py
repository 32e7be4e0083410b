"""Writing: the same text whatever it is written beside, its log-probabilities, and how tokens are chosen."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.batch import Batch, Span, Text
from limbeck.decoding import Sampling, Written, choose, uniforms, write
from limbeck.errors import RecipeError
from limbeck.loss import measure
from limbeck.models import Model
from limbeck.objective import CrossEntropy, Objective
from limbeck.targets import Nothing
from limbeck.vocabulary import Vocabulary

PROMPTS = [[5], [9, 8, 7, 6, 5, 4, 3], [100, 3], [1] * 40, [44, 45, 46], [9, 8, 7, 6, 5, 4, 2], [7]]
HALF_END = frozenset(range(0, 258, 2))
"""Half of all tokens, so that rows end at different places."""
SAMPLINGS = [Sampling(12), Sampling(12, temperature=0), Sampling(12, temperature=0.7, top_p=0.9), Sampling(12, top_k=5, min_p=0.02)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Toys are too small to share out, and waiting for each other costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=toys.KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toys.opened(tmp_path_factory.mktemp("model"), request.param, sharp=2.0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toys.opened(tmp_path_factory.mktemp("llama"), "llama", sharp=2.0)


def ending(model: Model, ends: frozenset[int]) -> Model:
    """The same model, with these end tokens beside its own."""
    return Model(model.module, Vocabulary(model.vocabulary.tokenizer, ends), model.name, model.compute, model.head_like)


def tokens(written: list[Written]) -> list[list[int]]:
    return [one.tokens for one in written]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_row_is_the_same_whatever_it_is_written_beside(model: Model, sampling: Sampling) -> None:
    model, rows = ending(model, frozenset(range(0, 258, 6))), list(range(len(PROMPTS)))
    whole = write(model, PROMPTS, sampling, seed=3, step=2, rows=rows)
    assert sampling.temperature == 0 or len({len(one.tokens) for one in whole}) > 1, "some rows leave before others, or nothing is tested"
    orders = [[0], [1], [3], rows[::-1], rows[::2], rows[1::2]]  # alone; in another order; as ranks 0 and 1 of 2
    for order in orders:
        again = write(model, [PROMPTS[n] for n in order], sampling, seed=3, step=2, rows=order)
        assert tokens(again) == [whole[n].tokens for n in order]
        for one, n in zip(again, order, strict=True):
            assert one.logp == pytest.approx(whole[n].logp, abs=1e-4)
    assert tokens(write(model, PROMPTS, sampling, seed=3, step=2, rows=rows, at_once=2)) == tokens(whole)


def test_text_depends_on_seed_step_and_row(llama: Model) -> None:
    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    texts = [tokens(write(llama, [[5, 6]], Sampling(16), seed, step, [row]))[0] for seed, step, row in cases]
    assert len({tuple(text) for text in texts}) == 4
    greedy = [tokens(write(llama, [[5, 6]], Sampling(16, temperature=0), seed, step, [row])) for seed, step, row in cases]
    assert all(text == greedy[0] for text in greedy)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_logp_is_the_models_own(model: Model, sampling: Sampling) -> None:
    """Before temperature and narrowing, as one pass over the whole text says."""
    written = write(ending(model, HALF_END), PROMPTS, sampling, seed=0, step=0, rows=range(len(PROMPTS)))
    texts = [Text([*p, *w.tokens], [Span(len(p), len(p) + len(w.tokens))], {}, w.logp) for p, w in zip(PROMPTS, written, strict=True)]
    batch = Batch.of(texts, "student")
    nats_N = measure(model.forward(batch), Nothing(), batch, Objective([CrossEntropy()]))["CrossEntropy"]
    torch.testing.assert_close(batch.logp_N, -nats_N, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_is_what_transformers_writes(kind: str, tmp_path) -> None:
    model = toys.opened(tmp_path, kind, sharp=2.0, rows=258)
    written = tokens(write(model, PROMPTS, Sampling(30, temperature=0), seed=0, step=0, rows=range(len(PROMPTS))))
    for prompt, mine in zip(PROMPTS, written, strict=True):
        ids_1S = torch.tensor([prompt])
        theirs = model.module.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), do_sample=False, max_new_tokens=30, pad_token_id=257)
        assert mine == theirs[0, len(prompt) :].tolist()


def test_the_end_token_is_the_last(llama: Model) -> None:
    endless = ending(llama, frozenset())
    assert endless.vocabulary.end_ids == {257}
    rows, told = range(40), list[int]()
    prompts = [[n, n + 1] for n in rows]
    free = tokens(write(endless, prompts, Sampling(20), seed=1, step=0, rows=rows))
    ended = tokens(write(ending(llama, HALF_END), prompts, Sampling(20), seed=1, step=0, rows=rows, told=told.append))
    for whole, cut in zip(free, ended, strict=True):
        stop = next((place for place, token in enumerate(whole) if token in HALF_END), len(whole) - 1)
        assert cut == whole[: stop + 1]
    assert sum(told) == sum(map(len, ended)) and min(told) > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_no_more_than_max_tokens(llama: Model, max_tokens: int) -> None:
    longer = write(llama, PROMPTS, Sampling(12), seed=0, step=0, rows=range(len(PROMPTS)))
    written = write(llama, PROMPTS, Sampling(max_tokens), seed=0, step=0, rows=range(len(PROMPTS)))
    assert tokens(written) == [one.tokens[:max_tokens] for one in longer]
    assert all(len(one.logp) == len(one.tokens) for one in written)


def test_nothing_to_write(llama: Model) -> None:
    assert write(llama, [], Sampling(), seed=0, step=0, rows=[]) == []


@pytest.mark.parametrize("kind, length, room", [*product(["llama"], [257, 256], [0]), ("llama", 250, 6), ("gpt2", 256, 0), ("gpt2", 255, 1)])
def test_a_prompt_may_fill_the_context(kind: str, length: int, room: int, tmp_path) -> None:
    model = toys.opened(tmp_path, kind, sharp=2.0)
    (one,) = write(model, [[n % 200 for n in range(length)]], Sampling(12), seed=0, step=0, rows=[0])
    assert len(one.tokens) == len(one.logp) == room


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_that_fills_the_context_takes_no_room_from_others(kind: str, tmp_path) -> None:
    model, long = toys.opened(tmp_path, kind, sharp=2.0), [n % 200 for n in range(256)]
    alone = tokens(write(model, [[5, 6]], Sampling(12), seed=0, step=0, rows=[0]))
    beside = tokens(write(model, [[5, 6], long[:254], long, long[:250]], Sampling(12), seed=0, step=0, rows=range(4)))
    assert beside[0] == alone[0] and [len(text) for text in beside[1:]] == [2, 0, 6]


def test_uniforms_are_counted_by_seed_step_row_and_place() -> None:
    assert (uniforms(1, 2, 3, 50)[:7] == uniforms(1, 2, 3, 7)).all()
    drawn = [tuple(uniforms(seed, step, row, 4)) for seed, step, row in product((0, 1, 2**40), (0, 1, 999), (0, 1, 2**31))]
    assert len(set(drawn)) == 27 and all(0 <= u < 1 for draw in drawn for u in draw)


def narrowed(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that is to be drawn from, one outcome at a time."""
    p = np.exp((logits - logits.max()) / sampling.temperature)
    p /= p.sum()
    kept = [v for v in np.argsort(-p) if p[v] >= sampling.min_p * p.max()][: sampling.top_k or len(p)]
    total, before, nucleus = sum(p[v] for v in kept), 0.0, []
    for v in kept:
        if before < sampling.top_p * total:
            nucleus.append(v)
        before += p[v]
    wanted = np.zeros_like(p)
    wanted[nucleus] = p[nucleus] / sum(p[v] for v in nucleus)
    return wanted


NARROW = [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 10**6}, {"top_p": 0.5}, {"top_p": 1e-9},
          {"top_p": 0.9}, {"min_p": 0.3}, {"min_p": 1.0}, {"top_k": 4, "top_p": 0.8, "temperature": 1.5},
          {"min_p": 0.1, "top_p": 0.8, "top_k": 5}]  # fmt: skip


def drawn(logits: np.ndarray, u: np.ndarray, sampling: Sampling) -> np.ndarray:
    log_q_BV = torch.from_numpy(logits).float().log_softmax(-1).expand(len(u), -1)
    return choose(log_q_BV, torch.from_numpy(u), sampling).numpy()


@pytest.mark.parametrize("knobs", NARROW, ids=str)
@pytest.mark.parametrize("size", [9, 600])
def test_evenly_spread_uniforms_choose_each_outcome_by_its_share(size: int, knobs: dict) -> None:
    """To within one draw, since the cumulative distribution is inverted: far sharper than any test of random draws."""
    count = 2000
    logits = np.random.default_rng(size).normal(0, 3, size)
    shares = np.bincount(drawn(logits, (np.arange(count) + 0.5) / count, Sampling(**knobs)), minlength=size)
    assert np.abs(shares - count * narrowed(logits, Sampling(**knobs))).max() < 1.01


@pytest.mark.parametrize("knobs", NARROW, ids=str)
def test_drawn_tokens_follow_the_distribution(knobs: dict) -> None:
    """Chi-square over 20,000 draws. Eight deviations above its mean come by chance once in 10^6 (here never: the seed is fixed);

    two outcomes of share 0.1 that swapped 0.02 would lie 40 above (for 9 outcomes: 20,000 x 2 x 0.02^2 / 0.1 = 160, over a deviation of 4).
    """
    logits = np.random.default_rng(5).normal(0, 1, 9)
    u = np.concatenate([uniforms(7, step, row, 20) for step in range(20) for row in range(50)])
    wanted, counts = narrowed(logits, Sampling(**knobs)), np.bincount(drawn(logits, u, Sampling(**knobs)), minlength=9)
    kept = wanted > 0
    assert counts[~kept].sum() == 0
    expected = wanted[kept] * len(u)
    assert len(u) == 20_000 and expected.min() > 5
    freedom = kept.sum() - 1
    assert ((counts[kept] - expected) ** 2 / expected).sum() <= freedom + 8 * np.sqrt(2 * freedom)


ENDS = np.array([0.0, 1 - 2**-53])


@settings(deadline=None)
@given(st.integers(1, 800), st.data())
def test_outcomes_without_mass_are_never_chosen(size: int, data: st.DataObject) -> None:
    alive = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6, unique=True))
    logits = np.full(size, data.draw(st.sampled_from([-np.inf, -2000.0])))
    logits[alive] = data.draw(st.lists(st.floats(-30, 5), min_size=len(alive), max_size=len(alive)))
    logits[alive[0]] = 0.0
    chosen = drawn(logits, ENDS, Sampling())
    p = torch.from_numpy(logits).float().softmax(-1)
    mass = p.nonzero().flatten().tolist()
    assert (p[chosen] > 0).all()
    assert chosen[0] == mass[0] and chosen[1] in mass


def test_a_uniform_on_the_edge_of_a_block_chooses_what_has_mass() -> None:
    """Sums over blocks are rounded: the way into a block may come out a little below 0, before its first outcome."""
    draw = np.random.default_rng(0)
    for _ in range(100):
        logits = draw.normal(0, 12, 8 * 256)
        logits[::256] = -np.inf  # the first outcome of every block
        p_V = torch.from_numpy(logits).float().log_softmax(-1).softmax(-1)
        blocks_G = p_V.view(-1, 256).sum(-1, dtype=torch.float64)
        edges = (blocks_G.cumsum(0)[:-1] / blocks_G.sum()).numpy()
        u = np.concatenate([edges, np.nextafter(edges, 1), np.nextafter(edges, 0)])
        assert (p_V[drawn(logits, u[u < 1], Sampling())] > 0).all()


@pytest.mark.parametrize("knobs, said", [({"max_tokens": 0}, "max_tokens must be at least 1, found 0"), ({"temperature": -1}, "temperature >= 0"),
                                         ({"top_p": 0}, "0 < top_p <= 1"), ({"top_p": 1.1}, "top_p"), ({"min_p": -0.1}, "min_p"),
                                         ({"top_k": 0}, "top_k >= 1")])  # fmt: skip
def test_sampling_that_means_nothing(knobs: dict, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Sampling(**knobs)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_greedy_takes_the_likeliest() -> None:
    log_q_BV = torch.tensor([[0.1, 0.9, 0.5], [2.0, 0.0, 1.0]])
    assert choose(log_q_BV, torch.tensor([0.99, 0.99], dtype=torch.float64), Sampling(temperature=0)).tolist() == [1, 0]
    assert choose(log_q_BV, torch.tensor([0.99, 0.99], dtype=torch.float64), Sampling(temperature=1e-4)).tolist() == [1, 0]
