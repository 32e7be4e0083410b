"""What `limbeck check` tells: lines, and the words of those that count or compare."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.config import Part, settings_of
from limbeck.data import Data

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Line:
    """What was looked at, what was found, and whether it stands in the way."""

    what: str
    found: str
    verdict: Verdict = "ok"


def below(part: Any) -> Iterator[Part]:
    """Every part that a part is made of."""
    for name in settings_of(type(part)):
        value = getattr(part, name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Part):
                yield item
                yield from below(item)


def data_key(data: Data) -> tuple[str, str, str | None]:
    """What tells a data set from another."""
    return data.path, data.split, data.name


def counted(what: str, count: int, total: int, rest: str, verdict: Verdict = "note") -> Iterator[Line]:
    """A line where there is anything to count: `12 of 1,000 prompts are ...`."""
    if count:
        yield Line(what, f"{count:,} of {total:,} {rest}", verdict)


def fits(what: str, taken: dict[str, int], here_bytes: int, advice: str, spare: float) -> Line:
    """What is taken against what is here; a note above the share `spare`."""
    whole = sum(taken.values())
    parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in taken.items())
    found = f"about {whole / 1e9:.1f} GB ({parts}) of {here_bytes / 1e9:.1f} GB"
    if whole > here_bytes:
        return Line(what, f"the run takes {found} of {what}; {advice}", "problem")
    return Line(what, found, "note" if whole > spare * here_bytes else "ok")
