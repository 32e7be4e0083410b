"""`limbeck evaluate` on a cluster: what is written, then what is read, in stretches by all workers; baselines, speeds and sums by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cluster import Cluster
from limbeck.files import read_json
from limbeck.spread.work import Begun, Done, Job, carried_out
from limbeck.storage import here
from limbeck.transfer.measure import Transfer, Writer, measured
from limbeck.transfer.rows import Asked
from limbeck.transfer.stretches import Work
from limbeck.transfer.subjects import Subjects, Who
from limbeck.transfer.tasks import TasksAsked

if TYPE_CHECKING:
    from limbeck.transfer.robustness import Robustness


@dataclass(frozen=True)
class Stretch:
    """Some units of something that is to lie at `place`, and whom it takes."""

    who: Writer
    place: Path
    some: range


@dataclass
class Evaluating(Job):
    """An evaluation, in two rounds. A piece is a stretch of prompts or questions answered by one model; then of passes over one kind of text,
    edited or not, by one student and by the teacher, or a student's search for a suffix.

    By one worker, while no other does anything: baselines are trained and speeds measured before; prompts edited, and other data answered,
    between; figures summed up after. sizes: of stretches, by unit, where they are not those of one process.
    """

    who: Who
    asked: Asked
    out: Path
    tasks: TasksAsked
    robustness: "Robustness | None" = None
    category: str | None = None
    sizes: dict[str, int] = field(default_factory=dict[str, int])

    def begin(self, before: Begun | None = None) -> Begun:
        """The stretches that are to be written, and when they are, or where none is, those to be read."""
        subjects = before.found[0] if before else self.who.subjects()
        transfer = self._transfer(subjects)
        transfer.begin()
        if before is None:
            for who in transfer.everyone:
                transfer.time(who)
            if stretches := self._cut(transfer, transfer.writings):
                return self._begun(subjects, "writings", stretches)
        for who in transfer.everyone:
            for work in transfer.writings(who):
                work.make()
        return self._begun(subjects, "readings", self._cut(transfer, transfer.readings))

    def _cut(self, transfer: Transfer, works: Callable[[Writer], Iterator[Work]]) -> list[Stretch]:
        """What is to be done, each once: the clean answers among edits may be those of a text."""
        found = dict[Path, list[Stretch]]()
        for who in transfer.everyone:
            for work in works(who):
                found.setdefault(work.place, [Stretch(who, work.place, some) for some in work.todo(self.sizes.get(work.unit))])
        return [each for stretches in found.values() for each in stretches]

    def _begun(self, subjects: Subjects, kind: str, stretches: list[Stretch]) -> Begun:
        what, count = {"writings": "writing (prompts)", "readings": "reading (passes)"}[kind], sum(len(each.some) for each in stretches)
        return Begun(len(stretches), count, found=(subjects, kind, stretches), what=what, more=kind == "writings")

    def piece(self, number: int, begun: Begun, desk: Any) -> Done:
        """Done, and kept in a file of its own until all of them are there."""
        subjects, kind, stretches = begun.found
        stretch: Stretch = stretches[number]
        tokens = list[int]()
        self._work(subjects, kind, stretch).do(stretch.some, lambda steps, handled: tokens.append(handled))
        return Done(len(stretch.some), sum(tokens))

    def end(self, begun: Begun) -> None:
        """All stretches are joined, and the evaluation is what it is where one process makes it."""
        measured(self._transfer(begun.found[0]))

    def _transfer(self, subjects: Subjects) -> Transfer:
        return Transfer(subjects, self.asked, self.out, self.tasks, self.robustness, self.category)

    def _alive(self, subjects: Subjects) -> Transfer:
        """The evaluation on this worker, its rows read as the first student meets them."""
        if not self._held:
            self._held.append(self._transfer(subjects))
            self._held[0].read()
        return self._held[0]

    def _work(self, subjects: Subjects, kind: str, stretch: Stretch) -> Work:
        """What a stretch is of; found once, since its texts are read for it."""
        if (key := (stretch.who, stretch.place)) not in self._works:
            works: Iterator[Work] = getattr(self._alive(subjects), kind)(stretch.who)
            self._works[key] = next(work for work in works if work.place == stretch.place)
        return self._works[key]

    @cached_property
    def _works(self) -> dict[tuple[Writer, Path], Work]:
        return {}

    @cached_property
    def _held(self) -> list[Transfer]:
        return []


def spread(
    cluster: Cluster, who: Who, asked: Asked, out: Path, tasks: TasksAsked | None = None, robustness: "Robustness | None" = None,
    category: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """See `evaluate_transfer`, on a cluster: what `evaluation.json` holds."""
    out = here(out)
    carried_out(Evaluating(who, asked, out, tasks or TasksAsked(), robustness, category), cluster, out)
    return read_json(out / "evaluation.json")
