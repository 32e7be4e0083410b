"""Who writes: a source draws the batch of a step, and knows nothing of losses.

A draw is a function of seed, step and weights. Row g of a step is the same on one rank and on eight, each drawing its share.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator

from limbeck.batch import Batch, Text
from limbeck.config import Part, import_object, live, part
from limbeck.data import Data, Pool, Row, asked_of
from limbeck.distributed import sum_over_ranks
from limbeck.errors import RecipeError
from limbeck.generate import Sampling
from limbeck.lazy import torch
from limbeck.reward import RunningBaseline, blaming, group_credit, verifier
from limbeck.student import Student
from limbeck.vocabulary import Vocabulary

DataSets = Annotated[list[Data], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
"""One data set or several: a path, or `{path: ..., weight: ...}`, or a list of them."""


@dataclass(frozen=True)
class Share:
    """What a source needs to know of the run: the seed, and which rows of a step are this rank's."""

    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def rows(self, count: int) -> range:
        """The numbers of this rank's rows among the `count` of a step."""
        return range(self.rank, count, self.ranks)


class Source(Part, ABC):
    """Base of all who write."""

    @property
    def writers(self) -> frozenset[str]:
        """Whose tokens it draws."""
        return frozenset({"corpus"})

    @property
    def rewarded(self) -> bool:
        """Whether they carry credit."""
        return False

    @property
    def chosen(self) -> bool:
        """Whether the text was chosen by somebody: a model cannot learn from its own unchosen words."""
        return True

    @property
    def leaves_out(self) -> str:
        """Which rows it cannot use, in words."""
        return "those without a completion"

    @abstractmethod
    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """The source alive: data open, ready to draw."""

    @abstractmethod
    def draw(self, step: int, student: Student) -> Batch:
        """This rank's text of a step."""

    def state(self) -> dict[str, Any]:
        """What a draw depends on beside seed, step and weights; most depend on nothing else."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


@part
class Corpus(Source):
    """Text that lies ready, written by people or by a teacher before.

    sequences: rows of a step, over all ranks. max_tokens: longer sequences are cut there; rows whose prompt alone is
    longer are left out. written_by: "corpus", or "teacher" where a teacher wrote it.
    """

    data: DataSets
    sequences: int = 16
    max_tokens: int = 1024
    written_by: Literal["corpus", "teacher"] = "corpus"

    _pool: Any = live()
    _vocabulary: Any = live()
    _share: Any = live()

    def __post_init__(self) -> None:
        _check_sizes(self.sequences, self.max_tokens)

    @property
    def writers(self) -> frozenset[str]:
        """Whoever is said to have written it."""
        return frozenset({self.written_by})

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the data."""
        made = self.fresh()
        made._pool, made._vocabulary, made._share = Pool(self.data, share.seed), vocabulary, share
        return made

    @property
    def leaves_out(self) -> str:
        """Prompts that leave no room."""
        return f"no completion within max_tokens={self.max_tokens} or the student's context"

    def draw(self, step: int, student: Student) -> Batch:
        """The next rows of the shuffled line."""
        rows = self._pool.take(step * self.sequences, self.sequences)
        mine = [rows[place] for place in self._share.rows(self.sequences)]
        longest = min(self.max_tokens, student.live.context)
        return _batch_of([self._vocabulary.texts(row, data, longest) for data, row in mine], self.written_by)


@part
class OnPolicy(Source):
    """The student's own answers to prompts, written with its weights as they are (GKD, arXiv 2306.13649).

    sequences: prompts of a step, over all ranks, each answered `group` times. max_prompt: longer prompts are left out.
    reward: a verifier, `module:function`, called with (completion, row) -> number; it gives credit (reward less the
    group's mean, or less a running mean), and with `keep_above` chooses which answers are learnt from.
    """

    prompts: DataSets
    sequences: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    max_prompt: int = 1024
    group: int = 1
    reward: str | None = None
    baseline: Literal["group", "running"] = "group"
    keep_above: float | None = None

    _pool: Any = live()
    _vocabulary: Any = live()
    _share: Any = live()
    _baseline: Any = live()
    _judge: Any = live()

    def __post_init__(self) -> None:
        _check_sizes(self.sequences, self.max_prompt, self.group)
        if self.keep_above is not None and not math.isfinite(self.keep_above):
            raise RecipeError(f"OnPolicy.keep_above must be finite, found {self.keep_above}; null keeps every answer")
        if self.keep_above is not None and self.reward is None:
            raise RecipeError("OnPolicy(keep_above=...) needs a reward to compare with; give reward: module:function")
        if self.reward is not None and self.keep_above is None and self.group == 1 and self.baseline == "group":
            raise RecipeError('OnPolicy(group=1) with a group baseline gives every answer zero credit; set group >= 2 or baseline="running"')

    @property
    def writers(self) -> frozenset[str]:
        """The student alone."""
        return frozenset({"student"})

    @property
    def rewarded(self) -> bool:
        """Whether there is credit."""
        return self.reward is not None

    @property
    def chosen(self) -> bool:
        """Whether a verifier chose what is learnt from."""
        return self.keep_above is not None

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the prompts."""
        made = self.fresh()
        made._pool, made._vocabulary, made._share = Pool(self.prompts, share.seed), vocabulary, share
        made._baseline, made._judge = RunningBaseline(), verifier(self.reward) if self.reward else None
        return made

    @property
    def leaves_out(self) -> str:
        """Prompts that leave no room, and answers that earned too little."""
        chosen = "" if self.keep_above is None else f"; answers that earned no more than keep_above={self.keep_above} are dropped too"
        return f"prompts longer than max_prompt={self.max_prompt} or the student's context{chosen}"

    def draw(self, step: int, student: Student) -> Batch:
        """Take prompts, let the student answer, put credit on the answers."""
        taken = self._pool.take(step * self.sequences, self.sequences)
        asked = [(g, row, self._vocabulary.prompt(row, data)) for g, (data, row) in enumerate(taken) if g in self._share.rows(self.sequences)]
        longest = min(self.max_prompt, student.live.context - 1)
        fitting = [(g, row, ids) for g, row, ids in asked if len(ids) <= longest]
        many = [(g * self.group + n, row, ids) for g, row, ids in fitting for n in range(self.group)]
        texts = self._answers(many, step, student)
        batch = replace(Batch.of(texts, "student"), left_out=len(asked) - len(fitting))
        return self._judged(batch, [row for _, row, _ in many]) if self.reward else batch

    def _answers(self, many: Sequence[tuple[int, Row, list[int]]], step: int, student: Student) -> list[Text]:
        written = student.write([ids for _, _, ids in many], self.sampling, self._share.seed, step, [g for g, _, _ in many])
        pairs = zip(many, written, strict=True)
        return [Text.answered(ids, new.tokens, _columns(row), new.logp) for (_, row, ids), new in pairs]

    def _judged(self, batch: Batch, rows: list[Row]) -> Batch:
        answers = [tokens[batch.places_N[batch.sequence_N == b] - batch.starts_B[b]] for b, tokens in enumerate(batch.sequences())]
        asked = [{**row, "prompt": asked_of(row)} for row in rows]
        rewards = [self._judge(self._vocabulary.text(ids.tolist()), row) for ids, row in zip(answers, asked, strict=True)]
        reward_B = torch.tensor(rewards)
        if self.baseline == "group":
            credit_B = group_credit(reward_B, self.group)
        else:
            total, count = sum_over_ranks([float(reward_B.double().sum()), len(reward_B)])
            credit_B = self._baseline.credit(reward_B, total, int(count))
        batch = replace(batch, credit_B=credit_B)
        return batch if self.keep_above is None else batch.select((reward_B > self.keep_above).nonzero().flatten().tolist())

    def state(self) -> dict[str, Any]:
        """The running mean of rewards."""
        return {"total": self._baseline.total, "count": self._baseline.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back the running mean."""
        self._baseline.total, self._baseline.count = state["total"], state["count"]


@part
class Mix(Source):
    """Now one source, now the other: each step draws from `first` with probability `fraction`, the same on every rank.

    The lambda of GKD (arXiv 2306.13649, algorithm 1) where `first` is the student.
    """

    fraction: float
    first: Source
    second: Source

    _share: Any = live()

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise RecipeError(f"Mix.fraction is a probability, found {self.fraction}")

    @property
    def writers(self) -> frozenset[str]:
        """Whoever may write."""
        return self.first.writers | self.second.writers

    @property
    def rewarded(self) -> bool:
        """Only where both give credit."""
        return self.first.rewarded and self.second.rewarded

    @property
    def chosen(self) -> bool:
        """Only where both are chosen."""
        return self.first.chosen and self.second.chosen

    @property
    def leaves_out(self) -> str:
        """What either does."""
        return " | ".join(dict.fromkeys([self.first.leaves_out, self.second.leaves_out]))

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open both."""
        made = type(self)(self.fraction, self.first.load(vocabulary, share), self.second.load(vocabulary, share))
        made._share = share
        return made

    def draw(self, step: int, student: Student) -> Batch:
        """From whoever's turn it is."""
        mine = np.random.default_rng([self._share.seed, step]).random() < self.fraction
        return (self.first if mine else self.second).draw(step, student)

    def state(self) -> dict[str, Any]:
        """Both states."""
        return {"first": self.first.state(), "second": self.second.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.first.restore(state["first"])
        self.second.restore(state["second"])


@part
class CustomSource(Source):
    """A user's own: `module:function`, called with (step, seed), returns the rows of that step as mappings.

    The rows may have any columns that a data file may; the same (step, seed) must give the same rows.
    """

    function: str
    max_tokens: int = 1024

    _vocabulary: Any = live()
    _share: Any = live()

    def __post_init__(self) -> None:
        _check_sizes(1, self.max_tokens)

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Find the function."""
        made = self.fresh()
        with blaming(self.function):
            import_object(self.function)
        made._vocabulary, made._share = vocabulary, share
        return made

    def draw(self, step: int, student: Student) -> Batch:
        """This rank's share of the rows that the function gives."""
        rows = self._rows(step)
        mine = [rows[place] for place in self._share.rows(len(rows))]
        longest = min(self.max_tokens, student.live.context)
        return _batch_of([self._vocabulary.texts(row, Data(path=self.function), longest) for row in mine], "corpus")

    def _rows(self, step: int) -> list[Row]:
        with blaming(self.function):
            rows = list(import_object(self.function)(step, self._share.seed))
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise RecipeError(f"{self.function} gave {str(rows)[:80]} for step {step}; return a list of rows such as {{'prompt': '...'}}")
        return rows


def _batch_of(rows: Sequence[list[Text]], writer: str) -> Batch:
    """The texts of rows; a row without any is left out."""
    return replace(Batch.of([text for texts in rows for text in texts], writer), left_out=sum(not texts for texts in rows))


def _columns(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("messages", "conversations", "prompt_ids")}


def _check_sizes(sequences: int, tokens: int, group: int = 1) -> None:
    if min(sequences, tokens, group) < 1:
        raise RecipeError(f"a source needs at least one sequence, token and answer; found {sequences}, {tokens} and {group}")


def texts_of(path: Path | str, vocabulary: Vocabulary, max_tokens: int, limit: int) -> list[Text]:
    """The first `limit` sequences of a file, in its own order, for evaluation."""
    data = Data(path=str(path))
    texts = [text for row in data.rows()[:limit] for text in vocabulary.texts(row, data, max_tokens)]
    return texts[:limit]
