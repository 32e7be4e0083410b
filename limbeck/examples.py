"""Labelled examples: numbers and the class they belong to, read from JSONL or safetensors and written back to either.

JSONL: a row is `{"features": [...], "label": 3}` or `{"image": [[...], ...], "label": 3}`, an image as [height][width] or
[channel][height][width]. Safetensors: `x` (one row for each example, of any shape) and `y`. Labels count from 0.
Axes: R rows; F whatever shape one example has.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data import read_jsonl_rows
from limbeck.errors import DataError
from limbeck.files import write_bytes, write_jsonl
from limbeck.lazy import Tensor, torch
from limbeck.privacy import expanded

COLUMNS = ("features", "image")
GIVE = 'rows need "features" or "image", and "label"'


@dataclass(frozen=True)
class Examples:
    """Examples and their classes: x_RF float32, y_R int64. column: what the file calls the numbers."""

    x_RF: Tensor
    y_R: Tensor
    column: str = "features"

    def __len__(self) -> int:
        return len(self.y_R)

    @property
    def classes(self) -> int:
        """How many classes there are: one more than the last label."""
        return int(self.y_R.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.x_RF.shape[1:])

    def rows_of(self, label: int) -> Tensor:
        """Where the examples of a class stand."""
        return (self.y_R == label).nonzero()[:, 0]

    @property
    def fingerprint(self) -> str:
        """A name for exactly these numbers and labels."""
        found = hashlib.blake2b(repr(tuple(self.x_RF.shape)).encode(), digest_size=16)
        for tensor in (self.x_RF, self.y_R):
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Scale:
    """What numbers have taken from them and are divided by, so that a network meets them about 0 and about 1 apart.

    Of features each column has its own, of images each channel. What never varies is left as wide as it is.
    """

    mean_F: Tensor
    width_F: Tensor

    @staticmethod
    def of(examples: Examples) -> "Scale":
        """Mean and standard deviation of some examples, in float64, given in float32."""
        x_RF = examples.x_RF.double()
        flat = x_RF.ndim - 1 == 1
        over = (0,) if flat else (0, 1, 2) if x_RF.ndim == 3 else (0, *range(2, x_RF.ndim))
        mean_F, width_F = x_RF.mean(over, keepdim=True), x_RF.std(over, correction=0, keepdim=True)
        return Scale(mean_F.float(), torch.where(width_F > 0, width_F, 1.0).float())

    def inward(self, examples: Examples) -> Examples:
        """As a network meets them."""
        return replace(examples, x_RF=(examples.x_RF - self.mean_F) / self.width_F)

    def outward(self, x_RF: Tensor) -> Tensor:
        """Back in the units of the data."""
        return x_RF * self.width_F + self.mean_F


def read_examples(path: str | Path) -> Examples:
    """Read examples. Raises DataError, in one line, for what is missing, ragged, not finite, or leaves a class without any."""
    file = expanded(path)
    if file.suffix not in (".jsonl", ".safetensors"):
        raise DataError(f"{path}: labelled examples are read from JSONL or safetensors; give a file whose name ends so")
    if not file.is_file():
        raise DataError(f"there is no file {path}; give a JSONL or safetensors file of labelled examples")
    found = _from_jsonl(file) if file.suffix == ".jsonl" else _from_safetensors(file)
    if not bool(torch.isfinite(found.x_RF).all()):
        row = int((~torch.isfinite(found.x_RF)).flatten(1).any(1).nonzero()[0, 0])
        raise DataError(f"{path}: row {row + 1} holds a number that is not finite; mend it or leave the row out")
    see_classes(found.y_R, str(path))
    return found


def see_classes(y_R: Tensor, where: str) -> None:
    """See that labels count from 0 and that every class has an example. Raises DataError."""
    if int(y_R.min()) < 0:
        raise DataError(f"{where}: found the label {int(y_R.min())}; labels count from 0")
    counts_C = torch.bincount(y_R)
    if bool((counts_C == 0).any()):
        empty = int((counts_C == 0).nonzero()[0, 0])
        raise DataError(f"{where}: labels run to {len(counts_C) - 1}, and class {empty} has no example; number the classes from 0 without gaps")


def _from_jsonl(file: Path) -> Examples:
    rows = list(read_jsonl_rows(file))
    if not rows:
        raise DataError(f"{file} holds no rows; give it at least one of each class")
    column = next((name for name in COLUMNS if name in rows[0]), None)
    for number, row in enumerate(rows, 1):
        if column is None or column not in row or "label" not in row:
            raise DataError(f"{file}, line {number}: found columns {', '.join(row) or 'none'}; {GIVE}")
        if type(row["label"]) is not int:
            raise DataError(f"{file}, line {number}: a label is a whole number from 0, found {str(row['label'])[:40]!r}")
    assert column is not None
    numbers = _stacked([row[column] for row in rows], column, file)
    return Examples(torch.from_numpy(numbers), torch.tensor([row["label"] for row in rows]), column)


def _stacked(values: Sequence[Any], column: str, file: Path) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Numbers of one shape as an array."""
    try:
        made = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError):
        made = None
    wanted = (1,) if column == "features" else (2, 3)
    if made is not None and made.ndim - 1 in wanted and made.size:
        return made
    shapes = [_shape(value) for value in values]
    odd = next((n for n, shape in enumerate(shapes) if shape is None or shape != shapes[0] or len(shape) not in wanted), 0)
    expected = "a list of numbers" if column == "features" else "rows of numbers, [height][width] or [channel][height][width]"
    raise DataError(f"{file}, line {odd + 1}: {column} must be {expected}, the same in every row; found shape {shapes[odd]}")


def _shape(value: Any) -> tuple[int, ...] | None:
    try:
        return np.asarray(value, dtype=np.float32).shape
    except (ValueError, TypeError):
        return None


def _from_safetensors(file: Path) -> Examples:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {file} ({error}); give safetensors with x and y") from None
    if not {"x", "y"} <= found.keys():
        raise DataError(f"{file}: found tensors {', '.join(sorted(found)) or 'none'}; it needs x and y")
    x_RF, y_R = found["x"], found["y"]
    if x_RF.ndim < 2 or y_R.ndim != 1 or len(x_RF) != len(y_R) or not len(y_R) or y_R.is_floating_point():
        raise DataError(f"{file}: x must be [rows, ...] and y whole numbers [rows], found {list(x_RF.shape)} and {list(y_R.shape)} of {y_R.dtype}")
    return Examples(x_RF.float(), y_R.long(), "features" if x_RF.ndim == 2 else "image")


def write_examples(path: str | Path, examples: Examples) -> None:
    """Write examples, atomically, as the end of the name asks; `read_examples` gives the same numbers back."""
    file = expanded(path)
    if file.suffix == ".safetensors":
        from safetensors.torch import save

        write_bytes(file, save({"x": examples.x_RF.cpu().contiguous(), "y": examples.y_R.cpu().contiguous()}))
    elif file.suffix == ".jsonl":
        pairs = zip(examples.x_RF.tolist(), examples.y_R.tolist(), strict=True)
        write_jsonl(file, [{examples.column: x, "label": y} for x, y in pairs])
    else:
        raise DataError(f"{path}: examples are written as JSONL or safetensors; let the name end so")
