"""What transferred: teacher and students on the same held-out text, on the teacher's and on their own, kept as tables of tokens.

OUT/settings.json (what was asked) · OUT/texts/WRITER.jsonl · OUT/tables/STUDENT/TEXT/tokens.safetensors · OUT/speeds.json ·
OUT/evaluation.json (the figures). What is there is not made again, so that a killed evaluation goes on where it was.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.batch import Text
from limbeck.decoding import Sampling, write
from limbeck.errors import CheckpointError, LimbeckError
from limbeck.estimate import Anatomy
from limbeck.files import claimed, read_json, read_jsonl, write_json, write_jsonl
from limbeck.places import fingerprint
from limbeck.privacy import shareable
from limbeck.progress import Progress
from limbeck.storage import here
from limbeck.student import Student
from limbeck.targets import Targets
from limbeck.teachers import Local, Silent, Teacher
from limbeck.transfer.rows import Asked, Rows, rows_of
from limbeck.transfer.slices import categories
from limbeck.transfer.subjects import TEACHER, Subjects, file_name
from limbeck.transfer.tasks import Tasks, TasksAsked
from limbeck.transfer.tokens import TEMPERATURES, heard, table
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.opened import OpenModel
    from limbeck.transfer.robustness import Robustness

GIVEN, OWN = "given", "own"
"""Texts beside the teacher's: the data's completions, and what each student wrote itself."""
TIMED = Sampling(max_tokens=32)
AT_ONCE = 32


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
        self._teacher: Teacher | None = None
        self._heard = dict[str, list[Targets]]()

    @property
    def sampling(self) -> Sampling:
        """How all of them write."""
        return Sampling(max_tokens=self.asked.max_tokens)

    def run(self) -> None:
        """Open one student after the other, and measure it."""
        for name, student in self.opened():
            self.answer(name, student)
            for text, texts in self.kinds(name):
                self._table(name, text, texts, student)
            if self.robustness:
                self.robustness.measure(name, student)
            del student

    def opened(self) -> Iterator[tuple[str, Student]]:
        """One student after the other, alive; with the first, rows are read and the teacher answers. Who takes one lets go of it."""
        asked = self._settings()
        for place, (name, settings) in enumerate(self.subjects.students.items()):
            student = self.open(settings)
            if place == 0:
                self.read(student)
                categories(self.rows, self.category)  # refuses a column that no row has before anything is paid
                write_json(self.out / "settings.json", asked)  # only now: what was refused leaves no trace
                self.missing += self.rows.missing
                self._teacher_writes(student)
            yield name, student
            del student
            gc.collect()  # models refer to themselves; their memory is wanted for the next

    def read(self, first: Student) -> None:
        """The rows, as the first student meets them."""
        self.vocabulary = first.live.vocabulary
        self.rows = rows_of(self.asked, first)

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

    def open(self, settings: Student) -> Student:
        """A student alive, and with the first the teacher."""
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

    def _teacher_writes(self, student: Student) -> None:
        """The teacher's own answers, where it has a model here that writes."""
        if isinstance(self.teacher, Silent):
            return self.missing.append("no teacher: figures are of the students alone; give one with --teacher")
        if not (self.rows.prompts or self.tasks.exams):
            return None
        if not isinstance(self.teacher, Local):
            return self.missing.append(f"{self.teacher.name} has no model here that writes, so that nothing is measured on the teacher's own text")
        lend = self.teacher.lend
        if self._writes(TEACHER, self.teacher.opened):
            self._write(TEACHER, lambda prompts, told: lend(
                lambda model: write(model, prompts, self.sampling, self.asked.seed, 0, range(len(prompts)), told=told)))  # fmt: skip
            self.tasks.answer(TEACHER, lend)
            self._time(TEACHER, lambda prompts: lend(lambda model: write(model, prompts, TIMED, 0, 0, range(len(prompts)))), self.teacher.opened)

    def answer(self, name: str, student: Student) -> None:
        """What a student writes itself."""
        if (self.rows.prompts or self.tasks.exams) and self._writes(name, student.live):
            self._write(name, lambda prompts, told: student.write(prompts, self.sampling, self.asked.seed, 0, range(len(prompts)), told=told))
            self._time(name, lambda prompts: student.write(prompts, TIMED, 0, 0, range(len(prompts))), student.live)
            self.tasks.answer(name, student.lend)

    def kinds(self, name: str) -> Iterator[tuple[str, list[Text]]]:
        """The kinds of text that there are for a student, and the texts."""
        for text in (GIVEN, TEACHER, OWN):
            if texts := self.texts(text, name):
                yield text, texts

    def _writes(self, who: str, model: "OpenModel") -> bool:
        """Whether a model can write; what it says against it is missing else."""
        try:
            _ = model.writer
        except LimbeckError as error:
            self.missing.append(f"{who} does not write: {error}")
            return False
        return True

    def _write(self, who: str, answered: Callable[[Any, Any], Sequence[Any]]) -> None:
        """Answers to every prompt, kept; row and number of each beside it."""
        file = self.out / "texts" / f"{file_name(who)}.jsonl"
        if file.exists() or not self.rows.prompts:
            return
        each = self.asked.each
        prompts = [prompt for prompt in self.rows.prompts for _ in range(each)]
        with Progress(f"{who} writes", len(prompts) * self.asked.max_tokens).showing() as progress:
            written = answered(prompts, lambda tokens: progress.advance(tokens, tokens))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, [{"place": n // each, "answer": n % each, "completion_ids": new.tokens} for n, new in enumerate(written)])

    def texts(self, text: str, student: str) -> list[Text]:
        """The texts of a kind, as this student meets them; empty where there are none."""
        if text == GIVEN:
            return self.rows.given
        file = self.out / "texts" / f"{file_name(student if text == OWN else text)}.jsonl"
        rows = read_jsonl(file) if file.exists() else []
        return [Text.answered(self.rows.prompts[row["place"]], row["completion_ids"], self.rows.columns[row["place"]]) for row in rows]

    def _table(self, name: str, text: str, texts: Sequence[Text], student: Student) -> None:
        folder = self.folder(name, text)
        if folder.exists():
            return
        said: Any = self._said(text, name, texts)
        table(texts, student, said, self.asked.tokens_per_pass, f"{name}, {text} text", warmths(text)).save(folder)

    def _said(self, text: str, name: str, texts: Sequence[Text]) -> list[Targets]:
        """What the teacher says of these texts; of those that several students meet it is kept."""
        if text == OWN or text not in self._heard:
            found = heard(texts, self.teacher, self.asked.tokens_per_pass, f"{name}, {text} text" if text == OWN else f"{text} text")
            if text == OWN:
                return found
            self._heard[text] = found
        return self._heard[text]

    def folder(self, name: str, text: str) -> Path:
        """Where a table lies."""
        return self.out / "tables" / file_name(name) / file_name(text)

    def _time(self, who: str, written: Callable[[Any], Sequence[Any]], model: Any) -> None:
        """How fast it writes, once: tokens a second of several answers side by side, their prompts' reading counted in."""
        file = self.out / "speeds.json"
        known = read_json(file) if file.exists() else {}
        if who in known or not self.rows.prompts:
            return
        prompts, began = self.rows.prompts[:AT_ONCE], time.monotonic()
        tokens = sum(len(new.tokens) for new in written(prompts))
        known[who] = {"tokens_per_second": tokens / (time.monotonic() - began), "side_by_side": len(prompts), **_sizes(model)}
        write_json(file, known)


def warmths(text: str) -> Sequence[float]:
    """The temperatures at which a student is read: how sure one is of one's own words says nothing."""
    return () if text == OWN else TEMPERATURES


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
