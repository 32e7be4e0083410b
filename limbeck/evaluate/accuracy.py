"""How often what a student holds likeliest is what stands there: of classes, of masked tokens, of the next token of a text.

Axes: N completion tokens of a pass.
"""

from typing import Any

from limbeck.batch import Batch, Text
from limbeck.config import part
from limbeck.data import Pool
from limbeck.distributed import evenly, rank, ranks
from limbeck.errors import DataError, RecipeError
from limbeck.evaluate.likelihood import Evaluation, all_ranks
from limbeck.evaluate.statistics import interval
from limbeck.lazy import Tensor, torch
from limbeck.sources import DataSets
from limbeck.student import Student
from limbeck.teachers import Teacher


@part
class Accuracy(Evaluation):
    """The share of completion tokens that the student held likeliest, with a 95 % bootstrap interval over rows.

    Of a classifier it is the share of rows whose class was found; of equals the first counts. rows: how many are taken, in the
    data's order; null for all.
    """

    data: DataSets
    name: str = "accuracy"
    rows: int | None = None
    max_tokens: int = 1024
    tokens_per_pass: int = 2048

    def __post_init__(self) -> None:
        if min(self.rows or 1, self.max_tokens, self.tokens_per_pass) < 1 or self.rows == 0:
            raise RecipeError(f"evaluation {self.name}: rows, max_tokens and tokens_per_pass must be at least 1")

    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """`accuracy`, its interval, and how many tokens of how many sequences it is of."""
        texts = self._given(student)
        whole = Batch.of(texts, "corpus")
        cuts = whole.cuts(self.tokens_per_pass)
        parts = evenly([whole.select(cut) for cut in cuts], whole)
        right_B, count_B = [0.0] * len(texts), [0.0] * len(texts)
        for cut, part_ in zip(cuts + [[]] * (len(parts) - len(cuts)), parts, strict=True):
            right_N = (likeliest(student, part_) == part_.tokens_N).double()
            for b, right, count in zip(cut, _by_sequence(right_N, part_), _by_sequence(torch.ones_like(right_N), part_), strict=True):
                right_B[b], count_B[b] = right, count
        right_B, count_B = all_ranks(right_B), all_ranks(count_B)
        figures: dict[str, Any] = {"sequences": len(count_B), "tokens": int(sum(count_B)), "accuracy": sum(right_B) / sum(count_B)}
        return {**figures, "accuracy_interval": interval(right_B, count_B)}

    def _given(self, student: Student) -> list[Text]:
        pool, longest, vocabulary = Pool(self.data, seed=0, shuffle=False), min(self.max_tokens, student.live.context), student.live.vocabulary
        if self.rows is None and pool.streamed:
            raise DataError(f"evaluation {self.name}: a streamed set has no end; give rows")
        count = self.rows or len(pool)
        rows = pool.take(0, count if pool.streamed else min(count, len(pool)))
        texts = [text for data, row in rows for text in vocabulary.texts(row, data, longest)]
        if not texts:
            raise DataError(f"evaluation {self.name}: no row has a completion within {longest} tokens; raise max_tokens, or give other rows")
        return texts[rank() :: ranks()]


def _by_sequence(values_N: Tensor, batch: Batch) -> list[float]:
    return torch.bincount(batch.sequence_N, weights=values_N, minlength=len(batch)).tolist()


def likeliest(student: Student, batch: Batch) -> Tensor:
    """The likeliest outcome of each row [N], int64, on the CPU; logits exist a chunk at a time."""
    from limbeck.loss import CHUNK_ROWS, slices

    outputs = student.forward(batch)
    head, found = outputs.head.prepared(outputs.hidden_ND.dtype), torch.empty(len(batch.places_N), dtype=torch.int64)
    with torch.no_grad():
        for rows in slices(len(found), CHUNK_ROWS):
            found[rows] = head.logits(outputs.hidden_ND[rows]).argmax(-1).cpu()
    return found
