"""Text made small by selection: the rows whose gradients, taken together, point where those of the whole corpus do.

Axes: B sequences, N completion tokens, V vocabulary, D hidden width, R rows of the data, K numbers that are kept of each row.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from limbeck.batch import Batch, Text
from limbeck.config import live, part
from limbeck.data import Data, Row
from limbeck.errors import DataError, RecipeError
from limbeck.files import write_jsonl
from limbeck.licences import Licence, of_model
from limbeck.loss import Outputs
from limbeck.machine import Opening, Precision
from limbeck.matching import Condenser, Product
from limbeck.models import Model, open_model
from limbeck.networks import drawn
from limbeck.progress import Progress

CHUNK_ROWS = 512
DRAWS = 32
"""Random selections that a product is held against."""


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """A name for exactly these rows."""
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        found.update(json.dumps(dict(row), sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def row_texts(rows: Sequence[Row], data: Data, model: Model, max_tokens: int) -> list[tuple[int, Text]]:
    """The sequences of all rows, each with the number of its row; those without a completion are left out."""
    longest = min(max_tokens, model.context)
    return [(number, text) for number, row in enumerate(rows) for text in model.vocabulary.texts(row, data, longest)]


@dataclass(frozen=True)
class Sums:
    """What each row adds: a vector summed over its completion tokens [R, K], float64, and their count [R]."""

    vector_RK: Tensor
    tokens_R: Tensor

    def distance(self, chosen: Sequence[int]) -> float:
        """`||mean of the chosen - mean of all||`, means over tokens."""
        picked = torch.tensor(list(chosen))
        mine_K = self.vector_RK[picked].sum(0) / self.tokens_R[picked].sum()
        return float((mine_K - self.mean_K).norm())

    @cached_property
    def mean_K(self) -> Tensor:
        """Over the tokens of all rows."""
        return self.vector_RK.sum(0) / self.tokens_R.sum()

    @cached_property
    def _along_R(self) -> Tensor:
        return self.vector_RK @ self.mean_K

    @cached_property
    def _squares_R(self) -> Tensor:
        return torch.linalg.vecdot(self.vector_RK, self.vector_RK)

    def nearest(self, chosen: Sequence[int]) -> tuple[int, float]:
        """The row that, added to the chosen, brings their mean nearest to that of all, and how near that is.

        Rows without a completion token are never taken. Of equal ones the first is.
        """
        picked = torch.tensor(list(chosen), dtype=torch.int64)
        sum_K, with_R = self.vector_RK[picked].sum(0), self.tokens_R[picked].sum() + self.tokens_R
        inside_R = sum_K @ sum_K + 2 * (self.vector_RK @ sum_K) + self._squares_R  # |sum with the row|^2
        away_R = inside_R / with_R**2 - 2 * (sum_K @ self.mean_K + self._along_R) / with_R  # squared, less that of the mean
        away_R[self.tokens_R == 0] = torch.inf
        away_R[picked] = torch.inf
        best = int(away_R.argmin())
        return best, self.distance([*chosen, best])


def gradient_sums(model: Model, outputs: Outputs, tokens_N: Tensor, left_VK: Tensor, right_DK: Tensor) -> Iterator[Tensor]:
    """`left' (q - onehot)` of each token and `right' hidden`, chunk by chunk, side by side [C, K + K].

    Their outer product is the gradient of a token's cross-entropy on the head, seen through two random projections.
    """
    head = outputs.head.prepared(outputs.hidden_ND.dtype)
    for first in range(0, len(tokens_N), CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        logits_CV = head.logits(outputs.hidden_ND[rows])
        slope_CV = logits_CV.softmax(-1)
        slope_CV[torch.arange(len(slope_CV)), tokens_N[rows]] -= 1
        slope_CV = head.pull_back(slope_CV, logits_CV)
        yield torch.cat([slope_CV.float() @ left_VK, outputs.hidden_ND[rows].float() @ right_DK], 1)


@part
class Herding(Condenser):
    """Text by selection: one real row after the other, each bringing the chosen rows' mean nearest to the whole corpus' (Welling 2009, herding).

    by: "gradients", what is averaged over completion tokens is the gradient of their cross-entropy on the model's head, (q - onehot) x hidden,
    seen through two random projections of width `sketch` that keep inner products on average; or "hidden", the hidden state. So
    the chosen teach the model at its weights as they are, to first order, what all rows teach. Departs: 1) the model is the given one alone,
    where gradient matching draws many; 2) of the gradient only the head's part, for which a forward pass is enough. max_tokens: longer text is cut
    there; tokens_per_pass: padded tokens in memory at once.
    """

    model: str
    rows: int
    by: Literal["gradients", "hidden"] = "gradients"
    sketch: int = 64
    max_tokens: int = 1024
    tokens_per_pass: int = 2048
    dtype: Precision = "auto"

    _data: Any = live()
    _all: Any = live()
    _sums: Any = live()
    _chosen: Any = live()
    _seed: Any = live()
    _fingerprint: Any = live()

    def __post_init__(self) -> None:
        if min(self.rows, self.sketch, self.max_tokens, self.tokens_per_pass) < 1:
            raise RecipeError("Herding: rows, sketch, max_tokens and tokens_per_pass must be at least 1")

    @property
    def total_steps(self) -> int:
        """A row is chosen in each."""
        return self.rows

    @property
    def licences(self) -> list[Licence]:
        """The model's."""
        return of_model(self.model)

    @property
    def fingerprint(self) -> str:
        """Of all rows."""
        return self._fingerprint

    def load(self, data: Data, seed: int, out: Path) -> Self:
        """Read the corpus with the model once."""
        made = self.fresh()
        made._data, made._seed, made._chosen = data, seed, list[int]()
        made._all = list(data.rows())
        made._fingerprint = rows_fingerprint(made._all)
        model = open_model(self.model, Opening(self.dtype))
        made._sums = made._read(model)
        usable = int((made._sums.tokens_R > 0).sum())
        if usable < self.rows:
            raise DataError(f"{data.path}: {self.rows} rows were asked for, and {usable} of its {len(made._all)} have a completion within "
                            f"max_tokens={self.max_tokens}; ask for fewer")  # fmt: skip
        return made

    @torch.no_grad()
    def _read(self, model: Model) -> Sums:
        texts = row_texts(self._all, self._data, model, self.max_tokens)
        width = self.sketch**2 if self.by == "gradients" else model.head.weight_VD.shape[1]
        vector_RK, tokens_R = torch.zeros(len(self._all), width, dtype=torch.float64), torch.zeros(len(self._all), dtype=torch.int64)
        if not texts:
            return Sums(vector_RK, tokens_R)
        batch, which = Batch.of([text for _, text in texts], "corpus"), [number for number, _ in texts]
        with Progress("reading", len(texts)).showing() as progress:
            for cut in batch.cuts(self.tokens_per_pass):
                passed = batch.select(cut)
                for sequence, (vector_K, count) in enumerate(self._of_pass(model, passed)):
                    vector_RK[which[cut[sequence]]] += vector_K
                    tokens_R[which[cut[sequence]]] += count
                progress.advance(len(cut), len(passed.tokens_T))
        return Sums(vector_RK, tokens_R)

    def _of_pass(self, model: Model, batch: Batch) -> Iterator[tuple[Tensor, int]]:
        """The vector summed over the completion tokens of each sequence, and their count."""
        outputs, sequence_N = model.forward(batch), batch.sequence_N
        if self.by == "hidden":
            parts_N = outputs.hidden_ND.double().cpu()
        else:
            left_VK, right_DK = self._projections(model)
            tokens_N = batch.tokens_N.to(outputs.hidden_ND.device)
            parts_N = torch.cat(list(gradient_sums(model, outputs, tokens_N, left_VK, right_DK))).double().cpu()
        for sequence in range(len(batch)):
            mine = parts_N[sequence_N == sequence]
            yield (mine.sum(0) if self.by == "hidden" else (mine[:, : self.sketch].T @ mine[:, self.sketch :]).flatten()), len(mine)

    def _projections(self, model: Model) -> tuple[Tensor, Tensor]:
        """Gaussian, of variance 1 / sketch: inner products of what is projected are kept on average."""
        vocabulary, width = model.head.vocabulary, model.head.weight_VD.shape[1]
        device = model.head.weight_VD.device
        made = [torch.randn(rows, self.sketch, generator=drawn(self._seed, n)) / self.sketch**0.5 for n, rows in enumerate((vocabulary, width))]
        return made[0].to(device), made[1].to(device)

    def step(self, step: int) -> dict[str, float]:
        """Choose the row that helps most."""
        row, distance = self._sums.nearest(self._chosen)
        self._chosen.append(row)
        return {"row": row, "distance": distance}

    def state(self) -> dict[str, Tensor]:
        """Which rows were chosen, in their order."""
        return {"chosen": torch.tensor(self._chosen, dtype=torch.int64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self._chosen = [int(row) for row in state["chosen"]]

    def write(self, out: Path) -> Product:
        """The chosen rows as they stand in the corpus, `corpus.jsonl`."""
        file = out / "corpus.jsonl"
        write_jsonl(file, [dict(self._all[row]) for row in self._chosen])
        usable = (self._sums.tokens_R > 0).nonzero()[:, 0]
        draws = [usable[torch.randperm(len(usable), generator=drawn(self._seed, 2, n))[: self.rows]].tolist() for n in range(DRAWS)]
        figures = {
            "of_rows": len(self._all), "tokens": int(self._sums.tokens_R[torch.tensor(self._chosen)].sum()),
            "distance": self._sums.distance(self._chosen), "distance_of_random_rows": sum(map(self._sums.distance, draws)) / DRAWS,
            "norm_of_the_mean": float(self._sums.mean_K.norm()),
        }  # fmt: skip
        return Product(file, len(self._chosen), figures)
