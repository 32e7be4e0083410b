"""Runs, corpora and caches in a store: whatever happens on the way, the store ends as the folder of a run that nothing befell."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import stores
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from stores import files, machine, objects
from test_runs import recipe
from test_unbroken import forked

import limbeck as lb
from limbeck import storage
from limbeck.config import plain
from limbeck.errors import LimbeckError
from limbeck.files import append_jsonl, new_folder, remove_folder, write_bytes, write_text
from limbeck.pipeline import plan_of
from limbeck.report import report
from limbeck.stages import carry_out
from limbeck.student import Student


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> lb.Recipe:
    """Four steps with evaluations and checkpoints between them."""
    home = tmp_path_factory.mktemp("toys")
    toy = {"student": toys.folder(home / "student", seed=1, width=16), "teacher": toys.folder(home / "teacher", seed=2, width=16),
           "data": toys.jsonl(home / "data.jsonl", toys.rows(12))}  # fmt: skip
    held = lb.Likelihood(toys.jsonl(home / "heldout.jsonl", toys.rows(4, seed=2)))
    small = recipe("kd", toy, steps=4, save_every=2, evaluate_every=2, evaluations=[held], keep_last=1)
    return replace(small, source=replace(small.source, sequences=2))


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> dict[str, bytes]:
    """The files of the run that nothing befell."""
    out = tmp_path_factory.mktemp("whole") / "run"
    lb.distill(made, out)
    return settled(files(out))


def settled(found: dict[str, bytes]) -> dict[str, bytes]:
    """Without clocks and the name of the command; of a checkpoint its tensors, which lie in the file in any order."""
    kept = {name: data for name, data in found.items() if name not in ("timings.jsonl", "provenance.json")}
    return {name: tensors(data) if "checkpoints/" in name and name.endswith(".safetensors") else data for name, data in kept.items()}


def tensors(data: bytes) -> bytes:
    """Names, shapes and bytes of a safetensors file's tensors, in the order of their names."""
    return b"".join(f"{name} {tensor.shape} {tensor.dtype} ".encode() + tensor.numpy().tobytes() for name, tensor in sorted(load(data).items()))


def test_a_run_in_a_store_leaves_what_a_run_on_disk_leaves(made, whole, tmp_path) -> None:
    with machine(tmp_path / "one"), stores.s3() as bucket:
        lb.distill(made, f"{bucket}/runs/one")
        found = objects(f"{bucket}/runs/one")
        assert settled(found) == whole and {"timings.jsonl", "provenance.json"} <= found.keys()
        assert files(storage.here(f"{bucket}/runs/one")) == found


def store(home: Path) -> str:
    return f"faulty:/{home / 'store' / 'run'}"


@pytest.fixture(autouse=True)
def whole_disk(monkeypatch):
    """No faults but those that a test asks for, and leases that are over soon."""
    monkeypatch.setattr(stores.Faulty, "moment", 0)
    monkeypatch.setattr(stores.Faulty, "away", False)
    monkeypatch.setenv("LIMBECK_LEASE_SECONDS", "0.05")


def killed(made: lb.Recipe, url: str, moment: int, after: bool) -> int:
    """A process that dies at its `moment`-th change of the store; how it ended."""

    def work() -> None:
        stores.Faulty.changes, stores.Faulty.moment, stores.Faulty.after = 0, moment, after
        lb.distill(made, url)

    return forked(work)


@pytest.mark.parametrize("other", [False, True], ids=["the same machine", "another machine"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_change_of_the_store_it_goes_on_to_the_same_files(other, after, made, whole, tmp_path) -> None:
    """Every seventh moment; the four cases begin at others, and the order of threads differs."""
    moment, ends = 1 + other + after, 0
    while True:
        home = tmp_path / str(moment)
        with machine(home / "one"):
            end = killed(made, store(home), moment, after)
        if end == 0:
            break
        ends += 1
        time.sleep(0.06)
        with machine(home / ("two" if other else "one")):
            lb.distill(made, store(home))
            assert settled(objects(store(home))) == whole, moment
            assert files(storage.here(store(home))) == objects(store(home)), moment
        moment += 7
    assert ends > 4, "there were not that many moments"


def test_killed_on_one_machine_after_the_other_it_comes_to_an_end(made, whole, tmp_path) -> None:
    for turn in range(40):
        with machine(tmp_path / f"machine-{turn}"):
            time.sleep(0.06)
            if killed(made, store(tmp_path), 12 + turn, after=bool(turn % 2)) == 0:
                break
    assert turn > 1 and settled(objects(store(tmp_path))) == whole


def test_a_store_that_is_away_for_a_while_costs_nothing(made, whole, tmp_path, monkeypatch, capfd) -> None:
    """What could not be sent is sent once the store is back, in the middle of a step: by nothing but that it is tried again."""
    real, steps, said = Student.step, 0, ""
    checkpoint = f"{store(tmp_path)}/checkpoints/step-00000002/state.json".removeprefix("faulty:/")

    def until(there) -> None:
        begun = time.monotonic()
        while not there():
            assert time.monotonic() - begun < 10, "it was not tried again"
            time.sleep(0.01)

    def told(words: str) -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return words in said

    def stepping(self, *given):
        nonlocal steps
        steps += 1
        if steps == 2:
            stores.Faulty.away = True
        if steps == 3:
            until(lambda: told("does not answer (ConnectionError: the cable is out)"))
            assert not Path(checkpoint).exists()
            stores.Faulty.away = False
            until(lambda: told("answers again; nothing was lost") and Path(checkpoint).exists())
        return real(self, *given)

    monkeypatch.setattr(Student, "step", stepping)
    with machine(tmp_path / "one"):
        lb.distill(made, store(tmp_path))
    assert settled(objects(store(tmp_path))) == whole
    assert steps == 4


@pytest.mark.parametrize("again", [lb.distill, lambda made, url: carry_out(made, Path(url))], ids=["in Python", "on the command line"])
def test_a_store_that_stays_away_is_said_at_the_end_and_the_same_command_sends_the_rest(again, made, whole, tmp_path, monkeypatch) -> None:
    real = Student.step

    def stepping(self, *given):
        stores.Faulty.away = True
        return real(self, *given)

    with machine(tmp_path / "one"):
        with monkeypatch.context() as patch:
            patch.setattr(Student, "step", stepping)
            with pytest.raises(LimbeckError, match=r"all is in .*/run, and not all in faulty:.*the cable is out.*the same command again") as said:
                lb.distill(made, store(tmp_path))
        assert "\n" not in str(said.value)
        root = storage.here(store(tmp_path)) if (stores.Faulty.away, setattr(stores.Faulty, "away", False))[0] else None
        assert root is not None and settled(files(root)) == whole and "student/config.json" not in objects(store(tmp_path))
        monkeypatch.setattr(Student, "step", never)
        again(made, store(tmp_path))
        assert settled(objects(store(tmp_path))) == whole


def never(*given: object) -> None:
    raise AssertionError("that was done already")


def test_a_store_that_is_not_there_is_one_line(made, tmp_path) -> None:
    stores.Faulty.away = True
    with (
        machine(tmp_path / "one"),
        pytest.raises(LimbeckError, match=r"faulty://.*/run cannot be used: ConnectionError: the cable is out; see to it"),
    ):
        lb.distill(made, store(tmp_path))


def test_one_machine_at_a_time_and_what_a_stalled_one_had_not_sent_is_put_aside(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LIMBECK_LEASE_SECONDS", "2")
    url = store(tmp_path)
    with machine(tmp_path / "one"):
        root = storage.here(url)
        first = storage.mirrored(root)
        with storage.writing(root):
            write_text(root / "a.txt", "one")
            with machine(tmp_path / "two"):
                other = storage.here(url)
                with pytest.raises(LimbeckError, match=r"is in use by .*, process \d+ since 20..-..-.. ..:..:.. UTC; wait for it, or give"):
                    write_text(other / "a.txt", "two")
        with machine(tmp_path / "two"):  # the first has given it back
            other = storage.here(url)
            write_text(other / "a.txt", "two")
            assert objects(url) == {"a.txt": b"two"}
        monkeypatch.setenv("LIMBECK_LEASE_SECONDS", "0.01")
        monkeypatch.setattr(storage.Kept, "_renewing", lambda self: None)  # as of a machine that was put to sleep
        with pytest.raises(LimbeckError, match=r"was taken over by .* what this process did since is not sent"), storage.writing(root):
            assert (root / "a.txt").read_text() == "two"
            time.sleep(0.02)
            with machine(tmp_path / "three"):
                write_text(storage.here(url) / "b.txt", "three")
            write_text(root / "c.txt", "paid for")
            time.sleep(0.2)
            write_text(root / "d.txt", "paid for")
        time.sleep(0.02)
        with storage.writing(root):
            assert files(root) == {"a.txt": b"two", "b.txt": b"three"}
        (aside,) = first.mirror.home.glob("unsent-*")
        assert {"c.txt", "d.txt"} <= files(aside).keys()


def test_a_machine_that_was_switched_off_is_waited_for(tmp_path, monkeypatch, capsys) -> None:
    """Its lease is renewed by nobody: whoever comes next goes on when it has run out."""
    monkeypatch.setenv("LIMBECK_LEASE_SECONDS", "0.6")
    url = store(tmp_path)
    with machine(tmp_path / "one"):
        write_text(storage.here(url) / "a.txt", "one")
        storage.mirrored(storage.here(url)).mirror.leases.take()  # and is switched off
    with machine(tmp_path / "two"):
        began = time.monotonic()
        write_text(storage.here(url) / "b.txt", "two")
        assert 0.3 < time.monotonic() - began < 5
    assert objects(url) == {"a.txt": b"one", "b.txt": b"two"}
    assert capsys.readouterr().err.count("whether it is alive") == 1


def test_a_mirror_that_was_left_half_filled_is_filled_again(tmp_path, monkeypatch) -> None:
    """The lease was taken, the store went away before all was fetched: what another machine wrote is neither missed nor removed."""
    url = store(tmp_path)
    with machine(tmp_path / "one"):
        write_text(storage.here(url) / "a.txt", "one")
        with machine(tmp_path / "two"):
            write_text(storage.here(url) / "a.txt", "two")
            write_text(storage.here(url) / "b.txt", "two")
        kept = storage.mirrored(storage._kept[url].mirror.root)
        real = kept.mirror._fetch
        with monkeypatch.context() as patch:
            patch.setattr(kept.mirror, "_fetch", lambda *given: (_ for _ in ()).throw(LimbeckError("killed")))
            with pytest.raises(LimbeckError, match="killed"), kept.writing():
                raise AssertionError
        assert kept.mirror._fetch == real
        with kept.writing():
            write_text(kept.mirror.root / "c.txt", "one")
    assert objects(url) == {"a.txt": b"two", "b.txt": b"two", "c.txt": b"one"}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["write", "append", "folder", "remove", "elsewhere"]), st.integers(0, 2), st.binary(max_size=20)), max_size=12)
)
def test_whatever_is_done_here_is_what_is_read_elsewhere(tmp_path_factory, deeds) -> None:
    home, place = tmp_path_factory.mktemp("deeds"), "one"
    url = store(home)
    for what, which, data in deeds:
        place = ("two" if place == "one" else "one") if what == "elsewhere" else place
        with machine(home / place):
            root = storage.here(url)
            with storage.writing(root):
                done(what, root, which, data)
            held = files(root)
            assert held == objects(url)
        with machine(home / "reader"):
            assert files(storage.here(url)) == held


def done(what: str, root: Path, which: int, data: bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    match what:
        case "write":
            write_bytes(root / "texts" / f"{which}.bin", data)
        case "append":
            append_jsonl(root / f"{which}.jsonl", {"said": data.hex()})
        case "folder":
            with new_folder(root / "checkpoints" / f"step-{which}") as work:
                (work / f"{len(data) % 3}.bin").write_bytes(data)
        case "remove" if (root / "checkpoints" / f"step-{which}").exists():
            remove_folder(root / "checkpoints" / f"step-{which}")
        case _:
            pass


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", range(1, 11))
def test_a_folder_is_there_whole_or_not_at_all(moment, after, tmp_path) -> None:
    """Made, made anew, and removed, killed at every change on the way."""

    def work() -> None:
        root = storage.here(url)
        with storage.writing(root):
            for text in ("old", "new"):
                with new_folder(root / "folder") as made:
                    for name in ("a", "b"):
                        (made / name).write_text(text)
                storage.mirrored(root).mirror.send()
            remove_folder(root / "folder")

    url = store(tmp_path)
    with machine(tmp_path / "one"):
        assert forked(
            lambda: (setattr(stores.Faulty, "changes", 0), setattr(stores.Faulty, "moment", moment), setattr(stores.Faulty, "after", after), work())
        )
    with machine(tmp_path / "two"):
        root = storage.here(url)
        assert files(root) in ({}, {"folder/a": b"old", "folder/b": b"old"}, {"folder/a": b"new", "folder/b": b"new"})
        time.sleep(0.06)
        write_text(root / "x", "x")  # and the next to write clears away what was left
        assert objects(url) == files(root)
    with machine(tmp_path / "one"):
        time.sleep(0.06)
        work()


@pytest.mark.parametrize(
    ("place", "url"),
    [("s3://b/x", "s3://b/x"), (Path("s3://b/x/y"), "s3://b/x/y"), ("gs://b/x/", "gs://b/x"), (Path("file:///a/b"), "file:///a/b"), ("/a/b", None),
     (Path("runs/one"), None), ("http://localhost:8000/v1", None), ("my_module:my_function", None), ("org/name", None), ("memory://a", "memory://a")],
)  # fmt: skip
def test_what_is_a_url(place, url) -> None:
    assert storage.url_of(place) == url
    if url is None:
        assert storage.here(place) == Path(place)


def test_a_scheme_without_its_package_and_one_that_nobody_knows(tmp_path) -> None:
    with machine(tmp_path):
        with pytest.raises(LimbeckError, match=r"^gs://b/x needs what is not installed; pip install 'limbeck\[gcs\]'$"):
            storage.here("gs://b/x")
        with pytest.raises(LimbeckError, match=r"^nothing://b/x: Protocol not known: nothing; give a folder, or a URL that fsspec knows"):
            storage.here("nothing://b/x")


def test_stages_name_each_other_by_the_url(made, tmp_path) -> None:
    first = plain(replace(made, steps=1, evaluations=[], evaluate_every=None, save_every=None))
    second = {**first, "student": {**first["student"], "model": "@first"}}
    with machine(tmp_path / "one"):
        carry_out(plan_of({"stages": {"first": first, "second": second}}), Path(store(tmp_path)))
        found = objects(store(tmp_path))
        assert f"model: {store(tmp_path)}/first/student" in found["second/recipe.yaml"].decode()
        assert not [name for name, data in found.items() if str(tmp_path / "one").encode() in data]
    with machine(tmp_path / "two"):  # finished: nothing is trained, from the recipes as they lie there
        carry_out(plan_of({"stages": {"first": first, "second": second}}), Path(store(tmp_path)))
        report([Path(store(tmp_path))], Path(f"{store(tmp_path)}/page.html"))
        assert objects(store(tmp_path)) == {**found, "page.html": objects(store(tmp_path))["page.html"]}
