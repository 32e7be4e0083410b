"""Making a corpus: teachers answer prompts, their answers are judged, chosen, gone on with, cleaned and counted.

Every answer that was paid for stands in the folder's ledger, whoever gave it: teachers, those who judge, who make prompts and
who play a user. All else is made of that, again at each call. So a killed command goes on where it was, and another choice,
verifier or test set costs no new answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from limbeck import endpoint, judges  # noqa: F401  # a part is known by name once its file is read
from limbeck.allocate import Allocation, Pilot
from limbeck.answers import Bill, Given, Purse, Question
from limbeck.card import Card
from limbeck.choose import Choice, Kept, Tally, chosen, selected
from limbeck.config import Part, part, plain
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.dialogue import Dialogue, Dialogues
from limbeck.errors import DataError, RecipeError, Stopped
from limbeck.files import claimed, write_jsonl
from limbeck.instruct import Instruct, Instructed
from limbeck.interrupt import Interrupted, Interrupts
from limbeck.ledger import Ledger
from limbeck.licences import Licence, gate, of_data
from limbeck.overlap import Overlap, near_duplicates, text_of
from limbeck.remembered import Account
from limbeck.storage import here
from limbeck.teachers import Teacher
from limbeck.verifiers import Verifier

Teachers = Annotated[list[Teacher], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
"""One teacher or several."""


@part
class Order(Part):
    """What is to be written: by whom, to which prompts, how often, and what of it is kept.

    prompts: what is asked; instruct: makes them first, of seeds. keep: see `choose.py`; above: what a reward must pass.
    against: test sets that no row may overlap with. reasoning: "inline" teaches what was thought too, "apart" keeps it in a
    column. budget_usd, budget_flops: of this folder, from its first call on. similarity: rows of a greater Jaccard index of
    their words are duplicates; None keeps them. dialogues: goes on with what is kept; user: who plays the user there, by
    default the teacher. pilot: how several teachers share one budget, which decides the samples of each.
    """

    teacher: Teachers
    prompts: Data | None = None
    samples: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    keep: str = "all"
    verifier: Verifier | None = None
    above: float = 0.0
    against: list[Data] = field(default_factory=list[Data])
    similarity: float | None = 0.8
    reasoning: Literal["apart", "inline"] = "apart"
    budget_usd: float | None = None
    budget_flops: float | None = None
    seed: int = 0
    accept_license: list[str] = field(default_factory=list[str])
    instruct: Instruct | None = None
    dialogues: Dialogues | None = None
    user: Teacher | None = None
    pilot: Pilot | None = None

    def __post_init__(self) -> None:
        if (self.prompts is None) == (self.instruct is None):
            raise RecipeError("what is asked are prompts, or tasks made of seeds (instruct); give one of them")
        if self.user is not None and self.dialogues is None:
            raise RecipeError("a user is played in dialogues of several turns, and none were asked for; give dialogues: --turns 3")
        if self.dialogues is not None and self.instruct is not None and self.instruct.seeds.template == "plain":
            raise self.turnless(self.instruct.seeds)
        self._see_numbers()
        self._see_teachers()

    def turnless(self, data: Data) -> RecipeError:
        """What is said of prompts that dialogues cannot begin with."""
        return RecipeError(f'{data.path}: a dialogue has turns, and template="plain" has none; use "chat", or leave out --turns')

    def _see_numbers(self) -> None:
        if self.samples < 1:
            raise RecipeError(f"samples must be at least 1, found {self.samples}")
        for name in ("budget_usd", "budget_flops"):
            if (limit := getattr(self, name)) is not None and not 0 < limit < float("inf"):
                raise RecipeError(f"{name} must be above 0 and finite, found {limit}")
        if self.reasoning not in ("apart", "inline"):
            raise RecipeError(f'reasoning is kept "apart" or taught "inline", found "{self.reasoning}"')
        if self.similarity is not None and not 0 <= self.similarity <= 1:
            raise RecipeError(f"similarity lies between 0 and 1, found {self.similarity}")
        if self.choice.needs and self.verifier is None:
            raise RecipeError(f"keep={self.keep} needs a verifier, which says how good an answer is; give one: --verifier Number")
        if not 0 <= self.seed < 2**31:
            raise RecipeError(f"seed must lie between 0 and 2^31, found {self.seed}")

    def _see_teachers(self) -> None:
        if not self.teacher:
            raise RecipeError("somebody has to answer; name a teacher")
        if len(self.teacher) > 1 and self.pilot is None:
            raise RecipeError(f"{len(self.teacher)} teachers share one budget by a pilot; give pilot: Pilot()")
        if self.pilot is not None:
            self.pilot.see(self.teacher, self.budget_usd, self.budget_flops, self.verifier, self.samples)

    @cached_property
    def choice(self) -> Choice:
        """What is kept of the answers to one prompt."""
        return chosen(self.keep, self.above)

    def purse(self, spent: Bill) -> Purse:
        """What may be spent, of which so much was before."""
        return Purse(self.budget_usd, self.budget_flops, spent)

    @property
    def licences(self) -> list[Licence]:
        """Of all who write or choose in it, and of what they are asked."""
        data = self.instruct.seeds if self.instruct else self.prompts
        assert data is not None
        who = [*self.teacher, *(each for each in (self.user, self.verifier) if each is not None)]
        found = [*(licence for each in who for licence in each.licences), *of_data(data.path)]
        return list(dict.fromkeys(found))


def write_corpus(order: Order, out: Path | str) -> Card:
    """Write a corpus into `out`: `corpus.jsonl`, `card.json`, `README.md`, and the ledger of all that was answered.

    Raises LimbeckError, in one line, for what is the user's to mend; Stopped where a signal asked for the end. A budget that
    is spent ends the writing, not the work: the corpus is made of what is there, and its card says so.
    """
    out, licences = here(out), order.licences
    gate(licences, order.accept_license)
    with claimed(out), Ledger(out / "ledger.sqlite") as ledger, Interrupts(patient=False):
        try:
            return Work(order, out, Account(ledger, order.purse(ledger.spent()))).run(licences)
        except Interrupted as stop:
            said = f"{out}: stopped; {len(ledger):,} answers are in its ledger, and the same command goes on"
            raise Stopped(said, stop.number) from None


class Work:
    """One corpus in the making."""

    def __init__(self, order: Order, out: Path, account: Account) -> None:
        self.order, self.out, self.account = order, out, account
        self.tally, self.ended = Tally(), Counter[str]()
        self.made: Instructed | None = None
        self.allocation: Allocation | None = None

    def run(self, licences: list[Licence]) -> Card:
        """All of it."""
        against = Overlap(self.order.against)  # read before anything is paid for
        questions = self.questions()
        verifier = self._verifier(self.order.verifier)
        kept = selected(self._given(questions, verifier), self.order.choice, verifier, self.tally)
        rows = self._cleaned(self._dialogues(kept) if self.order.dialogues else [self._row(each) for each in kept], against)
        write_jsonl(self.out / "corpus.jsonl", rows)
        card = Card.of(plain(self.order), self.tally, self.account, len(questions), licences, self.made, self.ended, self.allocation)
        card.write(self.out)
        if not rows:
            raise DataError(f"{self.out}: no answer was kept ({self.tally}); look into its ledger, ask for more samples, or keep others")
        return card

    def begin(self) -> tuple[int, list[int]]:
        """What comes before all answers that can be given apart: prompts are made, teachers are piloted.

        How many questions there are, and how many samples of each prompt each teacher gives.
        """
        questions, order = self.questions(), self.order
        if order.pilot is None:
            return len(questions), [order.samples]
        verifier, sound = self._verifier(order.verifier), self._verifier(order.pilot.sound)
        assert verifier is not None
        _, allocation = order.pilot.shared(order.teacher, questions, order.sampling, self.account, verifier, order.above, sound)
        return len(questions), [told.taken for told in allocation.teachers]

    def piece(self, some: Sequence[Question], questions: Sequence[Question], taken: Sequence[int]) -> None:
        """All that is asked about some of the questions, for the ledger: what is chosen here is chosen again when everything is there."""
        order, found = self.order, list[list[Given]]()
        for teacher, count in zip(order.teacher, taken, strict=True):
            wanted = some if order.pilot is None else order.pilot.wanted(count, some, questions)
            found.append(self.account.asks(teacher, order.sampling)(wanted))
        asks = order.verifier is not None and order.verifier.through(lambda teacher: teacher) is not order.verifier
        if asks or order.dialogues:
            verifier = self._verifier(order.verifier)
            kept = selected(self._placed(some, found), order.choice, verifier, Tally())
            if order.dialogues:
                self._dialogues(kept)

    def questions(self) -> list[Question]:
        """Each prompt once, made first where they are to be. Raises RecipeError where a dialogue is to follow and cannot."""
        data, samples = self.order.prompts or self._instructed(), tuple(range(self.order.samples))
        asked = (Question(row, data, samples, self.order.seed) for row in data.rows())
        found = list({question.key: question for question in asked}.values())
        if self.order.dialogues and any(question.messages is None for question in found):
            raise self.order.turnless(data)
        return found

    def _instructed(self) -> Data:
        """Prompts that the first teacher makes, in a file of the folder."""
        work, teacher = self.order.instruct, self.order.teacher[0]
        assert work is not None
        with self.account.showing("making prompts", work.count, step=0) as progress:
            self.made = work.run(self.account.asks(teacher, work.sampling), teacher.name, progress.advance)
        if not self.made.rows:
            said = ", ".join(f"{count:,} {why}" for why, count in self.made.counts.items())
            raise DataError(f"no task was made of {work.seeds.path} ({said or 'nothing was answered'}); {self._short or 'take a stronger teacher'}")
        write_jsonl(self.out / "prompts.jsonl", [dict(row) for row in self.made.rows])
        return Data(str(self.out / "prompts.jsonl"), template=work.seeds.template, template_arguments=work.seeds.template_arguments)

    @property
    def _short(self) -> str:
        purse = self.account.purse
        return f"the budget was spent ({purse.limits}); raise it" if purse.refused else ""

    def _verifier(self, verifier: Verifier | None) -> Verifier | None:
        return verifier and verifier.through(lambda teacher: self.account.of(teacher, "judging")).load()

    def _given(self, questions: Sequence[Question], verifier: Verifier | None) -> list[Given]:
        """Answers to questions, as far as the purse goes: from the ledger, and where it has none from the teachers."""
        order = self.order
        if order.pilot is None:
            found = [self.account.asks(order.teacher[0], order.sampling)(questions)]
        else:
            assert verifier is not None
            sound = self._verifier(order.pilot.sound)
            self.allocation, found = order.pilot.run(order.teacher, questions, order.sampling, self.account, verifier, order.above, sound)
        return self._placed(questions, found)

    def _placed(self, questions: Sequence[Question], found: Sequence[Sequence[Given]]) -> list[Given]:
        """What each teacher gave, in the order of questions, teachers and samples."""
        place = {question.key: n for n, question in enumerate(questions)}
        several = [(place[given.question.key], who, given.sample, given) for who, those in enumerate(found) for given in those]
        return [given for *_, given in sorted(several, key=lambda each: each[:3])]

    def _row(self, kept: Kept) -> dict[str, Any]:
        row = kept.question.taught(kept.answer, self.order.reasoning == "inline")
        apart = {"reasoning": kept.answer.reasoning} if kept.answer.reasoning and self.order.reasoning == "apart" else {}
        return {**row, **apart, **self._told(kept)}

    def _told(self, kept: Kept) -> dict[str, Any]:
        """Columns about an answer: its reward, and of several teachers which."""
        who = {"teacher": kept.given.by} if self.order.pilot else {}
        return {**who, **({} if kept.reward is None else {"reward": kept.reward})}

    def _dialogues(self, kept: Sequence[Kept]) -> list[dict[str, Any]]:
        """Each as a dialogue that went on, with the teacher that began it."""
        work, order, account = self.order.dialogues, self.order, self.account
        assert work is not None
        rows, user = dict[int, dict[str, Any]](), order.user and account.asks(order.user, order.sampling)
        with account.showing("turns of dialogues", 2 * (work.turns - 1) * len(kept)):
            for teacher in order.teacher:
                mine = [n for n, each in enumerate(kept) if each.given.by == teacher.name]
                found: list[Dialogue] = work.run([kept[n].given for n in mine], account.asks(teacher, order.sampling), user)
                self.ended.update(each.ended or "turns" for each in found)
                rows |= {n: {**each.row(order.reasoning == "inline"), **self._told(kept[n])} for n, each in zip(mine, found, strict=True)}
        return [rows[n] for n in range(len(kept))]

    def _cleaned(self, rows: list[dict[str, Any]], against: Overlap) -> list[dict[str, Any]]:
        """The rows without those that stand in a test set, or twice."""
        texts = [text_of(row) for row in rows]
        clean = [n for n, text in enumerate(texts) if self._stays(against.found(text))]
        if self.order.similarity is not None:
            fresh = near_duplicates([texts[n] for n in clean], self.order.similarity)
            self.tally.drop("near duplicates", len(clean) - len(fresh))
            clean = [clean[n] for n in fresh]
        self.tally.kept = len(clean)
        return [rows[n] for n in clean]

    def _stays(self, overlapping: str | None) -> bool:
        if overlapping:
            self.tally.drop(f"overlapping with {overlapping}")
        return overlapping is None
