"""A table of tokens under way: texts of one kind read by a student, and by the teacher, a pass at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.batch import Batch, Text
from limbeck.evaluate.statistics import Array
from limbeck.files import write_bytes
from limbeck.student import Student
from limbeck.targets import Targets
from limbeck.transfer.stretches import Made, Told
from limbeck.transfer.tokens import columns, heard, joined

if TYPE_CHECKING:
    from limbeck.teachers import Teacher
    from limbeck.vocabulary import Vocabulary


PASSES = 8
"""Of a stretch: few enough that all workers of a cluster are busy, enough that a student is opened for something."""


@dataclass
class Readers:
    """Who reads. open: a student by name. teacher: alive, once a student is open. keeps: whether what the teacher says is kept for other students."""

    open: Callable[[str], Student]
    teacher: "Callable[[], Teacher]"
    tokens_per_pass: int
    keeps: bool = False
    heard: dict[tuple[str, range], list[Targets]] = field(default_factory=dict[tuple[str, range], list[Targets]])


class Reading(Made):
    """Texts of a kind, read by one student. A unit is a pass, which the teacher reads and then the student.

    tables: where those of all students who read these texts are to lie, by name. temperatures: see `columns`.
    """

    unit, steps, at_once = "passes", 2, PASSES

    def __init__(
        self, readers: Readers, vocabulary: "Vocabulary", name: str, text: str, texts: list[Text], tables: Mapping[str, Path],
        temperatures: Sequence[float],
    ) -> None:  # fmt: skip
        self.readers, self.vocabulary, self.name, self.text, self.texts = readers, vocabulary, name, text, texts
        self.tables, self.temperatures = tables, temperatures
        self.place, self.what = tables[name], f"{name}, {text} text"

    @cached_property
    def _passes(self) -> int:
        return len(Batch.of(self.texts, "corpus").cuts(self.readers.tokens_per_pass))

    @property
    def count(self) -> int:
        """How many passes."""
        return self._passes

    def stretch(self, some: range, told: Told) -> dict[str, Array]:
        """The columns of some passes."""
        student = self.readers.open(self.name)
        said, passes = self._heard(some, told), slice(some.start, some.stop)
        return columns(self.texts, student, said, self.readers.tokens_per_pass, self.temperatures, passes, told)

    def _heard(self, some: range, told: Told) -> list[Targets]:
        """What the teacher says of some passes. One process keeps it as long as another student waits for it; on a cluster that may be elsewhere."""
        key = self.text, some
        if (found := self.readers.heard.pop(key, None)) is None:
            found = heard(self.texts, self.readers.teacher(), self.readers.tokens_per_pass, slice(some.start, some.stop), told)
        else:
            told(len(some), 0)
        if self.readers.keeps and sum(not table.exists() for table in self.tables.values()) > 1:
            self.readers.heard[key] = found
        return found

    def save(self, found: Mapping[str, Array], file: Path) -> None:
        """As safetensors."""
        from safetensors.numpy import save

        write_bytes(file, save({name: np.ascontiguousarray(value) for name, value in found.items()}))

    def read(self, file: Path) -> dict[str, Array]:
        """Its columns."""
        from safetensors.numpy import load

        return load(file.read_bytes())

    def join(self, found: Sequence[Mapping[str, Array]]) -> None:
        """The table."""
        joined(self.texts, found, self.vocabulary).save(self.place)
