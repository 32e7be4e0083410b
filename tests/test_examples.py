"""Labelled examples there and back, and every fault of a file in one line."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import features, pictures, stored
from safetensors.torch import save_file

from limbeck.errors import DataError
from limbeck.examples import Examples, Scale, read_examples, write_examples


@pytest.mark.parametrize("suffix", [".safetensors", ".jsonl"])
@pytest.mark.parametrize("make", [pictures, features])
def test_what_is_written_is_read_to_the_bit(make, suffix: str, tmp_path: Path) -> None:
    made = make()
    found = read_examples(stored(tmp_path, made, suffix))
    assert torch.equal(found.x_RF, made.x_RF) and torch.equal(found.y_R, made.y_R) and found.column == made.column
    assert found.fingerprint == made.fingerprint and found.classes == 3


def test_the_fingerprint_knows_numbers_labels_and_shape() -> None:
    made = pictures()
    x = made.x_RF.clone()
    x[3, 2, 1] += 1e-3
    others = [Examples(x, made.y_R), Examples(made.x_RF, made.y_R.roll(1)), Examples(made.x_RF.flatten(1), made.y_R)]
    assert len({each.fingerprint for each in [made, *others]}) == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(4,), (3, 5), (2, 3, 4)]))
def test_a_scale_there_and_back(seed: int, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = 7 + 3 * torch.randn(9, *shape, generator=draw)
    x[(slice(None), *[0] * len(shape))] = 4.0 if len(shape) == 1 else x[(slice(None), *[0] * len(shape))]
    made = Examples(x, torch.zeros(9, dtype=torch.int64))
    scale = Scale.of(made)
    inward = scale.inward(made).x_RF
    torch.testing.assert_close(scale.outward(inward), x, rtol=1e-5, atol=1e-5)
    own = (0,) if len(shape) == 1 else (0, 1, 2) if len(shape) == 2 else (0, 2, 3)
    deviation = inward.double().std(own, correction=0)
    assert float(inward.double().mean(own).abs().max()) < 1e-4
    assert ((deviation - 1).abs() < 1e-4).logical_or(deviation < 1e-4).all()  # a column that never varies is 0 throughout


ROW = {"features": [1.0, 2.0], "label": 0}


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "holds no rows"),
        ([{"pixels": [1], "label": 0}], "line 1: found columns pixels, label; rows need"),
        ([{"features": [1.0]}], "line 1: found columns features; rows need"),
        ([ROW, {"image": [[1.0]], "label": 1}], "line 2: found columns image, label"),
        ([ROW, {"features": [1.0], "label": 1}], "line 2: features must be a list of numbers, the same in every row; found shape (1,)"),
        ([ROW, {"features": "no", "label": 1}], "line 2: features must be a list of numbers"),
        ([{"features": [[1.0]], "label": 0}], "line 1: features must be a list of numbers"),
        ([{"image": [1.0], "label": 0}], "line 1: image must be rows of numbers"),
        ([{"features": [], "label": 0}], "line 1: features must be a list of numbers"),
        ([{"features": [1.0], "label": "three"}], "line 1: a label is a whole number from 0, found 'three'"),
        ([{"features": [1.0], "label": True}], "line 1: a label is a whole number"),
        ([{"features": [1.0], "label": -1}], "found the label -1; labels count from 0"),
        ([ROW, {"features": [1.0, 2.0], "label": 2}], "class 1 has no example"),
        ([ROW, {"features": [1.0, float("inf")], "label": 1}], "row 2 holds a number that is not finite"),
    ],
)
def test_faults_of_jsonl(rows: list[dict], said: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_examples(tmp_path / "data.jsonl")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({"images": torch.zeros(2, 3), "y": torch.tensor([0, 1])}, "found tensors images, y; it needs x and y"),
        ({"x": torch.zeros(2, 3), "y": torch.tensor([0, 1, 0])}, "x must be [rows, ...] and y whole numbers [rows], found [2, 3] and [3]"),
        ({"x": torch.zeros(2), "y": torch.tensor([0, 1])}, "x must be [rows, ...]"),
        ({"x": torch.zeros(2, 3), "y": torch.tensor([0.0, 1.0])}, "of torch.float32"),
        ({"x": torch.zeros(0, 3), "y": torch.zeros(0, dtype=torch.int64)}, "x must be [rows, ...]"),
        ({"x": torch.tensor([[float("nan")]]), "y": torch.tensor([0])}, "row 1 holds a number that is not finite"),
    ],
)
def test_faults_of_safetensors(tensors: dict, said: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "data.safetensors")
    with pytest.raises(DataError) as caught:
        read_examples(tmp_path / "data.safetensors")
    assert said in str(caught.value)


def test_faults_of_names(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    for name, said in [("data.npz", "JSONL or safetensors"), ("none.jsonl", "there is no file"), ("broken.safetensors", "cannot read")]:
        with pytest.raises(DataError, match=said):
            read_examples(tmp_path / name)
    with pytest.raises(DataError, match="let the name end so"):
        write_examples(tmp_path / "data.npz", pictures())
