"""Weights in 4 and 8 bits: teachers, frozen weights below adapters, and AdamW's moments, where bitsandbytes runs."""

from pathlib import Path

import pytest
import torch
import toys

import limbeck as lb
from limbeck import checkpoint
from limbeck.batch import Batch
from limbeck.files import read_jsonl
from limbeck.objective import Objective
from limbeck.targets import Nothing

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("toys")
    toys.folder(home / "student", seed=1, width=64)
    toys.folder(home / "teacher", seed=2, width=64, sharp=8.0)
    toys.jsonl(home / "train.jsonl", toys.rows(40))
    return home


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_teacher_says_nearly_the_same(bits: str, toy, tmp_path) -> None:
    figures = []
    for quantization in (None, bits):
        made = lb.kd(
            lb.Student(str(toy / "student"), dtype="float32"),
            lb.Local(str(toy / "teacher"), quantization=quantization),
            [lb.Data(str(toy / "train.jsonl"))],
        )
        figures.append(lb.Likelihood([lb.Data(str(toy / "train.jsonl"))]).run(*made.open_pair())["kl_nats"])
    assert figures[1] == pytest.approx(figures[0], rel=0.15)
    assert figures[1] != figures[0], "nothing was quantised"


def test_adapters_on_4_bits_have_the_gradient_of_the_weights_they_stand_for(toy) -> None:
    """QLoRA's backward pass against the same model with its weights dequantised, on this machine."""
    student = lb.Student(str(toy / "student"), lora=lb.LoRA(4), quantization="4bit", dtype="float32").load(1)
    moving = {name: weight for name, weight in student.live.module.named_parameters() if weight.requires_grad}
    draw = torch.Generator().manual_seed(0)
    for weight in moving.values():
        weight.data = 0.05 * torch.randn(weight.shape, generator=draw)
    vocabulary = student.live.vocabulary
    batch = Batch.of([text for row in toys.rows(6) for text in vocabulary.texts(row, lb.Data("x"), 99)], "corpus")

    def gradients() -> dict[str, torch.Tensor]:
        student.live.module.zero_grad()
        student.learn(batch, Nothing(), Objective([lb.CrossEntropy()]), 1.0)
        return {name: weight.grad.clone() for name, weight in moving.items()}

    quantised = gradients()
    assert _dequantise(student.live.module) == 14
    for name, gradient in gradients().items():
        assert torch.cosine_similarity(gradient.flatten(), quantised[name].flatten(), 0) > 0.999, name


def _dequantise(module: torch.nn.Module) -> int:
    """Put plain layers where 4-bit ones are; how many there were."""
    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    for name, layer in found:
        weight_OI = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        plain = torch.nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False).requires_grad_(False)
        plain.weight.data = weight_OI
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, plain)
    return len(found)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_student_learns_and_leaves_its_adapters(quantization: str, toy, tmp_path) -> None:
    student = lb.Student(str(toy / "student"), lora=lb.LoRA(4), quantization=quantization, optimizer=lb.AdamW(1e-2))
    lb.distill(lb.kd(student, str(toy / "teacher"), [lb.Data(str(toy / "train.jsonl"))], steps=8), tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss_nats"] < 0.95 * rows[0]["loss_nats"]
    assert (tmp_path / "run" / "student" / "adapter_model.safetensors").exists()


def test_moments_in_8_bits_resume_to_the_same_weights(toy, tmp_path) -> None:
    made = lb.kd(lb.Student(str(toy / "student"), lb.AdamW(1e-2, eight_bit=True)), str(toy / "teacher"), [lb.Data(str(toy / "train.jsonl"))], steps=4)
    student = lb.distill(made, tmp_path / "run")
    again = made.student.load(4)
    checkpoint.save(tmp_path / "saved", student.state(), {})
    again.restore(checkpoint.restore(tmp_path / "saved")[0])
    assert {k: v.shape for k, v in again.state().items()} == {k: v.shape for k, v in student.state().items()}
    assert all(torch.equal(value, again.state()[name]) for name, value in student.state().items())
