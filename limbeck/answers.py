"""What passes between those who ask and those who answer: questions, answers, what they cost, and the purse that pays."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from limbeck.config import plain
from limbeck.data import Data, Row, messages_of, other_columns
from limbeck.errors import DataError

T = TypeVar("T")

Finish = Literal["end", "length", "tools", "filter"]
"""Why an answer ended: by itself, cut at max_tokens, to call a tool, or withheld by a provider."""


@dataclass(frozen=True)
class Question:
    """A row that is to be answered. samples: which of its answers are wanted, counted from 0; each is another draw, by `drawn` too."""

    row: Row
    data: Data
    samples: tuple[int, ...] = (0,)
    drawn: int = 0

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The dialogue up to the turn that is to be written; None where the prompt is to be continued as it stands."""
        messages = messages_of({name: value for name, value in self.row.items() if value is not None})
        if messages is None and self.data.template == "plain":
            return None
        if messages is None and "prompt" not in self.row:
            raise DataError(f"{self.data.path}: a prompt was asked for, found columns {', '.join(self.row)}; give prompt or messages")
        messages = [{"role": "user", "content": str(self.row["prompt"])}] if messages is None else messages
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return messages

    @property
    def key(self) -> str:
        """A name of what is asked, the same wherever it stands."""
        asked = {name: value for name, value in self.row.items() if name in ("prompt", "prompt_ids", "tools")}
        content = [self.messages, asked, self.data.template, plain(self.data.template_arguments)]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]

    @property
    def seed(self) -> int:
        """The number that its content and `drawn` give it among random numbers, below 2^31: no order of a file changes a draw."""
        return (int(self.key[:8], 16) ^ (self.drawn * 0x9E3779B1 & 0xFFFFFFFF)) >> 1

    @property
    def columns(self) -> dict[str, Any]:
        """What the row says beside its text."""
        return other_columns(self.row)

    def taught(self, answer: "Answer", inline: bool) -> dict[str, Any]:
        """The row that teaches this answer. inline: what was thought stands before it, between `<think>` and `</think>`."""
        begin, end = THINKING
        text = f"{begin}\n{answer.reasoning}\n{end}\n\n{answer.text}" if inline and answer.reasoning else answer.text
        kept = {**self.columns, **({"tools": self.row["tools"]} if self.row.get("tools") else {})}
        if self.messages is None:
            return {"prompt": str(self.row["prompt"]), "completion": text, **kept}
        calls = {"tool_calls": answer.tool_calls} if answer.tool_calls else {}
        return {"messages": [*self.messages, {"role": "assistant", "content": text, **calls}], **kept}

    def only(self, samples: tuple[int, ...]) -> "Question":
        """The same, fewer answers wanted."""
        return replace(self, samples=samples)


@dataclass(frozen=True)
class Answer:
    """One completion. reasoning: what was thought before it, kept apart. tokens, logp: where a local model wrote it (nats)."""

    text: str
    finish: Finish = "end"
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tokens: list[int] | None = None
    logp: list[float] | None = None


@dataclass(frozen=True)
class Bill:
    """What something took. flops: of local arithmetic. seconds: summed over calls that may have run side by side."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})


def arithmetic(parameters: float, tokens: int) -> float:
    """FLOPs of reading or writing so many tokens: 2 for each parameter and token (arXiv 2408.16737, section 3)."""
    return 2.0 * parameters * tokens


Fits = Literal["now", "later", "never"]
"""Whether something can be paid for: later, if what is under way takes less than was set aside for it."""


class Purse:
    """What may be spent, in US dollars and FLOPs: nothing begins that could pass a limit. Several threads may take from it.

    refused: whether something was asked for that never fitted.
    """

    def __init__(self, usd: float | None = None, flops: float | None = None, spent: Bill | None = None) -> None:
        self.limit_usd, self.limit_flops = usd, flops
        self.spent, self.refused = spent or Bill(), False
        self._held, self._under_way, self._lock = Bill(), 0, threading.Lock()

    def take(self, worst: Bill) -> Fits:
        """Set aside what something may take at the most, if it fits now."""
        with self._lock:
            if not self._within(self.spent + worst):  # what is spent does not come back
                self.refused = True
                return "never"
            if not self._within(self.spent + self._held + worst):
                return "later"
            self._held, self._under_way = self._held + worst, self._under_way + 1
            return "now"

    def settle(self, worst: Bill, took: Bill) -> None:
        """Give back what was set aside, and pay what it took."""
        with self._lock:
            back = Bill(**{name: -value for name, value in vars(worst).items()})
            self._under_way -= 1
            self._held = self._held + back if self._under_way else Bill()  # sums are rounded, and nothing is nothing
            self.spent = self.spent + took

    def afford(self, asked: Iterable[tuple[T, Bill]]) -> Iterator[T | None]:
        """Things in turn, each with the most it may take, as soon as that is set aside; ends at the first that never fits.

        None says that the next has to wait until something under way is settled: ask again then.
        """
        for thing, worst in asked:
            while (fits := self.take(worst)) != "now":
                if fits == "never":
                    return
                yield None
            yield thing

    @property
    def limits(self) -> str:
        """What may be spent, by the names of the settings."""
        given = {"budget_usd": self.limit_usd, "budget_flops": self.limit_flops}
        return ", ".join(f"{name}={limit:g}" for name, limit in given.items() if limit is not None)

    def _within(self, bill: Bill) -> bool:
        usd, flops = self.limit_usd, self.limit_flops
        return (usd is None or bill.usd <= usd) and (flops is None or bill.flops <= flops)


@dataclass(frozen=True)
class Draw:
    """An answer that is asked for: to which question, which of its samples, and what was set aside for it."""

    question: Question
    sample: int
    worst: Bill


@dataclass(frozen=True)
class Given:
    """An answer that has come: to which question, which of its samples, what it took, and the name of who gave it, where one is known."""

    question: Question
    sample: int
    answer: Answer
    bill: Bill
    by: str = ""


Told = Callable[[int], None]
"""Called with the count of tokens just written."""


THINKING = ("<think>", "</think>")


def parted(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a text whose thinking stands between `<think>` and `</think>`; templates may have opened it."""
    begin, end = THINKING
    before, closed, after = text.partition(end)
    if not closed:
        opened = text.lstrip().startswith(begin)
        return (text.lstrip().removeprefix(begin).strip(), "") if opened else ("", text)
    return before.strip().removeprefix(begin).strip(), after.lstrip()
