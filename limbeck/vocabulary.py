"""From rows of text to tokens and back, and the proof that two models mean the same by the same token.

A dialogue becomes one sequence with a span for every assistant turn; the end-of-turn token belongs to its completion.
Where a template rewrites earlier turns (reasoning that is dropped, say), each turn becomes a sequence of its own, as
the model will meet it in service. Every segment is tokenised alone, so that a prompt has the same tokens in training
as when it is answered.
"""

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from difflib import unified_diff
from functools import cached_property
from typing import Any, cast

from limbeck.batch import Span, Text
from limbeck.data import Data, Row, messages_of, other_columns
from limbeck.errors import DataError, VocabularyError

PROBE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "Four."}]
PROBE_TEXT = "Ünïcode, naïve 東京 😀\n\tdef f(x): return x**2  # 3.14159 and 1,000,000"


class Vocabulary:
    """A transformers tokenizer with its chat template and its end tokens."""

    outcomes = "tokens"
    """What its numbers stand for."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int] = frozenset()) -> None:
        self.tokenizer = tokenizer
        self._given_end_ids = end_ids

    @cached_property
    def map(self) -> dict[str, int]:
        """Every token and its number."""
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def size(self) -> int:
        """Outcomes a model can be asked about: rows of a head beyond this are padding."""
        return max(self.map.values()) + 1

    @property
    def template(self) -> str | None:
        """How dialogues are rendered."""
        return self.tokenizer.chat_template

    @property
    def has_template(self) -> bool:
        """Whether prompts can be rendered as a chat."""
        return bool(self.template)

    def is_chat(self, template: str) -> bool:
        """Whether prompts are rendered as a chat, by a data set's `template`: "auto" where there is one to render by."""
        return template == "chat" or (template == "auto" and self.has_template)

    def prove_equal(self, theirs: "Vocabulary") -> None:
        """See that a teacher with this vocabulary means the same as a student with ours. Raises VocabularyError."""
        if self.outcomes != theirs.outcomes:
            raise VocabularyError(f"the student tells {self.size:,} {self.outcomes} apart and the teacher {theirs.size:,} {theirs.outcomes}; "
                                  "give two models of one kind")  # fmt: skip
        self._prove_same(theirs)

    def _prove_same(self, theirs: "Vocabulary") -> None:
        prove_equal(self, theirs)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the model's own, the tokenizer's, and what the template puts after an answer."""
        eos = self.tokenizer.eos_token_id
        ids = set(self._given_end_ids) | ({eos} if isinstance(eos, int) else set[int]())
        if self.has_template:
            after = self.chat(PROBE)[len(self.chat(PROBE[:1], prompt=True)) :].partition(PROBE[1]["content"])[2]
            specials = set(self.tokenizer.all_special_ids) | {int(i) for i in self.tokenizer.added_tokens_decoder}
            ids |= set([token for token in self.ids(after) if token in specials][:1])
        return frozenset(ids)

    @cached_property
    def fingerprint(self) -> str:
        """A name for this map and template, the same wherever they are the same."""
        return _hash([sorted(self.map.items()), self.tokenizer.chat_template, sorted(self.end_ids)])

    @property
    def traits(self) -> dict[str, Any]:
        """What another must have in common to mean the same: what `prove_equal` compares, in a few words and numbers."""
        rendered = self.chat(PROBE) if self.has_template else None
        return {
            "tokens": self.size,
            "map": _hash(sorted(self.map.items())),
            "cut": _hash(self.ids(PROBE_TEXT)),
            "rendered": rendered,
            "template": self.tokenizer.chat_template if self.has_template else None,
            "end_ids": sorted(self.end_ids),
        }

    def with_template(self, template: str | None, end_ids: frozenset[int]) -> "Vocabulary":
        """The same tokens, dialogues rendered by another template, ended by its end tokens too."""
        made = Vocabulary(self.tokenizer, self.end_ids | end_ids)
        made.tokenizer.chat_template = template
        return made

    def ids(self, text: str) -> list[int]:
        """Tokens of a piece of text, with nothing put before or after it."""
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: list[int]) -> str:
        """The text of tokens, without those that only steer."""
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True))

    def chat(self, messages: list[dict[str, Any]], prompt: bool = False, **arguments: Any) -> str:
        """Render a dialogue; with `prompt`, up to where the answer begins. Raises VocabularyError where the template will not."""
        if not self.has_template:
            raise VocabularyError("the rows are dialogues, and this tokenizer has no chat template; give a model that has one")
        try:
            return cast(str, self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **arguments))
        except Exception as error:  # jinja raises its own kinds, and templates raise at will
            raise VocabularyError(f"the chat template refuses a dialogue: {' '.join(str(error).split())[:200]}") from None

    def prompt(self, row: Row, data: Data) -> list[int]:
        """The tokens before an answer: of a dialogue, up to the last turn that is the model's to write."""
        with _naming(data):
            return self._prompt(_present(row), data)

    def _prompt(self, row: Row, data: Data) -> list[int]:
        if "prompt_ids" in row:
            return _nonempty(self._tokens(row, "prompt_ids"))
        messages = self._messages({name: value for name, value in row.items() if name != "completion"}, data)
        if messages is None and "prompt" not in row:
            raise DataError(f"{data.path}: a prompt was asked for, found columns {', '.join(row)}; give prompt or messages")
        if messages is None:
            return _nonempty(self._start(_string(row, "prompt")))
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            raise DataError("a dialogue without a turn before the answer; give it one, of a user's")
        return self.ids(self.chat(messages, prompt=True, **self._arguments(row, data)))

    def continued(self, messages: list[dict[str, Any]], reply: list[dict[str, Any]], data: Data) -> list[int]:
        """The tokens that follow the end of the last turn, up to where the next answer begins, once others have replied.

        The turn itself keeps the tokens it was written in. Raises VocabularyError where the template rewrites what was said.
        """
        with _naming(data):
            before = self.chat(messages[:-1], prompt=True, **data.template_arguments)
            after = self.chat(messages, **data.template_arguments)
            whole = self.chat([*messages, *reply], prompt=True, **data.template_arguments)
            if not after.startswith(before) or not whole.startswith(after):
                where = _first_difference(after, whole) if after.startswith(before) else _first_difference(before, after)
                raise VocabularyError(f"the chat template rewrites a dialogue that goes on ({where}); give one that only appends")
            turn = self.ids(after[len(before) :])
            ends = [place for place, token in enumerate(turn) if token in self.end_ids]
            return [*turn[ends[-1] + 1 if ends else len(turn) :], *self.ids(whole[len(after) :])]

    def texts(self, row: Row, data: Data, max_tokens: int) -> list[Text]:
        """The sequences of a row, with their completion spans, each at most `max_tokens` long; empty where no completion fits."""
        row = _present(row)
        with _naming(data):
            texts = self._whole(row, data)
        if "text" in row and not any(name in row for name in ("messages", "conversations", "prompt", "prompt_ids")):
            texts = [window for text in texts for window in _windows(text, max_tokens)]
        return [cut for text in texts if (cut := _cut(text, max_tokens)).spans]

    def _whole(self, row: Row, data: Data) -> list[Text]:
        columns = other_columns(row)
        if "prompt_ids" in row:
            return [self._answered(row, data, columns)]
        if "prompt" in row and not row.keys() & {"completion", "messages", "conversations"}:
            raise DataError(f"{data.path}: a prompt without a completion; add the column, or let a model write with OnPolicy(...)")
        messages = self._messages(row, data)
        if messages is not None:
            return self._dialogue(messages, self._arguments(row, data), columns)
        if "prompt" in row:
            answer = [*self.ids(_string(row, "completion")), *self._eos()]
            return [Text.answered(_nonempty(self._start(_string(row, "prompt"))), answer, columns)]
        if "text" not in row:
            raise DataError(f"{data.path}: a row has columns {', '.join(row)}; rows need text, prompt, messages or prompt_ids")
        ids = [*self._start(_string(row, "text")), *self._eos()]
        return [Text(ids, [Span(1, len(ids))], columns)] if len(ids) > 1 else []

    def _answered(self, row: Row, data: Data, columns: dict[str, Any]) -> Text:
        """A row that says its tokens itself."""
        if "completion_ids" not in row:
            raise DataError(f"{data.path}: prompt_ids without completion_ids; add the column, or let a model write with OnPolicy(...)")
        prompt, answer = (self._tokens(row, column) for column in ("prompt_ids", "completion_ids"))
        logp = _listed(row, "completion_logp", int | float) if "completion_logp" in row else None
        if logp is not None and len(logp) != len(answer):
            raise DataError(f"completion_logp has {len(logp)} numbers for {len(answer)} completion_ids; give one for each")
        return Text.answered(_nonempty(prompt), answer, columns, logp)

    def _tokens(self, row: Row, column: str) -> list[int]:
        ids = _listed(row, column, int)
        if unknown := [token for token in ids if not 0 <= token < self.size]:
            raise DataError(f"{column} holds {unknown[0]}, and the vocabulary has {self.size:,} tokens, 0 to {self.size - 1}; "
                            "take them from this model's tokenizer")  # fmt: skip
        return ids

    def _messages(self, row: Row, data: Data) -> list[dict[str, Any]] | None:
        """The row as a dialogue, where it is one or is to be rendered as one."""
        messages = messages_of(row)
        if messages is not None or "prompt" not in row or "prompt_ids" in row:
            return messages
        if not self.is_chat(data.template):
            return None
        answer = [{"role": "assistant", "content": _string(row, "completion")}] if "completion" in row else []
        return [{"role": "user", "content": _string(row, "prompt")}, *answer]

    def _arguments(self, row: Row, data: Data) -> dict[str, Any]:
        tools = row.get("tools")
        try:
            tools = json.loads(tools) if isinstance(tools, str) else tools
        except json.JSONDecodeError as error:
            raise DataError(f"{data.path}: tools is a string and no JSON ({error.msg}); give a list, or one written as JSON") from None
        return {**({"tools": tools} if tools else {}), **data.template_arguments}

    def _start(self, text: str) -> list[int]:
        """Tokens of a plain prompt as the model is used to begin: with its first token, without its last."""
        ids = cast(list[int], self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(str(self.tokenizer.eos_token)) else ids

    def _eos(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return [eos] if isinstance(eos, int) else []

    def _dialogue(self, messages: list[dict[str, Any]], arguments: dict[str, Any], columns: dict[str, Any]) -> list[Text]:
        turns = [n for n, message in enumerate(messages) if message["role"] == "assistant" and n > 0]  # a greeting answers nothing
        if not turns:
            raise DataError(
                "a dialogue without an assistant turn after another's has no completion; add one, or let a model write with OnPolicy(...)"
            )
        pairs = [(self.chat(messages[:n], prompt=True, **arguments), self.chat(messages[: n + 1], **arguments)) for n in turns]
        whole = pairs[-1][1]
        if all(whole.startswith(after) and after.startswith(before) for before, after in pairs):
            return [self._spans(pairs, columns)]
        for before, after in pairs:
            if not after.startswith(before):
                raise VocabularyError(f"the chat template puts an answer where its own prompt does not lead: {_first_difference(before, after)}")
        return [self._spans([pair], columns) for pair in pairs]

    def _spans(self, pairs: list[tuple[str, str]], columns: dict[str, Any]) -> Text:
        """One sequence from nested (up to the answer, with the answer) renderings."""
        tokens, spans, done = list[int](), list[Span](), 0
        for before, after in pairs:
            tokens += self.ids(before[done:])
            answer = self.ids(after[len(before) :])
            ends = [place for place, token in enumerate(answer) if token in self.end_ids]
            spans.append(Span(len(_nonempty(tokens)), len(tokens) + (ends[-1] + 1 if ends else len(answer))))
            tokens, done = tokens + answer, len(after)
        return Text(tokens[: spans[-1].stop], spans, columns)


def _present(row: Row) -> Row:
    """The columns that hold something: files with a fixed set of columns say null where a row has none."""
    return {name: value for name, value in row.items() if value is not None}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _string(row: Row, column: str) -> str:
    if isinstance(row[column], list | dict):
        raise DataError(f"{column} must be text, found {type(row[column]).__name__}; put dialogues into messages")
    return str(row[column])


def _nonempty(ids: list[int]) -> list[int]:
    if not ids:
        raise DataError("a prompt without a token: nothing predicts the first token of its answer; give it some text")
    return ids


def _listed(row: Row, column: str, kind: Any) -> list[Any]:
    """A column that holds a list of numbers, or an array of them."""
    given: Any = row[column].tolist() if hasattr(row[column], "tolist") else row[column]
    if not isinstance(given, list | tuple) or not all(isinstance(item, kind) for item in cast(list[Any], given)):
        raise DataError(f"{column} must be a list of {'whole ' * (kind is int)}numbers, found {str(cast(Any, given))[:80]!r}")
    return list(cast(list[Any], given))


@contextmanager
def _naming(data: Data) -> Generator[None]:
    """Say which data set it is in which something is wrong."""
    try:
        yield
    except (DataError, VocabularyError) as error:
        raise type(error)(str(error) if data.path in str(error) else f"{data.path}: {error}") from None


def _cut(text: Text, max_tokens: int) -> Text:
    """The first `max_tokens` of a sequence and what spans remain in it."""
    spans = [Span(span.start, min(span.stop, max_tokens)) for span in text.spans if span.start < min(span.stop, max_tokens)]
    count = sum(span.stop - span.start for span in spans)
    return Text(text.tokens[:max_tokens], spans, text.columns, None if text.logp is None else text.logp[:count])


def _windows(text: Text, max_tokens: int) -> list[Text]:
    """A long text as sequences that share one token, so that each token is predicted once."""
    pieces = [text.tokens[start : start + max_tokens] for start in range(0, len(text.tokens) - 1, max(1, max_tokens - 1))]
    return [Text(piece, [Span(1, len(piece))], text.columns) for piece in pieces]


def _first_difference(a: str, b: str) -> str:
    place = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{a[max(0, place - 20) : place + 20]!r} against {b[max(0, place - 20) : place + 20]!r}"


def prove_equal(student: Vocabulary, teacher: Vocabulary) -> None:
    """See that row n of one model's distribution means the same token as the other's.

    Compares the whole maps, the tokens of an awkward text and the rendering of a dialogue; never `vocab_size`.
    Raises VocabularyError with what differs and what can be done.
    """
    if student.map != teacher.map:
        raise VocabularyError(_map_difference(student.map, teacher.map))
    if student.ids(PROBE_TEXT) != teacher.ids(PROBE_TEXT):
        raise VocabularyError("the tokenizers know the same tokens and cut text differently; use the teacher's tokenizer for the student")
    if student.has_template and teacher.has_template and student.chat(PROBE) != teacher.chat(PROBE):
        lines = unified_diff(student.chat(PROBE).split("\n"), teacher.chat(PROBE).split("\n"), "student", "teacher", lineterm="", n=0)
        shown = " | ".join(list(lines)[2:8])
        raise VocabularyError(f"the chat templates differ: {shown}; to render by the teacher's, set student.chat_template=teacher")


def prove_traits(student: Vocabulary, traits: Mapping[str, Any]) -> None:
    """The same of a teacher of whom only `traits` are known. Raises VocabularyError with what differs."""
    mine = student.traits
    if mine["map"] != traits["map"]:
        raise VocabularyError(
            f"the vocabularies of student ({mine['tokens']:,} tokens) and teacher ({traits['tokens']:,}) differ, and stored scores are of "
            "the teacher's tokens; choose a student of the teacher's family"
        )
    if mine["cut"] != traits["cut"]:
        raise VocabularyError("the tokenizers know the same tokens and cut text differently; use the teacher's tokenizer for the student")
    if mine["rendered"] and traits["rendered"] and mine["rendered"] != traits["rendered"]:
        where = _first_difference(mine["rendered"], traits["rendered"])
        raise VocabularyError(f"the chat templates differ: {where}; to render by the teacher's, set student.chat_template=teacher")


def _map_difference(a: dict[str, int], b: dict[str, int]) -> str:
    differing = [token for token in sorted(a.keys() | b.keys(), key=str) if a.get(token) != b.get(token)]
    shown = ", ".join(f"{token!r} is {a.get(token, 'absent')} / {b.get(token, 'absent')}" for token in differing[:4])
    return (
        f"the vocabularies of student and teacher differ in {len(differing):,} of {len(a.keys() | b.keys()):,} tokens ({shown}); "
        "a divergence would compare different tokens; choose a student of the teacher's family, learn across with Aligned(teacher) and "
        "SpanLikelihood(), or train on the teacher's text with CrossEntropy()"
    )
