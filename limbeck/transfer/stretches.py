"""What an evaluation does, in stretches: one process does one after the other, a cluster many at once, each by whoever is free.

What is to lie at PLACE is made of PLACE.stretches/START-STOP, each there whole or not at all, and joined when all of them are.
A kill loses those that were under way; whoever goes on, on a cluster or without, makes the rest.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.files import read_jsonl, remove_folder, write_jsonl
from limbeck.progress import Progress

Told = Callable[[int, int], None]
"""Told of steps that were done, and of tokens that were handled in them."""


def unheard(steps: int, tokens: int) -> None:
    """Nobody looks on."""


class Work(ABC):
    """Something that is done once. place: where it lies. unit: of what there are so many (`prompts`, `passes`)."""

    place: Path
    unit: str

    @abstractmethod
    def todo(self, most: int | None = None) -> list[range]:
        """What is not done, in stretches of so many units at most, where they are not to be its own."""

    @abstractmethod
    def do(self, some: range, told: Told) -> None:
        """Do a stretch, unless it is done."""

    @abstractmethod
    def make(self) -> None:
        """Do all that is not done, and put it together."""


class Made(Work):
    """Something that is put together of its stretches.

    what: for whoever looks on; nothing where it shows itself how far it is. steps: that a unit counts there. at_once: units of a
    stretch; None: all.
    """

    what: str
    steps: int = 1
    at_once: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether it was put together."""
        return self.place.exists()

    @property
    @abstractmethod
    def count(self) -> int:
        """How many units there are."""

    @abstractmethod
    def stretch(self, some: range, told: Told) -> Any:
        """What some units come to."""

    @abstractmethod
    def save(self, found: Any, file: Path) -> None:
        """Keep what a stretch came to."""

    @abstractmethod
    def read(self, file: Path) -> Any:
        """What `save` kept."""

    @abstractmethod
    def join(self, found: Sequence[Any]) -> None:
        """Put it together of all stretches, in their order, whole or not at all."""

    @property
    def _folder(self) -> Path:
        return self.place.parent / f"{self.place.name}.stretches"

    def _file(self, some: range) -> Path:
        return self._folder / f"{some.start:06}-{some.stop:06}"

    def _kept(self) -> list[range]:
        """Stretches that are there, one after the other; where two hold the same units, the first and longest counts."""
        named = [re.fullmatch(r"(\d+)-(\d+)", file.name) for file in self._folder.iterdir()] if self._folder.exists() else []
        there, kept, place = [range(int(each[1]), int(each[2])) for each in named if each], list[range](), 0
        for some in sorted(there, key=lambda some: (some.start, -some.stop)):
            if some.start >= place:
                kept.append(some)
                place = some.stop
        return kept

    def todo(self, most: int | None = None) -> list[range]:
        """What is neither there nor kept."""
        if self.is_there:
            return []
        size, found, place = most or self.at_once or self.count, list[range](), 0
        for there in [*self._kept(), range(self.count, self.count)]:
            found += [range(start, min(start + size, there.start)) for start in range(place, there.start, size)]
            place = there.stop
        return found

    def do(self, some: range, told: Told) -> None:
        """Made and kept."""
        if not (file := self._file(some)).exists():
            self.save(self.stretch(some, told), file)

    def make(self) -> None:
        """All stretches, joined."""
        if todo := self.todo():
            self._do(todo)
        if not self.is_there:
            self.join([self.read(self._file(some)) for some in self._kept()])
        if self._folder.exists():
            remove_folder(self._folder)

    def _do(self, todo: Sequence[range]) -> None:
        done = self.count - sum(map(len, todo))
        progress = Progress(self.what, self.count * self.steps, done * self.steps)
        with progress.showing() if self.what else nullcontext():
            for some in todo:
                self.do(some, progress.advance if self.what else unheard)


@dataclass
class Lines(Made):
    """A file of rows in JSON. work: the rows of some units."""

    place: Path
    what: str
    unit: str
    total: int
    work: Callable[[range, Told], list[dict[str, Any]]]
    steps: int = 1
    at_once: int | None = None

    @property
    def count(self) -> int:
        """As it was said."""
        return self.total

    def stretch(self, some: range, told: Told) -> list[dict[str, Any]]:
        """Their rows."""
        return self.work(some, told)

    def save(self, found: list[dict[str, Any]], file: Path) -> None:
        """As rows."""
        write_jsonl(file, found)

    def read(self, file: Path) -> list[dict[str, Any]]:
        """Its rows."""
        return read_jsonl(file)

    def join(self, found: Sequence[list[dict[str, Any]]]) -> None:
        """One after the other."""
        write_jsonl(self.place, [row for rows in found for row in rows])
