"""The vocabulary of a classifier: the classes it tells apart. A row's one completion token is its class.

What stands before it is the text, in the tokens of the classifier's tokenizer; or, where the classifier reads a column of numbers, a
single token that nobody looks at: the numbers travel in the batch's columns.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from limbeck.batch import Span, Text
from limbeck.data import Data, Row, other_columns
from limbeck.errors import DataError, VocabularyError, did_you_mean
from limbeck.vocabulary import Vocabulary

GIVE = "write one"


class Labels(Vocabulary):
    """The names of classes in their order, and for a classifier of text the tokens that it reads.

    names: of classes without a name their number as text. reads: None where a column of numbers is read.
    """

    outcomes = "classes"

    def __init__(self, names: Sequence[str], reads: Vocabulary | None = None) -> None:
        super().__init__(reads.tokenizer if reads else None)
        self.names, self.reads = tuple(names), reads

    @cached_property
    def map(self) -> dict[str, int]:
        """Every class and its number."""
        return {name: number for number, name in enumerate(self.names)}

    @property
    def template(self) -> None:
        """None: nobody speaks."""
        return None

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """None: an answer is one token."""
        return frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """A name for these classes, and for the tokens of the text."""
        told = json.dumps([self.names, self.reads.fingerprint if self.reads else None])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def with_template(self, template: str | None, end_ids: frozenset[int]) -> "Labels":
        """The same."""
        return self

    def text(self, ids: list[int]) -> str:
        """The names of classes."""
        return ", ".join(self.names[number] for number in ids)

    def texts(self, row: Row, data: Data, max_tokens: int) -> list[Text]:
        """The row as one sequence, its class at the end; text is cut so that the class still stands within `max_tokens`."""
        number = self._number(row, data)
        tokens = [0] if self.reads is None else self._read(row, data, max(1, max_tokens - 1))
        return [Text([*tokens, number], [Span(len(tokens), len(tokens) + 1)], other_columns(row))]

    def prompt(self, row: Row, data: Data) -> list[int]:
        """Refused: a classifier answers nothing by itself here."""
        raise DataError(f"{data.path}: answers were asked of a classifier; draw ready rows with Corpus(data)")

    def _read(self, row: Row, data: Data, longest: int) -> list[int]:
        text = row.get("text", row.get("prompt"))
        if not isinstance(text, str):
            raise DataError(f"{data.path}: a classifier of text reads the column text (or prompt), found columns {', '.join(row)}")
        ids = cast(list[int], self.tokenizer(text, truncation=True, max_length=longest)["input_ids"])
        if not ids:
            raise DataError(f"{data.path}: a row whose text has no token; give it some, or leave the row out")
        return ids

    def _number(self, row: Row, data: Data) -> int:
        label: Any = row.get("label", row.get("completion"))
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < self.size:
            return label
        if isinstance(label, str) and label in self.map:
            return self.map[label]
        found = "no label" if label is None else f"the label {label!r}"
        hint = did_you_mean(label, self.names) if isinstance(label, str) else ""
        raise DataError(f"{data.path}: a row has {found}, and the model tells {self.size} classes apart: {shown(self.names)}{hint or f'; {GIVE}'}")

    def _prove_same(self, theirs: Vocabulary) -> None:
        assert isinstance(theirs, Labels)
        if self.size != theirs.size:
            raise VocabularyError(f"the student tells {self.size} classes apart ({shown(self.names)}) and the teacher {theirs.size} "
                                  f"({shown(theirs.names)}); give two that tell the same classes apart")  # fmt: skip
        if apart := [n for n in range(self.size) if self.names[n] != theirs.names[n]]:
            first = ", ".join(f"class {n} is {self.names[n]!r} / {theirs.names[n]!r}" for n in apart[:4])
            raise VocabularyError(f"student and teacher name {len(apart)} of {self.size} classes otherwise ({first}); name and order them alike")
        if theirs.reads is not None:
            if self.reads is None:
                raise VocabularyError("the student reads a column of numbers and the teacher text, whose tokens no row would hold; give "
                                      "two that read text, or a teacher that reads a column")  # fmt: skip
            self.reads.prove_equal(theirs.reads)


def shown(names: Sequence[str]) -> str:
    """A few of many names."""
    return ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])])


def names_of(config: Mapping[int, str]) -> list[str]:
    """The names in a transformers configuration; what it calls LABEL_3 has none, and is called 3."""
    return [str(number) if config[number] == f"LABEL_{number}" else config[number] for number in sorted(config)]
