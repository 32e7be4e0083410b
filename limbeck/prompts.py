"""Prompts made anew, as tokens: another message in place of a user's, or a hint beside it.

A prompt that the chat template rendered is known by what the template puts after a user's message; any other is plain.
Only what is new is tokenised, each piece alone: whatever stood there keeps its tokens, and nothing is decoded.
"""

from collections.abc import Sequence
from functools import cached_property

from limbeck.data import Data
from limbeck.errors import DataError, VocabularyError
from limbeck.vocabulary import PROBE, Vocabulary


class Prompts:
    """The prompts of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def asking(self, prompt: list[int], text: str) -> list[int]:
        """A prompt that says `text` and nothing else, and leads to an answer as `prompt` does.

        A rendered one is the template's dialogue of one message, `text`, up to its end; from there on the prompt's own tokens.
        """
        end = self._end(prompt)
        if end is None:
            return self.vocabulary.prompt({"prompt": text}, Data("plain", template="plain"))
        asked = self.vocabulary.ids(self.vocabulary.chat([{"role": "user", "content": text}], prompt=True))
        return [*asked[: self._end(asked)], *prompt[end:]]

    def hinted(self, prompt: list[int], hint: str, before: bool) -> list[int]:
        """A prompt with a hint at the end of its last message, or at that message's beginning.

        A plain one has it at its own end, or beginning, after the token that the tokenizer begins with. Raises DataError where
        the beginning of a message cannot be found.
        """
        end = self._end(prompt)
        place = self.end(prompt)
        if before:
            place = self._lead(prompt) if end is None else self._begin(prompt[:end])
        return [*prompt[:place], *self.vocabulary.ids(hint), *prompt[place:]]

    def end(self, prompt: Sequence[int]) -> int:
        """Where its last message ends; of a plain one, where it ends itself."""
        place = self._end(prompt)
        return len(prompt) if place is None else place

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the template puts before and after a user's message; nothing where there is no template."""
        if not self.vocabulary.has_template:
            return [], []
        before, _, after = self.vocabulary.chat(PROBE[:1], prompt=True).partition(PROBE[0]["content"])
        if not after:
            raise VocabularyError("the chat template puts nothing after a user's message, so where it ends cannot be found; give plain prompts")
        return self.vocabulary.ids(before), self.vocabulary.ids(after)

    @cached_property
    def _specials(self) -> frozenset[int]:
        tokenizer = self.vocabulary.tokenizer
        return frozenset([*tokenizer.all_special_ids, *(int(token) for token in tokenizer.added_tokens_decoder)])

    @cached_property
    def _opening(self) -> list[int]:
        """From the last special token before a message on: another message, of the system's say, may stand before it."""
        before, _ = self._around
        return before[max((n for n, token in enumerate(before) if token in self._specials), default=0) :]

    @cached_property
    def _closing(self) -> list[int]:
        """Up to the first special token after a message; all of it where there is none. What comes after it may have been set otherwise."""
        _, after = self._around
        return after[: next((n + 1 for n, token in enumerate(after) if token in self._specials), len(after))]

    def _end(self, prompt: Sequence[int]) -> int | None:
        """Where the last message of a rendered prompt ends; None in a plain one."""
        return _last(prompt, self._closing) if self._closing else None

    def _begin(self, prompt: Sequence[int]) -> int:
        """Where it begins."""
        place = _last(prompt, self._opening)
        if place is None:
            shown = self.vocabulary.tokenizer.decode(prompt[-20:])
            raise DataError(f'cannot find where the user\'s message begins in a prompt that ends {shown!r}; set place: "after"')
        return place + len(self._opening)

    def _lead(self, prompt: Sequence[int]) -> int:
        """How many tokens a plain prompt begins with that are no text."""
        return 1 if len(prompt) > 1 and prompt[0] == self.vocabulary.tokenizer.bos_token_id else 0


def _last(tokens: Sequence[int], piece: Sequence[int]) -> int | None:
    """Where a piece stands last."""
    starts = range(len(tokens) - len(piece), -1, -1)
    return next((start for start in starts if list(tokens[start : start + len(piece)]) == list(piece)), None)
