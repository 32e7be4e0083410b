"""Work in pieces on a cluster: begun by one worker, its pieces done by all, ended by one; a signal or a failure ends it in one line."""

import contextlib
import json
import os
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from limbeck import errors
from limbeck.answers import Bill, Fits, Purse
from limbeck.cluster import Cluster, Resources, Where, muted, ray
from limbeck.errors import LimbeckError, Stopped
from limbeck.files import claimed
from limbeck.interrupt import Interrupted, Interrupts, in_force
from limbeck.progress import Progress

Works = dict[str, tuple[Callable[[], Any], Resources | None]]
"""Pieces of work by name, each with what it is given; None: as the command says."""
LOOK_SECONDS = 0.2
"""So often workers look whether they are to stop, and the driver whether it is."""
ALIVE_SECONDS = 2.0
"""So often the driver looks whether the cluster is there."""
TRIES = 8
"""Of a task whose worker died; pieces are begun again as often as need be."""


@dataclass(frozen=True)
class Begun:
    """What there is to do. spent: of a budget, before. said: a line to print. what: is done, where it is not what the job says.

    more: whether something else begins when these pieces are done.
    """

    pieces: int
    rows: int = 0
    said: str = ""
    spent: Bill | None = None
    found: Any = None
    what: str = ""
    more: bool = False


@dataclass(frozen=True)
class Done:
    """What a piece came to."""

    rows: int = 0
    tokens: int = 0


class Job(ABC):
    """Work in pieces, as plain settings: every worker has a copy, and opens on its own what it needs."""

    what = "working"
    """What it does, for whoever looks on."""

    @abstractmethod
    def begin(self, before: Begun | None = None) -> Begun:
        """What comes before all pieces, on one worker; done before, it finds what is there. before: what was done, and more was to come."""

    @abstractmethod
    def piece(self, number: int, begun: Begun, desk: Any) -> Done:
        """One piece, on any worker; done again after a death, it goes on with what is there. desk: the actor that is a `Desk`."""

    @abstractmethod
    def end(self, begun: Begun) -> Any:
        """What comes after all pieces, on one worker: a small thing to be told."""


class Desk:
    """What workers ask of the driver's side, through an actor: whether to stop, and whether something can be paid.

    There is one purse for all workers and not a share for each: what one does not spend the others may, and the last dollar
    is spent once. What a worker that died had set aside for its piece is given back when the piece is begun again.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._purse, self._held = Purse(), dict[int, list[Bill]]()

    def ring(self, number: int) -> None:
        """Tell all to stop, as the signal of this number would."""
        self._number = number

    def rung(self) -> int | None:
        """The signal that was rung, if any."""
        return self._number

    def open_purse(self, usd: float | None, flops: float | None, spent: Bill) -> None:
        """From now on no more may be spent."""
        self._purse, self._held = Purse(usd, flops, spent), {}

    def begin(self, piece: int) -> int | None:
        """A piece is begun: nothing is set aside for it yet. The signal that was rung, if any."""
        for worst in self._held.pop(piece, []):
            self._purse.settle(worst, Bill())
        return self._number

    def take(self, piece: int, worst: Bill) -> Fits:
        """See `Purse.take`."""
        if (fits := self._purse.take(worst)) == "now":
            self._held.setdefault(piece, []).append(worst)
        return fits

    def settle(self, piece: int, worst: Bill, took: Bill) -> None:
        """See `Purse.settle`."""
        self._held[piece].remove(worst)
        self._purse.settle(worst, took)


class DeskPurse(Purse):
    """The purse of all workers, as one of them holds it while it does a piece."""

    def __init__(self, desk: Any, piece: int, usd: float | None, flops: float | None) -> None:
        super().__init__(usd, flops)
        self._desk, self._piece, self._mine = desk, piece, 0

    def take(self, worst: Bill) -> Fits:
        """Waits itself where only other workers have something under way."""
        while (fits := ray().get(self._desk.take.remote(self._piece, worst))) == "later" and not self._mine and in_force().asked is None:
            time.sleep(LOOK_SECONDS)
        self._mine += fits == "now"
        self.refused |= fits == "never"
        return fits

    def settle(self, worst: Bill, took: Bill) -> None:
        """Paid where all pay."""
        ray().get(self._desk.settle.remote(self._piece, worst, took))
        self._mine -= 1
        self.spent = self.spent + took


# On a worker


def _opened(sealed: bytes, where: Where, desk: Any) -> tuple[Any, str]:
    """See `_told`. sealed: the work, opened when this process is where the driver is, and finds the modules that it is made of."""
    return _told(lambda: ray().cloudpickle.loads(sealed)(), where, desk)


def _told(work: Callable[[], Any], where: Where, desk: Any) -> tuple[Any, str]:
    """What some work gives, and in JSON why it gave nothing: what is the user's to mend crosses processes as words."""
    try:
        where.settle()
        with _listening(desk):
            return work(), ""
    except Interrupted as stop:
        return None, json.dumps({"stopped": stop.number})
    except Stopped as error:
        return None, json.dumps({"stopped": error.number})
    except LimbeckError as error:
        return None, json.dumps({"kind": type(error).__name__, "said": str(error)})


@contextmanager
def _listening(desk: Any) -> Generator[None]:
    """Hear the bell of the desk as a signal, for as long as the block lasts."""
    over = threading.Event()

    def listen() -> None:
        while not over.wait(LOOK_SECONDS):
            try:
                number = ray().get(desk.rung.remote(), timeout=60)
            except Exception:  # whatever became of it, nobody is there any more who wants what we do
                number = signal.SIGTERM
            if number is not None:
                os.kill(os.getpid(), number)
                return

    with Interrupts(patient=False):
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield
        finally:
            over.set()
            listener.join()


class Hand:
    """A worker: a copy of the job, to which pieces are given."""

    def __init__(self, sealed: bytes, where: Where, desk: Any) -> None:
        self.sealed, self.where, self.desk, self.held = sealed, where, desk, list[Any]()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Do the pieces of these numbers; counts of each, and why it was not done."""
        found = [self._piece(int(number)) for number in batch["piece"]]
        return {"rows": [done.rows for done, _ in found], "tokens": [done.tokens for done, _ in found], "why": [why for _, why in found]}

    def _piece(self, number: int) -> tuple[Done, str]:
        if (rung := ray().get(self.desk.begin.remote(number))) is not None:
            return Done(), json.dumps({"stopped": rung})
        done, why = _told(lambda: self.piece(number), self.where, self.desk)
        return done or Done(), why

    def piece(self, number: int) -> Done:
        """Do a piece, the job opened with the first."""
        if not self.held:
            self.held[:] = ray().cloudpickle.loads(self.sealed)
        job, begun = self.held
        return job.piece(number, begun, self.desk)


# On the driver


def carried_out(job: Job, cluster: Cluster, out: Path, limits: tuple[float | None, float | None] = (None, None)) -> Any:
    """Do all of a job; what its end tells. limits: US dollars and FLOPs.

    Raises LimbeckError, in one line, for what is the user's to mend; Stopped where a signal asked for the end, after workers
    have saved what they had.
    """
    cluster.workers(1)  # refuses what nobody has before anything is begun
    with claimed(out), Interrupts(patient=False) as interrupts:
        cluster.see_folder(out)
        over = Over(cluster)
        try:
            with interrupts.held():
                begun: Begun = over.one(job.begin)
            print(begun.said, flush=True) if begun.said else None
            over.ask("open_purse", *limits, begun.spent or Bill())
            _pieces(job, begun, over, interrupts)
            while begun.more:
                with interrupts.held():
                    begun = over.one(partial(job.begin, begun))
                _pieces(job, begun, over, interrupts)
            with interrupts.held():
                return over.one(partial(job.end, begun))
        except Interrupted as stop:
            raise Stopped(f"{out}: stopped; what was done is saved, and the same command goes on", stop.number) from None
        finally:
            over.close()


def _pieces(job: Job, begun: Begun, over: "Over", interrupts: Interrupts) -> None:
    with interrupts.held(), Progress(begun.what or job.what, begun.rows).showing() as progress:
        for done in over.pieces(job, begun):
            progress.advance(done.rows, done.tokens)


class Over:
    """A driver's hold on the cluster: a desk, and a watch over signals and over whether anybody is there."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.where, self.received_bytes = cluster, Where.here(), 0
        self.desk = ray().remote(Desk).options(num_cpus=0, max_concurrency=1).remote()

    def ask(self, what: str, *given: Any) -> Any:
        """Something of the desk."""
        (found,) = self.watched(lambda tell: tell(ray().get(getattr(self.desk, what).remote(*given))))
        return found

    def one(self, work: Callable[[], Any], resources: Resources | None = None) -> Any:
        """A piece of work on one worker, and what it gives; None where it was stopped. Begun again where the worker dies."""
        return next((found for _, found in list(self.some({"": (work, resources)}))), None)

    def some(self, works: Works, more: Callable[[str], Works] = lambda name: {}) -> Iterator[tuple[str, Any]]:
        """Several side by side by name, each with what it gives as it ends; `more` says which can begin when one has ended."""
        yield from self.watched(lambda tell: self._some(works, more, tell))

    def _some(self, works: Works, more: Callable[[str], Works], tell: Callable[[Any], None]) -> None:
        task, going, failure = ray().remote(_opened), dict[Any, str](), _Failure(self.desk)
        while works or going:
            for name, (work, resources) in works.items():
                options = (resources or self.cluster.resources).options
                going[task.options(max_retries=TRIES, **options).remote(_sealed(work), self.where, self.desk)] = name
            (ready,), _ = ray().wait([*going], num_returns=1)
            name, (found, why), works = going.pop(ready), ray().get(ready), {}
            if not failure.met(why):
                tell((name, found))
                works = more(name)
        failure.raise_it()

    def pieces(self, job: Job, begun: Begun) -> Iterator[Done]:
        """All pieces of a job, as they are done."""
        if begun.pieces:
            yield from self.watched(lambda tell: self._pieces(job, begun, tell))

    def _pieces(self, job: Job, begun: Begun, tell: Callable[[Any], None]) -> None:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.wait_for_min_actors_s = -1
        count = self.cluster.workers(begun.pieces)
        pool = ActorPoolStrategy(min_size=1, max_size=count, initial_size=count, max_tasks_in_flight_per_actor=1, max_concurrent_calls_per_actor=1)
        numbers = from_items([{"piece": number} for number in range(begun.pieces)], override_num_blocks=begun.pieces)
        given: dict[str, Any] = dict(self.cluster.resources.options)
        done: Any = numbers.map_batches(
            Hand, batch_size=1, batch_format="numpy", compute=pool, fn_constructor_args=(_sealed([job, begun]), self.where, self.desk), **given
        )
        failure = _Failure(self.desk)
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
            self.received_bytes += sum(column.nbytes for column in batch.values()) + sum(len(why) for why in batch["why"])
            for rows, tokens, why in zip(batch["rows"], batch["tokens"], batch["why"], strict=True):
                if not failure.met(str(why)):
                    tell(Done(int(rows), int(tokens)))
        failure.raise_it()

    def watched(self, work: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
        """What some work tells as it goes on, in a thread of its own: this one looks after signals and the cluster."""
        told, rung, looked = queue.Queue[tuple[str, Any]](), False, time.monotonic()

        def run() -> None:
            try:
                with muted():
                    work(lambda found: told.put(("told", found)))
                told.put(("over", None))
            except BaseException as error:
                told.put(("failed", error))

        threading.Thread(target=run, daemon=True).start()
        while True:
            with contextlib.suppress(queue.Empty):
                kind, found = told.get(timeout=LOOK_SECONDS)
                if kind == "over":
                    return
                if kind == "failed":
                    raise self._failure(found)
                yield found
            if (number := in_force().asked) is not None and not rung:
                self.desk.ring.remote(number)
                rung = True
            if time.monotonic() - looked > ALIVE_SECONDS:
                looked = time.monotonic()
                self.cluster.see_alive()

    def _failure(self, error: BaseException) -> BaseException:
        """An error of Ray's in one line; one of a worker's own code as it is."""
        own = ray().exceptions.RayTaskError
        if isinstance(error, own) or not isinstance(error, ray().exceptions.RayError):
            return error
        self.cluster.see_alive()
        said = " ".join(str(error).split())[:200]
        return LimbeckError(f"the cluster failed ({type(error).__name__}: {said}); what was done is saved, and the same command goes on")

    def close(self) -> None:
        """End the desk."""
        with contextlib.suppress(Exception):
            ray().kill(self.desk)


def _sealed(work: Any) -> bytes:
    return ray().cloudpickle.dumps(work)


class _Failure:
    """What a worker met that is the user's to mend: the others are told to stop, what they have under way is waited for, then it is raised."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._first = desk, dict[str, Any]()

    def met(self, why: str) -> bool:
        """Whether a worker gave nothing."""
        told = json.loads(why or "{}")
        if "kind" in told and not self._first:
            self._first = told
            self._desk.ring.remote(int(signal.SIGTERM))
        return bool(told)

    def raise_it(self) -> None:
        """Raises it, if there was any."""
        if self._first:
            raise getattr(errors, self._first["kind"], LimbeckError)(self._first["said"])
