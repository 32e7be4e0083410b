"""A run in a store on several machines that share no disk: whatever befalls them, it ends as the run that nothing befell."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import stores
import torch
from nodes import Death, job
from safetensors.torch import load_file
from stores import files, machine, objects
from test_ranks import near, same_student
from test_storage import made, settled  # noqa: F401

import limbeck as lb
from limbeck import checkpoint, cli, nodes, storage
from limbeck.config import plain
from limbeck.errors import LimbeckError
from limbeck.files import new_folder, read_json, read_jsonl
from limbeck.mirror import Mirror
from limbeck.pipeline import plan_of
from limbeck.run import Run

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
def whole(made, tmp_path_factory) -> Path:
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


def test_two_machines_do_what_one_process_does(made, whole, tmp_path) -> None:
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
    "the first, when it has the student": ({0: Death(f"step-{LAST}/.undone", "rm_file", once="run/student")}, ["one", "two"]),
    "the first, after it is": ({0: Death(f"step-{LAST}/.undone", "rm_file", after=True)}, ["two", "new"]),
    "the first, before the one before is gone": ({0: Death(f"step-{FIRST}/.*safetensors", "rm_file")}, ["one", "two"]),
    "both": ({0: Death(SHARD.format(LAST, 1)), 1: Death(SHARD.format(LAST, 2))}, ["two", "one"]),
    "the first, in the first save": ({0: Death(SHARD.format(FIRST, 1), after=True)}, ["two", "one"]),
}


@pytest.mark.parametrize("who", ENDS)
def test_killed_in_the_middle_of_a_save_they_go_on_on_other_machines(who, made, whole, tmp_path) -> None:
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
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl") if "evaluation" not in row][:step] == list(range(1, step + 1))


@pytest.mark.parametrize("place", ["one", "two", "new"])
def test_what_two_machines_began_one_goes_on_with(place, made, whole, tmp_path) -> None:
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


def test_asked_to_stop_both_save_and_others_go_on(made, whole, tmp_path) -> None:
    """The checkpoint of the step just made is whole in the store when they are out."""
    real = Run.log_step

    def slowly(self, step, moved):
        real(self, step, moved)
        if step == 2:
            (tmp_path / "now").touch()
            time.sleep(0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_step", slowly)
        ends = job(command(made, tmp_path), [tmp_path / "one", tmp_path / "two"], signalled=(tmp_path / "now").exists)
    assert [code for code, _ in ends] == [75, 75], ends
    assert "after 3 of 4 steps, which are saved" in ends[0][1]
    assert checkpoint.steps(run_of(tmp_path) / "checkpoints") == [3]
    ends = job(command(made, tmp_path), [tmp_path / "two", tmp_path / "new"])
    assert [code for code, _ in ends] == [0, 0], ends
    as_whole(whole, tmp_path)


def test_the_best_weights_of_several_machines_come_back_from_the_store(made, tmp_path) -> None:
    """Training makes it worse, so that the first checkpoint is the best, which no machine has whole."""
    worse = replace(made, keep="best", keep_last=2, student=replace(made.student, optimizer=lb.AdamW(3.0)))
    ends = job(command(worse, tmp_path), [tmp_path / "one", tmp_path / "two"])
    assert [code for code, _ in ends] == [0, 0], ends
    places, run = partial(checkpoint.place, run_of(tmp_path) / "checkpoints"), run_of(tmp_path)
    best = read_json(places(4) / "state.json")["best"]["step"]
    kept, student = checkpoint.restore(places(best))[0].whole(), load_file(run / "student" / "model.safetensors")
    assert best < 4 and student and all(torch.equal(kept[f"weight.{name}"], weight) for name, weight in student.items())


def test_stages_find_the_student_of_an_earlier_one_on_every_machine(made, tmp_path) -> None:
    """Copies of the model, where the first machine alone saves; and once more, when all is done."""
    first = plain(replace(made, steps=1, evaluations=[], evaluate_every=None, save_every=None))
    stages = plan_of({"stages": {"first": first, "second": {**first, "student": {**first["student"], "model": "@first"}}}})
    for places in (["one", "two"], ["two", "one"], ["new", "two"]):
        ends = job(command(stages, tmp_path), [tmp_path / place for place in places], sharded=False)
        assert [code for code, _ in ends] == [0, 0], ends
    found = objects(store(tmp_path))
    assert f"model: {store(tmp_path)}/first/student" in found["second/recipe.yaml"].decode()
    assert {"summary.json", "second/student/config.json", "first/student/config.json"} <= found.keys()


def test_a_store_that_is_away_from_one_of_them_costs_nothing(made, whole, tmp_path) -> None:
    """The other machine's first attempts to bring its share fail."""
    real, left = stores.Faulty.changed, [3]

    def changed(self, name, *given, **more):
        if "shard-00002" in str(given) and left[0]:
            left[0] -= 1
            raise ConnectionError("the cable is out")
        return real(self, name, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores.Faulty, "changed", changed)
        ends = job(command(made, tmp_path), [tmp_path / "one", tmp_path / "two"])
    assert [code for code, _ in ends] == [0, 0], ends
    assert "the cable is out); this machine's part goes later" in ends[1][1] and "answers again; nothing was lost" in ends[1][1]
    as_whole(whole, tmp_path)


def test_a_folder_that_the_other_machine_does_not_see_is_refused(made, tmp_path) -> None:
    work = command(made, tmp_path, "run")

    def apart() -> None:
        place = tmp_path / f"disk-{os.environ['RANK']}"
        place.mkdir()
        os.chdir(place)
        nodes.LOOK_SECONDS = 0.3
        work()

    ends = job(apart, [tmp_path / "one", tmp_path / "two"])
    assert [code for code, _ in ends] == [2, 2]
    line = "limbeck: process 1 of this job does not see run as the first one does; give an --out on a disk that all machines share, or a URL"
    assert "".join(said for _, said in ends).count(line) == 1, ends


def test_a_foreign_run_is_refused_on_any_machine_of_the_job(made, tmp_path) -> None:
    """Somebody on the second machine is at work in the folder: no friend, though the machine is one of ours."""
    ready = tmp_path / "ready"

    def foreign() -> None:
        os.environ["LIMBECK_LEASE_SECONDS"] = "0.4"
        root = storage.here(store(tmp_path))
        with storage.writing(root):
            ready.touch()
            while not (tmp_path / "done").exists():
                time.sleep(0.01)

    child = os.fork()
    if child == 0:
        with machine(tmp_path / "two"), suppress(BaseException):
            foreign()
        os._exit(0)
    while not ready.exists():
        time.sleep(0.01)
    ends = job(command(made, tmp_path), [tmp_path / "one", tmp_path / "two"])
    (tmp_path / "done").touch()
    os.waitpid(child, 0)
    assert [code for code, _ in ends] == [2, 2], ends
    assert "run is in use by" in ends[0][1] and "wait for it, or give another place" in ends[0][1].splitlines()[-1]


def test_a_cache_in_a_store_is_not_filled_by_several_machines(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with machine(tmp_path / "one"):
        root = storage.here(store(tmp_path))
        nodes.see_one_machine(tmp_path)
        nodes.see_one_machine(root)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(LimbeckError, match=r"^faulty:.*/run is filled by the processes of one machine, and this job has several"):
            nodes.see_one_machine(root)


def test_saves_that_come_faster_than_shares_get_there_are_kept_or_let_go(made, tmp_path) -> None:
    """The other's first share takes longer than all steps: its checkpoint stays until it is whole, those between are never asked for."""
    often, real, asked = replace(made, save_every=1, evaluate_every=None, steps=6), stores.Faulty.changed, tmp_path / "asked"

    def changed(self, name, *given, **more):
        if "step-00000001/shard-00002" in str(given):
            while not list(tmp_path.glob("one/limbeck/mirrors/*/run/student")):
                time.sleep(0.02)
        with asked.open("a") as file:
            file.write(f"{name} {given[0]}\n")
        return real(self, name, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores.Faulty, "changed", changed)
        ends = job(command(often, tmp_path), [tmp_path / "one", tmp_path / "two"])
    assert [code for code, _ in ends] == [0, 0], ends
    made_whole = [int(step) for step in re.findall(r"rm_file \S*step-0*(\d)/\.undone", asked.read_text())]
    assert made_whole == [1, 6, 1], "the first, the last, and then the first was removed"
    assert checkpoint.steps(run_of(tmp_path) / "checkpoints") == [6]
    assert not list(tmp_path.glob("two/limbeck/mirrors/*/parts/*"))
    reads_what_a_killed_process_could_have_left(tmp_path)


def test_two_processes_of_each_of_two_machines_do_what_one_does(made, whole, tmp_path) -> None:
    """One of each machine brings what both have written."""
    four = replace(made, source=replace(made.source, sequences=4))
    ends = job(command(four, tmp_path), [tmp_path / place for place in ("one", "one", "two", "two")])
    assert [code for code, _ in ends] == [0] * 4, ends
    assert len([name for name in objects(store(tmp_path)) if "/shard-" in name]) == 4
    for place in ("two", "new"):  # any machine has all of it
        with machine(tmp_path / place):
            lb.distill(four, storage.here(store(tmp_path)))
    lb.distill(four, tmp_path / "alone")
    as_one(tmp_path / "alone", run_of(tmp_path))


def test_a_folder_is_whole_when_what_others_bring_to_this_very_save_is_there(tmp_path) -> None:
    """What an earlier attempt left, a file of the same name and size among it, is cleared away before others are asked."""
    url = store(tmp_path)
    there = Path(url.removeprefix("faulty:/")) / "folder"

    def until(so: Callable[[], bool]) -> None:
        begun = time.monotonic()
        while not so():
            assert time.monotonic() - begun < 10
            time.sleep(0.01)

    with machine(tmp_path / "one"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "POLL_SECONDS", 0.02)
        root = storage.here(url)
        with storage.writing(root):
            there.mkdir(parents=True)
            for name in ("b", "stray"):
                (there / name).write_text("?")
            with new_folder(root / "folder") as work:
                (work / "a").write_text("a")
                storage.join(root / "folder", {"b": 1}, "word")
            until(lambda: (there / ".undone").exists() and (there / ".undone").read_text() == "word" and (there / "a").exists())
            time.sleep(0.1)
            assert sorted(path.name for path in there.iterdir()) == [".undone", "a"]
            assert not storage.let_go(root / "folder"), "others are bringing theirs"
            (there / "b").write_text("b")
            until(lambda: not (there / ".undone").exists())
            until(lambda: storage.let_go(root / "folder"))
        assert objects(url) == {"folder/a": b"a", "folder/b": b"b"} and files(root) == {"folder/a": b"a"}
        assert files(storage.here(url)) == objects(url)


def test_an_s3_bucket_is_the_disk_of_two_machines(made, whole, tmp_path) -> None:
    """The other is killed when its share is on its way; they go on with places changed."""
    real = Mirror.upload

    def killed(self, name, path):
        if os.environ.get("RANK") == "1" and f"step-{LAST}" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, name, path)

    with stores.s3() as bucket:
        url = f"{bucket}/nodes/one"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mirror, "upload", killed)
            ends = job(command(made, tmp_path, url), [tmp_path / "one", tmp_path / "two"])
        assert [code for code, _ in ends] == [2, -9], ends
        assert objects(url).keys() & {f"checkpoints/step-{LAST}/.undone", f"checkpoints/step-{FIRST}/state.json"}
        ends = job(command(made, tmp_path, url), [tmp_path / "two", tmp_path / "one"])
        assert [code for code, _ in ends] == [0, 0], ends
        found = objects(url)
    assert settled(found) == settled(objects(store(whole)))
