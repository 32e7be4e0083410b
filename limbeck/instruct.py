"""Prompts made by the teacher: self-instruct (Wang et al. 2022, arXiv 2212.10560, section 2.2 and appendix A) from a few seed tasks.

Shows a few tasks as a numbered list, asks for more of them, and keeps what is new. Departs: 1) a task is shown and written
with what it works on, as no later step writes instances; what speaks of a text that is not there is refused; 2) an answer
that was cut loses its last task, not all; 3) words of any script count, tasks may begin in any, and their capitals stay;
4) tasks beginning "Write a program" are kept; 5) a similarity of 0.7 itself is refused, as the paper says and the authors'
code does not.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from limbeck.answers import Answer, Bill, Given, Question
from limbeck.config import Part, part
from limbeck.data import Data, Row, asked_of
from limbeck.decoding import Sampling
from limbeck.errors import DataError, RecipeError
from limbeck.overlap import words

Ask = Callable[[Sequence[Question]], Sequence[Given]]
"""Asks all of these questions; comes back, in any order, with the answers that could be paid for."""

REFUSED = ["image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot", "go to"]
"""What a model of text cannot handle: the authors' list."""

SHOWN_WORDS = 60
"""Longer seeds are compared with and not shown: eight of them are to leave room in a context."""

DRY_ROUNDS = 3
"""After so many rounds in a row without a new task there is nothing more to come."""

REQUEST = """\
Go on with this list: write tasks {first} to {last}. Each is a request to an assistant that reads and writes text only, complete in itself: \
whatever it works on stands in it. Make them differ from these and from each other in subject, form and wording. Write one on each line, \
with its number before it, and nothing else; do not answer them.

{tasks}
"""

NUMBERED = re.compile(r"^[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:task[ \t]*)?\d+[ \t]*[.):](?:\*\*)?(?!\d)[ \t]*", re.IGNORECASE)
TITLE = re.compile(r"^\*\*(.+?)\*\*")
UNENDED = re.compile(r"(?:[,;:(\[{/&+=<–—-]|\b(?:and|or|the|a|an|of|to|with))$", re.IGNORECASE)
_TEXTS = "sentences?|phrases?|paragraphs?|passages?|texts?|articles?|documents?|e-?mails?|lists?|code|data|table|words|numbers|information|facts"
_TEXT = "sentence|paragraph|passage|text|article|document|e-?mail|claim"
ABSENT = re.compile(
    rf"\b(?:the (?:following|given|provided|attached|below|above)|(?:{_TEXTS}) above|this (?:{_TEXTS})|given (?:an?|the|two|some) |below|attached"
    rf"|the (?:{_TEXT})\b(?! (?:of|on|by|about|that|which|from)\b))",
    re.IGNORECASE,
)
PRESENT = re.compile(r"""[:"“„«`{\[(<]\s*\w|'\w|\d""")


@dataclass(frozen=True)
class Instructed:
    """What was made. rows: `prompt`, `made_by`, `round`. counts: of tasks that were read, by what became of them.

    ended: why no more were made. bill: what all answers took, from a ledger or not.
    """

    rows: list[Row]
    counts: dict[str, int]
    rounds: int
    ended: Literal["count", "purse", "rounds", "dry"]
    bill: Bill


@part
class Instruct(Part):
    """Asks a teacher for `count` new tasks.

    seeds: rows with `prompt`, a dialogue, or `instruction` with `instances` or `input`. examples: tasks that are shown, `made` of
    them by the teacher itself once there are any. new: tasks asked for in one answer; answers: in one round. similarity: ROUGE-L
    from which a task is no longer new. shortest, longest: in words between spaces. refused: words that no task may have, in any
    case. sampling: of those who ask. What a round asks is a function of the seeds, seed, examples, made, new, answers and what was answered before.
    """

    seeds: Data
    count: int
    examples: int = 8
    made: int = 2
    new: int = 8
    answers: int = 8
    similarity: float = 0.7
    shortest: int = 4
    longest: int = 150
    refused: list[str] = field(default_factory=lambda: list(REFUSED))
    rounds: int = 1000
    seed: int = 0
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=1024))

    def __post_init__(self) -> None:
        for name in ("count", "new", "answers", "shortest", "rounds"):
            if getattr(self, name) < 1:
                raise RecipeError(f"Instruct.{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.made < self.examples:
            raise RecipeError(f"Instruct shows at least one seed: made must be at least 0 and below examples, found {self.made} of {self.examples}")
        if self.longest < self.shortest:
            raise RecipeError(f"Instruct.longest must be at least shortest, found {self.longest} below {self.shortest}")
        if not 0 < self.similarity <= 1:
            raise RecipeError(f"Instruct.similarity must be above 0 and at most 1, found {self.similarity}")
        if not 0 <= self.seed < 2**31:
            raise RecipeError(f"Instruct.seed must lie between 0 and 2^31, found {self.seed}")

    def run(self, ask: Ask, made_by: str, told: Callable[[int], None] = lambda tasks: None) -> Instructed:
        """Round after round until there are `count`, a round could not be paid for whole, or nothing new comes.

        made_by: the teacher's name, for the rows. told: called with how many a round has made. Asked again, with the same answers,
        it makes the same. Raises DataError.
        """
        work = _Work(self, seed_tasks(self.seeds))
        barren, number = 0, 0
        while number < self.rounds and barren < DRY_ROUNDS:
            before, whole = len(work.rows), work.round(number, ask, made_by)
            number += 1
            told(len(work.rows) - before)
            barren = 0 if len(work.rows) > before else barren + 1
            if len(work.rows) == self.count or not whole:
                return work.done(number, "count" if len(work.rows) == self.count else "purse")
        return work.done(number, "dry" if barren == DRY_ROUNDS else "rounds")

    def fault(self, task: str) -> str | None:
        """Why a task is not kept, whatever else there is; None where it may be."""
        length = len(task.split())
        if not self.shortest <= length <= self.longest:
            return "too short" if length < self.shortest else "too long"
        if not task[0].isalnum() or NUMBERED.match(task):
            return "malformed"
        if any(re.search(rf"\b{re.escape(word)}\b", task, re.IGNORECASE) for word in self.refused):
            return "refused word"
        if UNENDED.search(task):
            return "unfinished"
        absent = ABSENT.search(task)
        return "unanswerable" if absent and not PRESENT.search(task, absent.end()) else None


class _Work:
    """Tasks in the making."""

    def __init__(self, settings: Instruct, seeds: list[list[str]]) -> None:
        self.settings, self.rows, self.counts, self.bill = settings, list[Row](), Counter[str](), Bill()
        self.novelty = Novelty(settings.similarity)
        for spelling in {spelling: None for seed in seeds for spelling in seed}:
            self.novelty.add(spelling)
        self.shown = [seed[-1] for seed in seeds if len(seed[-1].split()) <= SHOWN_WORDS]
        if not self.shown:
            raise DataError(f"{settings.seeds.path}: every seed has more than {SHOWN_WORDS} words, too many to show; give shorter ones")

    def round(self, number: int, ask: Ask, made_by: str) -> bool:
        """Ask once more; whether everything was answered."""
        questions = [self._question(number, place) for place in range(self.settings.answers)]
        given = answered(ask, questions)
        for each in given:
            if each is not None:
                self.bill = self.bill + each.bill
                self._take(each.answer, number, made_by)
        return None not in given

    def _question(self, number: int, place: int) -> Question:
        """One request: tasks drawn by (seed, round, place), and a draw of its own should the same ones come again."""
        settings, draw = self.settings, np.random.default_rng([self.settings.seed, number, place])
        made = [str(row["prompt"]) for row in self.rows]
        own = draw.permutation(len(made))[: settings.made]
        seeds = draw.permutation(len(self.shown))[: settings.examples - len(own)]
        tasks = [*(made[n] for n in own), *(self.shown[n] for n in seeds)]
        lines = [f"{n}. {tasks[which]}" for n, which in enumerate(draw.permutation(len(tasks)), 1)]
        text = REQUEST.format(first=len(tasks) + 1, last=len(tasks) + settings.new, tasks="\n".join(lines))
        return Question({"prompt": text}, settings.seeds, (number * settings.answers + place,), settings.seed)

    def _take(self, answer: Answer, number: int, made_by: str) -> None:
        """Keep what is new of an answer, and count the rest, until there are enough."""
        tasks = tasks_of(answer.text)
        self.counts["no list"] += not tasks
        for place, task in enumerate(tasks):
            if len(self.rows) == self.settings.count:
                return
            cut = answer.finish != "end" and place == len(tasks) - 1
            fault = "cut" if cut else self.settings.fault(task) or self.novelty.fault(task)
            self.counts[fault or "kept"] += 1
            if fault is None:
                self.novelty.add(task)
                self.rows.append({"prompt": task, "made_by": made_by, "round": number})

    def done(self, rounds: int, ended: Literal["count", "purse", "rounds", "dry"]) -> Instructed:
        """All of it."""
        return Instructed(self.rows, {name: count for name, count in sorted(self.counts.items()) if count}, rounds, ended, self.bill)


def answered(ask: Ask, questions: Sequence[Question]) -> list[Given | None]:
    """The answer to each question, which wants one; None where it could not be paid for. Those that are the same are asked once."""
    assert all(len(each.samples) == 1 for each in questions)
    names = [(each.key, each.samples[0]) for each in questions]
    once = dict(zip(names, questions, strict=True))
    found = {(each.question.key, each.sample): each for each in ask(list(once.values()))} if once else {}
    return [replace(found[name], question=each) if name in found else None for name, each in zip(names, questions, strict=True)]


def seed_tasks(data: Data) -> list[list[str]]:
    """Each seed in one line: alone, where it has an input, and whole. Raises DataError for rows that are no tasks."""
    found = [_seed(row, f"{data.path}, row {number}") for number, row in enumerate(data.stream(), 1)]
    if not found:
        raise DataError(f"{data.path} holds no rows; give it at least one")
    return found


def _seed(row: Row, where: str) -> list[str]:
    alone, given = row.get("instruction") or asked_of(row), row.get("input")
    instances = cast(list[Any], row.get("instances") or [])
    if instances and isinstance(instances[0], dict):
        given = cast(dict[str, Any], instances[0]).get("input")
    spellings = [" ".join(str(text).split()) for text in (alone, f"{alone} {given or ''}")]
    if not spellings[0]:
        raise DataError(f"{where}: found columns {', '.join(row)}; a seed needs prompt, messages or instruction")
    return list(dict.fromkeys(spellings))


def tasks_of(text: str) -> list[str]:
    """The items of a numbered list, each in one line: what follows a number, up to the next or an empty line."""
    found, inside = list[list[str]](), False
    for line in text.splitlines():
        if match := NUMBERED.match(line):
            found.append([line[match.end() :]])
            inside = True
        elif inside and line.strip():
            found[-1].append(line)
        else:
            inside = False
    tasks = [" ".join(" ".join(lines).split()) for lines in found]
    return [TITLE.sub(r"\1", task) for task in tasks if task]


class Novelty:
    """Tells whether a text is like one that it knows: ROUGE-L (see `rouge_l`) of at least `similarity` to any."""

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._known = list[list[str]]()
        self._same = set[tuple[str, ...]]()
        self._holders = defaultdict[tuple[str, int], list[int]](list)  # of the first, second, ... time that a word stands in a text

    def add(self, text: str) -> None:
        """Know this text too."""
        found = words(text)
        for word in _numbered(found):
            self._holders[word].append(len(self._known))
        self._known.append(found)
        self._same.add(tuple(found))

    def fault(self, text: str) -> str | None:
        """What a text that is not new is: a "duplicate" in all words, or "similar"; None for a new one."""
        found = words(text)
        if tuple(found) in self._same:
            return "duplicate"
        shared = Counter[int]()  # words in common, in any order: no common subsequence is longer
        for word in _numbered(found):
            shared.update(self._holders.get(word, ()))
        enough = self.similarity * len(found) / (2 - self.similarity) - 0.5  # fewer are too few for a text of any length; half a word for rounding
        near = (n for n, most in shared.items() if most > enough and _f1(most, found, self._known[n]) >= self.similarity)
        return "similar" if any(rouge_l(found, self._known[n]) >= self.similarity for n in near) else None


def _numbered(found: Iterable[str]) -> list[tuple[str, int]]:
    """Each word with how often it stood before: sets of these have as many in common as the bags of words."""
    seen, numbered = Counter[str](), list[tuple[str, int]]()
    for word in found:
        numbered.append((word, seen[word]))
        seen[word] += 1
    return numbered


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two rows of words (Lin 2004, section 3.1, beta 1); 0 where either is empty."""
    return _f1(common_subsequence(one, other), one, other)


def _f1(common: int, one: Sequence[str], other: Sequence[str]) -> float:
    return 2 * common / (len(one) + len(other)) if one and other else 0.0


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of a number (Hyyrö 2004)."""
    places = defaultdict[str, int](int)
    for n, word in enumerate(one):
        places[word] |= 1 << n
    every = row = (1 << len(one)) - 1  # bit n is 0 where the length grows at word n
    for word in other:
        met = row & places[word]
        row = ((row + met) | (row - met)) & every
    return len(one) - row.bit_count()
