"""Hiding tokens of a text from a masked model: which, and what it reads in their place.

As BERT was trained (arXiv 1810.04805, appendix A.1): of a sequence `max(1, round(share * tokens))` tokens are to be told; 80 % of them are
read as the mask, 10 % as a token drawn at random, 10 % as they are. Every choice is a function of a key and the token's place alone.

Axes: T tokens of one sequence.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from limbeck.batch import Span, Text
from limbeck.data import Data, Row, other_columns
from limbeck.errors import DataError, VocabularyError
from limbeck.vocabulary import Vocabulary

READ = "read_ids"
"""The column of a batch that says what a masked model reads in the place of each completion token; without it, the mask."""
SHARE = 0.15
AS_MASK, AS_RANDOM = 0.8, 0.9


class MaskedVocabulary(Vocabulary):
    """The vocabulary of a masked model: a text is read whole, and some of its tokens are hidden."""

    outcomes = "hidden tokens"

    def __init__(self, tokenizer: Any, end_ids: frozenset[int] = frozenset()) -> None:
        super().__init__(tokenizer, end_ids)
        if tokenizer.mask_token_id is None:
            raise VocabularyError("the tokenizer of a masked model has no mask token; give it one: tokenizer.mask_token")

    @property
    def mask_id(self) -> int:
        """The mask's number."""
        return int(self.tokenizer.mask_token_id)

    def with_template(self, template: str | None, end_ids: frozenset[int]) -> "MaskedVocabulary":
        """The same: dialogues are not read."""
        return self

    def texts(self, row: Row, data: Data, max_tokens: int) -> list[Text]:
        """The sequences of a row, hidden by what they hold: the same row is always hidden alike, as for evaluation."""
        pieces = self.pieces(row, data, max_tokens)
        keys = (int.from_bytes(hashlib.sha256(json.dumps(piece).encode()).digest()[:7], "big") for piece in pieces)
        return [text for piece, key in zip(pieces, keys, strict=True) for text in self.hidden(piece, SHARE, [key], other_columns(row))]

    def pieces(self, row: Row, data: Data, max_tokens: int) -> list[list[int]]:
        """A row's text in as many sequences as it takes, each between the tokens that the model expects around one."""
        if not isinstance(row.get("text"), str):
            raise DataError(f"{data.path}: a masked model reads the column text, found columns {', '.join(row)}")
        around = cast(list[int], self.tokenizer("")["input_ids"])
        ids, room = self.ids(row["text"]), max(1, max_tokens - len(around))
        return [[*around[:1], *ids[start : start + room], *around[1:]] for start in range(0, len(ids), room)]

    def hidden(self, tokens: list[int], share: float, key: Sequence[int], columns: dict[str, Any]) -> list[Text]:
        """A sequence with some tokens hidden, by a key; none where it has no token that can be."""
        special = set(self.tokenizer.all_special_ids)
        able = [place for place, token in enumerate(tokens) if place and token not in special]
        if not able:
            return []
        drawn = {place: np.random.default_rng([*key, place]).random(3) for place in able}
        places = sorted(sorted(able, key=lambda place: drawn[place][0])[: max(1, round(share * len(able)))])
        read = [self._read(tokens[place], drawn[place]) for place in places]
        return [Text(tokens, [Span(place, place + 1) for place in places], {**columns, READ: read})]

    def _read(self, token: int, drawn: Any) -> int:
        if drawn[1] < AS_MASK:
            return self.mask_id
        return int(drawn[2] * self.size) if drawn[1] < AS_RANDOM else token
