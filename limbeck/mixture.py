"""Several teachers as one."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, Self

from limbeck.batch import Batch
from limbeck.blend import Blend, Routed
from limbeck.config import part
from limbeck.errors import RecipeError, did_you_mean
from limbeck.insides import INSIDE
from limbeck.lazy import torch
from limbeck.student import Student
from limbeck.targets import Targets
from limbeck.teachers import Teacher


@part
class Mixture(Teacher):
    """Several teachers as one: the mean of their probabilities, or, with `by`, to each row a teacher of its own.

    teachers: by name. by: the column of the data that names a row's teacher. weights: of the mean, by name; equal where
    none are given. The mean is a distribution of its own: a temperature softens it, not its parts.
    """

    teachers: dict[str, Teacher]
    by: str | None = None
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        names = ", ".join(self.teachers)
        if not self.teachers:
            raise RecipeError("a mixture needs teachers; name them: Mixture({math: Local(model), code: Cached(folder)})")
        if self.by and self.weights:
            raise RecipeError("a mixture by a column has no weights: each row has one teacher; leave out by, or weights")
        if self.weights is not None and (self.weights.keys() != self.teachers.keys() or not all(0 < w < math.inf for w in self.weights.values())):
            raise RecipeError(f"a mixture needs a weight above 0 for each of {names}, found {self.weights}")
        if not self.says:
            said = "; ".join(f"{name} says {' or '.join(sorted(each.says - INSIDE)) or 'nothing'}" for name, each in self.teachers.items())
            raise RecipeError(f"the teachers of a mixture have nothing in common that can be joined ({said}); keep the same of each")
        if len({each.temperature_kept for each in self.teachers.values()} - {None}) > 1:
            raise RecipeError(f"the teachers {names} of a mixture were kept at several temperatures; annotate at one")

    @property
    def says(self) -> frozenset[str]:
        """What all of them say, and what can be joined: truncated distributions have no mean."""
        common = frozenset.intersection(*(each.says for each in self.teachers.values()))
        return common - INSIDE - {"spans", "pairs"} - (frozenset() if self.by else {"top k"})

    @property
    def hears(self) -> bool:
        """What all of them hear."""
        return all(each.hears for each in self.teachers.values())

    @property
    def needs_rows(self) -> bool:
        """Text of our own has no column."""
        return bool(self.by) or any(each.needs_rows for each in self.teachers.values())

    @property
    def temperature_kept(self) -> float | None:
        """That of whoever has one."""
        return next((each.temperature_kept for each in self.teachers.values() if each.temperature_kept is not None), None)

    @property
    def described(self) -> dict[str, Any]:
        """Each of them."""
        return {name: each.described for name, each in self.teachers.items()}

    def load(self, student: Student) -> Self:
        """All of them alive."""
        return dataclasses.replace(self, teachers={name: each.load(student) for name, each in self.teachers.items()})

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What they say together about each part."""
        return map(self._routed if self.by else self._mean, parts)

    def _mean(self, batch: Batch) -> Targets:
        weights = self.weights or dict.fromkeys(self.teachers, 1.0)
        shares = [weights[name] / sum(weights.values()) for name in self.teachers]
        return Blend([each.about(batch) for each in self.teachers.values()], shares, type(self).__name__)

    def _routed(self, batch: Batch) -> Targets:
        """Every teacher is asked, if only about nothing: the ranks meet in what they share."""
        names = list(self.teachers)
        which_B = torch.tensor([self._route(columns, names) for columns in batch.columns_B], dtype=torch.int64)
        said = [self.teachers[name].about(batch.select((which_B == n).nonzero().flatten().tolist())) for n, name in enumerate(names)]
        which_N = which_B[batch.sequence_N]
        place_N = torch.stack([(which_N == n).cumsum(0) - 1 for n in range(len(names))]).gather(0, which_N[None])[0]
        return Routed(said, which_N, place_N, type(self).__name__)

    def _route(self, columns: dict[str, Any], names: list[str]) -> int:
        named = columns.get(self.by or "")
        if named not in names:
            found = "no such column" if self.by not in columns else f"{named!r}{did_you_mean(str(named), names)}"
            raise RecipeError(f'a row is to be taught by its column "{self.by}", and has {found}; teachers: {", ".join(names)}')
        return names.index(named)
