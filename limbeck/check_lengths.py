"""How long the text of a recipe is beside what its models read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from limbeck.aligned import Aligned
from limbeck.anatomy import Anatomy
from limbeck.batch import Text
from limbeck.check_lines import Line, below, counted, data_key
from limbeck.data import Data, Row, told_columns
from limbeck.errors import DataError, LimbeckError
from limbeck.estimate import Load
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus

if TYPE_CHECKING:
    from limbeck.vocabulary import Vocabulary

ROWS = 1000
"""Of each data set, how many are made tokens of."""


@dataclass
class Lengths:
    """The lengths of every data set that a source draws from. On the way: a text for the self-test, and what the longest is."""

    recipe: Recipe
    models: Mapping[str, Anatomy]
    rows: Mapping[Any, Sequence[Row]]
    vocabulary: "Vocabulary"
    texts: list[Text] = field(default_factory=list[Text])
    load: Load = field(default_factory=Load)

    def all(self) -> Iterator[tuple[Data, Iterator[Line]]]:
        """Each data set, and what is to be said of it."""
        for source in below(self.recipe):
            if isinstance(source, Corpus):
                found = [(data, self.corpus(data, source)) for data in source.data]
            else:
                found = [(data, self.prompts(data, source)) for data in source.prompts] if isinstance(source, OnPolicy) else []
            yield from ((data, lines) for data, lines in found if data_key(data) in self.rows)

    def corpus(self, data: Data, source: Corpus) -> Iterator[Line]:
        """Whole sequences: what is cut, what is left out, what no model can read."""
        rows = list(islice(self.rows[data_key(data)], ROWS))
        room, theirs = self.rooms()
        limit, whose = min((source.max_tokens, "max_tokens"), (room, "the student's context"))
        sizes = [len(text.tokens) for n, row in enumerate(rows, 1) for text in _made(self.vocabulary.texts, n, row, data, 10**9)]
        used = [self.vocabulary.texts(row, data, limit) for row in rows]
        kept = [text for texts in used for text in texts]
        if not kept:
            raise DataError(f"{data.path}: none of {len(rows):,} rows has a completion token within the {limit:,} tokens of {whose}; "
                            "raise max_tokens, or give shorter prompts with completions")  # fmt: skip
        tell = partial(counted, f"lengths of {data.path}")
        yield Line(f"lengths of {data.path}", f"{len(sizes):,} sequences, median {median(sizes):,.0f} tokens, longest {max(sizes):,}")
        left_out = sum(not texts for texts in used)
        yield from tell(left_out, len(rows), f"rows have no completion token within the {limit:,} tokens of {whose} and are left out")
        cut = "into pieces" if len(kept) > len(sizes) else "there"
        yield from tell(
            sum(size > limit for size in sizes), len(sizes), f"sequences are longer than the {limit:,} tokens of {whose} and are cut {cut}"
        )
        beyond = sum(len(text.tokens) > theirs for text in kept)
        past = f"sequences are longer than the {theirs:,} tokens of the teacher's context; lower source.max_tokens to {theirs:,}"
        yield from tell(beyond, len(kept), past, "problem")
        self.texts += kept[:1]
        self.load = replace(self.load, longest_tokens=max(self.load.longest_tokens, *(len(text.tokens) for text in kept)))

    def prompts(self, data: Data, source: OnPolicy) -> Iterator[Line]:
        """Prompts: what is left out, and whether there is room for answers."""
        rows, new = list(islice(self.rows[data_key(data)], ROWS)), source.sampling.max_tokens
        sizes = [len(_made(self.vocabulary.prompt, n, row, data)) for n, row in enumerate(rows, 1)]
        room, theirs = self.rooms()
        limit, whose = min((source.max_prompt, "max_prompt"), (room - 1, "the student's context, with one left for an answer,"))
        kept = [size for size in sizes if size <= limit]
        if not kept:
            raise DataError(f"{data.path}: none of {len(rows):,} prompts is within the {limit:,} tokens of {whose.partition(',')[0]}; "
                            "raise max_prompt, or give shorter prompts")  # fmt: skip
        tell = partial(counted, f"lengths of {data.path}")
        middle, longest = median(sizes), max(sizes)
        yield Line(f"lengths of {data.path}", f"{len(sizes):,} prompts, median {middle:,.0f} tokens, longest {longest:,}; answers of up to {new:,}")
        yield from tell(len(sizes) - len(kept), len(sizes), f"prompts are longer than the {limit:,} tokens of {whose} and are left out")
        short_of = f"leave no room for {new:,} new tokens in the {room:,} of the student's context: their answers end there"
        yield from tell(sum(size + new > room for size in kept), len(kept), f"prompts {short_of}")
        beyond = sum(min(size + new, room) > theirs for size in kept)
        past = f"prompts and their answers may pass the {theirs:,} tokens of the teacher's context; lower max_prompt or sampling.max_tokens"
        yield from tell(beyond, len(kept), past, "problem")
        whole = max(self.load.longest_tokens, min(max(kept) + new, room))
        self.load = replace(self.load, longest_tokens=whole, prompt_tokens=max(kept))
        first = rows[sizes.index(kept[0])]  # as a row that is answered: a teacher may ask for its columns
        self.texts = self.texts or [Text.answered(self.vocabulary.prompt(first, data), self.vocabulary.ids("yes"), told_columns(first))]

    def rooms(self) -> list[int]:
        """The contexts of student and teacher; without an end where their files name none."""
        own = ("student",) if isinstance(self.recipe.teacher, Aligned) else ("student", "teacher")  # whose tokens are counted
        return [(self.models[who].context if who in self.models and who in own else None) or 10**9 for who in ("student", "teacher")]


def _made(make: Callable[..., Any], number: int, *given: Any) -> Any:
    """What is made of a row; a refusal says of which."""
    try:
        return make(*given)
    except LimbeckError as error:
        raise DataError(f"{error} (row {number:,})") from None
