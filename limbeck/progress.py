"""Showing long work: what is going on, how fast, how long still. A bar in a terminal, a line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 15.0
"""Between two lines where there is no terminal."""


class Progress:
    """One piece of work of `total` steps; `advance` after each of them."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self.tokens, self.note = 0, ""
        self.began = self.shown = time.monotonic()
        self._start, self._bar, self._task = done, None, None

    def advance(self, steps: int = 1, tokens: int = 0, note: str = "") -> None:
        """Say that so many steps are done, in which so many tokens were handled."""
        self.done, self.tokens, self.note = self.done + steps, self.tokens + tokens, note or self.note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=self._status())
        elif time.monotonic() - self.shown > LINE_SECONDS:
            self._line()

    def skip(self, steps: int) -> None:
        """Say that so many steps were done before: they tell nothing about how fast this goes."""
        self._start += steps
        self.advance(steps)

    def _status(self) -> str:
        seconds = time.monotonic() - self.began
        rate = f"{self.tokens / seconds:,.0f} tokens/s" if self.tokens and seconds > 0 else ""
        made = self.done - self._start
        left = seconds / made * (self.total - self.done) if made else 0.0
        return "  ".join(filter(None, [self.note, rate, f"{clock(left)} left" if made else ""]))

    def _line(self) -> None:
        self.shown = time.monotonic()
        if not _is_quiet():
            print(f"{self.what}: {self.done}/{self.total}  {self._status()}", file=sys.stderr, flush=True)

    @contextmanager
    def showing(self) -> Iterator["Progress"]:
        """Show it for as long as the block lasts."""
        if _is_quiet() or not sys.stderr.isatty():
            yield self
            self._line()
            return
        with _bar() as self._bar:
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, status="")
            yield self
        self._bar = None


def _is_quiet() -> bool:
    """Of several ranks the first speaks."""
    return os.environ.get("RANK", "0") != "0"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn()
    return Bar(*columns, TextColumn("{task.fields[status]}"), console=Console(stderr=True))


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def warn(what: str) -> None:
    """Say something that stops nothing, in one line beside what is printed."""
    print(f"limbeck: {what}", file=sys.stderr)
