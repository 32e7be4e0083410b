"""The ledger of a corpus: every answer and what it took, in one SQLite file that survives a kill at any moment.

Processes on many machines cannot share such a file: each writes a journal for its piece of the work, and the ledger takes the
journals in when it is next opened. So whoever goes on, one process or many, finds all that was paid for in one place.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from limbeck.answers import Answer, Bill, Given, Question
from limbeck.errors import LimbeckError
from limbeck.files import alone_with, append_jsonl, mend_jsonl, read_jsonl, sync

TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    writer TEXT NOT NULL, question TEXT NOT NULL, sample INTEGER NOT NULL, answer TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL NOT NULL, flops REAL NOT NULL, seconds REAL NOT NULL,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (writer, question, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journals (name TEXT PRIMARY KEY) WITHOUT ROWID
"""
BILL = "prompt_tokens, completion_tokens, usd, flops, seconds"
INSERT = f"INSERT INTO answers (writer, question, sample, answer, {BILL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
TWICE = ", ".join(f"{name} = {name} + excluded.{name}" for name in BILL.split(", "))
"""Where two pieces asked the same, the first answer stays, and both are paid."""
JOURNALS = "journals"
"""The folder beside a ledger where those write who cannot share its file."""


def _row(given: Given, writer: str) -> tuple[Any, ...]:
    return (writer, given.question.key, given.sample, json.dumps(asdict(given.answer)), *vars(given.bill).values())


def _given(question: Question, sample: int, answer: str, *bill: Any) -> Given:
    return Given(question, sample, Answer(**json.loads(answer)), Bill(*bill))


class Ledger:
    """Answers by who wrote them (`writer`, a name of teacher and settings), what was asked, and which sample it was.

    An answer is written in one transaction when it has come. The same one twice is our mistake, and refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._one_line():
            self._open = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._open.execute("PRAGMA journal_mode=WAL")
            self._open.executescript(TABLES)
            self._take_in()

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
        with self._one_line():
            self._open.execute(INSERT, _row(given, writer))

    def given(self, writer: str, question: Question) -> list[Given]:
        """What this writer has answered of a question's samples, in their order."""
        with self._one_line():
            rows = _rows(self._open, writer, question)
        return [_given(question, *row) for row in rows if row[0] in question.samples]

    def spent(self) -> Bill:
        """What all answers took, whoever wrote them."""
        sums = ", ".join(f"COALESCE(SUM({name}), 0)" for name in BILL.split(", "))
        with self._one_line():
            return Bill(*self._open.execute(f"SELECT {sums} FROM answers").fetchone())

    def _take_in(self) -> None:
        """Enter what stands in journals, each at once and once, and remove them; a writer that is still at work is waited for."""
        for path in sorted((self.path.parent / JOURNALS).glob("*.jsonl")):
            with alone_with(path):
                rows = [tuple(line["row"]) for line in read_jsonl(path)]
                self._open.execute("BEGIN IMMEDIATE")
                if self._open.execute("INSERT OR IGNORE INTO journals VALUES (?)", (path.name,)).rowcount:
                    self._open.executemany(f"{INSERT} ON CONFLICT DO UPDATE SET {TWICE}", rows)
                self._open.execute("COMMIT")
                path.unlink()
        self._open.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # who reads beside journals reads this file alone

    def __len__(self) -> int:
        with self._one_line():
            return int(self._open.execute("SELECT COUNT(*) FROM answers").fetchone()[0])


def _rows(database: sqlite3.Connection, writer: str, question: Question) -> list[tuple[Any, ...]]:
    asked = f"SELECT sample, answer, {BILL} FROM answers WHERE writer = ? AND question = ? ORDER BY sample"
    return database.execute(asked, (writer, question.key)).fetchall()


class Journal:
    """What a `Ledger` is to those who ask, for one piece of the work, on whichever machine.

    Answers are lines of a file that nobody else writes; whoever does the piece again finds them there. What was answered before
    is read from the ledger, which nobody writes meanwhile.
    """

    def __init__(self, ledger: Path, name: str) -> None:
        self.path, self._ledger = ledger.parent / JOURNALS / f"{name}.jsonl", ledger
        self._written = dict[tuple[Any, ...], list[Any]]()

    def __enter__(self) -> Self:
        self._alone = alone_with(self.path)
        self._alone.__enter__()
        mend_jsonl(self.path)
        self._known = sqlite3.connect(f"{self._ledger.resolve().as_uri()}?immutable=1", uri=True)
        self._written = {tuple(row[:3]): row for row in (line["row"] for line in read_jsonl(self.path))}
        return self

    def __exit__(self, *failure: object) -> None:
        """Let go of the file."""
        self._known.close()
        self._alone.__exit__(None, None, None)

    def record(self, given: Given, writer: str) -> None:
        """Keep an answer that has come."""
        row = _row(given, writer)
        assert row[:3] not in self._written
        append_jsonl(self.path, {"row": row})
        sync(self.path)
        self._written[row[:3]] = list(row)

    def given(self, writer: str, question: Question) -> list[Given]:
        """What this writer has answered of a question's samples, in their order."""
        rows = {row[0]: row for row in _rows(self._known, writer, question)}
        rows |= {sample: row[2:] for sample in question.samples if (row := self._written.get((writer, question.key, sample)))}
        return [_given(question, *rows[sample]) for sample in sorted(rows) if sample in question.samples]
