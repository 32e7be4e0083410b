"""The same text in the tokens of two vocabularies: a teacher's prompt and completion for a student's, and the spans they share.

A completion is never decoded and cut anew as text: each of the student's tokens stands for certain bytes, and the teacher's
tokens are chosen to stand for the same ones. A span is as short as can be: at its ends, and nowhere within, both have a
boundary. Tokens that steer have their counterpart: the end of a turn the teacher's own, others the token that is written alike;
where the teacher has none, it reads how they are written.

A prompt that the student's template rendered is read back as a dialogue and rendered by the teacher's, as the teacher would meet
it in service; that the dialogue was read aright is proven by rendering it again. Any other prompt is told byte for byte.

Axes: N the student's completion tokens of a pass, M the teacher's.
"""

# pyright: reportUnknownMemberType=false
# (torch leaves tolist half typed)

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any, cast

from limbeck.batch import Batch, Text
from limbeck.errors import DataError, VocabularyError
from limbeck.lazy import Tensor, torch
from limbeck.pieces import Bytes, Pieces
from limbeck.vocabulary import PROBE


@dataclass(frozen=True)
class Joint:
    """One span: the student's tokens `mine` and the teacher's `theirs`, as ranges of a completion's."""

    mine: tuple[int, int]
    theirs: tuple[int, int]


def joints(mine: Sequence[int], theirs: Sequence[int]) -> list[Joint]:
    """The minimal spans of two cuts of the same bytes, given the length of each token.

    Each has a token of both at least; tokens without bytes join the span that follows, at the end the last one. Where one cut ends
    before the other, nothing after the last boundary they share is in a span.
    """
    found, a, b, done_a, done_b = list[Joint](), 0, 0, 0, 0
    from_a, from_b = 0, 0
    while a < len(mine) or b < len(theirs):
        if a < len(mine) and (done_a <= done_b or b == len(theirs)):
            done_a, a = done_a + mine[a], a + 1
        else:
            done_b, b = done_b + theirs[b], b + 1
        if done_a == done_b and a > from_a and b > from_b:
            found.append(Joint((from_a, a), (from_b, b)))
            from_a, from_b = a, b
    if found and done_a == done_b and (from_a < a or from_b < b):
        last = found.pop()
        found.append(Joint((last.mine[0], a), (last.theirs[0], b)))
    return found


@dataclass(frozen=True)
class Told:
    """One completion in the teacher's tokens: its prompt, itself, and the spans. unsaid: whether the first span has no word of
    the teacher's, since nothing stands before its first token."""

    prompt: list[int]
    completion: list[int]
    spans: list[Joint]
    unsaid: bool


@dataclass(frozen=True)
class Pass:
    """A pass in the teacher's tokens, and what goes with what.

    theirs: a sequence for each of the student's completions, in the order of the student's rows. ends_N: int64, the row that ends
    the span of each of the student's tokens; -1 where the teacher says nothing of it. row_M: the same row for each of the
    teacher's. pair_N: the teacher's token that goes with the student's where a span is one of each; -1 elsewhere.
    """

    theirs: Batch
    ends_N: Tensor
    row_M: Tensor
    pair_N: Tensor


def _length(piece: bytes | None) -> int:
    """Bytes of a piece; what steers counts as one that nothing else is."""
    return 1 if piece is None else len(piece)


class Alignment:
    """Two vocabularies side by side. Raises VocabularyError where one cannot be brought to bytes."""

    def __init__(self, student: Pieces, teacher: Pieces) -> None:
        self.student, self.teacher = student, teacher
        self._told = lru_cache(1024)(self._tell)
        """Answers of a corpus come round again."""

    def of(self, batch: Batch) -> Pass:
        """A batch in the teacher's tokens."""
        texts, ends, rows, pairs = list[Text](), list[int](), list[int](), list[int]()
        for before, completion in _completions(batch):
            told = self._told(tuple(before), tuple(completion))
            _lay(told, len(completion), ends, rows, pairs)
            if told.completion:
                texts.append(Text.answered(told.prompt, told.completion, {}))
        made = [torch.tensor(each, dtype=torch.int64) for each in (ends, rows, pairs)]
        return Pass(Batch.of(texts, "corpus"), *made)

    @cached_property
    def common(self) -> tuple[Tensor, Tensor]:
        """The tokens that stand for the same bytes, or steer alike, in both: ids of the student's and of the teacher's, int64 [K]."""
        mine, theirs = self.student, self.teacher
        both = [(token, theirs.of_bytes[piece]) for piece, token in mine.of_bytes.items() if piece and piece in theirs.of_bytes]
        ends = [(end_of_turn(mine), end_of_turn(theirs))]
        marks = [(number, theirs.marks[written]) for written, number in mine.marks.items() if written in theirs.marks]
        made, taken = dict[int, int](), set[int]()
        for token, other in [*ends, *both, *marks]:
            if token is not None and other is not None and token not in made and other not in taken:
                made[token] = other
                taken.add(other)
        ordered = sorted(made.items())
        return torch.tensor([token for token, _ in ordered]), torch.tensor([other for _, other in ordered])

    def _tell(self, before: tuple[int, ...], completion: tuple[int, ...]) -> Told:
        """One completion after what stands before it."""
        dialogue = self._dialogues.read(before) if self._dialogues else None
        rendered = dialogue is not None
        prompt = self._rendered(dialogue) if dialogue is not None else self._plain(before)
        mine, theirs, tokens = self._both(completion, rendered)
        spans = joints(list(map(_length, mine)), list(map(_length, theirs)))
        if prompt or not tokens:
            return Told(prompt, tokens, spans, unsaid=False)
        return Told(tokens[:1], tokens[1:], spans, unsaid=True)

    def _both(self, ids: Sequence[int], rendered: bool) -> tuple[Bytes, Bytes, list[int]]:
        """A stretch of tokens as the student's pieces, the teacher's, and the teacher's tokens; what steers both is None in both."""
        mine, theirs = Bytes(), Bytes()
        tokens, begins = list[int](), True
        pieces = [self._piece(token, piece, rendered) for token, piece in zip(ids, self.student.of(ids, begins=True), strict=True)]
        for steers, run in groupby(pieces, key=lambda each: isinstance(each, int)):
            stretch = list(run)
            if sum(map(_length, mine)) > sum(map(_length, theirs)):
                mine += [None if isinstance(each, int) else each for each in stretch]  # the teacher has ended before
                continue
            if steers:
                made, found = cast(list[int], stretch), cast(Bytes, [None] * len(stretch))
                mine += found
            else:
                mine += cast(list[bytes], stretch)
                made = self.teacher.ids(b"".join(cast(list[bytes], stretch)), begins)
                found = self.teacher.of(made, begins)
            tokens, theirs, begins = tokens + made, theirs + found, False
        return mine, theirs, tokens

    def _piece(self, token: int, piece: bytes | None, rendered: bool) -> bytes | int:
        """The bytes of one of the student's tokens, or the teacher's token that steers as it does."""
        if piece is not None:
            return piece
        found = self._counterpart(token, rendered)
        return self.student.of_token[token] if found is None else found

    def _counterpart(self, token: int, rendered: bool) -> int | None:
        """The teacher's token for one of the student's that steers."""
        if token in self.student.vocabulary.end_ids:
            return self._end_of_turn if rendered else _end_of_text(self.teacher)
        return self.teacher.marks.get(self.student.written(token))

    @cached_property
    def _end_of_turn(self) -> int | None:
        return end_of_turn(self.teacher)

    @cached_property
    def _dialogues(self) -> "Dialogues | None":
        return Dialogues(self.student) if self.student.vocabulary.has_template else None

    def _rendered(self, dialogue: list[dict[str, Any]]) -> list[int]:
        theirs = self.teacher.vocabulary
        return theirs.ids(theirs.chat(dialogue, prompt=True))

    def _plain(self, before: Sequence[int]) -> list[int]:
        """A prompt as it stands, after what the teacher's tokenizer begins a text with; empty where that is nothing."""
        bos = self.student.vocabulary.tokenizer.bos_token_id
        kept = before[1:] if before and before[0] == bos else before
        mine, theirs, tokens = self._both(kept, rendered=False)
        if sum(map(_length, mine)) > sum(map(_length, theirs)):
            said = b"".join(piece or b"" for piece in mine)
            raise DataError(
                f"{self.teacher.name} has no tokens for a byte of a prompt that ends {said[-40:].decode(errors='backslashreplace')!r}; "
                "leave the row out, or give a teacher that has"
            )
        return [*self._beginning, *tokens]

    @cached_property
    def _beginning(self) -> list[int]:
        """What the teacher's tokenizer puts before a text."""
        theirs = self.teacher.vocabulary
        whole, bare = cast(list[int], theirs.tokenizer("a")["input_ids"]), theirs.ids("a")
        start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        return whole[:start]


def end_of_turn(pieces: Pieces) -> int | None:
    """What a template puts after an answer, where it steers; else the end of text."""
    known = pieces.vocabulary
    if not known.has_template:
        return _end_of_text(pieces)
    after = known.chat(PROBE)[len(known.chat(PROBE[:1], prompt=True)) :].partition(PROBE[1]["content"])[2]
    return next((token for token in known.ids(after) if token in pieces.steering), _end_of_text(pieces))


def _end_of_text(pieces: Pieces) -> int | None:
    eos = pieces.vocabulary.tokenizer.eos_token_id
    return eos if isinstance(eos, int) else None


class Dialogues:
    """What a chat template makes of a dialogue, read backwards."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces, self.vocabulary = pieces, pieces.vocabulary
        self.begins, self.ends = self._around([{"role": "user", "content": _ASKED}])
        self.instructed = self._instructed()

    def _around(self, messages: list[dict[str, Any]]) -> tuple[str, str]:
        before, found, after = self.vocabulary.chat(messages, prompt=True).partition(_ASKED)
        if not found or not after:
            raise VocabularyError(
                f"the chat template of {self.pieces.name} puts nothing after a user's message, so where it ends cannot be found; give plain prompts"
            )
        return before, after

    def _instructed(self) -> tuple[str, str] | None:
        """What stands before and after a system's message; None where the template takes none."""
        try:
            before, _ = self._around([{"role": "system", "content": _TOLD}, {"role": "user", "content": _ASKED}])
        except VocabularyError:
            return None
        first, found, after = before.partition(_TOLD)
        return (first, after) if found and after else None

    @cached_property
    def between(self) -> tuple[str, str] | None:
        """What stands between a user's message and its answer, and between that and the next message."""
        turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}, {"role": "user", "content": _AGAIN}]
        middle = self.vocabulary.chat(turns, prompt=True).partition(_ASKED)[2].partition(_AGAIN)[0]
        before, found, after = middle.partition(_SAID)
        return (before, after) if found and before and after else None

    @cached_property
    def _closing(self) -> str:
        """What ends a user's message: up to the first token that steers, where there is one. What follows may be set otherwise."""
        found = [self.ends.index(written) + len(written) for written in self.pieces.marks if written in self.ends]
        return self.ends[: min(found, default=len(self.ends))]

    def read(self, ids: Sequence[int]) -> list[dict[str, Any]] | None:
        """The messages of a prompt that this template rendered; None for any other.

        Raises DataError for one that has its turns and cannot be read back.
        """
        texts = [text for text in self.pieces.texts(ids) if self._closing in text]
        for text in texts:
            messages = self._messages(text)
            if messages is not None and self._is_of(messages, text):
                return messages
        if not texts:
            return None
        raise DataError(
            f"cannot read back the dialogue of a prompt that ends {texts[0][-80:]!r}, to render it as the teacher's template does; "
            "give rows of user, assistant and system messages, without tools and template_arguments, or plain prompts"
        )

    def _is_of(self, messages: list[dict[str, Any]], text: str) -> bool:
        """Whether these messages are rendered as this text, and nothing in them steers."""
        marks = [written for written in self.pieces.marks if any(written in each["content"] for each in messages)]
        return not marks and self.vocabulary.chat(messages, prompt=True) == text

    def _messages(self, text: str) -> list[dict[str, Any]] | None:
        """The messages of a rendering, as far as they can be told apart."""
        if not text.endswith(self.ends):
            return None
        body, messages = text.removesuffix(self.ends), list[dict[str, Any]]()
        if body.startswith(self.begins):
            body = body[len(self.begins) :]
        elif self.instructed and body.startswith(self.instructed[0]):
            told, _, body = body[len(self.instructed[0]) :].partition(self.instructed[1])
            messages = [{"role": "system", "content": told}]
        else:
            return None
        while self.between and self.between[0] in body:
            asked, _, rest = body.partition(self.between[0])
            said, found, body = rest.partition(self.between[1])
            if not found:
                return None
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return [*messages, {"role": "user", "content": body}]


_TOLD, _ASKED, _SAID, _AGAIN = "Tell it short.", "Which is first?", "That one.", "And then?"
"""Messages by which a template's own words are found."""


def _completions(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Of each stretch of completion tokens, in the order of rows: all that stands before it, and itself."""
    starts = cast(list[int], batch.starts_B.tolist())
    places, which = cast(list[int], batch.places_N.tolist()), cast(list[int], batch.sequence_N.tolist())
    tokens = [cast(list[int], each.tolist()) for each in batch.sequences()]
    found = list[tuple[list[int], list[int]]]()
    for n, (place, b) in enumerate(zip(places, which, strict=True)):
        if n and which[n - 1] == b and places[n - 1] == place - 1:
            found[-1][1].append(tokens[b][place - starts[b]])
        else:
            found.append((tokens[b][: place - starts[b]], [tokens[b][place - starts[b]]]))
    return found


def _lay(told: Told, count: int, ends: list[int], rows: list[int], pairs: list[int]) -> None:
    """Append the rows of one completion of `count` tokens: see `Pass`."""
    n, m, silent = len(ends), len(rows), int(told.unsaid)
    for place, span in enumerate(told.spans):
        mine, theirs = span.mine[1] - span.mine[0], span.theirs[1] - span.theirs[0]
        heard = not told.unsaid or place > 0
        ends += [n + span.mine[1] - 1 if heard else -1] * mine
        rows += [n + span.mine[1] - 1] * theirs if heard else [-1] * (theirs - 1)
        pairs += [m + span.theirs[0] - silent if heard and mine == theirs == 1 else -1, *[-1] * (mine - 1)]
    left = n + count - len(ends)  # what has no bytes, or stands after a byte that the teacher has no token for
    ends += [-1] * left
    pairs += [-1] * left
    rows += [-1] * (m + len(told.completion) - len(rows))
