"""Proposing and verifying: the text is the verifier's, whatever is proposed; what is kept is what the rule says; memories are taken back."""

from itertools import product
from math import erfc, prod

import numpy as np
import pytest
import tokenizers
import torch
import toys
from test_continuous import FAMILIES, made
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.batch import Batch, Text
from limbeck.errors import RecipeError, VocabularyError
from limbeck.generate import Request, Sampling, Written, compose, weights, write
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.speculative import Exact, InTopK, Pace, Rule, Speculative, best_length, expected_tokens, speedup

PROMPTS = [[5], [9, 8, 7, 6, 5, 4, 3], [100, 3], [1] * 40, [44, 45, 46], [9, 8, 7, 6, 5, 4, 2], [7]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toys.opened(tmp_path_factory.mktemp("target"), "llama", seed=0, sharp=2.0)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The target's weights, shaken: they agree often, not always."""
    made = toys.opened(tmp_path_factory.mktemp("draft"), "llama", seed=0, sharp=2.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.module.parameters():
            weight.add_(0.25 * weight.std() * torch.randn_like(weight) if weight.ndim == 2 else 0)
    return made


def spoken(verifier: Model, proposer: Model, rule: Rule, sampling: Sampling, gamma: int | Pace = 4, prompts=PROMPTS, seed=1, at_once=64,
           scores=False) -> list[Written]:  # fmt: skip
    decoder = Speculative(verifier, proposer, sampling, rule, gamma, scores)
    asked = [Request(prompt, 0, n, tag=n) for n, prompt in enumerate(prompts)]
    found = {request.tag: written for request, written in compose(verifier, asked, sampling, seed, at_once, decoder=decoder)}
    return [found[n] for n in range(len(prompts))]


def by_student(written: Written) -> torch.Tensor:
    """Which tokens the proposer wrote."""
    return torch.tensor([place < each.kept for each in written.rounds for place in range(each.took)])


def tokens(written: list[Written]) -> list[list[int]]:
    return [each.tokens for each in written]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gptj", "cohere"])
@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_greedy_text_is_the_verifiers(kind: str, gamma: int, tmp_path, draft: Model) -> None:
    verifier, sampling = toys.opened(tmp_path, kind, sharp=2.0), Sampling(30, temperature=0)
    plain = write(verifier, PROMPTS, sampling, 1, 0, range(len(PROMPTS)))
    for at_once in (1, 3, 64):
        found = spoken(verifier, draft, Exact(), sampling, gamma, at_once=at_once)
        assert tokens(found) == tokens(plain)
        for mine, theirs in zip(found, plain, strict=True):
            assert mine.logp == pytest.approx(theirs.logp, abs=1e-4)
            assert sum(each.took for each in mine.rounds) == len(mine.tokens)


def test_a_draft_that_is_the_target_is_always_accepted(target: Model) -> None:
    for sampling in (Sampling(24), Sampling(24, temperature=0.7, top_p=0.9), Sampling(24, temperature=0)):
        found = spoken(target, target, Exact(), sampling, 3)
        assert all(each.kept == len(each.proposed) for written in found for each in written.rounds)


# Six words, three tokens: 216 outcomes, enumerated

DRAWS, GAMMA = 40_000, 2
TRANSFORMS = [Sampling(3), Sampling(3, temperature=0.7), Sampling(3, top_p=0.8), Sampling(3, top_k=4, temperature=1.3)]


def six(path, seed: int) -> Model:
    """A model of six words, none of which ends a text."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate("abcdef")}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                         max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=None)  # fmt: skip
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        net.lm_head.weight.mul_(12.0)
    net.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(path)
    return open_model(str(path), Opening("float32"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    made = six(tmp_path_factory.mktemp("six"), 0), six(tmp_path_factory.mktemp("other"), 1)
    assert made[0].vocabulary.end_ids == frozenset()
    return made


def next_probs(model: Model, prefixes: list[list[int]], sampling: Sampling) -> np.ndarray:
    """What the transforms leave of the next word's distribution after each prefix, in float64."""
    with torch.no_grad():
        logits = model.module(torch.tensor(prefixes)).logits[:, -1].double()
    found = weights(logits, sampling).numpy()
    return found / found.sum(1, keepdims=True)


def enumerated(model: Model, prompt: list[int], sampling: Sampling) -> np.ndarray:
    """The probability of each of the 216 texts."""
    texts = list(product(range(6), repeat=3))
    steps = [next_probs(model, [[*prompt, *text[:n]] for text in texts], sampling) for n in range(3)]
    return np.array([prod(float(steps[n][place][text[n]]) for n in range(3)) for place, text in enumerate(texts)])


def counted(decoder: Speculative, sampling: Sampling, prompt: list[int], draws: int = DRAWS) -> tuple[np.ndarray, list[Written]]:
    """How often each text came, and the texts."""
    asked = (Request(prompt, n // 2000, n) for n in range(draws))
    found = [written for _, written in compose(decoder.verifier, asked, sampling, 7, 2000, decoder=decoder)]
    return np.bincount([36 * a + 6 * b + c for a, b, c in tokens(found)], minlength=216), found


def p_value(counts: np.ndarray, wanted: np.ndarray) -> float:
    """Of Pearson's chi-square, cells of fewer than five expected draws as one; by Wilson and Hilferty's cube root.

    Power: 40,000 draws over 216 cells find a total variation of 0.02 with 90 % at this level.
    """
    expected = wanted * counts.sum()
    assert counts[expected == 0].sum() == 0, "what has no probability was drawn"
    small = expected < 5
    counts, expected = (np.append(each[~small], each[small].sum()) for each in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    return erfc(z / 2**0.5) / 2


@pytest.mark.parametrize("sampling", TRANSFORMS, ids=str)
def test_exact_is_lossless(pair: tuple[Model, Model], sampling: Sampling) -> None:
    prompt = [2, 4]
    counts, found = counted(Speculative(*pair, sampling, Exact(), GAMMA), sampling, prompt)
    assert p_value(counts, enumerated(pair[0], prompt, sampling)) > 0.01
    p, q = (next_probs(model, [prompt], sampling)[0] for model in pair)
    acceptance = np.minimum(p, q).sum()
    first = np.mean([each.rounds[0].kept > 0 for each in found])
    assert 0.2 < acceptance < 0.97 and abs(first - acceptance) < 3 * (acceptance * (1 - acceptance) / DRAWS) ** 0.5


class NotRenormalised(Exact):
    """What is missing of a residual's mass falls on the last word."""

    def instead(self, p_BV: torch.Tensor, q_BV: torch.Tensor) -> torch.Tensor:
        left_BV = (p_BV - q_BV).clamp(min=0)
        left_BV[:, -1] += 1 - left_BV.sum(-1)
        return left_BV


class NoResidual(Exact):
    """A refused word is drawn anew from the target's whole distribution."""

    def instead(self, p_BV: torch.Tensor, q_BV: torch.Tensor) -> torch.Tensor:
        return p_BV


class BonusOfTheDraft(Speculative):
    """The word after a proposal that was kept whole is the draft's."""

    def _instead(self, rows, kept_B, p_BQV, q_BGV):
        p_BQV = p_BQV.clone()
        p_BQV[:, -1] = q_BGV[:, -1]
        return super()._instead(rows, kept_B, p_BQV, q_BGV)


@pytest.mark.parametrize("planted", [(Speculative, NotRenormalised()), (Speculative, NoResidual()), (BonusOfTheDraft, Exact())], ids=str)
def test_the_same_test_finds_planted_faults(pair: tuple[Model, Model], planted: tuple[type[Speculative], Rule]) -> None:
    decoder, rule = planted
    counts, _ = counted(decoder(*pair, Sampling(3), rule, GAMMA), Sampling(3), [2, 4], DRAWS // 4)
    assert p_value(counts, enumerated(pair[0], [2, 4], Sampling(3))) < 1e-6


# SKD


def test_in_top_0_is_the_teachers_text_and_in_top_all_the_students(target: Model, draft: Model) -> None:
    sampling = Sampling(20)
    students = spoken(target, draft, InTopK(10**6), sampling, 5)
    assert tokens(students) == tokens(write(draft, PROMPTS, sampling, 1, 0, range(len(PROMPTS))))
    assert all(each.took <= each.kept for written in students for each in written.rounds)
    teachers = spoken(target, draft, InTopK(0), sampling, 5)
    assert all(each.kept == 0 and each.took == 1 for written in teachers for each in written.rounds)


def test_in_top_0_draws_from_the_teacher(pair: tuple[Model, Model]) -> None:
    counts, _ = counted(Speculative(*pair, Sampling(3), InTopK(0), GAMMA), Sampling(3), [2, 4])
    assert p_value(counts, enumerated(pair[0], [2, 4], Sampling(3))) > 0.01


@pytest.mark.parametrize("k", [1, 3, 25])
def test_what_stands_in_the_top_k_stays_and_nothing_else(target: Model, draft: Model, k: int) -> None:
    """By a pass over the whole text; and the scores that came with it are those of that pass."""
    sampling, kept = Sampling(24), 0
    for prompt, written in zip(PROMPTS, spoken(target, draft, InTopK(k), sampling, 5, scores=True), strict=True):
        batch = Batch.of([Text.answered(prompt, written.tokens, {})], "student")
        outputs, own = target.forward(batch), draft.forward(batch)
        torch.testing.assert_close(torch.cat(written.hidden), outputs.hidden_ND, atol=1e-4, rtol=1e-4)
        logits_NV, log_q_NV = (each.head.prepared(torch.float32).logits(each.hidden_ND).detach() for each in (outputs, own))
        ranks_N = (logits_NV > logits_NV.gather(1, batch.tokens_N[:, None])).sum(1)
        place = 0
        for each in written.rounds:
            own_tokens = min(each.kept, each.took)
            assert (ranks_N[place : place + own_tokens] < k).all()
            assert written.tokens[place : place + own_tokens] == each.proposed[:own_tokens]
            place, kept = place + each.took, kept + own_tokens
        logp_N = torch.where(by_student(written), log_q_NV.log_softmax(-1).gather(1, batch.tokens_N[:, None])[:, 0],
                             logits_NV.log_softmax(-1).gather(1, batch.tokens_N[:, None])[:, 0])  # fmt: skip
        torch.testing.assert_close(torch.tensor(written.logp), logp_N, atol=1e-4, rtol=0)
    assert kept > 0


# Rows, contexts, costs


def test_rows_do_not_wait_and_memories_are_taken_back(target: Model, draft: Model) -> None:
    """A row says the same beside others that keep more or less of their proposals, over many rounds."""
    sampling = Sampling(200)
    together = spoken(target, draft, Exact(), sampling, 6)
    for n, prompt in enumerate(PROMPTS):
        decoder = Speculative(target, draft, sampling, Exact(), 6)
        ((_, alone),) = compose(target, [Request(prompt, 0, n)], sampling, 1, decoder=decoder)
        assert alone.tokens == together[n].tokens and alone.rounds == together[n].rounds
    assert len({tuple(each.kept for each in written.rounds) for written in together}) > 3


@pytest.mark.parametrize("rule", [Exact(), InTopK(3)], ids=str)
@pytest.mark.parametrize("length", [1, 200, 250, 254, 255, 256])
def test_a_prompt_may_fill_the_context(target: Model, draft: Model, rule: Rule, length: int) -> None:
    prompt = [n % 200 for n in range(length)]
    sampling = Sampling(12, temperature=0)
    found = spoken(target, draft, rule, sampling, 5, [prompt, [7, 7]])
    assert len(found[0].tokens) == min(12, 256 - length) and len(found[1].tokens) == 12
    if isinstance(rule, Exact):
        assert tokens(found) == tokens(write(target, [prompt, [7, 7]], sampling, 1, 0, [0, 1]))


def test_windows_see_as_far_as_they_should(tmp_path, draft: Model) -> None:
    """Layers of a window count columns: what was taken back may leave no gap in them."""
    verifier = made(FAMILIES["windows"](), tmp_path)
    endless = Model(verifier.module, draft.vocabulary, verifier.name, verifier.compute, verifier.head_like)
    sampling = Sampling(60, temperature=0)
    assert tokens(spoken(endless, draft, Exact(), sampling, 4)) == tokens(write(endless, PROMPTS, sampling, 1, 0, range(len(PROMPTS))))


@pytest.mark.filterwarnings("ignore")
def test_states_cannot_be_taken_back(tmp_path, draft: Model) -> None:
    verifier = made(FAMILIES["states and attention"](), tmp_path)
    with pytest.raises(RecipeError, match="no token can be taken back"):
        spoken(Model(verifier.module, draft.vocabulary, verifier.name, verifier.compute, verifier.head_like), draft, Exact(), Sampling(4))


def test_vocabularies_must_agree(target: Model, pair: tuple[Model, Model]) -> None:
    with pytest.raises(VocabularyError):
        Speculative(target, pair[0], Sampling(4), Exact(), 4)


def test_expected_tokens_and_best_length() -> None:
    """Against simulation by the definition, and against a search over all lengths."""
    draw = np.random.default_rng(0)
    for acceptance, gamma in product((0.3, 0.7, 0.95), (1, 3, 7)):
        flips = draw.random((100_000, gamma)) < acceptance
        kept = flips.cumprod(1).sum(1)
        assert expected_tokens(acceptance, gamma) == pytest.approx((kept + 1).mean(), rel=0.01)
    assert expected_tokens(1.0, 4) == 5
    assert best_length(0.5, cost=0.6) == 0, "it pays only where the acceptance is above the cost"
    assert best_length(0.7, cost=0.6) > 0 and best_length(0.95, cost=0.05) > best_length(0.7, cost=0.05)
    for acceptance, cost, row in product((0.5, 0.8), (0.1, 0.4), (0.0, 0.1)):
        best = best_length(acceptance, cost, row)
        assert all(speedup(acceptance, best, cost, row) >= speedup(acceptance, other, cost, row) for other in range(17))


def test_a_pace_follows_what_it_sees(target: Model, draft: Model) -> None:
    """Where drafts are refused it stops proposing, and the text is still the verifier's."""
    stranger, sampling = Pace(8, cost=0.3), Sampling(100, temperature=0)
    torch.manual_seed(5)
    for _ in range(20):
        stranger.saw([0], 8)
    assert stranger.now == 0
    friend = Pace(8, cost=0.05)
    found = spoken(target, draft, Exact(), sampling, friend)
    assert tokens(found) == tokens(write(target, PROMPTS, sampling, 1, 0, range(len(PROMPTS))))
    offered = sum(min(each.kept + 1, len(each.proposed)) for written in found for each in written.rounds)
    assert offered <= friend.offered and friend.acceptance > 0
    assert tokens(spoken(target, draft, Exact(), sampling, 0)) == tokens(found)
