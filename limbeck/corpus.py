"""Making a corpus: a teacher answers prompts, its answers are judged, chosen, cleaned and counted.

Every answer that was paid for stands in the folder's ledger, by what was asked and of whom; all else is made of that, again
at each call. So a killed command goes on where it was, and another choice, verifier or test set costs no new answer.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from limbeck.answers import Given, Purse, Question
from limbeck.card import Card
from limbeck.choose import Choice, Kept, Tally, chosen, selected
from limbeck.config import Part, part, plain
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.errors import DataError, RecipeError, Stopped
from limbeck.files import claimed, write_jsonl
from limbeck.interrupt import Interrupted, Interrupts
from limbeck.ledger import Ledger
from limbeck.licences import Licence, gate, of_data
from limbeck.overlap import Overlap, near_duplicates, text_of
from limbeck.progress import Progress
from limbeck.teachers import Teacher
from limbeck.verifiers import Verifier


@part
class Order(Part):
    """What is to be written: by whom, to which prompts, how often, and what of it is kept.

    keep: see `choose.py`; above: what a reward must pass. against: test sets that no row may overlap with. reasoning:
    "inline" teaches what was thought too, "apart" keeps it in a column. budget_usd, budget_flops: of this folder, from
    its first call on. similarity: rows of a greater Jaccard index of their words are duplicates; None keeps them.
    """

    teacher: Teacher
    prompts: Data
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

    def __post_init__(self) -> None:
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

    @cached_property
    def choice(self) -> Choice:
        """What is kept of the answers to one prompt."""
        return chosen(self.keep, self.above)

    @property
    def writer(self) -> str:
        """A name of who writes and how, the same for the same."""
        said = json.dumps([self.teacher.identity, plain(self.sampling), self.seed], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:24]


def write_corpus(order: Order, out: Path) -> Card:
    """Write a corpus into `out`: `corpus.jsonl`, `card.json`, `README.md`, and the ledger of all that was answered.

    Raises LimbeckError, in one line, for what is the user's to mend; Stopped where a signal asked for the end. A budget that
    is spent ends the writing, not the work: the corpus is made of what is there, and its card says so.
    """
    licences = [*order.teacher.licences, *of_data(order.prompts.path)]
    gate(licences, order.accept_license)
    with claimed(out), Ledger(out / "ledger.sqlite") as ledger, Interrupts(patient=False):
        try:
            return Work(order, out, ledger).run(licences)
        except Interrupted as stop:
            said = f"{out}: stopped; {len(ledger):,} answers are in its ledger, and the same command goes on"
            raise Stopped(said, stop.number) from None


class Work:
    """One corpus in the making."""

    def __init__(self, order: Order, out: Path, ledger: Ledger) -> None:
        self.order, self.out, self.ledger = order, out, ledger
        self.purse = Purse(order.budget_usd, order.budget_flops, ledger.spent())
        self.tally = Tally()

    def run(self, licences: list[Licence]) -> Card:
        """All of it."""
        against = Overlap(self.order.against)  # read before anything is paid for
        questions = self.questions()
        given = self.ask(questions)
        verifier = self.order.verifier and self.order.verifier.load()
        rows = self._cleaned([self._row(each) for each in selected(given, self.order.choice, verifier, self.tally)], against)
        write_jsonl(self.out / "corpus.jsonl", rows)
        card = Card.of(plain(self.order), self.tally, self.purse, given, len(questions), licences)
        card.write(self.out)
        if not rows:
            raise DataError(f"{self.out}: no answer was kept ({self.tally}); look into its ledger, ask for more samples, or keep others")
        return card

    def questions(self) -> list[Question]:
        """Each prompt once."""
        samples = tuple(range(self.order.samples))
        asked = (Question(row, self.order.prompts, samples, self.order.seed) for row in self.order.prompts.rows())
        return list({question.key: question for question in asked}.values())

    def ask(self, questions: Sequence[Question]) -> list[Given]:
        """Answers to questions: from the ledger, and where it has none from the teacher, as far as the purse goes."""
        writer = self.order.writer
        there = self.ledger.answered(writer)
        left = [each.only(tuple(n for n in each.samples if (each.key, n) not in there)) for each in questions]
        missing = [each for each in left if each.samples]
        if missing:
            total, to_come = (sum(len(each.samples) for each in several) for several in (questions, missing))
            with Progress("writing", total, total - to_come).showing() as progress:
                teacher = self.order.teacher.writing()
                for given in teacher.answers(missing, self.order.sampling, self.purse, lambda tokens: progress.advance(0, tokens)):
                    self.ledger.record(given, writer)
                    progress.advance(note=f"{self.purse.spent.usd:.2f} USD" if self.purse.spent.usd else "")
        return self.ledger.given(writer, questions)

    def _row(self, kept: Kept) -> dict[str, Any]:
        row = kept.question.taught(kept.answer, self.order.reasoning == "inline")
        apart = {"reasoning": kept.answer.reasoning} if kept.answer.reasoning and self.order.reasoning == "apart" else {}
        return {**row, **apart, **({} if kept.reward is None else {"reward": kept.reward})}

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
