"""The bytes that the tokens of a vocabulary stand for, and the tokens that stand for given bytes.

A token stands for the same bytes wherever it is, but for one thing: tokenizers that put a blank before every text have it left
out again where a text begins. Tokens that steer (the end of a turn, say) stand for no bytes.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

from limbeck.errors import DataError, VocabularyError
from limbeck.vocabulary import PROBE_TEXT, Vocabulary

Bytes = list[bytes | None]
"""Of each token in turn; None for one that steers."""


class Pieces:
    """A vocabulary by its bytes. Raises VocabularyError, when it is made, for one whose tokens cannot be brought to bytes."""

    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        self.vocabulary, self.name = vocabulary, name
        added = cast(dict[int, Any], vocabulary.tokenizer.added_tokens_decoder)
        self.steering = frozenset([*vocabulary.tokenizer.all_special_ids, *(int(n) for n, token in added.items() if token.special)])
        plain = self._reading()
        self.of_token: dict[int, bytes] = {}
        for token, number in vocabulary.map.items():
            given = added.get(number)
            found = given.content.encode() if given is not None else plain(token)
            if found is not None:
                self.of_token[number] = found
        self._prove()

    def _reading(self) -> Any:
        """How the name of a token is read as bytes."""
        backend = getattr(self.vocabulary.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise VocabularyError(f"the tokenizer of {self.name} tells nobody how its tokens are made; {_ANOTHER}")
        steps = _names(json.loads(backend.to_str())["decoder"])
        if "ByteLevel" in steps:
            return _of_byte_level
        if steps & {"ByteFallback", "Metaspace"} or ("Replace" in steps and any("\u2581" in token for token in self.vocabulary.map)):
            return _of_sentence_piece
        found = ", ".join(sorted(steps)) or "nothing"
        raise VocabularyError(f"the tokens of {self.name} (decoded by {found}) do not give back the bytes of a text; {_ANOTHER}")

    def _prove(self) -> None:
        """See that an awkward text comes back, but for what the tokenizer itself makes of characters that combine."""
        ids = self.vocabulary.ids(PROBE_TEXT)
        found = b"".join(self.of(ids, begins=True)[n] or b"" for n in range(len(ids)))
        if found != PROBE_TEXT.encode() and found.decode(errors="replace") != self._normalized(PROBE_TEXT):
            raise VocabularyError(
                f"the tokens of {self.name} do not give back the bytes of a text ({PROBE_TEXT[:20]!r} became {found[:30]!r}); {_ANOTHER}"
            )

    def _normalized(self, text: str) -> str:
        normalizer = self.vocabulary.tokenizer.backend_tokenizer.normalizer
        made = text if normalizer is None else str(normalizer.normalize_str(text))
        return made.replace("\u2581", " ").removeprefix(" ")

    @cached_property
    def puts_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text."""
        (first, *_) = self.vocabulary.ids("a")
        return self.of_token[first].startswith(b" ")

    @cached_property
    def of_bytes(self) -> dict[bytes, int]:
        """The token of some bytes, where there is one; of several the lowest that is no single byte of a fallback."""
        made: dict[bytes, int] = {}
        for token in sorted(self.of_token, key=lambda token: (self._is_fallback(token), token)):
            if token not in self.steering:
                made.setdefault(self.of_token[token], token)
        return made

    @cached_property
    def _fallbacks(self) -> frozenset[int]:
        return frozenset(number for token, number in self.vocabulary.map.items() if _fallback(token) is not None)

    def _is_fallback(self, token: int) -> bool:
        return token in self._fallbacks

    @cached_property
    def marks(self) -> dict[str, int]:
        """The tokens that steer, by how they are written."""
        return {token: number for token, number in self.vocabulary.map.items() if number in self.steering}

    def written(self, token: int) -> str:
        """How a token that steers is written."""
        return self.of_token[token].decode()

    def of(self, ids: Sequence[int], begins: bool = False) -> Bytes:
        """The bytes of each token. begins: whether a text begins with the first, so that a blank put before it is left out."""
        if unknown := [token for token in ids if token not in self.of_token]:
            raise DataError(f"the token {unknown[0]} of {self.name} has no name in its tokenizer, and stands for no bytes")
        found: Bytes = [None if token in self.steering else self.of_token[token] for token in ids]
        if begins and found and found[0] is not None and self.puts_blank:
            found[0] = found[0].removeprefix(b" ")
        return found

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What tokens may be read as, those that steer as they are written: blanks put at the beginning alone, or after each of these too."""
        readings = list[str]()
        for everywhere in (False, True) if self.puts_blank else (False,):
            made, begins = b"", True
            for token, piece in zip(ids, self.of(ids), strict=True):
                made += self.of_token[token] if piece is None else piece.removeprefix(b" " if begins and self.puts_blank else b"")
                begins = piece is None and (everywhere or begins)
            readings.append(made.decode(errors="replace"))
        return readings

    def ids(self, wanted: bytes, begins: bool = False) -> list[int]:
        """Tokens that stand for exactly these bytes, cut as the tokenizer cuts text wherever they are text that it gives back.

        What it does not (bytes that are no UTF-8, characters that it would rewrite) has a token for each byte. They end before a
        byte that the vocabulary has none for.
        """
        made = list[int]()
        while wanted:
            text = _valid(wanted)
            found = self._cut(text, begins and not made) if text else []
            done = self._bytes(found, begins and not made)
            if not found or done == 0:
                found = self._single(text[0].encode() if text else wanted[:1])
                done = len(found)
                if not found:
                    break
            made, wanted = made + found, wanted[done:]
        return made

    def _bytes(self, ids: Sequence[int], begins: bool) -> int:
        return sum(len(piece or b"") for piece in self.of(ids, begins))

    def _cut(self, text: str, begins: bool) -> list[int]:
        """The tokenizer's tokens of a text, up to the first that does not stand for what is there."""
        if not self.puts_blank:
            return self._agreeing(self._raw(text), text.encode(), begins)
        if begins:  # some put a blank only where a text has none: its own comes second then
            found = [self._agreeing(self._raw(each), text.encode(), begins) for each in (text, " " + text)]
            return max(found, key=lambda ids: self._bytes(ids, begins))
        if text.startswith(" "):  # the blank that is put there is the text's own
            return self._agreeing(self._raw(text[1:]), text.encode(), False)
        anchored = self._raw("\n" + text)  # after another character no blank is put
        for start in range(1, min(4, len(anchored)) + 1):
            if b"".join(piece or b"" for piece in self.of(anchored[:start], begins=True)) == b"\n":
                return self._agreeing(anchored[start:], text.encode(), False)
        return []

    def _raw(self, text: str) -> list[int]:
        """Tokens of a text in which nothing steers, however it is written."""
        return cast(list[int], self.vocabulary.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _agreeing(self, ids: list[int], wanted: bytes, begins: bool) -> list[int]:
        done = 0
        for place, piece in enumerate(self.of(ids, begins)):
            if piece is None or not wanted.startswith(piece, done):
                return ids[:place]
            done += len(piece)
        return ids

    def _single(self, wanted: bytes) -> list[int]:
        """A token for each byte, up to one that has none."""
        found = [self.of_bytes.get(bytes([byte])) for byte in wanted]
        return [token for token in found[: [*found, None].index(None)] if token is not None]


_ANOTHER = "give a model whose tokenizer is byte-level, or falls back to bytes, or train on the teacher's text with CrossEntropy()"


def _names(step: Any) -> set[str]:
    """The kinds of a decoder and of all steps inside it."""
    if not isinstance(step, dict):
        return set()
    entry = cast(dict[str, Any], step)
    return {str(entry.get("type"))}.union(*(_names(each) for each in cast(list[Any], entry.get("decoders", []))))


def _alphabet() -> dict[str, int]:
    """The character by which byte-level tokenizers name each byte (GPT-2): itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), ord("\u00ff") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _alphabet()


def _of_byte_level(token: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return None


def _fallback(token: str) -> int | None:
    """The byte of a name like <0x0A>."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def _of_sentence_piece(token: str) -> bytes:
    byte = _fallback(token)
    return token.replace("\u2581", " ").encode() if byte is None else bytes([byte])


def _valid(wanted: bytes) -> str:
    """The longest beginning that is UTF-8."""
    try:
        return wanted.decode()
    except UnicodeDecodeError as error:
        return wanted[: error.start].decode()
