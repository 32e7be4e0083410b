"""Teachers whose answers stand in a ledger and are paid from one purse: whoever asks them, nothing is asked or paid for twice."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from limbeck.answers import Bill, Given, Purse, Question, Told
from limbeck.batch import Batch
from limbeck.config import plain
from limbeck.decoding import Sampling
from limbeck.ledger import Journal, Ledger
from limbeck.licences import Licence
from limbeck.progress import Progress
from limbeck.targets import Targets
from limbeck.teachers import Teacher


class Account:
    """One ledger, or a journal beside it, and one purse, for all who are asked about one corpus.

    took: what the answers took that were given so far, each counted once, those that were in the ledger too: at any
    point of the work it is the same after a stop. opened: teachers that are alive already, by their settings.
    """

    def __init__(self, ledger: Ledger | Journal, purse: Purse, opened: dict[str, Teacher] | None = None) -> None:
        self.ledger, self.purse, self.took = ledger, purse, Bill()
        self._counted, self._open = set[tuple[str, str, int]](), {} if opened is None else opened
        self._shown: tuple[Progress, int] | None = None

    def of(self, teacher: Teacher, what: str = "writing") -> "Remembered":
        """A teacher whose answers this account keeps and pays. what: what it does, for whoever looks on."""
        return Remembered(teacher, self, what)

    def asks(self, teacher: Teacher, sampling: Sampling) -> Callable[[Sequence[Question]], list[Given]]:
        """A way to ask a teacher: see `instruct.Ask`."""
        asked = self.of(teacher)
        return lambda questions: list(asked.answers(questions, sampling))

    @contextmanager
    def showing(self, what: str, total: int, step: int = 1) -> Iterator[Progress]:
        """Show all that is asked within the block as one piece of work. step: by how much an answer brings it forward."""
        with Progress(what, total).showing() as progress:
            self._shown = progress, step
            try:
                yield progress
            finally:
                self._shown = None

    @contextmanager
    def shown(self, what: str, total: int, done: int) -> Iterator[Callable[[int, int], None]]:
        """Show some answers, called with how many have come and their tokens: in what is shown already, else by themselves."""
        if self._shown is not None:
            progress, step = self._shown
            progress.skip(done * step)
            yield lambda answers, tokens: progress.advance(answers * step, tokens, self._note)
        else:
            with Progress(what, total, done).showing() as progress:
                yield lambda answers, tokens: progress.advance(answers, tokens, self._note)

    @property
    def _note(self) -> str:
        return f"{self.purse.spent.usd:.2f} USD" if self.purse.spent.usd else ""

    def opened(self, teacher: Teacher) -> Teacher:
        """The teacher alive, opened when it is first asked; two of the same settings are one."""
        settings = json.dumps(plain(teacher))
        if settings not in self._open:
            self._open[settings] = teacher.writing()
        return self._open[settings]

    def close(self) -> None:
        """Let go of the teachers that are open; who is asked again is opened again."""
        self._open.clear()

    def counted(self, given: Given, writer: str) -> Given:
        """An answer that is given, counted if it is so for the first time."""
        name = writer, given.question.key, given.sample
        if name not in self._counted:
            self._counted.add(name)
            self.took = self.took + given.bill
        return given


class Remembered(Teacher):
    """A teacher: its answers from the account's ledger where they are there, else its own, recorded as they come.

    The account's purse pays, whichever is given. Answers stand under the teacher's identity, the sampling and what a question is `drawn` by.
    """

    def __init__(self, teacher: Teacher, account: Account, what: str) -> None:
        self.teacher, self.account, self.what = teacher, account, what
        self._identity = teacher.identity

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.teacher.name

    @property
    def identity(self) -> Any:
        """The teacher's."""
        return self._identity

    @property
    def licences(self) -> list[Licence]:
        """The teacher's."""
        return self.teacher.licences

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the teacher says."""
        return self.teacher.score(parts)

    def writing(self) -> Self:
        """Itself: the teacher is opened when something is asked that is not in the ledger."""
        return self

    def answers(
        self, questions: Iterable[Question], sampling: Sampling, purse: Purse | None = None, told: Told = lambda tokens: None
    ) -> Iterator[Given]:  # fmt: skip
        """What is in the ledger first, then the others as they come."""
        there, missing = self._there(questions, sampling)
        yield from there
        if not missing:
            return
        total = len(there) + sum(len(each.samples) for each in missing)
        with self.account.shown(self.what, total, len(there)) as advance:
            teacher = self.account.opened(self.teacher)
            for given in teacher.answers(missing, sampling, self.account.purse, lambda tokens: advance(0, tokens)):
                writer = self._writer(sampling, given.question.drawn)
                self.account.ledger.record(given, writer)
                advance(1, 0)
                told(given.bill.completion_tokens)
                yield self.account.counted(replace(given, by=self.name), writer)

    def _there(self, questions: Iterable[Question], sampling: Sampling) -> tuple[list[Given], list[Question]]:
        """What is in the ledger, and what is not."""
        there, missing = list[Given](), list[Question]()
        for question in questions:
            writer = self._writer(sampling, question.drawn)
            found = self.account.ledger.given(writer, question)
            there += [self.account.counted(replace(each, by=self.name), writer) for each in found]
            known = {each.sample for each in found}
            if left := tuple(n for n in question.samples if n not in known):
                missing.append(question.only(left))
        return there, missing

    def _writer(self, sampling: Sampling, drawn: int) -> str:
        """A name of who writes and how, the same for the same."""
        said = json.dumps([self.identity, plain(sampling), drawn], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:24]
