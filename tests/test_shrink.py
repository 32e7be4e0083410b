"""Students cut from teachers by width, or made afresh: what is taken away was silent, and what stays is as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
import transformers as tf
from transformers import AutoModelForCausalLM

import limbeck as lb
from limbeck import narrow, prune
from limbeck.batch import Batch
from limbeck.errors import RecipeError
from limbeck.files import read_json
from limbeck.models import Model
from limbeck.shrink import Shape, shrink

SIZES = {"vocab_size": 272, "hidden_size": 36, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3,
         "head_dim": 8, "max_position_embeddings": 256, "eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 257}  # fmt: skip
FAMILIES = {"llama": tf.LlamaConfig(**SIZES), "tied": tf.LlamaConfig(**SIZES, tie_word_embeddings=True), "biases": tf.Qwen2Config(**SIZES),
            "normed heads": tf.Qwen3Config(**SIZES), "norms of one more": tf.Gemma3TextConfig(**SIZES)}  # fmt: skip


def opened(path: Path, family: str) -> Model:
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(FAMILIES[family]).float().eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if name.endswith("norm.weight") else 0.3) + ("norm" in name and "norms" not in family))
    net.save_pretrained(path)
    toys.tokenizer().save_pretrained(path)
    toys.licensed(path)
    return lb.Local(str(path), dtype="float32").writing().opened


def batch(model: Model) -> Batch:
    return Batch.of([text for row in toys.rows(6) for text in model.vocabulary.texts(row, lb.Data("x"), 99)], "corpus")


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.module(torch.arange(3, 30)[None]).logits


@pytest.mark.parametrize("family", list(FAMILIES))
def test_silent_channels_go_without_a_trace(family: str, tmp_path) -> None:
    """Channels, heads and units that say nothing are the least used, and the model without them is the same function."""
    model = opened(tmp_path / "whole", family)
    dead, layers = torch.tensor([3, 7, 8, 20]), model.causal.get_decoder().layers
    with torch.no_grad():
        model.causal.get_input_embeddings().weight[:, dead] = 0
        for n, layer in enumerate(layers):
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                out.weight[dead] = 0
                if out.bias is not None:
                    out.bias[dead] = 0
            layer.mlp.up_proj.weight[[n, n + 5]] = 0
            group = slice(16 * (n % 3), 16 * (n % 3) + 16)  # heads that share their keys
            layer.self_attn.v_proj.weight[8 * (n % 3) : 8 * (n % 3) + 8] = 0
            if layer.self_attn.v_proj.bias is not None:
                layer.self_attn.v_proj.bias[8 * (n % 3) : 8 * (n % 3) + 8] = 0
            assert layer.self_attn.o_proj.weight[:, group].shape[1] == 16
    before = logits(model)
    found = narrow.use(model, batch(model).split(64))
    assert found.hidden_D[dead].max() < found.hidden_D[[d for d in range(36) if d not in dead]].min()
    hidden = None if family == "norms of one more" else 32  # Gemma multiplies its embeddings by the root of their width
    narrow.by_width(model, found, hidden=hidden, heads=4, feed_forward=22)
    config = model.causal.config
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (hidden or 36, 4, 2, 22)
    torch.testing.assert_close(logits(model), before, atol=2e-4, rtol=1e-4)


def test_use_is_the_mean_over_completion_tokens(tmp_path) -> None:
    model = opened(tmp_path / "whole", "llama")
    whole, seen = batch(model), {"hidden": np.zeros(36), "units": np.zeros((3, 24)), "heads": np.zeros((3, 6))}
    kept: dict[str, torch.Tensor] = {}
    for n, layer in enumerate(model.causal.get_decoder().layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given, n=n: kept.update({f"units {n}": given[0][0]}))
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given, n=n: kept.update({f"heads {n}": given[0][0]}))
        for name in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, name).register_forward_hook(lambda _, given, out, n=n, name=name: kept.update({f"hidden {name} {n}": out[0]}))
    model.causal.get_decoder().norm.register_forward_hook(lambda _, given, out: kept.update({"hidden last": out[0]}))
    found = narrow.use(model, whole.split(64))
    for b, tokens in enumerate(whole.sequences()):
        with torch.no_grad():
            model.module(tokens[None])
        at = (whole.places_N[whole.sequence_N == b] - whole.starts_B[b] - 1).tolist()
        for name, value in kept.items():
            kind, *_, last = name.split()
            rows = value[at].double().numpy()
            if kind == "hidden":
                seen["hidden"] += np.abs(rows).sum(0)
            elif kind == "units":
                seen["units"][int(last)] += np.abs(rows).sum(0)
            else:
                seen["heads"][int(last)] += np.linalg.norm(rows.reshape(len(at), 6, 8), axis=-1).sum(0)
    count = len(whole.places_N)
    for mine, theirs in ((found.hidden_D, seen["hidden"]), (found.feed_forward_LF, seen["units"]), (found.heads_LH, seen["heads"])):
        np.testing.assert_allclose(mine.numpy(), theirs / count, rtol=1e-4)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("shrink")
    toys.folder(home / "teacher", layers=5)
    toys.folder(home / "other", "gpt2")
    toys.jsonl(home / "text.jsonl", toys.rows(12))
    return home


@pytest.mark.parametrize(("shape", "layers", "hidden"), [
    (Shape(layers=3), 3, 32), (Shape(layers=2, by="even"), 2, 32), (Shape(layers=[0, 2, 4], hidden=16), 3, 16),
    (Shape(feed_forward=20), 5, 32), (Shape(layers=2, hidden=16, from_scratch=True), 2, 16),
])  # fmt: skip
def test_the_student_is_a_folder_that_learns(home: Path, shape: Shape, layers: int, hidden: int, tmp_path) -> None:
    teacher, student = shrink(str(home / "teacher"), shape, tmp_path / "student", str(home / "text.jsonl"))
    assert (student.layers, student.hidden) == (layers, hidden)
    assert student.parameters < teacher.parameters
    assert student.seconds_per_token > 0
    assert "apache-2.0" in (tmp_path / "student" / "README.md").read_text()
    assert read_json(tmp_path / "student" / "shape.json")["of"]["student"] == student.parameters
    recipe = lb.kd(str(tmp_path / "student"), str(home / "teacher"), str(home / "text.jsonl"), steps=2)
    lb.distill(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()


def test_layers_that_stay_are_the_teachers_own(home: Path, tmp_path) -> None:
    shrink(str(home / "teacher"), Shape(layers=[0, 3]), tmp_path / "student")
    whole, cut = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (home / "teacher", tmp_path / "student"))
    for name, weight in cut.items():
        assert torch.equal(weight, whole[name.replace("layers.1.", "layers.3.")])


def test_even_layers() -> None:
    assert prune.evenly(30, 6) == [0, 6, 12, 17, 23, 29]
    assert prune.evenly(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("shape", "data", "message"), [
    (Shape(layers=9), "text.jsonl", "cannot keep 9 of 5 layers; give a number from 2 to 5"),
    (Shape(layers=[0, 9]), None, r"layers \[0, 9\] cannot be kept of 5"),
    (Shape(hidden=100), "text.jsonl", "cannot keep 100 of 32 hidden channels"),
    (Shape(heads=1), "text.jsonl", "cannot keep 1 heads: 2 share their keys; give a multiple of 2"),
    (Shape(hidden=30), "text.jsonl", "30 hidden channels are no multiple of 4 heads"),
    (Shape(layers=3), None, "there is none; give --data"),
    (Shape(hidden=10, from_scratch=True), None, "do not divide; give multiples"),
])  # fmt: skip
def test_shapes_that_cannot_be(home: Path, shape: Shape, data: str | None, message: str, tmp_path) -> None:
    with pytest.raises(RecipeError, match=message):
        shrink(str(home / "teacher"), shape, tmp_path / "student", data and str(home / data))
    assert not (tmp_path / "student").exists()


def test_what_else_is_refused(home: Path, tmp_path) -> None:
    with pytest.raises(RecipeError, match="say what is to be smaller"):
        Shape()
    with pytest.raises(RecipeError, match="no layers to choose from"):
        Shape(layers=[0, 1], from_scratch=True)
    with pytest.raises(RecipeError, match="is there already"):
        shrink(str(home / "teacher"), Shape(layers=2, by="even"), home / "teacher")
    with pytest.raises(RecipeError, match="which pruning by width does not know; prune it by depth"):
        shrink(str(home / "other"), Shape(hidden=16), tmp_path / "student", str(home / "text.jsonl"))
    prompts = toys.jsonl(tmp_path / "prompts.jsonl", [{"text": ""}])
    with pytest.raises(RecipeError, match="has no completions to look at"):
        shrink(str(home / "teacher"), Shape(hidden=16), tmp_path / "student", prompts)
