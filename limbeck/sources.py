"""Who writes: a source draws the batch of a step, and knows nothing of losses.

A draw is a function of seed, step and weights. Row g of a step is the same on one rank and on eight, each drawing its share.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator

from limbeck.batch import Batch, Text
from limbeck.config import import_object, live, part
from limbeck.data import Data, Pool, Row
from limbeck.errors import RecipeError
from limbeck.licences import Licence, of_function
from limbeck.licensed import Licensed
from limbeck.reward import blaming
from limbeck.student import Student
from limbeck.vocabulary import Vocabulary

DataSets = Annotated[list[Data], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
"""One data set or several: a path, or `{path: ..., weight: ...}`, or a list of them."""


@dataclass(frozen=True)
class Share:
    """What a source needs to know of the run: the seed, which rows of a step are this rank's, and who teaches."""

    seed: int = 0
    rank: int = 0
    ranks: int = 1
    teacher: Any = None
    """The recipe's own, alive: of use to a source in which it writes too."""

    def rows(self, count: int) -> range:
        """The numbers of this rank's rows among the `count` of a step."""
        return range(self.rank, count, self.ranks)


class Source(Licensed, ABC):
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
        """What a draw depends on beside seed, step and weights; most depend on nothing else.

        A value that takes time to come by may be a function that gives it, as things stand now, once it is to be saved.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    @property
    def measures(self) -> bool:
        """Whether it asks the student for more than text, as only one that is learning can be asked."""
        return False


class RowSource(Source):
    """Base of those that draw rows of data, `sequences` of them a step."""

    sequences: int
    _pool: Any

    @property
    def line(self) -> Pool:
        """The rows that it draws, in their order."""
        return self._pool

    def follow(self, line: Any) -> None:
        """Draw along another line of the same rows: whatever has `take(first, count)`, as a pool has."""
        self._pool = line


@part
class Corpus(RowSource):
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
        check_sizes(self.sequences, self.max_tokens)

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
        return batch_of([self._vocabulary.texts(row, data, longest) for data, row in mine], self.written_by)


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
    def measures(self) -> bool:
        """Where either does."""
        return self.first.measures or self.second.measures

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
        check_sizes(1, self.max_tokens)

    @property
    def licences(self) -> list[Licence]:
        """Those of what lies beside the module."""
        return of_function(self.function)

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
        return batch_of([self._vocabulary.texts(row, Data(path=self.function), longest) for row in mine], "corpus")

    def _rows(self, step: int) -> list[Row]:
        with blaming(self.function):
            rows = list(import_object(self.function)(step, self._share.seed))
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise RecipeError(f"{self.function} gave {str(rows)[:80]} for step {step}; return a list of rows such as {{'prompt': '...'}}")
        return rows


def settled(state: Any) -> Any:
    """A state with all its values there."""
    value = state() if callable(state) else state
    return {name: settled(each) for name, each in value.items()} if isinstance(value, dict) else value


def batch_of(rows: Sequence[list[Text]], writer: str) -> Batch:
    """The texts of rows; a row without any is left out."""
    return replace(Batch.of([text for texts in rows for text in texts], writer), left_out=sum(not texts for texts in rows))


def check_sizes(sequences: int, tokens: int, group: int = 1) -> None:
    """See that a source draws something. Raises RecipeError."""
    if min(sequences, tokens, group) < 1:
        raise RecipeError(f"a source needs at least one sequence, token and answer; found {sequences}, {tokens} and {group}")


def texts_of(path: Path | str, vocabulary: Vocabulary, max_tokens: int, limit: int) -> list[Text]:
    """The first `limit` sequences of a file, in its own order, for evaluation."""
    data = Data(path=str(path))
    texts = [text for row in data.rows()[:limit] for text in vocabulary.texts(row, data, max_tokens)]
    return texts[:limit]
