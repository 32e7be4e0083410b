"""A run in a store on several machines that share no disk: whatever befalls them, it ends as the run that nothing befell."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import stores
from nodes import Death, job
from stores import files, machine, objects
from test_ranks import near, same_student
from test_storage import made, settled  # noqa: F401

import limbeck as lb
from limbeck import checkpoint, cli, nodes, storage
from limbeck.config import plain
from limbeck.errors import LimbeckError
from limbeck.files import append_jsonl, new_folder, read_json, read_jsonl, write_text
from limbeck.pipeline import plan_of
from limbeck.student import Student

SHARD = "step-{}/shard-0000{}-model"
"""Of a step's checkpoint the file of a rank, from 1."""


@pytest.fixture(autouse=True)
def long_leases(monkeypatch) -> None:
    """What a killed machine held is waited for by nobody that knows it to be dead."""
    monkeypatch.setenv("LIMBECK_LEASE_SECONDS", "300")
    monkeypatch.setattr(stores.Faulty, "moment", 0)
    monkeypatch.setattr(stores.Faulty, "away", False)


def store(home: Path) -> str:
    return f"faulty:/{home / 'store' / 'run'}"


def command(made: lb.Recipe, home: Path, url: str | None = None) -> Callable[[], None]:
    """The command line, as a launcher starts it."""
    (home / "recipe.yaml").write_text(made.yaml)

    def work() -> None:
        sys.argv = ["limbeck", "distill", str(home / "recipe.yaml"), "--out", url or store(home)]
        cli.main()

    return work


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Path:  # noqa: F811
    """Two machines that nothing befell: the folder of their homes and the store."""
    home = tmp_path_factory.mktemp("whole")
    ends = job(command(made, home), [home / "one", home / "two"])
    assert [code for code, _ in ends] == [0, 0], ends
    return home


def as_whole(whole: Path, home: Path) -> None:
    """The same bits in the store."""
    assert settled(objects(store(home))) == settled(objects(store(whole)))


def run_of(home: Path, place: str = "reader") -> Path:
    """The run, as another machine reads it."""
    with machine(home / place):
        return storage.here(store(home))


def test_two_machines_do_what_one_process_does(made, whole, tmp_path) -> None:  # noqa: F811
    names = sorted(name for name in objects(store(whole)) if "/step-" in name)
    shards = [f"checkpoints/{SHARD.format('0000000' + '4', n)}-00001-of-00001.safetensors" for n in (1, 2)]
    assert names == [*shards, "checkpoints/step-00000004/state.json"]
    lb.distill(made, tmp_path / "one")
    as_one(tmp_path / "one", run_of(whole))
    student = files(run_of(whole) / "student")
    for place in ("one", "two"):  # the finished student lies on each
        (found,) = (whole / place / "limbeck" / "mirrors").glob("*/run/student")
        assert files(found) == student


def as_one(one: Path, other: Path) -> None:
    for row, again in zip(read_jsonl(one / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl"), strict=True):
        near(row, again)
    same_student(one, other)


LAST, FIRST = "0000000" + "4", "0000000" + "2"
ENDS = {
    "the other, before its share is there": ({1: Death(SHARD.format(LAST, 2))}, ["two", "one"]),
    "the other, after it is": ({1: Death(SHARD.format(LAST, 2), after=True)}, ["new", "one"]),
    "the first, before it asks": ({0: Death(f"step-{LAST}/.undone")}, ["two", "one"]),
    "the first, before the folder is whole": ({0: Death(f"step-{LAST}/.undone", "rm_file")}, ["one", "new"]),
    "the first, after it is": ({0: Death(f"step-{LAST}/.undone", "rm_file", after=True)}, ["two", "new"]),
    "the first, before the one before is gone": ({0: Death(f"step-{FIRST}/.*safetensors", "rm_file")}, ["one", "two"]),
    "both": ({0: Death(SHARD.format(LAST, 1)), 1: Death(SHARD.format(LAST, 2))}, ["two", "one"]),
    "the first, in the first save": ({0: Death(SHARD.format(FIRST, 1), after=True)}, ["two", "one"]),
}


@pytest.mark.parametrize("who", ENDS)
def test_killed_in_the_middle_of_a_save_they_go_on_on_other_machines(who, made, whole, tmp_path) -> None:  # noqa: F811
    deaths, places = ENDS[who]
    ends = job(command(made, tmp_path), [tmp_path / "one", tmp_path / "two"], deaths)
    assert -9 in {code for code, _ in ends} <= {-9, 2}, ends
    assert not any("Traceback" in said for _, said in ends), ends
    reads_what_a_killed_process_could_have_left(tmp_path)
    if "one" not in places:
        shorten(tmp_path)
    ends = job(command(made, tmp_path), [tmp_path / place for place in places])
    assert [code for code, _ in ends] == [0, 0], ends
    as_whole(whole, tmp_path)
    assert not [path for place in places for path in (tmp_path / place).glob("limbeck/mirrors/*/parts/*")]


def reads_what_a_killed_process_could_have_left(home: Path) -> None:
    """Every checkpoint that a reader finds can be read, and its lines are there."""
    run = run_of(home)
    for step in checkpoint.steps(run / "checkpoints"):
        saved, state = checkpoint.restore(checkpoint.place(run / "checkpoints", step))
        assert saved.whole() and state["step"] == step
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl") if "evaluation" not in row][: step] == list(range(1, step + 1))


@pytest.mark.parametrize("place", ["one", "two", "new"])
def test_what_two_machines_began_one_goes_on_with(place, made, whole, tmp_path) -> None:  # noqa: F811
    deaths = {0: Death(f"step-{LAST}/.undone", "rm_file")}
    job(command(made, tmp_path), [tmp_path / "one", tmp_path / "two"], deaths)
    mine = tmp_path / place / "limbeck"
    if place != "one":  # one alone cannot know that the other is dead
        os.environ["LIMBECK_LEASE_SECONDS"] = "0.5"
        shorten(tmp_path)
    ends = job(command(made, tmp_path), [tmp_path / place])
    assert [code for code, _ in ends] == [0], ends
    assert mine.exists()
    as_one(run_of(whole), run_of(tmp_path))


def shorten(home: Path) -> None:
    """The lease that was left runs out."""
    (lease,) = Path(store(home).removeprefix("faulty:/")).glob(".lease-*")
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "until": time.time() + 0.3}))
