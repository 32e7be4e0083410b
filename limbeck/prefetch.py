"""Writing ahead: a source that draws the next steps beside the learning, with the weights as they were then."""

import json
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields
from typing import Any, NamedTuple, Self

from limbeck.batch import Batch
from limbeck.config import live, part
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.sources import Share, Source, settled
from limbeck.student import Student
from limbeck.vocabulary import Vocabulary


class _Drawn(NamedTuple):
    """A draw, and the state of the source after it."""

    batch: Batch
    state: dict[str, Any]


@part
class Prefetch(Source):
    """Draws `ahead` steps before they are learnt from, in a thread beside the learning (asynchronous RLHF, arXiv 2410.18252).

    Step t is written with the weights that step t - ahead began with; the first steps with those of the start. Which these are
    never depends on how fast anything is, so a run has the same text each time, and a run that is resumed takes the draws with
    it that were under way. Tokens are `ahead` steps stale: terms of single tokens correct for it by their `ratio`, divergences
    of whole distributions need nothing. It takes `ahead` copies of the weights that move. In one process alone; around a
    `Mix`, not inside.
    """

    source: Source
    ahead: int = 1

    _drawn: Any = live()
    _last: Any = live()
    _pens: Any = live()
    _worker: Any = live()

    def __post_init__(self) -> None:
        if self.ahead < 1:
            raise RecipeError(f"Prefetch.ahead must be at least 1, found {self.ahead}; without it each step is drawn when it is learnt from")
        if self.source.measures:
            raise RecipeError(
                f"{type(self.source).__name__} asks the student how it does, which is learning meanwhile; draw without Prefetch, or in another order"
            )

    @property
    def writers(self) -> frozenset[str]:
        """Whoever writes inside."""
        return self.source.writers

    @property
    def rewarded(self) -> bool:
        """Whether there is credit inside."""
        return self.source.rewarded

    @property
    def chosen(self) -> bool:
        """Whether the text inside was chosen."""
        return self.source.chosen

    @property
    def leaves_out(self) -> str:
        """What the source inside does."""
        return self.source.leaves_out

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """The source inside alive, and somebody to let it draw. Raises RecipeError where there are several processes."""
        from limbeck.pen import Pen

        if share.ranks > 1:
            raise RecipeError(
                f"Prefetch draws in one process alone, beside its learning, and there are {share.ranks}; launch one, or name its source without it"
            )
        made = type(self)(self.source.load(vocabulary, share), self.ahead)
        made._drawn, made._pens = dict[int, Future[_Drawn]](), [Pen(apart=True) for _ in range(self.ahead)]
        made._worker = ThreadPoolExecutor(1, "prefetch")
        return made

    def draw(self, step: int, student: Student) -> Batch:
        """The text of a step, drawn before, when the draws up to `ahead` steps on have been sent off with the weights as they are."""
        self._drawn = {later: drawn for later, drawn in self._drawn.items() if later >= step}
        if step in self._drawn:
            wait([self._drawn[step]])  # whose pen is free then
        last = max(step, min(step + self.ahead, student.steps - 1))
        if missing := [later for later in range(step, last + 1) if later not in self._drawn]:
            writer = student.aside(self._pens[step % self.ahead]) if "student" in self.writers else student
            for later in missing:
                self._drawn[later] = self._last = self._worker.submit(self._draw, later, writer)
        return self._drawn.pop(step).result().batch

    def _draw(self, step: int, student: Student) -> _Drawn:
        """One draw after the other, in the order of the steps: what a source keeps changes in that order."""
        return _Drawn(self.source.draw(step, student), self.source.state())

    def state(self) -> dict[str, Any]:
        """The draws under way, and the state of the source after them; both are waited for only where they are saved."""
        drawn, last = dict(self._drawn), self._last
        if last is None:
            return {"source": self.source.state(), "drawn": {str(step): as_plain(each.result().batch) for step, each in drawn.items()}}
        return {
            "source": lambda: last.result().state,
            "drawn": lambda: {str(step): as_plain(each.result().batch) for step, each in drawn.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take both back; what is under way now is waited for, and dropped."""
        wait(self._drawn.values())
        known = settled(state)
        self.source.restore(known["source"])
        self._last, self._drawn = None, dict[int, Future[_Drawn]]()
        for step, batch in known["drawn"].items():
            self._drawn[int(step)] = Future()
            self._drawn[int(step)].set_result(_Drawn(from_plain(batch), known["source"]))


KINDS = {"tokens_T": "int64", "lengths_B": "int64", "places_N": "int64", "writers_N": "uint8", "logp_N": "float32", "credit_B": "float32"}


def as_plain(batch: Batch) -> dict[str, Any]:
    """A batch as JSON holds it, to the last bit. Columns of kinds that JSON does not know become text."""
    assert batch.said is None, "scores are not kept; a source that draws them cannot be prefetched"
    found = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "said"}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else json.loads(json.dumps(value, default=str)) for name, value in found.items()}


def from_plain(kept: dict[str, Any]) -> Batch:
    """The batch that `as_plain` was given."""

    def tensor(name: str) -> Tensor | None:
        return None if kept[name] is None else torch.tensor(kept[name], dtype=getattr(torch, KINDS[name]))

    figures = {name: (total, count) for name, (total, count) in kept["figures"].items()}
    return Batch(**{**kept, **{name: tensor(name) for name in KINDS}, "figures": figures})
