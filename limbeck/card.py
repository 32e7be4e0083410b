"""What a corpus is and how it came about: a card for programs, and one for people in the hub's format."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.answers import Bill, Given, Purse
from limbeck.choose import Tally
from limbeck.files import write_json, write_text
from limbeck.licences import Licence, from_plain, front_matter, plain_licences, section
from limbeck.privacy import shareable
from limbeck.settings_file import yaml_of


@dataclass(frozen=True)
class Card:
    """The figures of a corpus. took: what its answers took; spent: what the folder's ledger holds in all, other orders' too.

    ended: "all was answered", or which limit ended the writing.
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

    @classmethod
    def of(
        cls, made_by: dict[str, Any], tally: Tally, purse: Purse, given: Sequence[Given], prompts: int, licences: Sequence[Licence]
    ) -> "Card":  # fmt: skip
        """What there is to say of an order that was carried out. made_by: its settings as plain data."""
        took = sum((each.bill for each in given), Bill())
        limits = [f"budget_usd={purse.limit_usd:g}"] if purse.limit_usd is not None else []
        limits += [f"budget_flops={purse.limit_flops:g}"] if purse.limit_flops is not None else []
        ended = f"the budget was spent ({', '.join(limits)})" if purse.refused else "all was answered"
        return cls(tally.kept, prompts, tally.answered, dict(tally.dropped), ended, took, purse.spent, made_by, plain_licences(licences))

    def write(self, out: Path) -> None:
        """`card.json` and `README.md`, without what is private."""
        found = from_plain(self.licences, "card.json") if self.licences else []
        write_json(out / "card.json", asdict(self))
        write_text(out / "README.md", shareable(self._page(found)))

    def _page(self, licences: Sequence[Licence]) -> str:
        head = yaml_of({**front_matter(licences), "tags": ["synthetic", "limbeck"]}).rstrip()
        rows = [["prompts", self.prompts], ["answers", self.answers], *self.dropped.items(), ["kept", self.rows]]
        took = [["tokens read", self.took.prompt_tokens], ["tokens written", self.took.completion_tokens]]
        spent = f"{self.took.usd:.4f} US dollars, {self.took.flops:.3g} FLOPs, {self.took.seconds:,.0f} seconds of calls; {self.ended}."
        counts = "\n".join(f"| {name} | {count:,} |" for name, count in [*rows, *took])
        made = yaml_of(self.made_by).rstrip()
        return (
            f"---\n{head}\n---\n# A corpus written by a teacher\n\n| what | count |\n|---|---|\n{counts}\n\n{spent}\n\n"
            f"## How it was made\n\n```yaml\n{made}\n```\n\n{section(licences)}\n"
        )
