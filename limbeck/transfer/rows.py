"""What is measured on: rows of held-out data, as prompts to answer and as completions to read."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from limbeck.batch import Text
from limbeck.data import Data, Pool, Row, asked_of, told_columns
from limbeck.errors import DataError, RecipeError
from limbeck.vocabulary import Vocabulary


@dataclass(frozen=True)
class Asked:
    """What to measure on. rows: of the data, in its order. each: answers to a prompt. max_tokens: of an answer. context: of a sequence."""

    data: str
    rows: int = 64
    each: int = 1
    max_tokens: int = 64
    context: int = 1024
    tokens_per_pass: int = 2048
    template: Literal["auto", "chat", "plain"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.each, self.max_tokens, self.tokens_per_pass) < 1 or self.context < 2:
            raise RecipeError("rows, each, max_tokens and tokens_per_pass must be at least 1, and context 2")


@dataclass
class Rows:
    """The rows that are measured: prompts in tokens, in words, their columns, and the completions that the data has."""

    prompts: list[list[int]] = field(default_factory=list[list[int]])
    asked: list[str] = field(default_factory=list[str])
    columns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    given: list[Text] = field(default_factory=list[Text])
    missing: list[str] = field(default_factory=list[str])


def taken_rows(asked: Asked) -> list[tuple[Data, Row]]:
    """The rows themselves, as many as are asked for and there, each with the data that it is of."""
    pool = Pool([Data(asked.data, template=asked.template)], seed=0, shuffle=False)
    return pool.take(0, asked.rows if pool.streamed else min(asked.rows, len(pool)))


def rows_of(asked: Asked, vocabulary: Vocabulary, context: int) -> Rows:
    """Read the data, as a model of this context meets it. Raises DataError where no row can be measured on."""
    taken, found = taken_rows(asked), Rows()
    longest = min(asked.context, context)
    bare, writes = 0, vocabulary.outcomes == "tokens"
    for place, (data, row) in enumerate(taken):
        columns = {**told_columns(row), "row": place}
        try:
            found.given += [replace(text, columns={**text.columns, **columns}) for text in vocabulary.texts(row, data, longest)]
        except DataError:
            bare += 1
        if writes and "text" not in row and len(ids := vocabulary.prompt(row, data)) < longest:
            found.prompts.append(ids)
            found.asked.append(asked_of(row))
            found.columns.append(columns)
    if bare:
        found.missing.append(f"{bare} of {len(taken)} rows have no completion, so that nothing is measured on the data's own text there")
    if not found.prompts:
        found.missing.append("no row has a prompt, so that nobody writes: figures are of the data's own text alone")
    if not found.prompts and not found.given:
        raise DataError(f"{asked.data}: no row has a prompt or a completion within {longest} tokens; give others, or raise context")
    return found
