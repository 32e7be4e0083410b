"""Who scores: a teacher says something about each completion token of a batch, and writes into no batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from limbeck.batch import Batch
from limbeck.config import Part, live, part
from limbeck.distributed import Passes
from limbeck.errors import RecipeError
from limbeck.lazy import torch
from limbeck.machine import Opening, Precision
from limbeck.student import Student
from limbeck.targets import Dense, Nothing, Targets

if TYPE_CHECKING:
    from limbeck.models import Model


class Teacher(Part, ABC):
    """Base of all who score. `says` is what it can be asked for: "distribution", "top k", or nothing."""

    says: ClassVar[frozenset[str]] = frozenset()

    def load(self, student: Student) -> Self:
        """The teacher alive, for this student."""
        return self

    @property
    def opened(self) -> "Model | None":
        """Its model, where it has one on this machine."""
        return None

    @abstractmethod
    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What it says about each part, one after the other, each only when it is asked for."""


@part
class Silent(Teacher):
    """Nobody: the text itself is the lesson."""

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """Nothing, once per part."""
        for _ in parts:
            yield Nothing()


@part
class Local(Teacher):
    """A causal language model on this machine, by hub name, folder or GGUF file.

    "@student" is the student itself without its adapters. dtype "auto" is bfloat16 where the processor gains by it.
    """

    model: str
    dtype: Precision = "auto"
    attention: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False

    says: ClassVar[frozenset[str]] = frozenset({"distribution", "top k"})

    _open: Any = live()
    _passes: Any = live()
    _student: Any = live()

    @classmethod
    def adopt(cls, value: object) -> object:
        """A folder may stand for the whole."""
        return cls(model=str(value)) if isinstance(value, Path) else value

    def load(self, student: Student) -> Self:
        """Open the model, unless it is the student's own."""
        from limbeck.models import open_model

        made = self.fresh()
        if self.model == "@student":
            if student.lora is None:
                raise RecipeError('Local("@student") is the student without adapters, and it has none: it would say the same; name another model')
            made._open, made._student = student.live, student
        else:
            made._open = open_model(self.model, Opening(self.dtype, self.attention, self.quantization, self.trust_remote_code))
            made._passes = Passes(made._open, learns=False)
        return made

    @property
    def opened(self) -> "Model":
        """The open model."""
        assert self._open is not None, "this teacher is only its settings; load() it"
        return self._open

    def _say(self, batch: Batch) -> Dense:
        if self._student:
            with self._student.unadapted():
                outputs = self._student.forward(batch)
        else:
            with torch.no_grad():
                outputs = self._passes.run(lambda model: model.forward(batch))
        return Dense(outputs.hidden_ND, outputs.head, self.model)

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """Every outcome's probability, as hidden states and a head; what this teacher already said is not said again."""
        for batch in parts:
            known = batch.said is not None and batch.said.fingerprint == self.model
            yield batch.said if known and batch.said is not None else self._say(batch)
