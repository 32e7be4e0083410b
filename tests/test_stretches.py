"""What an evaluation does in stretches: any of them make the whole, and one begun by a cluster goes on by one process and the other way round."""

import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import toys
import watched
from hypothesis import given
from hypothesis import strategies as st

from limbeck.files import read_jsonl
from limbeck.spread.transfer import Evaluating
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.reading import Reading
from limbeck.transfer.stretches import Lines, Made, unheard

pairs = st.tuples(st.integers(0, 11), st.integers(1, 12)).map(lambda each: range(each[0], each[0] + each[1]))


@given(count=st.integers(1, 12), kept=st.lists(pairs, max_size=5), most=st.integers(1, 5), alone=st.one_of(st.none(), st.integers(1, 4)))
def test_any_stretches_make_the_whole(count: int, kept: list[range], most: int, alone: int | None) -> None:
    made = list[int]()

    def work(some: range, told: Any) -> list[dict[str, Any]]:
        made.extend(some)
        return [{"n": n} for n in some]

    folder = Path(tempfile.mkdtemp())
    thing = Lines(folder / "thing.jsonl", "", "things", count, work, at_once=alone)
    for some in kept:
        if some.stop <= count:
            thing.do(some, unheard)
    todo, before = thing.todo(most), len(made)
    for some in [*todo[::2], *todo[::4]]:  # as a cluster does one again whose worker died
        thing.do(some, unheard)
    thing.make()
    assert all(len(some) <= most for some in todo) and sorted(made[before:]) == sorted(n for some in todo for n in some)
    assert read_jsonl(folder / "thing.jsonl") == [{"n": n} for n in range(count)] and thing.todo() == thing.todo(most) == []
    made.clear()
    thing.make()
    assert made == [] and [path.name for path in folder.iterdir()] == ["thing.jsonl"]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stretches")
    for name, seed in (("teacher", 2), ("student", 1)):
        toys.folder(home / name, seed=seed)
    watched.prepare(home)
    alone(home, home / "evaluated")
    return home


def alone(home: Path, out: Path) -> None:
    who, asked, *rest = watched.asked(home)
    evaluate_transfer(who.subjects(), asked, out, *rest)


class Killed(Exception):
    pass


class Clock:
    """What was made, by its place; ends all where as much was made as is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.left = list[tuple[Path, range]](), 10**9
        for kind in (Lines, Reading):
            monkeypatch.setattr(kind, "stretch", self._timed(kind.stretch))

    def _timed(self, stretch: Any) -> Any:
        def timed(made: Made, some: range, told: Any) -> Any:
            if not self.left:
                raise Killed
            found = stretch(made, some, told)
            self.left -= 1
            self.made.append((made.place, some))
            return found

        return timed

    def see_each_once(self) -> None:
        units = [(place, n) for place, some in self.made for n in some]
        assert len(units) == len(set(units))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def by_hand(home: Path, out: Path) -> None:
    """What a cluster does, here one piece after the other, the last first."""
    out.mkdir(exist_ok=True)
    who, asked, tasks, robustness = watched.asked(home)
    job = Evaluating(who, asked, out, tasks, robustness, sizes=watched.SMALL)
    begun, rounds = None, list[str]()
    while begun is None or begun.more:
        begun = pickle.loads(pickle.dumps(job)).begin(begun)
        rounds.append(begun.what)
        worker = pickle.loads(pickle.dumps(job))
        for number in reversed(range(begun.pieces)):
            worker.piece(number, begun, None)
    job.end(begun)
    assert rounds[-1] == "reading (passes)"


@pytest.mark.parametrize("turns, stops", [((by_hand, alone, by_hand), (3, 12)), ((alone, by_hand), (5,))])
def test_whoever_begins_another_goes_on(turns: tuple[Any, ...], stops: tuple[int, ...], home: Path, clock: Clock, tmp_path: Path) -> None:
    """On a cluster, then alone, then on a cluster again; or the other way round: what was whole at a kill is not made again."""
    for turn, stop in zip(turns, stops, strict=False):
        clock.left = stop
        with pytest.raises(Killed):
            turn(home, tmp_path / "out")
    clock.left = 10**9
    turns[-1](home, tmp_path / "out")
    clock.see_each_once()
    assert watched.kept(tmp_path / "out") == watched.kept(home / "evaluated")


def test_questions_are_read_where_they_are_asked(home: Path) -> None:
    _, _, tasks, _ = watched.asked(home)
    assert b"green" not in pickle.dumps(tasks) and pickle.loads(pickle.dumps(tasks)).files[0].rows == tasks.files[0].rows
