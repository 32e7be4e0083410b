"""Who scores: a teacher says something about each completion token of a batch, and writes into no batch."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from limbeck.answers import Given, Purse, Question, Told
from limbeck.batch import Batch
from limbeck.config import live, part, plain
from limbeck.decoding import Sampling
from limbeck.distributed import Passes, ended_together, is_sharded
from limbeck.errors import CacheError, RecipeError
from limbeck.insides import INSIDE, Opens
from limbeck.lazy import torch
from limbeck.licences import Licence, from_plain, of_model, of_recorded
from limbeck.licensed import Licensed
from limbeck.machine import Opening, Precision
from limbeck.places import fingerprint, is_call
from limbeck.privacy import expanded, shareable
from limbeck.student import Student
from limbeck.targets import Dense, Nothing, Targets
from limbeck.vocabulary import prove_traits

T = TypeVar("T")

if TYPE_CHECKING:
    from limbeck.cache import Manifest
    from limbeck.models import Model
    from limbeck.opened import OpenModel


class Teacher(Licensed, ABC):
    """Base of all who score."""

    @property
    def says(self) -> frozenset[str]:
        """What it can be asked for: "distribution", "top k", "sampled", or nothing."""
        return frozenset()

    @property
    def hears(self) -> bool:
        """Whether it can be asked about text that nobody has shown it before."""
        return True

    @property
    def needs_rows(self) -> bool:
        """Whether it can be asked about rows of the data alone, and not about text of our own."""
        return not self.hears

    @property
    def temperature_kept(self) -> float | None:
        """The one temperature at which its scores hold; None where they hold at any."""
        return None

    def load(self, student: Student) -> Self:
        """The teacher alive, for this student."""
        return self

    @property
    def name(self) -> str:
        """What it is called in tables and columns."""
        return type(self).__name__

    @property
    def units(self) -> frozenset[str]:
        """In which units of a budget its answers may cost something: "usd", "flops"."""
        return frozenset({"usd", "flops"})

    @property
    def opened(self) -> "OpenModel | None":
        """Its model, where it has one on this machine."""
        return None

    @property
    def described(self) -> str | dict[str, Any]:
        """What it is, for the records."""
        return self.opened.described if self.opened else type(self).__name__

    @property
    def echoes(self) -> str | None:
        """The model, by name, whose distributions it says as they are; None where it makes others of them."""
        return None

    @property
    def identity(self) -> Any:
        """What it is among all writers, as plain data: two that differ in it write differently."""
        return plain(self)

    @abstractmethod
    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What it says about each part, one after the other, each only when it is asked for."""

    def about(self, batch: Batch) -> Targets:
        """What it says about one pass."""
        (said,) = self.score([batch])
        return said

    def writing(self) -> Self:
        """The teacher alive, to write alone: for no student. Raises RecipeError where it cannot."""
        raise RecipeError(f"{type(self).__name__} cannot write; let a model do it: Local(model) or Endpoint(url, model)")

    def answers(self, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told = lambda tokens: None) -> Iterator[Given]:
        """Answers of its own, each as soon as it is there, in any order; it stops asking when the purse refuses."""
        raise NotImplementedError


@part
class Silent(Teacher):
    """Nobody: the text itself is the lesson."""

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """Nothing, once per part."""
        for _ in parts:
            yield Nothing()


@part
class Local(Opens, Teacher):
    """A model on this machine, by hub name, folder, GGUF file, or `module:function` that gives a torch module.

    "@student" is the student itself without its adapters. dtype "auto" is bfloat16 where the processor gains by it. offload: where its
    layers lie, and come from one by one in each pass, if they do not fit beside the student: in main memory ("cpu", for a GPU) or on
    the "disk". The scores are the same, and slower.
    """

    model: str
    dtype: Precision = "auto"
    attention: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    offload: Literal["cpu", "disk"] | None = None

    _open: Any = live()
    _passes: Any = live()
    _student: Any = live()

    @classmethod
    def adopt(cls, value: object) -> object:
        """A folder may stand for the whole."""
        return cls(model=str(value)) if isinstance(value, Path) else value

    def __post_init__(self) -> None:
        other = self.model == "@student" or is_call(self.model) or self.model.endswith(".gguf")
        if self.offload and (self.quantization or other):
            what = f"{self.quantization} weights" if self.quantization else self.model
            raise RecipeError(f"{what} cannot be offloaded, only a model in a folder or on the hub that is not quantised; leave out offload")

    @property
    def says(self) -> frozenset[str]:
        """Whole distributions, of which any can be made, and what stands inside."""
        return frozenset({"distribution", "top k"}) | INSIDE

    @property
    def uncut(self) -> bool:
        """Whether it is whole on every rank even where shares are asked for: packed weights, and those that lie elsewhere, cannot be cut."""
        return bool(self.quantization or self.offload)

    def load(self, student: Student | None) -> Self:
        """Open the model, unless it is the student's own; a teacher alone needs no student."""
        from limbeck.kinds import open_kind

        made = self.fresh()
        if self.model == "@student":
            if student is None or student.lora is None:
                raise RecipeError('Local("@student") is the student without adapters, and it has none: it would say the same; name another model')
            made._open, made._student = student.live, student
        else:
            asked = Opening(self.dtype, self.attention, self.quantization, self.trust_remote_code, offload=self.offload)
            made._open = open_kind(self.model, dataclasses.replace(asked, cut=is_sharded() and not self.uncut))
            made._passes = Passes(made._open, learns=False, whole=self.uncut)
            if student is not None:
                student.share_vocabulary(made._open.vocabulary)
        return made

    @property
    def name(self) -> str:
        """The model's."""
        return shareable(self.model)

    @property
    def units(self) -> frozenset[str]:
        """Arithmetic alone."""
        return frozenset({"flops"})

    @property
    def opened(self) -> "OpenModel":
        """The open model."""
        assert self._open is not None, "this teacher is only its settings; load() it"
        return self._open

    @property
    def echoes(self) -> str | None:
        """Its own; quantised weights are others."""
        return None if self.quantization else self.model

    @property
    def identity(self) -> Any:
        """The weights and their arithmetic, wherever they lie."""
        return [fingerprint(self.model), self.dtype, self.quantization]

    @property
    def licences(self) -> list[Licence]:
        """The model's own; the student's words are its own."""
        return [] if self.model == "@student" else of_model(self.model)

    def _say(self, batch: Batch) -> Dense:
        if self._student:
            with self._student.unadapted():
                outputs = self._student.forward(batch, self.opened_layers)
        else:
            with torch.no_grad():
                outputs = self._passes.run(lambda model: model.forward(batch, self.opened_layers))
        return Dense(outputs.hidden_ND, outputs.head, self.model, outputs.features)

    def writing(self) -> Self:
        """The model open."""
        return self.load(None)

    def lend(self, work: "Callable[[Model], T]") -> T:
        """Something done with the model, all its weights here; every rank must do it."""
        return ended_together(self._passes.run_whole, lambda model: work(model.writer))

    def answers(self, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told = lambda tokens: None) -> Iterator[Given]:
        """Written here, many side by side."""
        from limbeck.writer import answers

        return answers(self.opened.writer, questions, sampling, purse, told)

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """Every outcome's probability, as hidden states and a head; what this teacher already said is not said again."""
        for batch in parts:
            known = batch.said is not None and batch.said.fingerprint == self.model and not self.opened_layers
            yield batch.said if known and batch.said is not None else self._say(batch)


@part
class Cached(Teacher):
    """What a teacher said before, from a folder that `limbeck cache` filled; only of text that it was shown then.

    temperature: which of several was kept; needed only where there are several. Rows of a `held-out` cache inside the
    folder are found too.
    """

    folder: str
    temperature: float | None = None

    _caches: Any = live()
    _vocabulary: Any = live()

    @classmethod
    def adopt(cls, value: object) -> object:
        """A folder may stand for the whole."""
        return cls(folder=str(value)) if isinstance(value, Path) else value

    @cached_property
    def _manifest(self) -> "Manifest":
        from limbeck.cache import Manifest

        return Manifest.read(expanded(self.folder))

    @property
    def says(self) -> frozenset[str]:
        """What was kept."""
        return self._manifest.kept.says

    @property
    def hears(self) -> bool:
        """Only what it heard before."""
        return False

    @property
    def temperature_kept(self) -> float | None:
        """The one it was kept at, unless all can be made of it. Raises CacheError for one that is not there."""
        taken = self._manifest.temperatures
        if not self._manifest.kept.tempered:
            return None
        there = f"{self.folder} holds scores at temperature {', '.join(f'{each:g}' for each in taken)}"
        if self.temperature is None and len(taken) > 1:
            raise CacheError(f"{there}; say which: Cached(folder, temperature={taken[0]:g})")
        if self.temperature is not None and self.temperature not in taken:
            raise CacheError(f"{there}, not {self.temperature:g}; annotate at it too, with limbeck cache --temperature {self.temperature:g}")
        return self.temperature or taken[0]

    @property
    def described(self) -> str | dict[str, Any]:
        """The teacher that was asked, and what was kept."""
        return {**self._manifest.teacher, "kept": self._manifest.keep, "cache": self._manifest.identity}

    @property
    def licences(self) -> list[Licence]:
        """Those of the teacher that was asked."""
        told = from_plain(self._manifest.licences, f"{self.folder}/manifest.json")
        return of_recorded(told, str(self._manifest.teacher.get("model")))

    def load(self, student: Student) -> Self:
        """Open the cache, and see that it means the same by a token as the student."""
        from limbeck.cache import Cache, folders

        student.live.see_cacheable()
        made, traits = self.fresh(), self._manifest.vocabulary
        mine = student.take_template(traits["template"], frozenset(traits["end_ids"]))
        prove_traits(mine, traits)
        made._caches, made._vocabulary = [Cache.open(each) for each in folders(expanded(self.folder))], mine
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What was kept about each part. Raises CacheError for a row that nobody annotated."""
        for batch in parts:
            yield self._kept(batch)

    def _kept(self, batch: Batch) -> Targets:
        if not len(batch):
            return Nothing()
        temperature = self.temperature_kept or 1.0
        for cache in self._caches:
            if all(map(cache.holds, cache.keys(batch, temperature))):
                return cache.targets(batch, temperature)
        raise CacheError(self._unseen(batch, temperature))

    def _unseen(self, batch: Batch, temperature: float) -> str:
        seen = [any(cache.holds(cache.keys(batch.select([b]), temperature)[0]) for cache in self._caches) for b in range(len(batch))]
        if all(seen):
            return f"{self.folder}: some rows of one pass stand in held-out and some outside; evaluate on data of one kind"
        tokens = batch.sequences()[seen.index(False)].tolist()
        return (
            f"{self.folder} has not seen {seen.count(False)} of {len(seen)} rows of a pass; the first has {len(tokens)} tokens and begins "
            f"{self._vocabulary.text(tokens)[:60]!r}; annotate this data with the same template and max_tokens: limbeck cache"
        )
