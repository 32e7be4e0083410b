"""The ledger of a corpus: every answer and what it took, in one SQLite file that survives a kill at any moment."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from limbeck.answers import Answer, Bill, Given, Question
from limbeck.errors import LimbeckError

TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    writer TEXT NOT NULL, question TEXT NOT NULL, sample INTEGER NOT NULL, answer TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL NOT NULL, flops REAL NOT NULL, seconds REAL NOT NULL,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (writer, question, sample)
) WITHOUT ROWID
"""
BILL = "prompt_tokens, completion_tokens, usd, flops, seconds"


class Ledger:
    """Answers by who wrote them (`writer`, a name of teacher and settings), what was asked, and which sample it was.

    An answer is written in one transaction when it has come. The same one twice is our mistake, and refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._one_line():
            self._open = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._open.execute("PRAGMA journal_mode=WAL")
            self._open.execute(TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Close the file."""
        self._open.close()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LimbeckError(f"the ledger {self.path} cannot be used ({error}); mend or remove it, and what it holds is asked anew") from None

    def record(self, given: Given, writer: str) -> None:
        """Keep an answer that has come."""
        row = (writer, given.question.key, given.sample, json.dumps(asdict(given.answer)), *vars(given.bill).values())
        with self._one_line():
            self._open.execute(f"INSERT INTO answers (writer, question, sample, answer, {BILL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def given(self, writer: str, question: Question) -> list[Given]:
        """What this writer has answered of a question's samples, in their order."""
        with self._one_line():
            asked = f"SELECT sample, answer, {BILL} FROM answers WHERE writer = ? AND question = ? ORDER BY sample"
            rows: list[tuple[Any, ...]] = self._open.execute(asked, (writer, question.key)).fetchall()
        return [Given(question, row[0], Answer(**json.loads(row[1])), Bill(*row[2:])) for row in rows if row[0] in question.samples]

    def spent(self) -> Bill:
        """What all answers took, whoever wrote them."""
        sums = ", ".join(f"COALESCE(SUM({name}), 0)" for name in BILL.split(", "))
        with self._one_line():
            return Bill(*self._open.execute(f"SELECT {sums} FROM answers").fetchone())

    def __len__(self) -> int:
        with self._one_line():
            return int(self._open.execute("SELECT COUNT(*) FROM answers").fetchone()[0])
