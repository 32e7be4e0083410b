"""A teacher behind a server, and what is made of it when it says of the student's tokens no more than their probability."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_double import served

from limbeck import AdamW, Corpus, CrossEntropy, ForwardKL, Local, Mix, OnPolicy, Recipe, ReverseKL, Student, distill
from limbeck.batch import Batch, Span, Text
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.divergence import SampledReverseKL
from limbeck.endpoint import Endpoint, log_rest
from limbeck.errors import EndpointError, LimbeckError, RecipeError, VocabularyError
from limbeck.evaluate import Likelihood
from limbeck.objective import TokenRows
from limbeck.targets import Logits, Nothing, TokenLogp, TokenLogpRows, TopK

TOKENS = 258
"""Of the toys' vocabulary: a head of so many rows has no padding."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a teacher and a student."""
    made = tmp_path_factory.mktemp("pair")
    return toys.folder(made / "teacher", rows=TOKENS, seed=1, sharp=8.0), toys.folder(made / "student", rows=TOKENS, seed=2)


@pytest.fixture(scope="module")
def student(pair: tuple[str, str]) -> Student:
    return Student(pair[1], dtype="float32").load(1)


def texts(count: int, seed: int = 0) -> list[Text]:
    """Sequences of uneven lengths, each with two stretches of completion."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(8, 40, count)
    return [Text(draw.integers(0, 256, n).tolist(), [Span(1, 3), Span(5, int(n) - 1)]) for n in lengths]


# Scoring


def test_it_says_what_the_model_says_itself(pair: tuple[str, str], student: Student) -> None:
    """Parts of several sequences, one of them empty, come in their order whichever answer comes first; nothing is shifted."""
    whole = Batch.of(texts(7), "corpus")
    parts = [whole.select([3, 0, 6]), whole.select([]), whole.select([5]), whole.select([2, 1, 4]), whole.select([])]
    with served(pair[0], slow=lambda length: time.sleep((length % 5) / 100)) as url:
        teacher = Endpoint(url, "toy", top=4, tokenizer=pair[0]).load(student)
        found = list(teacher.score(parts))
    wanted = list(Local(pair[0], dtype="float32").load(student).score(parts))
    assert [type(each) for each in found] == [TopK, Nothing, TopK, TopK, Nothing]
    for part, mine, theirs in zip(parts, found, wanted, strict=True):
        if isinstance(mine, TopK):
            assert_says_the_same(mine, theirs.rows(slice(None)).block(slice(None)).log_probs(), part.tokens_N)


def assert_says_the_same(found: TopK, log_p_NV: torch.Tensor, tokens_N: torch.Tensor) -> None:
    """The four likeliest and the token, each at its probability, and all others as the tail."""
    assert found.temperature == 1.0 and found.ids_NK.shape == (len(tokens_N), 5)
    for ids_K, said_K, log_tail, log_p_V, token in zip(found.ids_NK, found.log_p_NK, found.log_tail_N, log_p_NV, tokens_N, strict=True):
        there = said_K > -math.inf
        assert set(ids_K[there].tolist()) == {*log_p_V.topk(4).indices.tolist(), int(token)}
        assert int(there.sum()) == len(set(ids_K.tolist()))
        torch.testing.assert_close(said_K[there], log_p_V[ids_K[there]], rtol=0, atol=1e-4)
        rest_V = log_p_V.index_fill(0, ids_K, -math.inf)
        torch.testing.assert_close(log_tail.exp(), rest_V.logsumexp(0).exp(), rtol=0, atol=2e-6)


def test_of_the_tokens_alone(pair: tuple[str, str], student: Student) -> None:
    batch, asked = Batch.of(texts(3), "student"), list[dict[str, Any]]()
    with served(pair[0], asked=asked) as url:
        (found,) = Endpoint(url, "toy", top=0, tokenizer=pair[0]).load(student).score([batch])
    (wanted,) = Local(pair[0], dtype="float32").load(student).score([batch])
    log_p_NV = wanted.rows(slice(None)).block(slice(None)).log_probs()
    assert isinstance(found, TokenLogp)
    torch.testing.assert_close(found.log_p_N, log_p_NV.gather(1, batch.tokens_N[:, None])[:, 0], rtol=0, atol=1e-4)
    assert [len(body["prompt"]) for body in asked[1:]] and all(len(body["prompt"]) in batch.lengths_B - 1 for body in asked[1:])


def test_padding_of_the_head_is_tail(tmp_path: Path, pair: tuple[str, str], student: Student) -> None:
    """vLLM scores every row of the head; those that are no tokens are no outcomes here."""
    padded = toys.folder(tmp_path / "padded", rows=400, seed=3)
    batch = Batch.of(texts(3), "corpus")
    with served(padded) as url:
        (found,) = Endpoint(url, "toy", top=30, tokenizer=pair[0]).load(student).score([batch])
    assert isinstance(found, TopK) and bool((found.log_p_NK == -math.inf).any(1).all())  # rows of padding were among the likeliest
    assert int(found.ids_NK.max()) < TOKENS
    torch.testing.assert_close(found.log_p_NK.exp().sum(-1) + found.log_tail_N.exp(), torch.ones(len(found.ids_NK)), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=60, database=None, derandomize=True)
@given(st.data())
def test_rows_of_uneven_length_say_the_formula(data: st.DataObject) -> None:
    """Some rows hold fewer outcomes than others: value and gradient are those of what they hold."""
    size, most = data.draw(st.integers(3, 9)), 4
    logits = st.lists(st.floats(-15, 15), min_size=size, max_size=size)
    z, s = (np.array([data.draw(logits)]) for _ in range(2))
    kept = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=min(most, size - 1), unique=True))
    ids = torch.tensor([kept + kept[:1] * (most - len(kept))])
    log_p = torch.tensor(oracles.log_softmax(z))
    log_p_CK = torch.where(torch.arange(most) < len(kept), log_p.gather(1, ids), -math.inf)
    said = TopK(ids, log_p_CK, log_p.index_fill(1, torch.tensor(kept), -math.inf).logsumexp(-1), "toy").rows(slice(None))
    nats_C, gradient_CV = ForwardKL().rows(Logits(torch.tensor(s)), said, TokenRows(torch.tensor([0]), None))
    value, slope = oracles.forward_kl_top_k(z, s, ids=np.array([kept]))
    np.testing.assert_allclose(nats_C.numpy(), value, rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradient_CV.numpy(), slope, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=100, database=None, derandomize=True)
@given(st.lists(st.floats(-12, 0), min_size=2, max_size=12), st.floats(-9, 2))
def test_the_rest_of_what_a_server_names(named: list[float], rest: float) -> None:
    """Rounded to float32, the tail is off by no more than the rounding, whether it is large or nothing."""
    log_p = torch.log_softmax(torch.tensor([*named, rest], dtype=torch.float64), -1)
    tail = log_rest(log_p[None, :-1].float().double())
    torch.testing.assert_close(tail.exp(), log_p[-1:].exp(), rtol=0, atol=1e-6)


def test_a_sum_past_one_leaves_nothing_or_is_refused() -> None:
    half = math.log(0.5)
    assert log_rest(torch.tensor([[half, half + 1e-5], [half, half - 1e-5]], dtype=torch.float64)).tolist() == [
        -math.inf, pytest.approx(math.log(0.5e-5), abs=1e-4),
    ]  # fmt: skip
    with pytest.raises(EndpointError, match=r"add up to 1\.00\d+; serve them at temperature 1"):
        log_rest(torch.tensor([[half, half + 0.01]], dtype=torch.float64))


# Faults of a server


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], Any]:
    """Entries whose last is changed, of texts that are scored and not of the one that proves the tokenizer."""
    return lambda entries: entries if len(entries) > 60 else [*entries[:-1], change(dict(entries[-1]))]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda entries: None, "gave no prompt_logprobs, and cannot score; serve the model with vLLM"),
        (lambda entries: entries if len(entries) > 60 else entries[:-1], r"scored \d+ tokens of \d+"),
        (spoilt(lambda entry: dict(list(entry.items())[1:]) | {"257": {"logprob": -9.0}}), r"was asked about token \d+ and scored"),
        (spoilt(lambda entry: {token: {"logprob": -1.0} for token in list(entry)[:2]}), "named 2 outcomes where 4 were asked"),
        (spoilt(lambda entry: {token: {"logprob": each["logprob"] + 30} for token, each in entry.items()}), "the likeliest at .* nats"),
        (spoilt(lambda entry: {token: {"logprob": math.nan} for token in entry}), "the likeliest at nan nats"),
        (spoilt(lambda entry: {token: {"logprob": -0.5} for token in entry}), r"add up to \d"),
        (spoilt(lambda entry: dict.fromkeys(entry, -1.0)), "which is not vLLM's form"),
        (spoilt(lambda entry: None), "which is not vLLM's form"),
    ],
)  # fmt: skip
def test_wrong_scores_are_refused_in_one_line(spoil: Any, message: str, pair: tuple[str, str], student: Student) -> None:
    with served(pair[0], spoil=spoil) as url, pytest.raises(EndpointError, match=message) as caught:
        one = [Text(list(range(40, 60)), [Span(10, 20)])]  # fewer tokens than the text that proves the tokenizer
        list(Endpoint(url, "toy", top=4, tokenizer=pair[0]).load(student).score([Batch.of(one, "corpus")]))
    assert "\n" not in str(caught.value)


def test_a_text_beyond_the_servers_context_is_refused(pair: tuple[str, str], student: Student) -> None:
    fits, long = (Batch.of([Text([65] * (length + 1), [Span(9, length)])], "corpus") for length in (99, 100))  # the last is asked nothing
    with served(pair[0], context=100) as url:
        teacher = Endpoint(url, "toy", top=4, tokenizer=pair[0]).load(student)
        (said,) = teacher.score([fits])
        assert len(said.rows(slice(None)).ids_CK) == 90
        with pytest.raises(EndpointError, match=r"toy takes 99 tokens of a text, .* a sequence has 100; lower max_tokens, or start the server"):
            list(teacher.score([long]))


def test_who_is_served_and_in_which_tokens(tmp_path: Path, pair: tuple[str, str], student: Student) -> None:
    other = toys.tokenizer()
    other.add_tokens(["xyz"])
    other.save_pretrained(tmp_path / "other")
    with served(pair[0]) as url:
        with pytest.raises(EndpointError, match=r'does not serve "toi"; did you mean "toy"\?'):
            Endpoint(url, "toi", tokenizer=pair[0]).load(student)
        with pytest.raises(VocabularyError, match=r"differ in 1 of 259 tokens \('xyz' is absent / 258\)"):
            Endpoint(url, "toy", tokenizer=str(tmp_path / "other")).load(student)
        with pytest.raises(RecipeError, match="is as much as the vocabulary of 258 tokens; ask for fewer"):
            Endpoint(url, "toy", top=257, tokenizer=pair[0]).load(student)
        with pytest.raises(RecipeError, match=r"its tokenizer is not known by that name .* Endpoint\(tokenizer=FOLDER"):
            Endpoint(url, "toy").load(student)


def test_a_server_with_another_tokenizer_than_was_named(pair: tuple[str, str], student: Student) -> None:
    shift = lambda entries: [None, *({str(int(token) ^ 1): each for token, each in entry.items()} for entry in entries[1:])]  # noqa: E731
    with served(pair[0], spoil=shift) as url, pytest.raises(RecipeError, match=r"is not the tokenizer of toy at .*; name the right one"):
        Endpoint(url, "toy", tokenizer=pair[0]).load(student)


# Runs


@pytest.mark.parametrize(("top", "term"), [(60, ForwardKL()), (0, SampledReverseKL())], ids=["forward", "tokens"])
def test_a_student_learns_from_a_server_on_its_own_text(top: int, term: Any, pair: tuple[str, str], tmp_path: Path) -> None:
    """Nearer to the teacher by the divergence that is asked for, measured by the teacher itself over whole distributions."""
    prompts = toys.jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in toys.rows(8)])
    own = OnPolicy(prompts, sequences=16, sampling=Sampling(max_tokens=12))
    student = Student(pair[1], dtype="float32", optimizer=AdamW(1e-2))
    with served(pair[0]) as url:
        teacher = Endpoint(url, "toy", top=top, tokenizer=pair[0])
        after = distill(Recipe(student, own, teacher, term, steps=10, tokens_per_pass=400, save_every=None), tmp_path / "run")
    judge = Local(pair[0], dtype="float32").load(after)
    key = "kl_nats" if isinstance(term, ForwardKL) else "reverse_kl_nats"
    looked = Likelihood([Data(prompts)], own_text=True, rows=8, sampling=own.sampling)
    now, before = looked.run(after, judge)[key], looked.run(student.load(1), judge)[key]
    assert now < 0.85 * before


# Recipes


@pytest.mark.parametrize(
    ("source", "teacher", "term", "message"),
    [
        ("own", {}, ReverseKL(), "ReverseKL needs a teacher that says distribution; Endpoint says tokens, top k; give ForwardKL.. or SampledRev"),
        ("own", {"top": 0}, ForwardKL(), "Endpoint says tokens; give SampledReverseKL.. of the student's own tokens, or another teacher: Local"),
        ("own", {}, ForwardKL(temperature=2), "ForwardKL.temperature=2. of scores that were kept at temperature 1"),
        ("data", {}, SampledReverseKL(), "SampledReverseKL is only right on the student's own tokens"),
        ("mixed", {}, SampledReverseKL(), "SampledReverseKL is only right on the student's own tokens"),
        ("cold", {}, SampledReverseKL(), "drawn from the student's whole distribution at temperature 1, none chosen afterwards; OnPolicy has .*0.7"),
        ("narrow", {}, SampledReverseKL().on("student"), "none chosen afterwards; OnPolicy has .*top_p=0.9"),
        ("chosen", {}, SampledReverseKL(), "none chosen afterwards; OnPolicy has keep_above=0.0; leave that out, or give ReverseKL"),
    ],
)  # fmt: skip
def test_what_cannot_stand_together(source: str, teacher: dict[str, Any], term: Any, message: str) -> None:
    made = {
        "own": OnPolicy("p.jsonl"),
        "data": Corpus("t.jsonl"),
        "mixed": Mix(0.5, OnPolicy("p.jsonl"), Corpus("t.jsonl")),
        "cold": OnPolicy("p.jsonl", sampling=Sampling(temperature=0.7)),
        "narrow": Mix(0.5, OnPolicy("p.jsonl", sampling=Sampling(top_p=0.9)), Corpus("t.jsonl")),
        "chosen": OnPolicy("p.jsonl", reward="m:f", keep_above=0.0),
    }
    with pytest.raises(RecipeError, match=message):
        Recipe(Student("s"), made[source], Endpoint("http://127.0.0.1:1/v1", "toy", **teacher), term)


def test_what_can_stand_together() -> None:
    """Longer answers, either teacher, and the student's share of a mix are no reason to refuse."""
    own = OnPolicy("p.jsonl", sampling=Sampling(max_tokens=7))
    for teacher in (Endpoint("http://127.0.0.1:1/v1", "toy", top=0), Endpoint("http://127.0.0.1:1/v1", "toy"), Local("t")):
        Recipe(Student("s"), own, teacher, SampledReverseKL())
        Recipe(Student("s"), Mix(0.5, own, Corpus("t.jsonl")), teacher, CrossEntropy().on("corpus") + SampledReverseKL().on("student"))


@pytest.mark.parametrize("setting", [{"top": -1}, {"concurrency": 0}, {"seconds": 0}, {"seconds": math.inf}])
def test_settings(setting: dict[str, Any]) -> None:
    with pytest.raises(LimbeckError, match=next(iter(setting))):
        Endpoint("http://127.0.0.1:1/v1", "toy", **setting)


# The reverse KL of tokens alone


def said_of(log_p_CV: torch.Tensor, tokens_C: torch.Tensor, kind: str) -> Any:
    """What a teacher of this kind says of these tokens."""
    at_C1 = log_p_CV.gather(1, tokens_C[:, None])
    if kind == "tokens":
        return TokenLogpRows(at_C1[:, 0])
    ids_CK = torch.cat([(tokens_C[:, None] + 1) % log_p_CV.shape[1], tokens_C[:, None], tokens_C[:, None]], 1)
    log_p_CK = torch.cat([log_p_CV.gather(1, ids_CK[:, :2]), torch.full_like(at_C1, -math.inf)], 1)
    return Logits(log_p_CV) if kind == "distribution" else TopK(ids_CK, log_p_CK, at_C1[:, 0], "toy").rows(slice(None))


@pytest.mark.parametrize("kind", ["tokens", "top k", "distribution"])
@settings(deadline=None, max_examples=40, database=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=2, max_size=9))
def test_over_all_tokens_it_is_the_reverse_kl(kind: str, pairs: list[tuple[float, float]]) -> None:
    """Each token as often as the student draws it: the mean value is KL(q || p), the mean gradient its gradient."""
    z, s = np.array(pairs).T[:, None, :]
    size = len(pairs)
    q, tokens = torch.tensor(np.exp(oracles.log_softmax(s)))[0], torch.arange(size)
    every = TokenRows(tokens, None)
    log_p_CV = torch.tensor(oracles.log_softmax(z)).expand(size, size)
    nats_C, gradient_CV = SampledReverseKL().rows(Logits(torch.tensor(s).expand(size, size)), said_of(log_p_CV, tokens, kind), every)
    value, slope = oracles.reverse_kl(z, s)
    np.testing.assert_allclose(float(q @ nats_C), value[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose((q @ gradient_CV).numpy(), slope[0], rtol=0, atol=1e-12)


def test_each_token_by_its_double_in_float32() -> None:
    draw = np.random.default_rng(0)
    z, s = draw.uniform(-20, 20, (2, 64, 1000)).astype(np.float32)
    tokens = draw.integers(0, 1000, 64)
    said = TokenLogpRows(torch.tensor(oracles.log_softmax(z)[np.arange(64), tokens]).float())
    nats_C, gradient_CV = SampledReverseKL().rows(Logits(torch.tensor(s)), said, TokenRows(torch.tensor(tokens), None))
    value, slope = oracles.sampled_reverse_kl(tokens, z, s)
    np.testing.assert_allclose(nats_C.numpy(), value, rtol=0, atol=4e-5)
    np.testing.assert_allclose(gradient_CV.numpy(), slope, rtol=0, atol=4e-5)
