"""`limbeck distill` on a cluster: each stage a task with its resources, those that do not wait for each other at the same time."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from limbeck.cluster import Cluster
from limbeck.errors import Stopped
from limbeck.files import claimed, write_json
from limbeck.interrupt import Interrupted, Interrupts
from limbeck.pipeline import Pipeline, Plan
from limbeck.progress import Progress
from limbeck.recipe import Recipe
from limbeck.spread.work import Over, Works
from limbeck.stages import SUMMARY, begin, ended, finished, product, see_folder
from limbeck.storage import here, writing
from limbeck.train import distill


def spread(cluster: Cluster, plan: Plan, out: Path) -> Path:
    """See `carry_out`, on a cluster: the same folders, each filled by a worker.

    A stage has its own `resources`, or the command's. Raises LimbeckError, in one line, for what is the user's to mend; Stopped where
    a signal asked for the end, after each stage under way has saved.
    """
    out = here(out)
    if isinstance(plan, Pipeline):
        see_folder(plan, out)
        if (out / SUMMARY).exists():
            return product(plan, out)
    elif finished(out, plan):
        return out
    stages = _Stages(plan, out)
    for resources in stages.resources.values():
        cluster.workers(1, resources)  # refuses what nobody has before anything is begun
    with claimed(out) if isinstance(plan, Pipeline) else _made(out), Interrupts(patient=False) as interrupts:
        cluster.see_folder(out)
        if isinstance(plan, Pipeline):
            begin(plan, out)
        over = Over(cluster)
        try:
            with interrupts.held(), Progress("stages", len(stages.recipes)).showing() as progress:
                for name, _ in over.some(stages.ready(), stages.more):
                    progress.advance(note=name)
        except Interrupted as stop:
            raise Stopped(f"{out}: stopped; what was done is saved, and the same command goes on", stop.number) from None
        finally:
            over.close()
        if isinstance(plan, Pipeline):
            write_json(out / SUMMARY, {"stages": {name: ended(out / name) for name in plan.stages}})
    return product(plan, out)


class _Stages:
    """Which stages are done, which are under way, and which may begin. A recipe alone is one stage, in the folder itself."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.recipes: dict[str, Recipe] = dict(plan.stages) if isinstance(plan, Pipeline) else {"": plan}
        self.resources = dict(plan.resources) if isinstance(plan, Pipeline) else {}
        self._plan, self._out = plan, out
        self._waits = {name: set(plan.asked(name)) if isinstance(plan, Pipeline) else set[str]() for name in self.recipes}
        self._left, self._done = dict.fromkeys(self.recipes), set[str]()

    def ready(self) -> Works:
        """Those that wait for nobody any more, and are now under way."""
        now = [name for name in self._left if self._waits[name] <= self._done]
        for name in now:
            del self._left[name]
        return {name: (self._work(name), self.resources.get(name)) for name in now}

    def more(self, name: str) -> Works:
        """Those that may begin as one is done."""
        self._done.add(name)
        return self.ready()

    def _work(self, name: str) -> Callable[[], None]:
        recipe = self._plan.recipe(name, self._out) if isinstance(self._plan, Pipeline) else self._plan
        return partial(_distilled, recipe, self._out / name if name else self._out)


def _distilled(recipe: Recipe, out: Path) -> None:
    """A run to its end, unless it is there."""
    if not finished(out, recipe):
        distill(recipe, out)


@contextmanager
def _made(out: Path) -> Generator[None]:
    """A run folder, which the run itself claims."""
    out.mkdir(parents=True, exist_ok=True)
    with writing(out):
        yield
