"""Students cut from teachers by depth, and the quickstart that uses them, on toys."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM

import limbeck as lb
from limbeck import prune, quickstart
from limbeck.batch import Batch
from limbeck.decoding import Sampling, write
from limbeck.errors import RecipeError
from limbeck.files import read_json, read_jsonl
from limbeck.models import Model


@pytest.fixture
def model(tmp_path) -> Model:
    return toys.opened(tmp_path, layers=5)


def batch(model: Model) -> Batch:
    return Batch.of([text for row in toys.rows(6) for text in model.vocabulary.texts(row, lb.Data("x"), 99)], "corpus")


def test_influence_is_one_less_the_mean_cosine_around_a_layer(model) -> None:
    found_L = prune.influence(model, batch(model).split(64))
    whole = batch(model)
    cosines_LN: list[list[float]] = [[] for _ in range(5)]
    kept: list[torch.Tensor] = []  # transformers' own hidden states have the last one normed: take that layer's by a hook
    model.module.model.layers[-1].register_forward_hook(lambda _, args, output: kept.append(output[0] if isinstance(output, tuple) else output))
    for tokens, start, places in zip(whole.sequences(), whole.starts_B, [whole.places_N[whole.sequence_N == b] for b in range(6)], strict=True):
        with torch.no_grad():
            states = [*list(model.module(tokens[None], output_hidden_states=True).hidden_states)[:5], kept.pop()]
        for layer, (before, after) in enumerate(itertools.pairwise(states)):
            before_ND, after_ND = before.view(len(tokens), -1), after.view(len(tokens), -1)
            at = places - start - 1
            cosines_LN[layer] += torch.cosine_similarity(before_ND[at].double(), after_ND[at].double(), dim=-1).tolist()
    wanted_L = torch.tensor([1 - sum(values) / len(values) for values in cosines_LN], dtype=torch.float64)
    torch.testing.assert_close(found_L, wanted_L, atol=1e-5, rtol=1e-4)


def test_the_least_influential_layers_go_and_the_ends_stay() -> None:
    influence_L = torch.tensor([0.01, 0.5, 0.02, 0.3, 0.03, 0.001])
    assert prune.least_influential(influence_L, 4) == [0, 1, 3, 5]
    with pytest.raises(RecipeError, match="cannot keep 7 of 6 layers; give a number from 2 to 6"):
        prune.least_influential(influence_L, 7)


def test_a_cut_model_is_its_layers_one_after_the_other(model, tmp_path) -> None:
    ids = torch.arange(30)[None]
    with torch.no_grad():
        hidden = model.module.model.embed_tokens(ids)
        turned = model.module.model.rotary_emb(hidden, torch.arange(30)[None])
        for place in (0, 3, 4):
            out = model.module.model.layers[place](hidden, position_embeddings=turned)
            hidden = out[0] if isinstance(out, tuple) else out
        wanted = model.module.lm_head(model.module.model.norm(hidden))
        prune.by_depth(model, [0, 3, 4])
        torch.testing.assert_close(model.module(ids).logits, wanted)
        prune.save(model, tmp_path / "cut")
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "cut")(ids).logits, wanted)


def test_a_cut_model_writes_with_its_cache_what_it_would_without(model) -> None:
    prune.by_depth(model, [1, 2, 4])
    (new,) = write(model, [[1, 2, 3]], Sampling(max_tokens=10, temperature=0), 0, 0, [0])
    ids = [1, 2, 3]
    with torch.no_grad():
        for token in new.tokens:
            assert int(model.module(torch.tensor([ids]), use_cache=False).logits[0, -1, :258].argmax()) == token
            ids.append(token)


@pytest.mark.parametrize("kept", [[], [0, 9], [2, 1], [1, 1]])
def test_layers_that_are_not_there_cannot_be_kept(kept: list[int], model) -> None:
    with pytest.raises(RecipeError, match=r"cannot be kept of 5; give ascending numbers from 0 to 4"):
        prune.by_depth(model, kept)


@pytest.fixture
def teacher(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return toys.folder(tmp_path / "teacher", layers=4, max_position_embeddings=2048)


def test_the_quickstart_runs_end_to_end_and_keeps_the_answers(teacher, tmp_path) -> None:
    table = quickstart.quickstart(tmp_path / "run", teacher, layers=2, minutes=1, steps=5, prompts=12)
    assert [row[0] for row in table["rows"]] == ["teacher", "student before", "student distilled", "student fine-tuned (cross-entropy)"]
    steps = {name: len([row for row in read_jsonl(tmp_path / "run" / name / "metrics.jsonl") if "loss_nats" in row])
             for name in ("1-teacher-answers", "2-own-answers", "baseline-cross-entropy")}  # fmt: skip
    assert steps == {"1-teacher-answers": 4, "2-own-answers": 1, "baseline-cross-entropy": 5}
    assert "student distilled" in (tmp_path / "run" / "report.html").read_text()
    again = quickstart.quickstart(tmp_path / "run", teacher, layers=2, minutes=1, steps=5, prompts=12)
    assert again["rows"] == table["rows"]


def test_answers_go_on_where_they_were_stopped(teacher, tmp_path) -> None:
    opened = lb.models.open_model(teacher, lb.models.Opening("float32"))
    prompts = Path(toys.jsonl(tmp_path / "prompts.jsonl", toys.rows(70)))
    file = quickstart.answers(opened, prompts, "a")
    whole = file.read_bytes()
    lines = whole.split(b"\n")
    file.write_bytes(b"\n".join(lines[:64]) + b"\n" + lines[64][:10])
    assert quickstart.answers(opened, prompts, "a").read_bytes() == whole


def test_minutes_become_steps(teacher, tmp_path) -> None:
    quickstart.quickstart(tmp_path / "run", teacher, layers=2, minutes=2.05, steps=None, prompts=8)
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["steps"][0] + plan["steps"][1] >= 10
    assert plan["steps"][1] == round(quickstart.ON_POLICY_SHARE * sum(plan["steps"]))


def test_the_shipped_prompts_are_what_they_say() -> None:
    rows = [json.loads(line) for file in (quickstart.PROMPTS, quickstart.HELDOUT) for line in file.read_text().splitlines()]
    kinds = {"question", "instruction", "rewriting", "summarising", "sums", "code", "dialogue"}
    assert len(rows) >= 300 and {row["category"] for row in rows} == kinds
    texts = [json.dumps(row.get("prompt") or row["messages"]) for row in rows]
    assert len(set(texts)) == len(texts)
