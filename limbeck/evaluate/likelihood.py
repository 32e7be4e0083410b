"""How likely text is to a student, and how far its next-token distributions are from its teacher's.

Axes: B sequences, N completion tokens. Figures are sums over tokens divided once by their count; intervals are of the
bootstrap over sequences (tokens of one sequence are not independent).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeVar

import numpy as np

from limbeck.batch import Batch, Text
from limbeck.config import Part, part
from limbeck.data import Pool, asked_of, told_columns
from limbeck.decoding import Sampling
from limbeck.distributed import evenly, gathered, rank, ranks
from limbeck.divergence import ForwardKL, ReverseKL
from limbeck.errors import DataError, RecipeError
from limbeck.evaluate.statistics import interval
from limbeck.lazy import torch
from limbeck.objective import FULL, CrossEntropy, Objective, Term
from limbeck.progress import Progress
from limbeck.sources import DataSets
from limbeck.student import Student
from limbeck.targets import Targets
from limbeck.teachers import Teacher
from limbeck.vocabulary import Vocabulary

T = TypeVar("T")


class Evaluation(Part, ABC):
    """Base of all evaluations: `name` is what metrics call it."""

    name: str = "evaluation"

    @property
    def writes(self) -> bool:
        """Whether the student is to write for it."""
        return False

    @abstractmethod
    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """Figures by name; `samples`, where there are any, is a list of texts."""


@part
class Likelihood(Evaluation):
    """Cross-entropy on held-out text and, where the teacher can say it, full-vocabulary KL both ways, in nats a token.

    own_text: false scores the completions in the data; true lets the student answer their prompts first, always with
    the same random numbers. rows: how many are taken, in the data's order.
    """

    data: DataSets
    name: str = "heldout"
    rows: int = 64
    own_text: bool = False
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=64))
    max_tokens: int = 1024
    tokens_per_pass: int = 2048
    samples: int = 3

    def __post_init__(self) -> None:
        if min(self.rows, self.max_tokens, self.tokens_per_pass) < 1 or self.samples < 0:
            raise RecipeError(f"evaluation {self.name}: rows, max_tokens and tokens_per_pass must be at least 1, samples at least 0")

    @property
    def writes(self) -> bool:
        """On its own text."""
        return self.own_text

    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """Measure; `kl_nats` is KL(teacher || student), `reverse_kl_nats` the other, `ce_nats` on the tokens of the text."""
        texts = self._written(student) if self.own_text else self._given(student)
        figures = measured(texts, student, teacher, self.tokens_per_pass, self.name)
        if self.own_text:
            figures["samples"] = all_ranks([_sample(text, student.live.vocabulary) for text in texts])[: self.samples]
        return figures

    def _rows(self) -> list[tuple[Any, Any]]:
        pool = Pool(self.data, seed=0, shuffle=False)
        return pool.take(0, self.rows if pool.streamed else min(self.rows, len(pool)))

    def _given(self, student: Student) -> list[Text]:
        longest, vocabulary = min(self.max_tokens, student.live.context), student.live.vocabulary
        texts = [text for data, row in self._rows() for text in vocabulary.texts(row, data, longest)]
        if not texts:
            raise DataError(f"evaluation {self.name}: no row has a completion within {longest} tokens; raise max_tokens, or give other rows")
        return texts[rank() :: ranks()]

    def _written(self, student: Student) -> list[Text]:
        rows = self._rows()
        prompts = [student.live.vocabulary.prompt(row, data) for data, row in rows]
        longest = min(self.max_tokens, student.live.context - 1)
        kept = [n for n, ids in enumerate(prompts) if len(ids) <= longest]
        if not kept:
            raise DataError(f"evaluation {self.name}: no prompt is within {longest} tokens; raise max_tokens, or give other rows")
        kept = kept[rank() :: ranks()]
        with Progress(f"{self.name}: writing", len(kept) * self.sampling.max_tokens).showing() as progress:
            written = student.write([prompts[n] for n in kept], self.sampling, seed=0, step=0, rows=kept, told=lambda n: progress.advance(n, n))
        pairs = zip(kept, written, strict=True)
        return [Text.answered(prompts[n], new.tokens, {**told_columns(rows[n][1]), "asked": asked_of(rows[n][1])}, new.logp) for n, new in pairs]


def all_ranks(mine: Sequence[T]) -> list[T]:
    """The items of all ranks, dealt out in turn, in their first order."""
    shares = gathered(list(mine))
    return [share[place] for place in range(len(shares[0])) for share in shares if place < len(share)]


def measured(texts: Sequence[Text], student: Student, teacher: Teacher, tokens_per_pass: int, name: str = "heldout") -> dict[str, Any]:
    """Cross-entropy and divergences of a student on these sequences, with 95 % intervals.

    texts: of several ranks each has its share, dealt out in turn.
    """
    batch = Batch.of(list(texts), "corpus")
    sums_B: list[dict[str, float]] = [{} for _ in texts]
    cuts = batch.cuts(tokens_per_pass)
    parts = evenly([batch.select(cut) for cut in cuts], batch)
    cuts += [[]] * (len(parts) - len(cuts))
    with Progress(f"{name}: scoring", len(parts)).showing() as progress:
        for cut, pass_, said in zip(cuts, parts, teacher.score(parts), strict=True):
            nats = {"count": torch.ones(len(pass_.places_N)), **student.measure(pass_, said, _measurable(said, teacher))}
            for term, values in nats.items():
                sums = torch.bincount(pass_.sequence_N, weights=values.double(), minlength=len(pass_)).tolist()
                for b, total in zip(cut, sums, strict=True):
                    sums_B[b][term] = total
            progress.advance(1, len(pass_.tokens_T))
    return _figures(all_ranks(sums_B))


def _measurable(said: Targets, teacher: Teacher) -> Objective:
    """The terms that can be measured of what was said."""
    temperature = 1.0 if said.says & FULL else teacher.temperature_kept or 1.0
    terms: list[Term] = [CrossEntropy(), ForwardKL(), ReverseKL()]
    return Objective([term for term in terms if not term.needs or (term.needs & said.says and temperature == 1.0)])


KEYS = {"CrossEntropy": "ce_nats", "ForwardKL": "kl_nats", "ReverseKL": "reverse_kl_nats"}


def _figures(sums_B: list[dict[str, float]]) -> dict[str, Any]:
    counts_B = [sums["count"] for sums in sums_B]
    figures: dict[str, Any] = {"sequences": len(counts_B), "tokens": int(sum(counts_B))}
    for term in (name for name in sums_B[0] if name != "count"):
        term_B = [sums[term] for sums in sums_B]
        figures[KEYS[term]] = sum(term_B) / sum(counts_B)
        figures[f"{KEYS[term]}_interval"] = interval(term_B, counts_B)
    figures["perplexity"] = float(np.exp(figures["ce_nats"]))
    return figures


def _sample(text: Text, vocabulary: Vocabulary) -> dict[str, str]:
    start = text.spans[0].start
    return {"prompt": text.columns["asked"] or vocabulary.text(text.tokens[:start]), "completion": vocabulary.text(text.tokens[start:])}


def evaluate(student: Student, teacher: Teacher, evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Run evaluations; figures by the name of each."""
    return {evaluation.name: evaluation.run(student, teacher) for evaluation in evaluations}
