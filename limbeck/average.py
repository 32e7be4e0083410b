"""A teacher that is the student as it was on average."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from limbeck.batch import Batch
from limbeck.config import live, part
from limbeck.errors import RecipeError
from limbeck.lazy import torch
from limbeck.student import Student
from limbeck.targets import Dense, Targets
from limbeck.teachers import Teacher

if TYPE_CHECKING:
    from limbeck.opened import OpenModel

AVERAGE = "@student on average"
"""Whose words those of an average are."""


@part
class Average(Teacher):
    """The moving average of the student's weights (mean teacher, Tarvainen & Valpola 2017, arXiv 1703.01780).

    After each step `average = decay * average + (1 - decay) * weight`; it begins as the student, and is saved and restored with it.
    decay: about `1 / (1 - decay)` steps are remembered. Beside `CrossEntropy()`, or another term that moves the student, it is the
    mean teacher; with a hint, `Privileged(Average(), hint)`, a teacher of its own; alone it would never move, and is refused.
    Departs: 1) no noise, as dropout is off; 2) one decay from the first step to the last. It takes a copy of the weights that move.
    """

    decay: float = 0.999

    _shadow: Any = live()

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise RecipeError(f"Average.decay must lie between 0 and 1, found {self.decay}; 0.999 is usual, and 0 would be Itself()")

    @property
    def says(self) -> frozenset[str]:
        """Whole distributions, of which any can be made."""
        return frozenset({"distribution", "top k"})

    @property
    def echoes(self) -> str:
        """The average's own."""
        return AVERAGE

    @property
    def opened(self) -> "OpenModel | None":
        """The averaged model."""
        return self._shadow.model if self._shadow else None

    @property
    def described(self) -> str:
        """The average, in a few words."""
        return f"{AVERAGE}, decay {self.decay:g}"

    def load(self, student: Student) -> Self:
        """Of this student, from now on."""
        made = self.fresh()
        made._shadow = student.shadow(self.decay)
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the average says of each part."""
        for batch in parts:
            with torch.no_grad():
                outputs = self._shadow.model.forward(batch)
            yield Dense(outputs.hidden_ND, outputs.head, AVERAGE)
