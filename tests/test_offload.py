"""A teacher whose layers lie on the disk: the same scores to the last bit, in less memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys

import limbeck as lb
from limbeck.batch import Batch, Text
from limbeck.errors import ModelError, RecipeError
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.offload import resident


def passes(vocabulary) -> Batch:
    return Batch.of([Text.answered(vocabulary.ids("red green"), vocabulary.ids(word), {}) for word in ("one two three", "cat")], "corpus")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_it_says_is_the_same_to_the_last_bit(kind: str, dtype: str, tmp_path: Path) -> None:
    model = toys.folder(tmp_path / "model", kind, seed=2)
    here, there = (lb.Local(model, dtype=dtype, offload=offload).writing() for offload in (None, "disk"))
    lazy = [weight for weight in there.opened.module.parameters() if weight.is_meta]
    assert lazy and not there.opened.head.weight_VD.is_meta
    for _ in range(2):
        batch = passes(here.opened.vocabulary)
        a, b = here.about(batch), there.about(batch)
        assert torch.equal(a.hidden_ND, b.hidden_ND) and torch.equal(a.head.weight_VD, b.head.weight_VD)
    sampling = lb.Sampling(max_tokens=4)
    assert [each.tokens for each in _write(here, sampling)] == [each.tokens for each in _write(there, sampling)]


def _write(teacher: lb.Local, sampling: lb.Sampling) -> list:
    from limbeck.decoding import write

    return teacher.lend(lambda model: write(model, [model.vocabulary.ids("red")], sampling, 0, 0, [0]))


def test_a_student_learns_the_same_from_it(tmp_path: Path) -> None:
    student, teacher = toys.folder(tmp_path / "student", seed=1), toys.folder(tmp_path / "teacher", seed=2)
    data = [lb.Data(toys.jsonl(tmp_path / "train.jsonl", toys.rows(8)))]
    for name, offload in (("here", None), ("there", "disk"), ("main", "cpu")):
        lb.distill(lb.kd(lb.Student(student, dtype="float32"), lb.Local(teacher, dtype="float32", offload=offload), data, steps=2), tmp_path / name)
    assert len({(tmp_path / name / "metrics.jsonl").read_text() for name in ("here", "there", "main")}) == 1


RESIDENT = """
import sys, torch
from limbeck import Local
from limbeck.batch import Batch, Text

def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

def there(model, offload):
    before, teacher = anonymous(), Local(model, dtype="bfloat16", offload=offload).writing()
    vocabulary = teacher.opened.vocabulary
    teacher.about(Batch.of([Text.answered(vocabulary.ids("red"), vocabulary.ids("one"), {})], "corpus"))
    return anonymous() - before, teacher

small, kept = there(sys.argv[1], None)
print(there(sys.argv[2], sys.argv[3] if sys.argv[3] != "None" else None)[0])
"""


def test_it_takes_less_memory(tmp_path: Path) -> None:
    """What the process holds of its own for 24 layers of 6 MB: all of it, or little more than the largest."""
    small, large = toys.folder(tmp_path / "small", width=32), toys.folder(tmp_path / "large", width=512, layers=24)
    whole = sum(weight.numel() for weight in open_model(large, Opening("float32")).module.parameters()) * 2 / 2**20
    taken = {}
    for offload in ("None", "disk"):
        command = [sys.executable, "-c", RESIDENT, small, large, offload]
        taken[offload] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken["None"] > 0.9 * whole > 60 and taken["disk"] < 0.3 * whole, (taken, whole)


def test_what_is_here_at_one_time_is_all_but_the_layers_and_the_largest_of_these() -> None:
    layers = {
        "model.layers.0.mlp.weight": (4, 4),
        "model.layers.1.mlp.weight": (8, 4),
        "model.layers.1.norm.weight": (4,),
        "model.layers.10.w": (4, 4),
    }
    shapes = {"model.embed_tokens.weight": (10, 4), **layers, "lm_head.weight": (10, 4)}
    assert set(resident(shapes)) == {name for name in shapes if ".0." not in name and ".10." not in name}


def test_what_cannot_be_moved_is_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(RecipeError, match="4bit weights cannot be offloaded, only a model in a folder or on the hub that is not quantised"):
        lb.Local("model", quantization="4bit", offload="disk")
    with pytest.raises(RecipeError, match="@student cannot be offloaded"):
        lb.Local("@student", offload="disk")
    from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

    monkeypatch.setattr(LlamaPreTrainedModel, "_no_split_modules", [])
    with pytest.raises(ModelError, match="does not say which modules are its layers, and cannot be offloaded; leave out offload"):
        lb.Local(toys.folder(tmp_path / "model"), offload="disk").writing()
