"""What transferred: teacher and students on the same held-out text, on the teacher's and on their own, kept as tables of tokens.

OUT/settings.json (what was asked) · OUT/texts/WRITER.jsonl · OUT/tables/STUDENT/TEXT/tokens.safetensors · OUT/speeds.json ·
OUT/evaluation.json (the figures). What is there is not made again, so that a killed evaluation goes on where it was. All of it is
made in stretches, of which a cluster does many at once: see `stretches`.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.anatomy import Anatomy
from limbeck.batch import Text
from limbeck.decoding import Sampling, Written, write
from limbeck.errors import CheckpointError, LimbeckError
from limbeck.files import claimed, read_json, read_jsonl, write_json
from limbeck.places import fingerprint
from limbeck.privacy import shareable
from limbeck.storage import here
from limbeck.student import Student
from limbeck.teachers import Local, Silent, Teacher
from limbeck.transfer.reading import Readers, Reading
from limbeck.transfer.rows import Asked, Rows, rows_of
from limbeck.transfer.slices import categories
from limbeck.transfer.stretches import Lines, Told, Work, unheard
from limbeck.transfer.subjects import TEACHER, Subjects, file_name
from limbeck.transfer.tasks import Tasks, TasksAsked
from limbeck.transfer.tokens import TEMPERATURES
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.opened import OpenModel
    from limbeck.transfer.robustness import Robustness

GIVEN, OWN = "given", "own"
"""Texts beside the teacher's: the data's completions, and what each student wrote itself."""
ANSWERS = 64
"""Of a stretch: as many as are written side by side, so that whoever makes it writes the same text, rounded in the same batches."""
TIMED, WARM = Sampling(max_tokens=32), Sampling(max_tokens=2)
AT_ONCE = 32
Writer = str | None
"""A student by name; None: the teacher."""


class Transfer:
    """An evaluation under way in its folder: subjects, rows, texts and tables, each made once. category: the column by which gaps are sliced."""

    def __init__(
        self, subjects: Subjects, asked: Asked, out: Path, tasks: TasksAsked | None = None, robustness: "Robustness | None" = None,
        category: str | None = None,
    ) -> None:  # fmt: skip
        self.subjects, self.asked, self.out, self.category = subjects, asked, out, category
        self.tasks = Tasks(tasks or TasksAsked(), asked, out)
        self.missing = list(subjects.missing)
        self.robustness = robustness and robustness.begun(self)
        self.rows = Rows()
        self.vocabulary: Vocabulary | None = None
        self.context = 0
        self.readers = Readers(self.student, lambda: self.teacher, asked.tokens_per_pass)
        self._teacher: Teacher | None = None
        self._alive: tuple[str, Student] | None = None
        self._pens = dict[Writer, bool]()

    @property
    def sampling(self) -> Sampling:
        """How all of them write."""
        return Sampling(max_tokens=self.asked.max_tokens)

    def run(self) -> None:
        """Measure one student after the other."""
        self.begin()
        self.readers.keeps = True
        for who in self.everyone:
            for work in self.writings(who):
                work.make()
            self.time(who)
            for work in self.readings(who):
                work.make()

    @property
    def everyone(self) -> list[Writer]:
        """The teacher, then the students."""
        return [None, *self.subjects.students]

    def begin(self) -> None:
        """Read the rows. Refuses, before anything is paid, what cannot be; what was refused leaves no trace."""
        asked = self._settings()
        self.read()
        categories(self.rows, self.category)  # refuses a column that no row has
        write_json(self.out / "settings.json", asked)
        self.missing += self.rows.missing

    def read(self) -> None:
        """The rows, as the first student meets them."""
        first = self.student(next(iter(self.subjects.students))).live
        self.vocabulary, self.context = first.vocabulary, first.context
        self.rows = rows_of(self.asked, first.vocabulary, first.context)

    def _settings(self) -> dict[str, Any]:
        """What this folder is an evaluation of; students may be added. Raises CheckpointError where it is one of something else."""
        models = {name: _print(student.model) for name, student in self.subjects.students.items()}
        settings = {"asked": {**asdict(self.asked), "data": shareable(self.asked.data)}, "students": models,
                    "teacher": None if isinstance(self.subjects.teacher, Silent) else _print(self.subjects.teacher.name)}  # fmt: skip
        if not (known := self.out / "settings.json").exists():
            return settings
        there = read_json(known)
        what = {"asked": "other settings", "teacher": "another teacher"}
        changed = [what[key] for key in what if there[key] != settings[key]]
        changed += [f"another {name}" for name, model in models.items() if there["students"].get(name, model) != model]
        if changed:
            raise CheckpointError(f"{self.out} holds an evaluation with {changed[0]}; give another --out, or remove it")
        return {**settings, "students": {**there["students"], **models}}

    def student(self, name: str) -> Student:
        """A student alive, and with the first the teacher; one at a time, so that nobody is to hold it."""
        if self._alive is None or self._alive[0] != name:
            self._alive = None
            gc.collect()  # models refer to themselves; their memory is wanted for the next
            self._alive = name, self._open(self.subjects.students[name])
        return self._alive[1]

    def _open(self, settings: Student) -> Student:
        student = settings.load(1)
        if self._teacher is None or self._teacher.opened is None:
            self._teacher = self.subjects.teacher.load(student)
        else:
            student.share_vocabulary(self._teacher.opened.vocabulary)
        return student

    @property
    def teacher(self) -> Teacher:
        """Alive."""
        assert self._teacher is not None, "no student was opened"
        return self._teacher

    def writings(self, who: Writer) -> Iterator[Work]:
        """What somebody is to write: answers to the prompts, and to tasks."""
        if not self._writes(who):
            return
        if count := len(self.rows.prompts):
            each, file, what = self.asked.each, self._file(who or TEACHER), f"{who or TEACHER} writes"
            yield Lines(file, what, "prompts", count, partial(self._answers, who), each * self.asked.max_tokens, max(1, ANSWERS // each))
        yield from self.tasks.works(who or TEACHER, partial(self._lend, who))

    def readings(self, who: Writer) -> Iterator[Work]:
        """What a student is to read, with the teacher: texts of each kind that there is for it, and the same under edits."""
        if who is None:
            return
        for text in (GIVEN, TEACHER, OWN):
            if texts := self.texts(text, who):
                tables = {name: self.folder(name, text) for name in ([who] if text == OWN else self.subjects.students)}
                yield self.reading(who, text, texts, tables, () if text == OWN else TEMPERATURES)  # how sure one is of one's own words says nothing
        if self.robustness:
            yield from self.robustness.works(who)

    def reading(self, name: str, text: str, texts: list[Text], tables: Mapping[str, Path], temperatures: Sequence[float] = ()) -> Reading:
        """A table under way. tables: where those of all students who read these texts are to lie."""
        assert self.vocabulary is not None
        return Reading(self.readers, self.vocabulary, name, text, texts, tables, temperatures)

    def _writes(self, who: Writer) -> bool:
        """Whether somebody writes, and is to; what is against it is missing else."""
        if who not in self._pens:
            self._pens[who] = self._teacher_writes() if who is None else self._asks and self._has_pen(who)
        return self._pens[who]

    @property
    def _asks(self) -> bool:
        return bool(self.rows.prompts or self.tasks.exams)

    def _teacher_writes(self) -> bool:
        """The teacher answers where it has a model here that writes."""
        if isinstance(self.teacher, Silent):
            return self._miss("no teacher: figures are of the students alone; give one with --teacher")
        if not self._asks:
            return False
        if not isinstance(self.teacher, Local):
            return self._miss(f"{self.teacher.name} has no model here that writes, so that nothing is measured on the teacher's own text")
        return self._has_pen(None)

    def _has_pen(self, who: Writer) -> bool:
        if self._file(who or TEACHER).exists():
            return True
        try:
            _ = self._model(who).writer
        except LimbeckError as error:
            return self._miss(f"{who or TEACHER} does not write: {error}")
        return True

    def _miss(self, why: str) -> bool:
        self.missing.append(why)
        return False

    def _model(self, who: Writer) -> "OpenModel":
        found = self.teacher.opened if who is None else self.student(who).live
        assert found is not None, "the teacher has no model here"
        return found

    def _lend(self, who: Writer, work: Callable[[Any], Any]) -> Any:
        """Something done with somebody's model, as it writes."""
        if who is not None:
            return self.student(who).lend(work)
        assert isinstance(self.teacher, Local)
        return self.teacher.lend(work)

    def _answers(self, who: Writer, some: range, told: Told) -> list[dict[str, Any]]:
        """Answers to some prompts: row and number of each beside it. Their random numbers are those of their places among all."""
        each = self.asked.each
        numbers = range(some.start * each, some.stop * each)
        prompts = [self.rows.prompts[n // each] for n in numbers]
        written = self._written(who, prompts, self.sampling, numbers, told)
        return [{"place": n // each, "answer": n % each, "completion_ids": new.tokens} for n, new in zip(numbers, written, strict=True)]

    def _written(self, who: Writer, prompts: Sequence[list[int]], sampling: Sampling, numbers: range, told: Told = unheard) -> list[Written]:
        seed = self.asked.seed
        return self._lend(who, lambda model: write(model, prompts, sampling, seed, 0, numbers, told=lambda tokens: told(tokens, tokens)))

    def _file(self, writer: str) -> Path:
        return self.out / "texts" / f"{file_name(writer)}.jsonl"

    def texts(self, text: str, student: str) -> list[Text]:
        """The texts of a kind, as this student meets them; empty where there are none."""
        if text == GIVEN:
            return self.rows.given
        file = self._file(student if text == OWN else text)
        rows = read_jsonl(file) if file.exists() else []
        return [Text.answered(self.rows.prompts[row["place"]], row["completion_ids"], self.rows.columns[row["place"]]) for row in rows]

    def folder(self, name: str, text: str) -> Path:
        """Where a table lies."""
        return self.out / "tables" / file_name(name) / file_name(text)

    def time(self, who: Writer) -> None:
        """How fast somebody writes, once: tokens a second of several answers side by side, their prompts' reading counted in. A few tokens first
        are not counted: a process that has just begun is slow."""
        file, name = self.out / "speeds.json", who or TEACHER
        known = read_json(file) if file.exists() else {}
        if name in known or not self.rows.prompts or not self._writes(who):
            return
        prompts = self.rows.prompts[:AT_ONCE]
        self._written(who, prompts, WARM, range(len(prompts)))
        began = time.monotonic()
        tokens = sum(len(new.tokens) for new in self._written(who, prompts, TIMED, range(len(prompts))))
        seconds = time.monotonic() - began
        known[name] = {"tokens_per_second": tokens / seconds, "side_by_side": len(prompts), **_sizes(self._model(who))}
        write_json(file, known)


def _sizes(model: "OpenModel") -> dict[str, int]:
    """Weights, and what it keeps of a token while it writes (keys and values of all layers), in the dtype of its arithmetic."""
    shape, size = Anatomy(model.name, model.causal.config.get_text_config().to_dict(), {}), model.compute.itemsize
    return {"parameters": model.parameters_total, "weights_bytes": model.parameters_total * size,
            "kept_bytes_per_token": shape.layers * shape.keys_values * size}  # fmt: skip


def evaluate_transfer(
    subjects: Subjects, asked: Asked, out: Path, tasks: TasksAsked | None = None, robustness: "Robustness | None" = None,
    category: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure all of it into `out`; what `evaluation.json` holds. tasks: that are to be answered too. robustness: measure also under edited prompts.
    category: the column by which gaps are sliced; by default "category" where rows have it, else clusters of prompts.

    Raises VocabularyError for students and teachers that do not mean the same by a token.
    """
    out = here(out)
    with claimed(out):
        return measured(Transfer(subjects, asked, out, tasks, robustness, category))


def measured(transfer: Transfer) -> dict[str, Any]:
    """Measure all that is not there, and sum it up."""
    from limbeck.transfer.summary import summed_up

    transfer.run()
    found = summed_up(transfer)
    write_json(transfer.out / "evaluation.json", found)
    return found


def _print(model: str) -> dict[str, str]:
    """A model's name, and what tells its weights from others where they are here."""
    try:
        return {"model": shareable(model), "weights": fingerprint(model)}
    except LimbeckError:
        return {"model": shareable(model)}
