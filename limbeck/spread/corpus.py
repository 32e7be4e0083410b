"""`limbeck write` on a cluster: each worker writes a journal for each of its pieces, of which one makes the corpus."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from limbeck.answers import Bill, Question
from limbeck.card import Card
from limbeck.cluster import Cluster
from limbeck.corpus import Order, Work
from limbeck.data import Data
from limbeck.ledger import Journal, Ledger
from limbeck.licences import gate
from limbeck.remembered import Account
from limbeck.spread.work import Begun, DeskPurse, Done, Job, carried_out
from limbeck.storage import here

PROMPTS = 32
"""Prompts of a piece of a corpus: many enough to keep a server busy, few enough that no worker is left alone with many at the end."""


@dataclass
class Writing(Job):
    """A corpus. A piece is all that is asked about some of its prompts: answers, marks, turns of dialogues; its journal keeps them.

    By one worker: prompts that are made, pilots, and in the end the corpus itself, of the ledger that has taken the journals in.
    name: of this go among the journals.
    """

    order: Order
    out: Path
    prompts: int = PROMPTS
    name: str = field(default_factory=lambda: uuid4().hex[:8])
    what = "writing (prompts)"

    def begin(self, before: Begun | None = None) -> Begun:
        """Prompts are made, teachers piloted; how many pieces there are, and how often each teacher answers."""
        with Ledger(self._ledger) as ledger:
            known = len(ledger)
            count, taken = Work(self.order, self.out, Account(ledger, self.order.purse(ledger.spent()))).begin()
            said = f"{self.out}: {known:,} answers are in its ledger; {count:,} prompts"
            return Begun(-(-count // self.prompts), count, said, ledger.spent(), taken)

    def piece(self, number: int, begun: Begun, desk: Any) -> Done:
        """Asked and recorded."""
        some = self._questions[number * self.prompts : (number + 1) * self.prompts]
        limits = self.order.budget_usd, self.order.budget_flops
        purse = self.order.purse(Bill()) if limits == (None, None) else DeskPurse(desk, number, *limits)
        with Journal(self._ledger, f"{self.name}-{number:06}") as journal:
            account = Account(journal, purse, self._teachers)
            Work(self._asked, self.out, account).piece(some, self._questions, begun.found)
        return Done(len(some), account.took.completion_tokens)

    def end(self, begun: Begun) -> Card:
        """The corpus; what is not in the ledger, where a piece was not done, is asked for now."""
        with Ledger(self._ledger) as ledger:
            return Work(self.order, self.out, Account(ledger, self.order.purse(ledger.spent()))).run(self.order.licences)

    @property
    def _ledger(self) -> Path:
        return self.out / "ledger.sqlite"

    @cached_property
    def _teachers(self) -> dict[str, Any]:
        """Those that are open on this worker."""
        return {}

    @cached_property
    def _asked(self) -> Order:
        """The order as it is when its prompts are made."""
        made = self.order.instruct
        if made is None:
            return self.order
        data = Data(str(self.out / "prompts.jsonl"), template=made.seeds.template, template_arguments=made.seeds.template_arguments)
        return replace(self.order, prompts=data, instruct=None)

    @cached_property
    def _questions(self) -> Sequence[Question]:
        return Work(self._asked, self.out, Account(Journal(self._ledger, self.name), self.order.purse(Bill()))).questions()


def spread(cluster: Cluster, order: Order, out: Path, prompts: int = PROMPTS) -> Card:
    """See `write_corpus`, on a cluster. prompts: of a piece."""
    gate(order.licences, order.accept_license)
    out = here(out)
    return carried_out(Writing(order, out, prompts), cluster, out, (order.budget_usd, order.budget_flops))
