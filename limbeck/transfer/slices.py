"""Ways to cut the tokens of a table into slices: by category, by place, by what kind of token it is, by how hard the teacher finds it.

Axes: B sequences, N completion tokens. A cut puts each token into one slice or, where nothing is known of it, into none.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.batch import Text
from limbeck.errors import DataError, did_you_mean
from limbeck.evaluate.statistics import Array
from limbeck.transfer.figures import ends, stretches
from limbeck.transfer.rows import Rows
from limbeck.transfer.tokens import Tokens
from limbeck.vocabulary import Vocabulary

CATEGORY, TOPIC, POSITION, CLASS, DIFFICULTY, CERTAINTY = "category", "topic", "position", "token", "difficulty", "teacher's certainty"
OF_ROWS = (CATEGORY, TOPIC)
"""Kinds of slices of which more data can be had."""
USUAL = "category"
"""The column that is looked for where none was asked for."""
MOST = 40
"""Categories that are told apart; the rest, each of fewer rows, are one."""
EMPTY, OTHERS = "(none)", "(others)"
QUARTERS = ("easiest quarter", "second quarter", "third quarter", "hardest quarter")
SURE = ("surest quarter", "second quarter", "third quarter", "least sure quarter")


@dataclass(frozen=True)
class Cut:
    """Slices of one kind. place_N: of which each token is; -1 of none."""

    kind: str
    names: list[str]
    place_N: Array

    def parts(self) -> Iterator[tuple[str, Array]]:
        """Each slice that holds tokens: its name, and whether a token is of it [N]."""
        for place, name in enumerate(self.names):
            here_N = self.place_N == place
            if here_N.any():
                yield name, here_N


def named(kind: str, labels_B: Sequence[str | None], tokens: Tokens) -> Cut:
    """Sequences by a label of each; None is of no slice."""
    names = sorted({label for label in labels_B if label is not None})
    place = {name: n for n, name in enumerate(names)}
    place_B = np.array([-1 if label is None else place[label] for label in labels_B])
    return Cut(kind, names, place_B[tokens.sequence_N])


# By row


def categories(rows: Rows, asked: str | None) -> dict[int, str] | None:
    """What the column says of each row, most frequent first kept apart; None where no column was asked for and rows have none of the usual name.

    Raises DataError where one was asked for that no row has.
    """
    columns = [*rows.columns, *(text.columns for text in rows.given)]
    column = asked or USUAL
    if not any(column in each for each in columns):
        if asked is None:
            return None
        there = {name for each in columns for name in each if name != "row"}
        raise DataError(f'no row has the column "{asked}" to slice by{did_you_mean(asked, there)}' if there else f'no row has a column "{asked}"')
    said = {int(each["row"]): _said(each.get(column)) for each in columns}
    often = Counter(said.values())
    kept = sorted(often, key=lambda name: (-often[name], name))[:MOST]
    return {row: name if name in kept else OTHERS for row, name in said.items()}


def _said(value: Any) -> str:
    """A category as text; of an empty one that it is."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()) or EMPTY


def doubts(found: Mapping[int, str]) -> list[str]:
    """What is wrong with categories, in words."""
    empty, names = sum(name == EMPTY for name in found.values()), set(found.values())
    said = [f"{empty} of {len(found)} rows have no category; they are one slice, {EMPTY}"] if 0 < empty < len(found) else []
    if len(names) == 1:
        one = "no row has a category" if empty else f'every row is of the category "{next(iter(names))}"'
        said.append(f"{one}, so that there are none to compare; name another column with --category")
    return said


def labels(texts: Sequence[Text], found: Mapping[int, str]) -> list[str | None]:
    """The label of each text's row."""
    return [found.get(int(text.columns["row"])) for text in texts]


# By token


def by_position(tokens: Tokens) -> Cut:
    """The token's place in its completion, in stretches."""
    place_N = stretches(tokens.position_N)
    bounds = [ends(place) for place in range(int(place_N.max(initial=0)) + 1)]
    return Cut(POSITION, [f"{first} to {last}" if last > first else str(first) for first, last in bounds], place_N)


def by_difficulty(tokens: Tokens) -> Cut:
    """Sequences in quarters by the nats a token that the text costs the teacher."""
    hard_B = tokens.sums(tokens.of("teacher").nats_N) / np.maximum(tokens.counts_B, 1)
    return Cut(DIFFICULTY, list(QUARTERS), _quarters(hard_B[tokens.counts_B > 0], hard_B)[tokens.sequence_N])


def by_certainty(tokens: Tokens) -> Cut:
    """Tokens in quarters by the entropy of what the teacher says."""
    entropy_N = tokens.of("teacher").entropy_N
    return Cut(CERTAINTY, list(SURE), _quarters(entropy_N, entropy_N))


def _quarters(of: Array, values: Array) -> Array:
    """In which quarter of these each value lies; equal values in the same."""
    return np.searchsorted(np.quantile(of, [0.25, 0.5, 0.75]), values, side="left")


STARTS, CONTINUED, NUMBER, SIGN, BLANK, STEERS, PART = (
    "word start", "word continued", "number", "punctuation", "white space", "end or special", "part of a character")  # fmt: skip
CLASSES = (STARTS, CONTINUED, NUMBER, SIGN, BLANK, STEERS, PART)
Piece = tuple[str | None, bool]
"""The text of a token, None of one that steers, and whether its name says that it begins a word."""


def pieces(ids: Sequence[int], vocabulary: Vocabulary) -> dict[int, Piece]:
    """Of each of these tokens."""
    if vocabulary.outcomes != "tokens":
        return {number: (vocabulary.text([number]), True) for number in ids}
    tokenizer, begins = vocabulary.tokenizer, _beginning(vocabulary)
    steering = {*vocabulary.end_ids, *tokenizer.all_special_ids}
    return {
        number: (None, False) if number in steering else (vocabulary.text([number]), begins(str(tokenizer.convert_ids_to_tokens(number))))
        for number in ids
    }


def _beginning(vocabulary: Vocabulary) -> Callable[[str], bool]:
    """How a token's name says that a word begins: by a blank before it, by no mark of a continuation, or, where every token is a word, always."""
    names = list(vocabulary.map)
    if any(name.startswith(("Ġ", "▁")) for name in names):
        return lambda name: name.startswith(("Ġ", "▁"))
    if any(name.startswith("##") for name in names):
        return lambda name: not name.startswith("##")
    return lambda name: " " not in vocabulary.map


def by_class(tokens: Tokens, known: Mapping[int, Piece], outcomes: str = "tokens") -> Cut:
    """What kind of token it is, by its text and the text before it; of a classifier, which class."""
    if outcomes != "tokens":
        names = sorted({text or "" for text, _ in known.values()})
        return Cut(CLASS, names, np.array([names.index(known[int(token)][0] or "") for token in tokens.token_N]))
    place_N = np.zeros(len(tokens), int)
    for n, token in enumerate(tokens.token_N.tolist()):
        text, begins = known[token]
        goes_on = n > 0 and tokens.sequence_N[n - 1] == tokens.sequence_N[n] and _ends_in_word(known[int(tokens.token_N[n - 1])][0])
        place_N[n] = CLASSES.index(_class(text, begins or not goes_on))
    return Cut(CLASS, list(CLASSES), place_N)


def _ends_in_word(text: str | None) -> bool:
    return bool(text) and text[-1].isalnum()


def _class(text: str | None, begins: bool) -> str:
    if text is None:
        return STEERS
    bare = text.strip()
    if not bare:
        return BLANK
    if "\N{REPLACEMENT CHARACTER}" in bare:
        return PART
    if bare.isnumeric():
        return NUMBER
    if not any(each.isalnum() for each in bare):
        return SIGN
    return STARTS if begins else CONTINUED
