"""In which order rows are learnt from: the easy ones first, or those most of which the student still lacks most.

Axes: R rows of the data, C categories of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from limbeck import distributed
from limbeck.batch import Batch, Text
from limbeck.config import live, part
from limbeck.data import Data, Pool, Row
from limbeck.divergence import ForwardKL
from limbeck.errors import DataError, RecipeError
from limbeck.objective import FULL, Objective
from limbeck.progress import Progress
from limbeck.sources import RowSource, Share, Source
from limbeck.student import Student
from limbeck.targets import Logits
from limbeck.teachers import Teacher
from limbeck.vocabulary import Vocabulary

LENGTH, ENTROPY, GAP = "length", "teacher_entropy", "student_gap"
LONGEST = 1024
"""Tokens of a sequence that are looked at."""
CHUNK = 64
PASS = 4096
"""Tokens that a teacher reads at once to say how sure it is."""


@part
class Curriculum(Source):
    """Rows of another source in an order of their own, or as often as the student needs them.

    by: "length" (tokens of a row's completions, or of its prompt where it has none), "teacher_entropy" (nats a token of the
    teacher's distribution over a row's completions), or a column of numbers: the easiest share of the rows is drawn from, each row as
    likely, and the share grows over `steps` from `start` to all: `(start^root + (1 - start^root) t / steps)^(1 / root)`, the competence of
    Platanios et al. (2019, arXiv 1903.09848, eq. 7). hardest_first turns the order round. "student_gap": categories (what `column` says
    of a row) are drawn in proportion to the nats a token by which the student falls short of the teacher there, KL(p || q), measured
    every `every` steps on a step's draw of each: ready text or the student's own.
    """

    source: Source
    by: str = LENGTH
    steps: int = 100
    start: float = 0.1
    root: float = 2.0
    hardest_first: bool = False
    column: str = "category"
    every: int = 50

    _line: Any = live()
    _gauge: Any = live()

    def __post_init__(self) -> None:
        if not isinstance(self.source, RowSource):
            raise RecipeError(
                f"a curriculum orders rows of data, and {type(self.source).__name__} draws none by itself; put it around Corpus or OnPolicy"
            )
        if min(self.steps, self.every) < 1:
            raise RecipeError(f"Curriculum.steps and every must be at least 1, found {self.steps} and {self.every}")
        if not (0 < self.start <= 1 and 0 < self.root < math.inf):
            raise RecipeError(f"Curriculum.start is a share above 0 and root a power above 0, found {self.start} and {self.root}")

    @property
    def inner(self) -> RowSource:
        """Whose rows they are."""
        assert isinstance(self.source, RowSource)
        return self.source

    @property
    def writers(self) -> frozenset[str]:
        """Whoever writes inside."""
        return self.source.writers

    @property
    def rewarded(self) -> bool:
        """Whether there is credit inside."""
        return self.source.rewarded

    @property
    def chosen(self) -> bool:
        """Whether the text inside was chosen."""
        return self.source.chosen

    @property
    def measures(self) -> bool:
        """Where the student's own gap decides."""
        return self.by == GAP

    @property
    def leaves_out(self) -> str:
        """What the source inside does."""
        return self.source.leaves_out

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the data, and look at every row once. Raises DataError for rows that cannot be ordered so, RecipeError without a teacher that says."""
        source = self.inner.load(vocabulary, share)
        if source.line.streamed:
            raise RecipeError("a curriculum must know all rows, and streamed data is read forward only; leave streaming out")
        made = type(self)(source, self.by, self.steps, self.start, self.root, self.hardest_first, self.column, self.every)
        rows = _Rows.of(source.line)
        made._line = self._by_gap(rows, share) if self.by == GAP else self._by_ease(rows, vocabulary, share)
        made._gauge = share.teacher
        source.follow(made._line)
        return made

    def _by_ease(self, rows: "_Rows", vocabulary: Vocabulary, share: Share) -> "_Easy":
        hardness_R = np.array(_hardness(self.by, rows, vocabulary, share))
        return _Easy(rows, share.seed, np.argsort(-hardness_R if self.hardest_first else hardness_R, kind="stable"), self._competence)

    def _competence(self, step: int) -> float:
        begun = self.start**self.root
        return min(1.0, (begun + (1 - begun) * step / self.steps) ** (1 / self.root))

    def _by_gap(self, rows: "_Rows", share: Share) -> "_Needed":
        if share.teacher is None or not ForwardKL.needs & share.teacher.says:
            raise RecipeError('by="student_gap" measures a divergence, which this teacher cannot say; give a teacher that can: Local(model)')
        return _Needed(rows, share.seed, [str(rows.value(place, self.column)) for place in range(len(rows.rows))])

    def draw(self, step: int, student: Student) -> Batch:
        """The source's draw of rows that are chosen for the step."""
        if self.by == GAP and (step % self.every == 0 or not self._line.gaps):
            self._line.gaps = self._measured(step, student)
        return self.inner.draw(step, student)

    def _measured(self, step: int, student: Student) -> dict[str, float]:
        """Nats a token of KL(p || q) in each category, over all ranks; in a step's draw of its own rows alone."""
        found, objective = dict[str, float](), Objective([ForwardKL()])
        for category in self._line.categories:
            self.inner.follow(_Only(self._line, category))
            batch = self.inner.draw(step, student)
            nats = [student.measure(part, self._gauge.about(part), objective)["ForwardKL"] for part in distributed.evenly(batch.split(PASS), batch)]
            total, count = distributed.sum_over_ranks([sum(float(each_N.double().sum()) for each_N in nats), sum(map(len, nats))])
            found[category] = total / count if count else 0.0
        self.inner.follow(self._line)
        return found

    def state(self) -> dict[str, Any]:
        """What the source inside keeps, and the gaps last measured."""
        return {"source": self.source.state(), **({"gaps": dict(self._line.gaps)} if self.by == GAP else {})}

    def restore(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.source.restore(state["source"])
        if self.by == GAP:
            self._line.gaps = dict(state["gaps"])


@dataclass
class _Rows:
    """All rows of some data sets, and how likely each is beside the others: a set by its weight, its rows alike."""

    rows: list[tuple[Data, Row]]
    weight_R: "np.ndarray[Any, Any]"

    @staticmethod
    def of(line: Pool) -> "_Rows":
        rows = [(data, row) for data, some in zip(line.data, line.sets, strict=True) for row in some]
        return _Rows(rows, np.concatenate([np.full(len(some), data.weight / len(some)) for data, some in zip(line.data, line.sets, strict=True)]))

    def value(self, place: int, column: str) -> Any:
        """What a column says of a row. Raises DataError where it says nothing."""
        data, row = self.rows[place]
        if row.get(column) is None:
            raise DataError(f'{data.path}: a curriculum by "{column}" needs that column in every row; found {", ".join(row)}')
        return row[column]

    def drawn(self, places: "np.ndarray[Any, Any]", count: int, key: list[int]) -> list[tuple[Data, Row]]:
        """Some of these rows by their weights; where there are too few, all as often as there is room for, and some once more."""
        weights, rest = self.weight_R[places], count % len(places)
        more = np.random.default_rng(key).choice(places, rest, replace=False, p=weights / weights.sum())
        return [self.rows[place] for place in [*np.tile(places, count // len(places)), *more]]


@dataclass
class _Easy:
    """A line along which rows grow harder."""

    rows: _Rows
    seed: int
    order_R: "np.ndarray[Any, Any]"
    competence: Callable[[int], float]

    def take(self, first: int, count: int) -> list[tuple[Data, Row]]:
        """The rows of the step that begins with draw `first`."""
        step = first // count
        weights = self.rows.weight_R[self.order_R].cumsum() / self.rows.weight_R.sum()
        known = max(1, int(np.searchsorted(weights, self.competence(step) - 1e-9)) + 1)
        return self.rows.drawn(self.order_R[:known], count, [self.seed, step])


@dataclass
class _Needed:
    """A line along which categories come as often as they are needed."""

    rows: _Rows
    seed: int
    category_R: list[str]
    gaps: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        self.categories = sorted(set(self.category_R))
        self.places = {each: np.array([place for place, other in enumerate(self.category_R) if other == each]) for each in self.categories}

    def take(self, first: int, count: int) -> list[tuple[Data, Row]]:
        """The rows of the step that begins with draw `first`; all categories alike where none has a gap."""
        step, gap_C = first // count, np.array([self.gaps[each] for each in self.categories])
        share_C = gap_C / gap_C.sum() if gap_C.sum() > 0 else np.full(len(gap_C), 1 / len(gap_C))
        counts_C = np.random.default_rng([self.seed, step]).multinomial(count, share_C)
        return [row for n, each in enumerate(self.categories) if counts_C[n]
                for row in self.rows.drawn(self.places[each], int(counts_C[n]), [self.seed, step, n])]  # fmt: skip


@dataclass
class _Only:
    """A line of one category's rows."""

    line: _Needed
    category: str

    def take(self, first: int, count: int) -> list[tuple[Data, Row]]:
        """Different ones, as far as there are so many."""
        return self.line.rows.drawn(self.line.places[self.category], count, [self.line.seed, first // count])


def _hardness(by: str, rows: _Rows, vocabulary: Vocabulary, share: Share) -> Sequence[float]:
    """How hard each row is [R]."""
    if by == LENGTH:
        return [_length(row, data, vocabulary) for data, row in rows.rows]
    if by == ENTROPY:
        return _entropies(rows, vocabulary, share)
    values = [rows.value(place, by) for place in range(len(rows.rows))]
    if bad := [value for value in values if not isinstance(value, int | float) or not math.isfinite(value)]:
        raise DataError(
            f'a curriculum by "{by}" orders numbers, and a row has {str(bad[0])[:40]!r}; give {LENGTH}, {ENTROPY}, {GAP} or a column of numbers'
        )
    return values


def _length(row: Row, data: Data, vocabulary: Vocabulary) -> float:
    texts = [] if _is_prompt(row) else vocabulary.texts(row, data, LONGEST)
    return float(sum(len(text.places) for text in texts) or len(vocabulary.prompt(row, data)))


def _is_prompt(row: Row) -> bool:
    """Whether a row has a prompt and nothing that could be a completion."""
    return row.get("prompt") is not None and not any(row.get(name) is not None for name in ("completion", "messages", "conversations"))


def _entropies(rows: _Rows, vocabulary: Vocabulary, share: Share) -> list[float]:
    """Mean nats of the teacher's distribution over a row's completion tokens, each rank looking at some of the rows."""
    teacher: Teacher | None = share.teacher
    if teacher is None or not FULL & teacher.says:
        raise RecipeError(f'by="{ENTROPY}" needs a teacher that says whole distributions; give Local(model), or order by "{LENGTH}"')
    texts = [[] if _is_prompt(row) else vocabulary.texts(row, data, LONGEST) for data, row in rows.rows]
    if empty := [data.path for (data, _), some in zip(rows.rows, texts, strict=True) if not some]:
        raise DataError(f'{empty[0]}: by="{ENTROPY}" asks a teacher about completions, and a row has none; order prompts by "{LENGTH}"')
    mine = list(share.rows(len(texts)))
    with Progress("how sure the teacher is", max(1, len(mine))).showing() as progress:
        found = dict(zip(mine, _mean_entropies(teacher, [texts[place] for place in mine], progress), strict=True))
    merged = {place: value for some in distributed.gathered(found) for place, value in some.items()}
    return [merged[place] for place in range(len(texts))]


def _mean_entropies(teacher: Teacher, rows: list[list[Text]], progress: Progress) -> list[float]:
    from limbeck.loss import slices

    total_R, count_R = np.zeros(len(rows)), np.zeros(len(rows))
    numbers = np.array([n for n, texts in enumerate(rows) for _ in texts])
    whole = Batch.of([text for texts in rows for text in texts], "corpus")
    cuts = whole.cuts(PASS) if len(whole) else []
    parts = distributed.evenly([whole.select(cut) for cut in cuts], whole)
    for place, (some, said) in enumerate(zip(parts, teacher.score(parts), strict=True)):
        if place >= len(cuts):
            continue  # another rank has more
        row_N = numbers[np.array(cuts[place])][some.sequence_N.numpy()]
        nats_N = np.concatenate([_entropy(said.rows(chunk)) for chunk in slices(len(row_N), CHUNK)])
        np.add.at(total_R, row_N, nats_N)
        np.add.at(count_R, row_N, 1)
        progress.advance(len(cuts[place]))
    return list(total_R / count_R)


def _entropy(logits: Any) -> "np.ndarray[Any, Any]":
    """Nats of each distribution [C]."""
    assert isinstance(logits, Logits)
    block = logits.block(slice(None))
    return -(block.at().prob * block.at().log).nan_to_num(0.0).sum(-1).double().cpu().numpy()
