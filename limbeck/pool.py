"""A teacher alive several times on a cluster, and asked as one.

Axes: N completion tokens of a pass, D hidden width.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass, replace
from typing import Any, Self

from limbeck.batch import Batch
from limbeck.cluster import Resources, Where, join, ray
from limbeck.config import live, part
from limbeck.errors import LimbeckError, RecipeError
from limbeck.head import Head
from limbeck.insides import Build, Layers, Opens
from limbeck.lazy import torch
from limbeck.licences import Licence
from limbeck.student import Student
from limbeck.targets import Dense, Targets
from limbeck.teachers import Local, Teacher

LIVES = 8
"""So often an actor that died is begun again, and what it was asked is asked again; then something is wrong with it."""
ALIVE_SECONDS = 2.0
"""So often who waits for an answer looks whether the cluster is there."""


@part
class Pool(Opens, Teacher):
    """A model on a cluster, alive `count` times: parts go to whoever is free, and come back in their order.

    teacher: the model; what it says crosses as hidden states, and its head once, so that the numbers are its own. ahead: parts
    that each of them is given before they are asked for. on: the cluster, as `--on` has it. resources: of each. Another teacher
    is made of pools, and not put into one: `Mixture({a: Pool(Local(a)), b: Local(b)})`.
    """

    teacher: Teacher
    count: int = 2
    ahead: int = 2
    on: str = "ray"
    resources: Resources = field(default_factory=Resources)

    _hands: Any = live()
    _cluster: Any = live()
    _facts: Any = live()
    _head: Any = live()

    def __post_init__(self) -> None:
        if self.count < 1 or self.ahead < 1:
            raise RecipeError(f"Pool needs count and ahead of at least 1, found {self.count} and {self.ahead}")
        if not isinstance(self.teacher, Local) or self.teacher.model == "@student":
            found = "the student's own model" if isinstance(self.teacher, Local) else type(self.teacher).__name__
            raise RecipeError(
                f"Pool holds a model that others can open too, found {found}; give Pool(Local(model)), and make other teachers of pools"
            )

    @property
    def inner(self) -> Local:
        """The model as it is opened there."""
        assert isinstance(self.teacher, Local)
        return self.teacher

    @property
    def says(self) -> frozenset[str]:
        """What the model says."""
        return self.inner.says

    @property
    def name(self) -> str:
        """The model's."""
        return self.inner.name

    @property
    def units(self) -> frozenset[str]:
        """The model's."""
        return self.inner.units

    @property
    def described(self) -> str | dict[str, Any]:
        """The model, as it was opened there."""
        return self._facts["described"] if self._facts else self.inner.name

    @property
    def echoes(self) -> str | None:
        """The model's distributions are said as they are."""
        return self.inner.echoes

    @property
    def identity(self) -> Any:
        """The model's."""
        return self.inner.identity

    @property
    def licences(self) -> list[Licence]:
        """The model's."""
        return self.inner.licences

    @property
    def inside(self) -> Build | None:
        """How the model is built."""
        return self._facts["build"] if self._facts else None

    def load(self, student: Student | None) -> Self:
        """Open it on the cluster, and see that it means the same by a token as the student.

        Raises LimbeckError where no cluster is there, RecipeError where it has no room.
        """
        made = self.fresh()
        made._cluster = join(self.on, replace(self.resources, workers=self.count))
        made._cluster.workers(self.count)  # refuses what nobody has
        actor = ray().remote(Hand).options(max_restarts=LIVES, max_task_retries=LIVES, **self.resources.options)
        made._hands = [actor.remote(self.inner, Where.here()) for _ in range(self.count)]
        made._facts = made._got(made._hands[0].facts.remote())
        if student is not None:
            student.share_vocabulary(made._facts["vocabulary"])
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the model says of each part, asked a few parts ahead; what it already said is not said again."""
        waiting, going = deque[Any](), dict[Any, int]()
        for batch in parts:
            if len(waiting) >= self.count * self.ahead:
                yield self._targets(waiting.popleft())
            said = batch.said
            if said is not None and said.fingerprint == self.inner.model and not self.opened_layers:
                waiting.append(said)
            else:
                waiting.append(self._asked(batch, going))
        while waiting:
            yield self._targets(waiting.popleft())

    def _asked(self, batch: Batch, going: dict[Any, int]) -> Any:
        """Give a part to whoever has least to do, and none more than `ahead`."""
        while True:
            ended, _ = ray().wait([*going], num_returns=len(going), timeout=0) if going else ([], [])
            for each in ended:
                del going[each]
            load = [list(going.values()).count(n) for n in range(self.count)]
            if min(load) < self.ahead:
                break
            self._wait([*going])
        free = load.index(min(load))
        asked = self._hands[free].say.remote(_moved(replace(batch, said=None), "cpu"), self.opened_layers)
        going[asked] = free
        return asked

    def _targets(self, waiting: Any) -> Targets:
        if isinstance(waiting, Targets):
            return waiting
        from limbeck.machine import device

        said = _moved(self._got(waiting), device())
        if not isinstance(said, Dense):
            return said
        if self._head is None:
            self._head = _moved(self._got(self._hands[0].head.remote()), device())
        return replace(said, head=self._head)

    def _wait(self, asked: list[Any]) -> None:
        """Until one of them is there, or nobody is who could bring it."""
        while not ray().wait(asked, num_returns=1, timeout=ALIVE_SECONDS)[0]:
            self._cluster.see_alive()

    def _got(self, asked: Any) -> Any:
        """What was asked for. Raises what the model's own process met, in one line."""
        errors = ray().exceptions
        try:
            self._wait([asked])
            return ray().get(asked)
        except errors.RayTaskError as error:
            raise error.cause if isinstance(error.cause, LimbeckError) else error from None
        except errors.RayError as error:
            self._cluster.see_alive()
            said = " ".join(str(error).split())[:160]
            raise LimbeckError(
                f"{self.name} died on the cluster {LIVES} times ({said}); see to its memory, and give the same command again"
            ) from None


class Hand:
    """The model alive in a process of its own."""

    def __init__(self, teacher: Local, where: Where) -> None:
        where.settle()
        self._teacher, self._opened = teacher.load(None), Layers()

    def facts(self) -> dict[str, Any]:
        """What is to be known of it before it says anything."""
        model = self._teacher.opened
        return {"described": model.described, "vocabulary": model.vocabulary, "build": model.build}

    def head(self) -> Head:
        """Its last layer, which makes logits of what it says."""
        return _moved(self._teacher.opened.head, "cpu")

    def say(self, batch: Batch, layers: Layers) -> Targets:
        """What it says of a part; of a whole distribution the hidden states, without the head."""
        from limbeck.hooks import see_attention

        if layers != self._opened:
            see_attention(self._teacher.opened.causal, self._teacher.opened.name, layers)
            self._teacher.lay_open(layers)
            self._opened = layers
        said = self._teacher.about(batch)
        return _moved(replace(said, head=None) if isinstance(said, Dense) else said, "cpu")  # pyright: ignore[reportArgumentType]


def _moved(value: Any, device: Any) -> Any:
    """The same elsewhere, each tensor in memory of its own: of a view, all that it is a view of would cross."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _moved(getattr(value, each.name), device) for each in fields(value) if each.init})
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(each, torch.Tensor) for each in value):
        return [_moved(each, device) for each in value]
    return value
