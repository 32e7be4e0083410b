"""`limbeck cache` on a cluster: workers claim pieces of one cache, as several processes do."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.annotate import Annotation, Filled, Filling, fillings
from limbeck.cluster import Cluster
from limbeck.spread.work import Begun, Done, Job, carried_out
from limbeck.storage import here


@dataclass
class Annotating(Job):
    """A cache. A piece is a stretch of rows, which a worker claims, asks about and writes as one shard, as any process does."""

    asked: Annotation
    out: Path
    what = "annotating (rows)"

    def begin(self, before: Begun | None = None) -> Begun:
        """What is damaged is forgotten, and a pilot tells what is to come."""
        lines, pieces, rows = list[str](), 0, 0
        for each in self._fillings:
            lines.append(f"{each.out}: {each.begin()}")
            pieces, rows = pieces + len(each.pieces), rows + len(each.rows)
        return Begun(pieces, rows, "\n".join(lines))

    def piece(self, number: int, begun: Begun, desk: Any) -> Done:
        """Annotated."""
        for each in self._fillings:
            if number < len(each.pieces):
                return Done(len(each.pieces[number]), each.fill(number))
            number -= len(each.pieces)
        raise AssertionError(number)

    def end(self, begun: Begun) -> Filled:
        """What is there."""
        return self._fillings[-1].filled()

    @cached_property
    def _fillings(self) -> list[Filling]:
        return fillings(self.asked, self.out)


def spread(cluster: Cluster, asked: Annotation, out: Path) -> Filled:
    """See `annotate`, on a cluster."""
    out = here(out)
    return carried_out(Annotating(asked, out), cluster, out)
