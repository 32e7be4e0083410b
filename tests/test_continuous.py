"""Rows that come and go: whatever a text is written beside, and whenever it begins, it is the text that it would be alone."""

from collections.abc import Iterator
from itertools import chain

import pytest
import torch
import toys
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from limbeck import memory
from limbeck.decoding import Request, Sampling, compose, write
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.vocabulary import Vocabulary

SIZES = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 256, "eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 257}  # fmt: skip
FEW = {"vocab_size": 272, "hidden_size": 32, "eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 257}
SPLIT = ["sliding_attention", "full_attention"]
FAMILIES = {
    "windows": lambda: tf.MistralConfig(**SIZES, sliding_window=6, head_dim=8),
    "windows in some layers": lambda: tf.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6, layer_types=SPLIT),
    "windows and sinks": lambda: tf.GptOssConfig(
        **SIZES, head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2, layer_types=SPLIT
    ),
    "linear attention": lambda: tf.Qwen3NextConfig(
        **SIZES, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"],
    ),
    "convolutions": lambda: tf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "states and attention": lambda: tf.FalconH1Config(
        **SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8
    ),
    "states": lambda: tf.Mamba2Config(**FEW, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8),
    "latent keys": lambda: tf.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4}, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, first_k_dense_replace=1,
    ),
    "slopes": lambda: tf.BloomConfig(**FEW, n_layer=2, n_head=4),
    "learnt places": lambda: tf.OPTConfig(**FEW, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
                                          word_embed_proj_dim=32),
    "plain": lambda: toys.config("llama"),
}  # fmt: skip
PROMPTS = [[5], [9, 8, 7, 6, 5, 4, 3], [100, 3], [1] * 40, [44, 45, 46], [9, 8, 7, 6, 5, 4, 2], [7], [100, 3], [100, 3], [3, 1, 4, 1, 5, 9, 2, 6]]
ENDS = frozenset(range(0, 258, 6))
"""So many tokens end a text that rows end at different places."""


def made(config: tf.PreTrainedConfig, path) -> Model:
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim == 2 and "A_log" not in name:
                weight.mul_(3.0)
    net.save_pretrained(path)
    toys.tokenizer().save_pretrained(path)
    opened = open_model(str(path), Opening("float32"))
    return Model(opened.module, Vocabulary(opened.vocabulary.tokenizer, ENDS), opened.name, opened.compute, opened.head_like)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return made(FAMILIES["plain"](), tmp_path_factory.mktemp("plain"))


def alone(model: Model, prompts: list[list[int]], sampling: Sampling) -> list:
    return [write(model, [prompt], sampling, 1, 0, [n])[0] for n, prompt in enumerate(prompts)]


@pytest.mark.filterwarnings("ignore")  # the slow paths of some families warn that they are slow
@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_rows_come_and_go(family: str, tmp_path) -> None:
    model, sampling = made(FAMILIES[family](), tmp_path), Sampling(24)
    wanted = alone(model, PROMPTS, sampling)
    assert len({len(each.tokens) for each in wanted}) > 3, "rows end at different places, or nothing is tested"
    for at_once in (1, 3, 4, 64):
        found = write(model, PROMPTS, sampling, 1, 0, range(len(PROMPTS)), at_once=at_once)
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.tokens == theirs.tokens
            assert mine.logp == pytest.approx(theirs.logp, abs=1e-4)


def test_a_memory_that_cannot_be_mixed_is_written_batch_by_batch(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [each.tokens for each in alone(plain, PROMPTS, Sampling(24))]
    monkeypatch.setattr(memory, "is_mixable", lambda cache: False)
    monkeypatch.setattr("limbeck.models.is_mixable", lambda cache: False)
    found = write(plain, PROMPTS, Sampling(24), 1, 0, range(len(PROMPTS)), at_once=4)
    assert [each.tokens for each in found] == wanted


@settings(deadline=None, max_examples=30)
@given(
    prompts=st.lists(st.lists(st.integers(0, 250), min_size=1, max_size=12), min_size=1, max_size=12),
    groups=st.integers(1, 5), at_once=st.integers(1, 9), most=st.integers(1, 20), pauses=st.sets(st.integers(0, 40)),
)  # fmt: skip
def test_requests_are_answered_once_and_as_if_alone(plain: Model, prompts, groups: int, at_once: int, most: int, pauses: set[int]) -> None:
    """Whatever comes, in groups and with pauses; a prompt is read once for neighbours that share it; no more is taken than is written.

    Greedy: of texts without end a draw lands at last between two outcomes, where rounding decides.
    """
    sampling = Sampling(most, temperature=0)
    requests = [Request(prompt, 0, n * groups + g, tag=(n, g)) for n, prompt in enumerate(prompts) for g in range(groups)]
    under_way, most_under_way = 0, 0

    def asked() -> Iterator[Request | None]:
        nonlocal under_way, most_under_way
        for place, request in enumerate(requests):
            while place in pauses and under_way:
                yield None  # nothing now
            under_way += 1
            most_under_way = max(most_under_way, under_way)
            yield request

    found = {}
    for request, written in compose(plain, asked(), sampling, seed=1, at_once=at_once):
        assert request.tag not in found
        found[request.tag] = written
        under_way -= 1
    assert len(found) == len(requests) and most_under_way <= at_once
    read = [found[request.tag].read for request in requests]
    neighbours = [before is not None and before.prompt == after.prompt for before, after in zip([None, *requests], requests, strict=False)]
    assert read == [0 if shared else len(request.prompt) for request, shared in zip(requests, neighbours, strict=True)] or _repeats(prompts)
    for n, prompt in enumerate(prompts):
        (wanted,) = write(plain, [prompt], sampling, 1, 0, [n * groups])
        assert all(found[n, g].tokens == wanted.tokens for g in range(groups))


def _repeats(prompts: list[list[int]]) -> bool:
    """Whether a prompt comes again that is no neighbour: if they begin together it is read once all the same."""
    return len(set(map(tuple, prompts))) < len(prompts)


def test_a_pause_with_nothing_under_way_asks_again(plain: Model) -> None:
    asked = chain([None, None, Request([5], 0, 0)], [None, None], [Request([6, 7], 0, 1)])
    assert len(list(compose(plain, asked, Sampling(4)))) == 2


def test_who_waits_takes_the_place_of_who_has_ended(plain: Model) -> None:
    """With two places, a long text and many short ones: the short ones pass by while the long one is written."""
    lasts = [len(each.tokens) for each in alone(plain, [[n] for n in range(120)], Sampling(24))]
    long, short = lasts.index(max(lasts)), [n for n, last in enumerate(lasts) if last == 1][:6]
    asked = [Request([long], 0, long, tag="long"), *(Request([n], 0, n, tag=n) for n in short)]
    ended = [request.tag for request, _ in compose(plain, asked, Sampling(24), seed=1, at_once=2)]
    assert lasts[long] > len(short) and ended == [*short, "long"]
