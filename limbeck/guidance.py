"""Teachers that say more than their prompt lets a student say: by guidance, or by a hint.

Both score the tokens that were written after another prompt, and each can have any teacher inside that hears.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator

from limbeck.batch import Batch
from limbeck.blend import Steered
from limbeck.config import live, part
from limbeck.errors import DataError, RecipeError
from limbeck.insides import Layers, Opens
from limbeck.licences import Licence
from limbeck.prompts import Prompts
from limbeck.student import Student
from limbeck.targets import Dense, Targets
from limbeck.teachers import Local, Teacher

if TYPE_CHECKING:
    from limbeck.models import Model
    from limbeck.opened import OpenModel

ITSELF = "@student as it is now"
"""Whose words the student's own are."""


@part
class Itself(Teacher):
    """The student as it is now, adapters and all; nothing is learnt through it. It moves as the student does.

    Alone it teaches nothing. `Local("@student")` is the student without its adapters, which does not move.
    """

    _student: Any = live()

    @property
    def says(self) -> frozenset[str]:
        """Whole distributions, of which any can be made."""
        return frozenset({"distribution", "top k"})

    @property
    def echoes(self) -> str | None:
        """The student's."""
        return ITSELF

    @property
    def opened(self) -> "Model | None":
        """The student's model."""
        return self._student.live if self._student else None

    @property
    def described(self) -> str:
        """The student, in a word."""
        return ITSELF

    def load(self, student: Student) -> Self:
        """Of this student."""
        made = self.fresh()
        made._student = student
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the student says of each part, without a gradient."""
        for batch in parts:
            outputs = self._student.forward(batch)
            yield Dense(outputs.hidden_ND, outputs.head, ITSELF)


def _by_name(value: object) -> object:
    """A model's name alone stands for it; "@student" is the student as it is now."""
    if not isinstance(value, str) or "(" in value or value in Teacher.known():
        return value
    return Itself() if value == "@student" else Local(value)


Scorer = Annotated[Teacher, BeforeValidator(_by_name)]
"""A teacher, or a model's name."""


class _Around(Teacher):
    """Base of those who ask another teacher about the same completions after another prompt."""

    @property
    def _inner(self) -> Teacher:
        raise NotImplementedError

    @property
    def opened(self) -> "OpenModel | None":
        """That of the teacher inside."""
        return self._inner.opened

    @property
    def licences(self) -> list[Licence]:
        """Those of the teacher inside."""
        return self._inner.licences

    def _check(self, needs: str | None) -> None:
        """See that the teacher inside can be asked about another text, and says enough. Raises RecipeError."""
        what, who = type(self).__name__, type(self._inner).__name__
        if not self._inner.hears:
            raise RecipeError(f"{what} asks about other prompts, and {who} knows only text that it was shown before; give Local(model)")
        if not (self._inner.says if needs is None else {needs} & self._inner.says):
            said = " or ".join(sorted(self._inner.says)) or "nothing"
            raise RecipeError(f"{what} needs a teacher that says {needs or 'something'}, and {who} says {said}; give Local(model)")

    def _about(self, batch: Batch, prompts: list[list[int]]) -> Targets:
        """What the teacher inside says of the same completions after these prompts. Raises DataError where they leave no room."""
        made, inner = batch.with_prompts(prompts), self._inner.opened
        if inner is not None and len(made) and (longest := int(made.lengths_B.max())) > inner.context:
            raise DataError(
                f"with the prompt that {type(self).__name__} gives it a row has {longest:,} tokens, and the context of {inner.name} is "
                f"{inner.context:,}; give shorter text, or lower max_tokens"
            )
        return self._inner.about(made)


@part
class Guided(_Around):
    """Classifier-free guidance as a teacher: a student that learns from it needs one pass where guidance needs two.

    `log p ∝ log p(y|x,c) + (scale - 1) [log p(y|x,c) - log p(y|x)]`, renormalised (arXiv 2306.17806; scale as
    transformers' `guidance_scale`; 1 is the teacher itself). A temperature softens the guided distribution.

    teacher: a model's name, or any teacher that says whole distributions of any text. negative: the prompt in place of the
    row's own, rendered as a user's message where that was; null leaves the last token of the row's own, as transformers
    does. In a dialogue all before the first completion is replaced; later turns stay.
    """

    teacher: Scorer
    scale: float
    negative: str | None = None

    _prompts: Any = live()

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise RecipeError(f"Guided.scale must be finite, found {self.scale}; 1 is no guidance, 1.5 is usual")
        self._check("distribution")

    @property
    def _inner(self) -> Teacher:
        return self.teacher

    @property
    def says(self) -> frozenset[str]:
        """Whole distributions."""
        return frozenset({"distribution"})

    @property
    def needs_rows(self) -> bool:
        """Text of our own has no prompt to be left out."""
        return True

    @property
    def echoes(self) -> str | None:
        """The teacher's where there is no guidance."""
        return self.teacher.echoes if self.scale == 1 else None

    @property
    def described(self) -> dict[str, Any]:
        """The teacher, and how it is guided."""
        return {f"guided by {self.scale:g}": self.teacher.described}

    def load(self, student: Student) -> Self:
        """The teacher alive."""
        made = replace(self, teacher=self.teacher.load(student))
        made._prompts = Prompts(student.live.vocabulary)
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the teacher says of each part, guided: it is asked twice."""
        for batch in parts:
            said = self.teacher.about(batch)
            without = self._about(batch, [self._without(prompt) for prompt in batch.prompts()])
            yield Steered(said, without, self.scale, f"{said.fingerprint} guided by {self.scale:g}")

    def _without(self, prompt: list[int]) -> list[int]:
        return prompt[-1:] if self.negative is None else self._prompts.asking(prompt, self.negative)


@part
class Privileged(Opens, _Around):
    """A teacher that reads each prompt with a hint, and scores the same completions: what it says with it is learnt without.

    Of the student's own weights this is context distillation (Snell et al. 2022, arXiv 2209.15189), on its own text on-policy
    self-distillation (arXiv 2601.18734). Departs from the first: 1) the student matches whole distributions of each token;
    2) with "@student" the teacher moves as the student does, where there it is the model before: name that, or Local("@student").

    model: "@student" (the student as it is now), a model's name, or any teacher that hears. hint: text with {column} in the
    places to be filled from the row. place: at the end of the user's message or at its beginning; the hint brings its own
    blanks. In a dialogue it stands in the last message before the first completion.
    """

    model: Scorer
    hint: str
    place: Literal["after", "before"] = "after"

    _prompts: Any = live()

    def __post_init__(self) -> None:
        if not self.hint.strip():
            raise RecipeError(f"a hint of {self.hint!r} says nothing; give a text, such as hint: 'The answer is {{answer}}.'")
        _columns_in(self.hint)
        self._check(None)

    @property
    def _inner(self) -> Teacher:
        return self.model

    @property
    def says(self) -> frozenset[str]:
        """What the teacher inside says of single tokens; it attends to another text."""
        return self.model.says - {"attentions"}

    def lay_open(self, layers: Layers) -> None:
        """Those of the teacher inside."""
        assert isinstance(self.model, Opens), "states that nobody says; the recipe should have been refused"
        self.model.lay_open(layers)

    @property
    def needs_rows(self) -> bool:
        """Text of our own has no columns."""
        return bool(_columns_in(self.hint)) or self.model.needs_rows

    @property
    def temperature_kept(self) -> float | None:
        """That of the teacher inside."""
        return self.model.temperature_kept

    @property
    def described(self) -> dict[str, Any]:
        """The teacher, and its hint."""
        return {f"with the hint {self.hint!r}": self.model.described}

    def load(self, student: Student) -> Self:
        """The teacher alive."""
        made = replace(self, model=self.model.load(student))
        made._prompts = Prompts(student.live.vocabulary)
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What it says with the hint about each part. Raises DataError for a row without a column that the hint asks for."""
        for batch in parts:
            rows = zip(batch.prompts(), batch.columns_B, strict=True)
            yield self._about(batch, [self._prompts.hinted(prompt, self._filled(columns), self.place == "before") for prompt, columns in rows])

    def _filled(self, columns: dict[str, Any]) -> str:
        there = {name: value for name, value in columns.items() if value is not None}
        if missing := [name for name in _columns_in(self.hint) if name not in there]:
            found = ", ".join(there) or "none"
            raise DataError(f"the hint asks for the column {missing[0]!r}, and a row has {found}; give each row one, or mend the hint")
        return self.hint.format_map(there)


def _columns_in(hint: str) -> list[str]:
    """The columns that a hint has places for. Raises RecipeError for a hint that cannot be filled."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(hint) if name is not None]
    except ValueError as error:
        raise RecipeError(f"cannot fill the hint {hint!r}: {error}; write {{{{ and }}}} for braces that are none of its places") from None
    if wrong := [name for name in names if not name.isidentifier()]:
        raise RecipeError(f"the place {{{wrong[0]}}} of the hint names no column; write {{answer}}, and {{{{ and }}}} for other braces")
    return names
