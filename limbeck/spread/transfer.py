"""`limbeck evaluate` on a cluster: tables of tokens by subject, text and stretch of passes; all else by one worker."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.batch import Batch
from limbeck.cluster import Cluster
from limbeck.files import new_folder, read_json
from limbeck.spread.work import Begun, Done, Job, carried_out
from limbeck.storage import here
from limbeck.student import Student
from limbeck.transfer.measure import Transfer, measured, warmths
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import Subjects, Who
from limbeck.transfer.tasks import TasksAsked
from limbeck.transfer.tokens import columns, joined

if TYPE_CHECKING:
    from limbeck.transfer.robustness import Robustness

PASSES = 8
"""Passes of a piece: little enough that all workers are busy, enough that a student is opened for something."""


@dataclass(frozen=True)
class Stretch:
    """Some passes of a table."""

    name: str
    text: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Its name among those of the table."""
        return f"{self.start:06}-{self.stop:06}"


@dataclass
class Evaluating(Job):
    """An evaluation. A piece is a stretch of passes over one kind of text by one student, and by the teacher.

    By one worker: baselines are trained, texts and tasks are answered and timed before; tables are joined, edits and suffixes
    measured and figures summed up after.
    """

    who: Who
    asked: Asked
    out: Path
    tasks: TasksAsked
    robustness: "Robustness | None" = None
    category: str | None = None
    passes: int = PASSES
    what = "reading (passes)"

    def begin(self) -> Begun:
        """Everybody answers; the stretches that are to be read."""
        subjects = self.who.subjects()
        transfer, stretches = self._transfer(subjects, edits=False), list[Stretch]()
        for name, student in transfer.opened():
            transfer.answer(name, student)
            del student
        for name in subjects.students:
            for text, texts in transfer.kinds(name):
                if not transfer.folder(name, text).exists():
                    count = len(Batch.of(texts, "corpus").cuts(self.asked.tokens_per_pass))
                    stretches += [Stretch(name, text, start, min(start + self.passes, count)) for start in range(0, count, self.passes)]
        return Begun(len(stretches), sum(each.stop - each.start for each in stretches), found=(subjects, stretches))

    def piece(self, number: int, begun: Begun, desk: Any) -> Done:
        """Read, and kept in a file of its own until all of the table is there."""
        subjects, stretches = begun.found
        stretch: Stretch = stretches[number]
        passes, folder = slice(stretch.start, stretch.stop), self._kept(self._reading(subjects), stretch) / stretch.file
        done = stretch.stop - stretch.start
        if folder.exists():
            return Done(done)
        student, transfer = self._student(subjects, stretch.name), self._reading(subjects)
        texts = transfer.texts(stretch.text, stretch.name)
        parts = Batch.of(texts, "corpus").split(self.asked.tokens_per_pass)[passes]
        said = transfer.teacher.score(parts)
        told = f"{stretch.name}, {stretch.text} text"
        found = columns(texts, student, said, self.asked.tokens_per_pass, told, warmths(stretch.text), passes)
        _save(found, folder)
        return Done(done, sum(len(part.tokens_T) for part in parts))

    def end(self, begun: Begun) -> None:
        """Tables are joined, and the evaluation is what it is where one process makes it."""
        subjects, stretches = begun.found
        transfer = self._reading(subjects)
        for name, text in dict.fromkeys((each.name, each.text) for each in stretches):
            mine = [each for each in stretches if (each.name, each.text) == (name, text)]
            if not transfer.folder(name, text).exists():
                assert transfer.vocabulary is not None
                texts, found = transfer.texts(text, name), [_read(self._kept(transfer, each) / each.file) for each in mine]
                joined(texts, found, transfer.vocabulary).save(transfer.folder(name, text))
            shutil.rmtree(self._kept(transfer, mine[0]), ignore_errors=True)
        measured(self._transfer(subjects))

    def _transfer(self, subjects: Subjects, edits: bool = True) -> Transfer:
        return Transfer(subjects, self.asked, self.out, self.tasks, self.robustness if edits else None, self.category)

    @cached_property
    def _alive(self) -> dict[str, Any]:
        """What is open on this worker: the transfer with its rows, and a student by name."""
        return {}

    def _reading(self, subjects: Subjects) -> Transfer:
        """The evaluation, its rows read as the first student meets them."""
        if "transfer" not in self._alive:
            transfer = self._transfer(subjects, edits=False)
            name = next(iter(subjects.students))
            self._alive.update(transfer=transfer, name=name, student=transfer.open(subjects.students[name]))
            transfer.read(self._alive["student"])
        return self._alive["transfer"]

    def _student(self, subjects: Subjects, name: str) -> Student:
        transfer = self._reading(subjects)
        if self._alive["name"] != name:
            self._alive.update(name=name, student=None)
            self._alive["student"] = transfer.open(subjects.students[name])
        return self._alive["student"]

    def _kept(self, transfer: Transfer, stretch: Stretch) -> Path:
        table = transfer.folder(stretch.name, stretch.text)
        return table.parent / f".{table.name}.stretches"


def _save(found: dict[str, Any], folder: Path) -> None:
    from safetensors.numpy import save_file

    with new_folder(folder) as made:
        save_file({name: np.ascontiguousarray(value) for name, value in found.items()}, made / "columns.safetensors")


def _read(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "columns.safetensors")


def spread(
    cluster: Cluster, who: Who, asked: Asked, out: Path, tasks: TasksAsked | None = None, robustness: "Robustness | None" = None,
    category: str | None = None, passes: int = PASSES,
) -> dict[str, Any]:  # fmt: skip
    """See `evaluate_transfer`, on a cluster: what `evaluation.json` holds. passes: of a piece."""
    out = here(out)
    carried_out(Evaluating(who, asked, out, tasks or TasksAsked(), robustness, category, passes), cluster, out)
    return read_json(out / "evaluation.json")
