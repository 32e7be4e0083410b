"""What a corpus is and how it came about: a card for programs, and one for people in the hub's format."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.allocate import Allocation
from limbeck.answers import Bill
from limbeck.choose import Tally
from limbeck.files import write_json, write_text
from limbeck.instruct import Instructed
from limbeck.licences import Licence, from_plain, front_matter, plain_licences, section
from limbeck.privacy import shareable
from limbeck.remembered import Account
from limbeck.settings_file import yaml_of


@dataclass(frozen=True)
class Card:
    """The figures of a corpus. took: what all its answers took, also those of judges and users; spent: what the folder's ledger
    holds in all, other orders' too.

    ended: "all was answered", or which limit ended the writing. tasks: what became of those that were made as prompts, and why no
    more were; dialogues: how many ended in which way; pilot: see `allocate.Allocation`.
    """

    rows: int
    prompts: int
    answers: int
    dropped: dict[str, int]
    ended: str
    took: Bill
    spent: Bill
    made_by: dict[str, Any]
    licences: list[dict[str, Any]]
    tasks: dict[str, Any] | None = None
    dialogues: dict[str, int] | None = None
    pilot: Allocation | None = None

    @classmethod
    def of(
        cls, made_by: dict[str, Any], tally: Tally, account: Account, prompts: int, licences: Sequence[Licence], made: Instructed | None = None,
        dialogues: Mapping[str, int] | None = None, pilot: Allocation | None = None,
    ) -> "Card":  # fmt: skip
        """What there is to say of an order that was carried out. made_by: its settings as plain data."""
        purse = account.purse
        ended = f"the budget was spent ({purse.limits})" if purse.refused else "all was answered"
        tasks = made and {**made.counts, "rounds": made.rounds, "ended": made.ended}
        return cls(
            tally.kept, prompts, tally.answered, dict(tally.dropped), ended, account.took, purse.spent, made_by, plain_licences(licences),
            tasks, dict(dialogues) if dialogues else None, pilot,
        )  # fmt: skip

    def counts(self) -> list[tuple[str, int]]:
        """What became of everything, by name."""
        made = [(f"tasks: {name}", count) for name, count in (self.tasks or {}).items() if name != "ended"]
        gone_on = [(f"dialogues: {name}", count) for name, count in (self.dialogues or {}).items()]
        return [*made, ("prompts", self.prompts), ("answers", self.answers), *self.dropped.items(), ("kept", self.rows), *gone_on]

    def write(self, out: Path) -> None:
        """`card.json` and `README.md`, without what is private."""
        found = from_plain(self.licences, "card.json") if self.licences else []
        write_json(out / "card.json", {**asdict(self), "pilot": self.pilot and self.pilot.plain})
        write_text(out / "README.md", shareable(self._page(found)))

    def _page(self, licences: Sequence[Licence]) -> str:
        head = yaml_of({**front_matter(licences), "tags": ["synthetic", "limbeck"]}).rstrip()
        took = [("tokens read", self.took.prompt_tokens), ("tokens written", self.took.completion_tokens)]
        spent = f"{self.took.usd:.4f} US dollars, {self.took.flops:.3g} FLOPs, {self.took.seconds:,.0f} seconds of calls; {self.ended}."
        counts = _table(["what", "count"], [[name, f"{count:,}"] for name, count in [*self.counts(), *took]])
        pilot = f"## How the budget was shared\n\n{_table(*self.pilot.table())}\n\n{self.pilot}\n\n" if self.pilot else ""
        made = yaml_of(self.made_by).rstrip()
        return (
            f"---\n{head}\n---\n# A corpus written by a teacher\n\n{counts}\n\n{spent}\n\n{pilot}"
            f"## How it was made\n\n```yaml\n{made}\n```\n\n{section(licences)}\n"
        )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])
