"""What models are by their files, and what runs take, against the formulas written out."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import toys

from limbeck import estimate
from limbeck.adapters import LoRA
from limbeck.anatomy import Anatomy, anatomy, short
from limbeck.decoding import Sampling
from limbeck.divergence import ForwardKL
from limbeck.errors import ModelError
from limbeck.estimate import Load, disk_bytes, memory_bytes, size_gap, widths
from limbeck.evaluate import Likelihood
from limbeck.features import Attentions, HiddenStates
from limbeck.objective import Objective, Term
from limbeck.optimizer import AdamW
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus
from limbeck.student import Student
from limbeck.teachers import Local


def kd(student: Student | None = None, **more: Any) -> Recipe:
    source = more.pop("source", None) or Corpus("train.jsonl")
    return Recipe(student or Student("s", dtype="float32"), source, Local("t", dtype="float32"), Objective([ForwardKL()]), **more)


def llama(width: int, layers: int, rows: int = 49152) -> Anatomy:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    for n in range(layers):
        shapes |= {f"model.layers.{n}.mlp.up_proj.weight": (4 * width, width), f"model.layers.{n}.mlp.down_proj.weight": (width, 4 * width)}
    config = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 4 * width}
    return Anatomy("llama", config, shapes)


def of_size(parameters: int) -> Anatomy:
    return Anatomy("model", {}, {"weight": (parameters,)})


def test_size_gaps() -> None:
    assert size_gap(of_size(124 * 10**6), of_size(10**9)) == ("the teacher is 8.1 times the student", False)
    assert size_gap(of_size(124 * 10**6), of_size(4 * 10**9)) == ("124M has little room for 4B, 32 times its size", True)
    text, stands_out = size_gap(of_size(124 * 10**6), of_size(175 * 10**9))
    assert stands_out and text == "124M cannot absorb 175B in one step: stage it through an assistant of about 4.7B"
    assert [short(n) for n in (12, 36_000, 999_700, 1.7e9, 70e9, 1.8e12)] == ["12", "36k", "1M", "1.7B", "70B", "1.8T"]


def test_memory_is_counted_by_the_formula() -> None:
    model, load = llama(64, 2), Load(chunk_bytes=0, base_bytes=0)
    weights, head = model.parameters_total, 4 * 49152 * 64
    narrow = memory_bytes(kd(Student("s", dtype="bfloat16")), model, model, load, widths(False))
    assert narrow == {
        "student": 4 * weights + 2 * weights, "gradients": 4 * weights, "moments": 8 * weights, "teacher": 4 * weights,
        "a pass": 2048 * 3 * (24 * 64 + 2 * (10 * 64 + 4 * 256)) + head, "program": 0,
    }  # fmt: skip
    adapters = 2 * 16 * (64 + 256) * 2
    lora = memory_bytes(kd(Student("s", dtype="float32", lora=LoRA(), quantization="4bit")), model, None, load, widths(False))
    assert lora["gradients"] == 4 * adapters and lora["moments"] == 8 * adapters
    assert lora["student"] == int(0.53 * 2 * 2 * 64 * 256) + 4 * (49152 * 64 + 64) + 4 * adapters
    thrifty = Student("s", dtype="float32", gradient_checkpointing=True, optimizer=AdamW(eight_bit=True))
    checkpointed = memory_bytes(kd(thrifty), model, None, load, widths(False))
    assert checkpointed["moments"] == 2 * weights
    assert checkpointed["a pass"] == 2048 * (2 * 4 * 64 + 24 * 64 + 4 * (10 * 64 + 4 * 256)) + head


def test_what_comparing_layers_adds_is_counted() -> None:
    """A student of 2 layers of width 64 and a teacher of 6 of width 96, both of 4 heads and 2 of keys, 2,048 tokens, the longest of 500."""
    student, teacher, load = llama(64, 2, rows=300), llama(96, 6, rows=300), Load(longest_tokens=500, chunk_bytes=0)

    def pass_bytes(theirs: Anatomy, dtype: Any, *terms: Term) -> int:
        recipe = Recipe(Student("s", dtype=dtype), Corpus("train.jsonl"), Local("t", dtype=dtype), Objective([ForwardKL(), *terms]))
        return memory_bytes(recipe, student, theirs, load, widths(False))["a pass"]

    def added(theirs: Anatomy, dtype: Any, *terms: Term) -> int:
        return pass_bytes(theirs, dtype, *terms) - pass_bytes(theirs, dtype)

    rows = 6 * 4 * 256 * 4 * 500
    for dtype, b in (("float32", 4), ("bfloat16", 2)):
        states = 2048 * 2 * (b * 64 + b * 96 + 4 * 96)  # two pairs: the student's, the teacher's, their difference
        projections = 2 * 16 * 64 * 96
        assert added(teacher, dtype, HiddenStates()) == states + projections
        attention = 2048 * 2 * b * ((4 * 16 + 2 * 16) + (4 * 24 + 2 * 24))  # heads of 16 and of 24
        assert added(teacher, dtype, Attentions()) == attention + rows
        assert added(teacher, dtype, HiddenStates(), Attentions()) == states + projections + attention + rows
    assert added(student, "float32", HiddenStates("last")) == 2048 * 3 * 4 * 64, "one width: no projection"
    twice = added(teacher, "float32", Attentions({0: 5, 1: 5}))
    assert twice == 2048 * 4 * (2 * 96 + 144) + rows, "a teacher's layer that two look at is kept once"


def test_writing_can_be_the_fullest_moment() -> None:
    model, source = llama(64, 2, rows=300), OnPolicy("p.jsonl", sequences=100, sampling=Sampling(max_tokens=1000))
    load = Load(prompt_tokens=10, chunk_bytes=0)
    taken = memory_bytes(kd(Student("s", dtype="float32"), source=source, tokens_per_pass=8), model, None, load, widths(False))
    assert taken["writing"] == 64 * (2 * 1010 * 2 * 64 * 4 + 10 * (24 * 64 + 4 * (10 * 64 + 4 * 256)) + 16 * 300)


def test_disk_is_counted_by_checkpoints() -> None:
    model = llama(64, 2)
    weights = model.parameters_total
    assert disk_bytes(kd(), model) == {"2 checkpoints": 2 * 12 * weights, "student": 4 * weights}
    assert disk_bytes(kd(steps=10), model) == {"1 checkpoints": 12 * weights, "student": 4 * weights}
    best = kd(keep="best", evaluations=[Likelihood("x")], evaluate_every=1, keep_last=3)
    assert disk_bytes(best, model)["3 checkpoints"] == 36 * weights


def test_widths_and_memory_of_this_machine() -> None:
    assert widths(True)("float32") == 4 and widths(True)("bfloat16") == 2 and widths(False)("auto") == 4
    assert estimate.memory_here_bytes(True) > 10**8


def write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(8)
    writer.add_context_length(128)
    writer.add_head_count(2)
    writer.add_eos_token_id(7)
    writer.add_tensor("token_embd.weight", np.zeros((300, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_files_say_what_they_are(tmp_path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file)
    found = anatomy("model.gguf", file)
    assert (found.parameters_total, found.head_rows, found.context, found.layers, found.width) == (300 * 8 + 16 * 8, 300, 128, 2, 8)
    assert found.end_ids == frozenset([7])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.gguf is cut short or no GGUF file"):
        anatomy("model.gguf", file)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_its_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def no_head(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"nope")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def a_shard_lost(folder: Path) -> None:
    lost(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_settings(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def half_settings(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "model.safetensors is cut short: "),
        (cut_in_its_head, "model.safetensors is cut short: 50 bytes cannot hold its head"),
        (no_head, "model.safetensors is damaged: its head is no list of weights"),
        (pickled, "has no safetensors weights, and pickles are never read; convert it with save_pretrained"),
        (lost, "has no weights; fetch the model again"),
        (a_shard_lost, "lacks one.safetensors, one of 2 files of weights (2 missing)"),
        (no_config, "has no config.json, so it holds no model"),
        (no_settings, "config.json holds list where settings were expected"),
        (half_settings, "config.json: Expecting property name"),
    ],
)
def test_damaged_models(damage: Callable[[Path], None], words: str, tmp_path) -> None:
    folder = Path(toys.folder(tmp_path / "student"))
    damage(folder)
    with pytest.raises(ModelError, match=re.escape(words)):
        anatomy("student", folder)
