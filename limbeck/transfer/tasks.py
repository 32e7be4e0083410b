"""Verified accuracy on tasks: what teacher and students answer, kept, and what verifiers make of it.

OUT/tasks/NAME/settings.json (what was asked) · OUT/tasks/NAME/WHO.jsonl (answers) · OUT/tasks/NAME/likelihood/WHO.jsonl (of options).
Answers are written a block of prompts at a time (see `stretches`), so that a killed evaluation goes on with the next; verdicts are found anew.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.decoding import Sampling, write
from limbeck.errors import CheckpointError, DataError, RecipeError
from limbeck.evaluate.statistics import Array, mean, paired, recovered
from limbeck.evaluate.verified import one_of
from limbeck.files import read_json, read_jsonl, write_json
from limbeck.privacy import shareable
from limbeck.transfer.baselines import FINE_TUNED
from limbeck.transfer.calibration import calibration
from limbeck.transfer.continuations import log_likelihoods
from limbeck.transfer.figures import told
from limbeck.transfer.rows import Asked
from limbeck.transfer.stretches import Lines, Told, Work
from limbeck.transfer.subjects import BEFORE, TEACHER, beside, file_name, is_taught
from limbeck.transfer.task_shapes import HARNESS, Task, names, read_tasks

if TYPE_CHECKING:
    from limbeck.models import Model
    from limbeck.vocabulary import Vocabulary

Lend = Callable[[Callable[["Model"], Any]], Any]
"""Lends a model to something that is done with it, as students and teachers do."""
AT_ONCE = 64
"""Answers of a block."""
SHOWN = 16


@dataclass
class TasksAsked:
    """The tasks of an evaluation, their files read. rows: prompts of each, in its order. max_tokens: of an answer.

    Raises RecipeError and DataError, before anything is trained or written, for what is no task.
    """

    tasks: Sequence[str] = ()
    rows: int = 64
    max_tokens: int = 256
    files: list[Task] = field(init=False)
    harness: Any = field(init=False, default=None)
    """What knows the tasks of lm-evaluation-harness, where some are asked for."""

    def __post_init__(self) -> None:
        if min(self.rows, self.max_tokens) < 1:
            raise RecipeError(f"task_rows and task_max_tokens must be at least 1, found {self.rows} and {self.max_tokens}")
        self.files = read_tasks(self.tasks, self.rows)
        if theirs := [spec for spec in self.tasks if spec.startswith(HARNESS)]:
            from limbeck.transfer.task_harness import manager

            self.harness = manager(theirs)

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was asked for: another process reads the files itself."""
        return type(self), (self.tasks, self.rows, self.max_tokens)

    @property
    def named(self) -> dict[str, str]:
        """Each task's name."""
        return names(self.tasks)


@dataclass
class Outcome:
    """How one model did. sums: of each figure by prompt, and what they are divided by. more: what else is said. texts: by prompt."""

    sums: dict[str, tuple[Array, Array]]
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    texts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Exam(ABC):
    """A task under way in its folder."""

    name: str
    shape: str
    verifier: str
    missing: list[str]
    main: tuple[str, ...] = ("right", "right_by_likelihood")
    """Figures of which it is said how much of a gap was closed."""

    @abstractmethod
    def works(self, who: str, lend: Lend) -> Iterator[Work]:
        """What a model is to answer. Refuses what this folder holds no answers to."""

    @abstractmethod
    def outcome(self, who: str) -> Outcome | None:
        """How a model did; None where it answered nothing."""

    @abstractmethod
    def prompts(self) -> list[dict[str, Any]]:
        """Each prompt that was answered: `row`, `prompt`, `wanted`."""


class Tasks:
    """All tasks of an evaluation, in its folder."""

    def __init__(self, asked: TasksAsked, of: Asked, out: Path) -> None:
        files = {task.spec: task for task in asked.files}
        self.exams = [_exam(spec, files.get(spec), asked, of, out / "tasks" / safe(name)) for spec, name in asked.named.items()]

    def works(self, who: str, lend: Lend) -> Iterator[Work]:
        """What a model is to answer of all of them."""
        for exam in self.exams:
            yield from exam.works(who, lend)

    @property
    def missing(self) -> list[str]:
        """What could not be had, in words."""
        return [each for exam in self.exams for each in exam.missing]

    def summed_up(self, students: Sequence[str]) -> dict[str, Any]:
        """Figures, differences of pairs, recovered gaps and samples, by task."""
        return {exam.name: _summed_up(exam, students) for exam in self.exams}


def _exam(spec: str, file: Task | None, asked: TasksAsked, of: Asked, folder: Path) -> Exam:
    from limbeck.transfer.task_harness import HarnessExam

    return FileExam(file, asked, of, folder) if file else HarnessExam(spec, asked, of, folder)


def _summed_up(exam: Exam, students: Sequence[str]) -> dict[str, Any]:
    outcomes = {who: found for who in (TEACHER, *students) if (found := exam.outcome(who)) is not None}
    own, everyone = [who for who in students if who in outcomes], list(outcomes)
    prompts = exam.prompts()
    return {
        "shape": exam.shape, "verifier": exam.verifier, "prompts": len(prompts),
        "figures": {who: {**_figures(found.sums), **found.more} for who, found in outcomes.items()},
        "differences": [{"of": mine, "less": theirs, "figures": _differences(outcomes[mine].sums, outcomes[theirs].sums)}
                        for place, mine in enumerate(everyone) for theirs in everyone[:place]],
        "recovered": _recovered(outcomes, own, exam.main) if TEACHER in outcomes else [],
        "samples": [{**prompt, "answers": {who: found.texts[n] for who, found in outcomes.items()}} for n, prompt in enumerate(prompts[:SHOWN])],
    }  # fmt: skip


Sums = Mapping[str, tuple[Array, Array]]


def _figures(sums: Sums) -> dict[str, Any]:
    return {name: mean(of_B, counts_B) for name, (of_B, counts_B) in sums.items()}


def _differences(mine: Sums, theirs: Sums) -> dict[str, Any]:
    return {name: paired(mine[name][0], theirs[name][0], mine[name][1], theirs[name][1]) for name in mine if name in theirs}


def _recovered(outcomes: Mapping[str, Outcome], students: Sequence[str], main: Sequence[str]) -> list[dict[str, Any]]:
    """The share of the gap between baseline and teacher that each student closed."""
    found = list[dict[str, Any]]()
    for who in students:
        for other in beside_whom(who, students):
            mine, theirs, best = (outcomes[each].sums for each in (who, other, TEACHER))
            known = [name for name in main if name in mine and name in theirs and name in best]
            figures = {name: recovered(mine[name][0], theirs[name][0], best[name][0], mine[name][1]) for name in known}
            found.append({"of": who, "beside": other, "figures": figures})
    return found


def beside_whom(who: str, students: Sequence[str]) -> list[str]:
    """A taught student's baselines: as it was before, and the one that was fine-tuned."""
    return [found for kind in (BEFORE, FINE_TUNED) if is_taught(who) and (found := beside(who, students, kind))]


class FileExam(Exam):
    """A task of a file: its prompts answered, its answers verified."""

    def __init__(self, task: Task, asked: TasksAsked, of: Asked, folder: Path) -> None:
        self.task, self.asked, self.of, self.folder = task, asked, of, folder
        self.name, self.shape, self.verifier, self.missing = task.name, task.shape.name, shown_as(task.verifier), []

    @property
    def sampling(self) -> Sampling:
        """Greedy where there is one answer to a prompt."""
        return Sampling(max_tokens=self.asked.max_tokens, temperature=1.0 if self.of.each > 1 else 0.0)

    @cached_property
    def judge(self) -> Any:
        """The verifier, alive."""
        return self.task.verifier.load()

    def _prompt(self, vocabulary: "Vocabulary", place: int) -> list[int]:
        row = self.task.asked(self.task.rows[place], vocabulary.is_chat(self.of.template))
        return vocabulary.prompt(row, self.task.data(self.of.template))

    def works(self, who: str, lend: Lend) -> Iterator[Work]:
        """Block by block; which rows are within the context is settled by who answers first, so that all answer the same."""
        places, name = self._settled(lend), f"{file_name(who)}.jsonl"
        yield self._in_blocks(f"{who} answers {self.name}", self.folder / name, places, lend, self._written)
        if self.task.letters:
            yield self._in_blocks(f"{who} reads {self.name}", self.folder / "likelihood" / name, places, lend, self._compared)

    def _settled(self, lend: Lend) -> list[int]:
        """The rows that are answered. Raises CheckpointError where this folder holds answers of something else."""
        asked = [self.task.asked(row, True) for row in self.task.rows]
        print_of = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
        settings: dict[str, Any] = {"prompts": print_of, "each": self.of.each, "max_tokens": self.asked.max_tokens, "seed": self.of.seed,
                                    "template": self.of.template}  # fmt: skip
        file = self.folder / "settings.json"
        if file.exists():
            there = read_json(file)
            if changed := [name for name in settings if there[name] != settings[name]]:
                raise CheckpointError(f"{self.folder} holds answers with other {changed[0]}; give another --out, or remove the folder")
            return list(there["rows"])
        places: list[int] = lend(self._within)
        write_json(file, {"task": shareable(self.task.spec), **settings, "rows": places})
        return places

    def _within(self, model: "Model") -> list[int]:
        """The rows within a model's context."""
        places = [n for n in range(len(self.task.rows)) if len(self._prompt(model.vocabulary, n)) < model.context]
        if not places:
            raise DataError(f"{self.task.path}: no prompt is within the context of {model.context} tokens of {model.name}; give shorter ones")
        return places

    def _in_blocks(self, what: str, file: Path, places: Sequence[int], lend: Lend, work: Callable[..., list[dict[str, Any]]]) -> Lines:
        """Rows of answers; which prompts stand in a block does not depend on who makes it."""

        def rows(some: range, told: Told) -> list[dict[str, Any]]:
            found = lend(lambda model: work(model, places[some.start : some.stop], lambda tokens: told(0, tokens)))
            told(len(some), 0)
            return found

        return Lines(file, what, "questions", len(places), rows, at_once=max(1, AT_ONCE // self.of.each))

    def _written(self, model: "Model", places: Sequence[int], told: Any) -> list[dict[str, Any]]:
        each, vocabulary = self.of.each, model.vocabulary
        prompts = [self._prompt(vocabulary, place) for place in places for _ in range(each)]
        numbers = [place * each + n for place in places for n in range(each)]
        written = write(model, prompts, self.sampling, self.of.seed, 0, numbers, told=told)
        chat = vocabulary.is_chat(self.of.template)
        return [
            {"place": number // each, "answer": number % each, "completion_ids": new.tokens,
             "completion": vocabulary.text(new.tokens) if chat else gone_on(vocabulary, prompt, new.tokens), "chat": chat,
             "ended": bool(new.tokens) and new.tokens[-1] in vocabulary.end_ids,
             "confidence": float(np.exp(new.logp).mean()) if new.tokens else None}
            for number, prompt, new in zip(numbers, prompts, written, strict=True)
        ]  # fmt: skip

    def _compared(self, model: "Model", places: Sequence[int], told: Any) -> list[dict[str, Any]]:
        """How likely each option's letter is as the next word, in nats."""
        vocabulary = model.vocabulary
        before = "" if vocabulary.is_chat(self.of.template) else " "
        letters = [self.task.letters[: len(self.task.options(self.task.rows[place]))] for place in places]
        pairs = [(self._prompt(vocabulary, place), vocabulary.ids(before + letter))
                 for place, some in zip(places, letters, strict=True) for letter in some]  # fmt: skip
        found = iter(log_likelihoods(model, pairs, self.of.tokens_per_pass, told))
        return [{"place": place, "logp": {letter: next(found)[0] for letter in some}} for place, some in zip(places, letters, strict=True)]

    def prompts(self) -> list[dict[str, Any]]:
        """Those within the context."""
        file = self.folder / "settings.json"
        places = read_json(file)["rows"] if file.exists() else []
        rows = [(place, self.task.rows[place]) for place in places]
        if left := len(self.task.rows) - len(places):
            self.missing.append(f"{self.name}: {left} of {len(self.task.rows)} prompts are not within the context, and left out")
        return [{"row": place, "prompt": self.task.told(row)["prompt"], "wanted": self.task.wanted(row)} for place, row in rows]

    def outcome(self, who: str) -> Outcome | None:
        """From the kept answers."""
        kept = read_jsonl(self.folder / f"{file_name(who)}.jsonl")
        if not kept:
            return None
        if silent := {row["place"] for row in kept if not row["completion_ids"]}:
            self.missing.append(f"{self.name}: {len(silent)} prompts are not within the context of {who}, and count as wrong")
        told = [self.task.told(self.task.rows[row["place"]]) for row in kept]
        rewards = self.judge.judge([self.task.read(row["completion"], row["chat"]) for row in kept], told)
        rewards = [reward if row["completion_ids"] else 0.0 for reward, row in zip(rewards, kept, strict=True)]
        found = of_answers(kept, rewards, self.of.each)
        for each, sums in self._by_likelihood(who).items():
            (found.more if each == "calibration_by_likelihood" else found.sums)[each] = sums
        return found

    def _by_likelihood(self, who: str) -> dict[str, Any]:
        """Whether the likeliest letter is right, and how sure it was among the letters."""
        kept = read_jsonl(self.folder / "likelihood" / f"{file_name(who)}.jsonl")
        if not kept:
            return {}
        best = [max(row["logp"], key=row["logp"].get) for row in kept]
        right_B = np.array(self.judge.judge([f"({letter})" for letter in best], [self.task.told(self.task.rows[row["place"]]) for row in kept]))
        sure_B = np.array([1 / sum(exp(nats - row["logp"][letter]) for nats in row["logp"].values()) for row, letter in zip(kept, best, strict=True)])
        return {"right_by_likelihood": (right_B, np.ones(len(kept))),
                "calibration_by_likelihood": calibration(sure_B, right_B, np.arange(len(kept)), len(kept))}  # fmt: skip


def of_answers(kept: Sequence[Mapping[str, Any]], rewards: Sequence[float], each: int) -> Outcome:
    """Figures of answers, `each` to a prompt one after the other: what is right is rewarded above 0."""
    prompts = len(kept) // each
    by_prompt = lambda values: np.asarray(values, float).reshape(prompts, each).sum(1)  # noqa: E731
    right = [reward > 0 for reward in rewards]
    answers_B, ones_B, right_B = np.full(prompts, float(each)), np.ones(prompts), by_prompt(right)
    sums = {"right": (right_B, answers_B)}
    if any(reward not in (0, 1) for reward in rewards):
        sums["reward"] = (by_prompt(rewards), answers_B)
    for k in ks(each):
        sums[f"pass@{k}"] = (np.array([one_of(k, each, int(count)) for count in right_B]), ones_B)
    sums["cut"] = (by_prompt([not row["ended"] for row in kept]), answers_B)
    sums["tokens"] = (by_prompt([len(row["completion_ids"]) for row in kept]), answers_B)
    spoken = [n for n, row in enumerate(kept) if row["confidence"] is not None]
    more = dict[str, Any]()
    if len({n // each for n in spoken}) == prompts:
        sure_N, right_N = (np.array([values[n] for n in spoken], float) for values in ([row["confidence"] for row in kept], right))
        more["calibration"] = calibration(sure_N, right_N, np.array(spoken) // each, prompts)
    firsts = range(0, len(kept), each)
    return Outcome(sums, more, [{"completion": kept[n]["completion"], "reward": rewards[n], "right": right[n]} for n in firsts])


def ks(each: int) -> list[int]:
    """The k of pass@k: doubling from 2, and the number of answers itself."""
    return sorted({each, *(2**power for power in range(1, each.bit_length()) if 2**power <= each)}) if each > 1 else []


def gone_on(vocabulary: "Vocabulary", prompt: list[int], tokens: list[int]) -> str:
    """The text of tokens after their prompt: some tokenizers drop the space that a text begins with, and in programs it counts."""
    before, whole = vocabulary.text(prompt), vocabulary.text([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else vocabulary.text(tokens)


def shown_as(verifier: Any) -> str:
    """A verifier as it may be given."""
    from limbeck.config import settings_of

    default = {name: value.default for name, value in type(verifier).__dataclass_fields__.items()}
    given = [f"{name}={getattr(verifier, name)!r}" for name in settings_of(type(verifier)) if getattr(verifier, name) != default[name]]
    return f"{type(verifier).__name__}({', '.join(given)})"


def safe(name: str) -> str:
    """A task's name as files have it."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def tables(found: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Tables for a terminal, one for each task: a row for each figure, a column for each model."""
    shown = list[tuple[list[str], list[list[str]]]]()
    for name, task in found.items():
        figures: dict[str, dict[str, Any]] = task["figures"]
        keys = dict.fromkeys(key for each in figures.values() for key in each)
        rows = [[_label(key), *(_cell(each.get(key)) for each in figures.values())] for key in keys]
        for other in dict.fromkeys(each["beside"] for each in task["recovered"]):
            of = {each["of"]: each["figures"].get("right") for each in task["recovered"] if each["beside"] == other}
            rows.append([f"recovered beside {other}", *(_cell(of.get(who)) for who in figures)])
        shown += [([f"{name}: {task['verifier']}, {task['prompts']} prompts", *figures], rows)] if figures else []
    return shown


def _label(key: str) -> str:
    return f"calibration error{key.removeprefix('calibration').replace('_', ' ')}" if key.startswith("calibration") else key


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure and "error" in figure:  # a calibration
        figure = {**figure, "value": figure["error"]}
    return "no sure gap" if figure and figure["value"] is None else told(figure, 4)
