"""Terms of layers against slow formulas in float64, and rows of attention against eager transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import toys
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import written
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

import limbeck as lb
from limbeck import hooks, insides
from limbeck.errors import ModelError
from limbeck.features import pairs
from limbeck.insides import Attention, Block, Build, Features, Layers, blocks
from limbeck.models import Model
from limbeck.objective import Objective

quick = settings(deadline=None, max_examples=100, database=None, derandomize=True)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return toys.opened(tmp_path, layers=3)


# Which layers


@quick
@given(student=st.integers(1, 40), teacher=st.integers(1, 80))
def test_even_layers_go_up_and_end_with_the_last(student: int, teacher: int) -> None:
    found = pairs("even", student, teacher)
    assert list(found) == list(range(student)) and found[student - 1] == teacher - 1
    assert list(found.values()) == sorted(found.values()) and min(found.values()) >= 0
    if student <= teacher:
        assert len(set(found.values())) == student
    if teacher % student == 0:  # TinyBERT's g(m) = m L / M, counted from 1
        assert all(theirs + 1 == (mine + 1) * teacher // student for mine, theirs in found.items())


def test_the_other_maps() -> None:
    assert pairs("even", 4, 6) == {0: 1, 1: 2, 2: 4, 3: 5}
    assert pairs("last", 4, 6) == {3: 5} and pairs("middle", 4, 6) == {1: 2} and pairs("middle", 3, 7) == {1: 3}
    assert pairs({0: 5, 2: 1}, 4, 6) == {0: 5, 2: 1}


@pytest.mark.parametrize(
    "made, call",
    [
        (lb.HiddenStates({0: 1, 2: 5}, "cosine"), {"type": "HiddenStates", "map": {"0": 1, "2": 5}, "distance": "cosine"}),
        (0.5 * lb.HiddenStates({0: 1}).on("corpus"), '0.5 * HiddenStates({0: 1}).on("corpus")'),
        (lb.Attentions("last", distance="mse"), "Attentions('last', distance='mse')"),
    ],
)
def test_a_map_of_layers_survives_yaml(made: lb.Term, call: Any) -> None:
    recipe = lb.Recipe.of({"student": "s", "source": "Corpus('a')", "teacher": "Local('t')", "objective": call})
    assert recipe.objective.terms[0] == made
    assert lb.Recipe.of(yaml.safe_load(recipe.yaml)).objective == recipe.objective == Objective([made])


def test_terms_are_named_by_what_they_are_measured_in() -> None:
    terms = [lb.HiddenStates(), lb.HiddenStates(distance="cosine").on("teacher"), lb.Attentions(), lb.Attentions(distance="mse"), lb.ForwardKL()]
    found = [f"{term.unit}/{term.name}" for term in terms]
    assert found == ["mse/HiddenStates", "cosine/HiddenStates@teacher", "nats/Attentions", "mse/Attentions", "nats/ForwardKL"]


# Against the formulas, in float64


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("widths", [(8, 8), (6, 10)])
def test_states_are_as_far_as_the_formula_says(distance: str, widths: tuple[int, int]) -> None:
    draw, rows = np.random.default_rng(0), 7
    mine, theirs = ({n: draw.normal(size=(rows, width)) for n in range(3)} for width in widths)
    term = lb.HiddenStates({0: 2, 2: 1}, distance).load(Build("s", widths[0], (None,) * 3), Build("t", widths[1], (None,) * 3), 5)
    term.projections.double()
    leaves = {n: torch.tensor(h, requires_grad=True) for n, h in mine.items()}
    found_N = term.distances(Features(leaves, {}), Features({n: torch.tensor(t) for n, t in theirs.items()}, {}))
    found_N.sum().backward()
    wanted_N = np.zeros(rows)
    for s, t in {0: 2, 2: 1}.items():
        weight = term.projections[str(s)].weight if term.projections else None
        value_N, slope_ND, slope_W = getattr(oracles, f"states_{distance}")(mine[s], theirs[t], None if weight is None else weight.detach().numpy())
        wanted_N += value_N / 2
        np.testing.assert_allclose(leaves[s].grad.numpy(), slope_ND / 2, atol=1e-14)
        if weight is not None:
            np.testing.assert_allclose(weight.grad.numpy(), slope_W / 2, atol=1e-14)
    np.testing.assert_allclose(found_N.detach().numpy(), wanted_N, atol=1e-14)
    assert leaves[1].grad is None and len(term.projections) == (0 if widths[0] == widths[1] else 2)


def attention(heads: int, groups: int, seed: int, window: int | None = None, cap: float | None = None, mask: Tensor | None = None) -> Attention:
    """Of three sequences in a pass of nine places, two of whose rows are gaps."""
    draw = torch.Generator().manual_seed(seed)
    queries, keys = ([torch.randn(count, 9, 4, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)] for count in (heads, groups))
    position_N = torch.tensor([1, 2, 8, 0, 4, 5, 7])
    return Attention(queries, keys, position_N, blocks([0, 0, 0, 1, 2, 2, 2], position_N.tolist()), 0.7, mask, window, cap)


@pytest.mark.parametrize("distance", ["kl", "mse"])
@pytest.mark.parametrize("mine, theirs", [((4, 2), (4, 4)), ((4, 2), (6, 3)), ((2, 1), (2, 2))])
@pytest.mark.parametrize("window, cap", [(None, None), (3, None), (None, 2.0)])
def test_attention_is_as_far_as_the_formula_says(distance: Any, mine: Any, theirs: Any, window: Any, cap: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(insides, "ROWS", 2)  # the last sequence in two blocks
    build = Build("s", 8, (window,))
    term = lb.Attentions({0: 0}, distance).load(build, build, 0)
    one, two = attention(*mine, 1, window, cap), attention(*theirs, 2, window, cap)
    assert len(one.blocks) == 5
    found_N = term.distances(Features({}, {0: one}), Features({}, {0: two}))
    for n, (b, at) in enumerate(zip([0, 0, 0, 1, 2, 2, 2], one.position_N.tolist(), strict=True)):
        rows = [oracles.attention_row(each.queries[b][:, at].detach().numpy(), each.keys[b][:, : at + 1].detach().numpy(), 0.7, window, cap)
                for each in (two, one)]  # fmt: skip
        assert float(found_N[n].detach()) == pytest.approx(getattr(oracles, f"attention_{distance}")(*rows), abs=1e-14)
    found_N.sum().backward()
    assert all(key.grad is None for key in two.keys) and all(bool(key.grad.any()) for key in one.keys[::2])


@pytest.mark.parametrize("distance", ["kl", "mse"])
@pytest.mark.parametrize("theirs", [(4, 4), (6, 3)])
def test_the_gradient_of_attention_is_that_of_finite_differences(distance: Any, theirs: Any) -> None:
    term = lb.Attentions({0: 0}, distance).load(Build("s", 8, (3,)), Build("t", 8, (3,)), 0)
    one, two = attention(4, 2, 1, 3), attention(*theirs, 2, 3)

    def of(queries: Tensor, keys: Tensor) -> Tensor:
        return term.distances(Features({}, {0: replace(one, queries=queries.unbind(0), keys=keys.unbind(0))}), Features({}, {0: two}))

    leaves = [torch.stack([each.detach() for each in several]).requires_grad_() for several in (one.queries, one.keys)]
    assert torch.autograd.gradcheck(of, leaves)


def test_masks_of_both_kinds_are_the_window_that_they_draw() -> None:
    at = torch.arange(9)
    seen = (at[:, None] >= at) & (at[:, None] - at < 3)
    added = torch.zeros(9, 9).double().masked_fill(~seen, torch.finfo(torch.float64).min)
    plain, kinds = (
        attention(4, 2, 1, window=3),
        [seen[None, None], added.expand(3, 1, 9, 9), torch.zeros(1, 1, 9, 9).double().masked_fill(~seen, -float("inf"))],
    )
    for mask in kinds:
        other = attention(4, 2, 1, mask=mask)
        for block in plain.blocks:
            for found, wanted in zip(other.rows(block), plain.rows(block), strict=True):
                assert torch.equal(found, wanted.expand_as(found))


def test_what_a_mask_adds_is_added() -> None:
    bias = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(3)).double()
    mask = bias + torch.full((9, 9), -float("inf"), dtype=torch.float64).triu(1)
    one = attention(4, 2, 1, mask=mask)
    log_p, seen = one.rows(Block(2, slice(4, 7), 8))
    scores = 0.7 * one.queries[2] @ one.keys[2].repeat_interleave(2, 0).mT + mask[0]
    torch.testing.assert_close(log_p.exp().masked_fill(~seen, 0.0), scores.softmax(-1)[:, [4, 5, 7], :8])


# Against transformers


def mistral(path: Path) -> str:
    """A model with windows, which SDPA knows."""
    torch.manual_seed(0)
    sizes = toys.config("llama").to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "eos_token_id")
    made = AutoModelForCausalLM.from_config(MistralConfig(**{name: sizes[name] for name in kept}, sliding_window=5, max_position_embeddings=256))
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4.0 if weight.ndim == 2 else 1.0)
    made.save_pretrained(path)
    toys.tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite", "gpt2", "mistral"])
@pytest.mark.parametrize("how", [None, "eager"])
def test_rows_of_attention_are_those_of_eager_transformers(kind: str, how: str | None, tmp_path: Path) -> None:
    folder = mistral(tmp_path) if kind == "mistral" else toys.folder(tmp_path, kind, **({"sliding_window": 5} if kind == "gemma2" else {}))
    model = lb.Local(folder, "float32", how).writing().opened
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert how == "eager" or kind == "gemma2" or model.causal.config._attn_implementation == "sdpa"
    batch = written()
    with torch.no_grad():
        outputs = model.forward(batch, Layers(frozenset({0, 1}), frozenset({0, 1})))
    assert outputs.features is not None and model.proven == {0, 1}
    for b, tokens in enumerate(batch.sequences()):
        with torch.no_grad():
            whole = eager(tokens[None], output_attentions=True, output_hidden_states=True, use_cache=False)
        mine_N = (batch.sequence_N == b).nonzero().flatten()
        at = batch.places_N[mine_N] - batch.starts_B[b] - 1
        torch.testing.assert_close(outputs.features.states[0][mine_N], whole.hidden_states[1][0, at], atol=1e-4, rtol=1e-4)
        for layer, found in outputs.features.attentions.items():
            (block,) = [each for each in found.blocks if each.sequence == b]
            log_p_HnK, seen = found.rows(block)
            wanted_HnK = whole.attentions[layer][0][:, at][..., : log_p_HnK.shape[-1]]
            torch.testing.assert_close(log_p_HnK.exp().masked_fill(~seen, 0.0), wanted_HnK, atol=2e-6, rtol=1e-4)


def test_nothing_is_touched_where_nothing_is_asked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, asked = written(), Layers(frozenset({0}), frozenset({1}))
    with torch.no_grad():
        opened = model.forward(batch, asked)
    layers = hooks.layers_of(model.causal, "toy")
    assert not any(layer._forward_hooks for layer in layers) and all(layer.self_attn.config is model.causal.config for layer in layers)
    monkeypatch.setattr(hooks, "layers_of", lambda *given: pytest.fail("layers were looked for"))
    monkeypatch.setattr(hooks, "_attend", lambda *given: pytest.fail("attention was taken"))
    with torch.no_grad():
        closed = model.forward(batch)
    assert closed.features is None and torch.equal(closed.hidden_ND, opened.hidden_ND)


def test_only_what_is_asked_is_kept(model: Model) -> None:
    with torch.no_grad():
        features = model.forward(written(), Layers(frozenset({2}), frozenset({0}))).features
    assert features is not None and list(features.states) == [2] and list(features.attentions) == [0]


def test_a_pass_that_fails_leaves_the_model_as_it_was(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = hooks.layers_of(model.causal, "toy")
    monkeypatch.setattr(layers[1].mlp, "forward", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.forward(written(), Layers(frozenset({0}), frozenset({0, 1})))
    assert not any(layer._forward_hooks for layer in layers) and all(layer.self_attn.config is model.causal.config for layer in layers)


def test_attention_that_is_not_what_the_model_uses_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hooks._rows_of
    monkeypatch.setattr(hooks, "_rows_of", lambda *given: replace(real(*given), scale=0.9 * real(*given).scale))
    with pytest.raises(ModelError, match=r"layer 0 of .* attends in a way that is not known"):
        model.forward(written(), Layers(attentions=frozenset({0})))
    assert model.proven == set()
