"""Asking a teacher once: killed, asked to stop, several at a time or wrongly asked, `limbeck cache` leaves what an unbroken one leaves."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toys
from caches import Whole, asking, counted, furnish, remade, same_rows, small_pieces, stored, whole  # noqa: F401
from test_cli import said
from test_unbroken import forked, killed_at

from limbeck import annotate as annotating
from limbeck.annotate import Annotation, Estimate, annotate, verify
from limbeck.cache import Cache
from limbeck.data import Data
from limbeck.errors import DataError, LimbeckError, RecipeError, Stopped
from limbeck.files import UNDONE
from limbeck.shards import Shards
from limbeck.teachers import Local


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with small_pieces(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.annotate.WAIT_SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("toys")
    return {**furnish(home), "many": toys.jsonl(home / "many.jsonl", toys.rows(400, seed=3))}


def rows_of(out: Path) -> int:
    return len(Cache.open(out))


# What is asked


def test_rows_are_the_same_however_they_are_passed(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    """Other passes, another order, and half of it before."""
    annotate(replace(asking(toy), data=Data(toy["some"]), tokens_per_pass=60), tmp_path)
    assert 0 < rows_of(tmp_path) < rows_of(whole("sampled:50"))
    reverse = toys.jsonl(tmp_path / "reverse.jsonl", toys.rows(48)[::-1])
    annotate(replace(asking(toy), data=Data(reverse), tokens_per_pass=200), tmp_path)
    same_rows(stored(tmp_path), stored(whole("sampled:50")))


def test_a_row_that_stands_twice_is_asked_once(toy: dict[str, str], tmp_path: Path) -> None:
    twice = toys.jsonl(tmp_path / "twice.jsonl", toys.rows(30) + toys.rows(30))
    with counted() as counts:
        annotate(replace(asking(toy), data=Data(twice)), tmp_path / "cache")
    assert sum(counts) == rows_of(tmp_path / "cache") == len(stored(tmp_path / "cache")) <= 30


def test_a_sequence_that_is_cut_in_several_ways_is_asked_about_all_completions(toy: dict[str, str], tmp_path: Path) -> None:
    """At once, and again where a wider cut comes later; whoever reads finds the wider."""
    cut = lambda at: {"prompt_ids": list(range(at)), "completion_ids": list(range(at, 12))}  # noqa: E731
    for name, rows, asked, spans in (("a", [cut(6), cut(9)], 1, (6, 12)), ("b", [cut(9)], 0, (6, 12)), ("c", [cut(3), cut(5)], 1, (3, 12))):
        with counted() as counts:
            cache = annotate(replace(asking(toy), data=Data(toys.jsonl(tmp_path / f"{name}.jsonl", rows))), tmp_path / "cache")
        key = cache.key(list(range(12)), 1.0)
        assert sum(counts) == asked and cache.spans(key) == (spans,) == Cache.open(tmp_path / "cache").spans(key), name


def test_held_out_text_is_kept_whole_and_apart(toy: dict[str, str], tmp_path: Path) -> None:
    asked = asking(toy, "top:5", held_out=Data(toy["heldout"]), held_out_rows=6)
    annotate(asked, tmp_path)
    inside = Cache.open(tmp_path / "held-out")
    assert (len(inside), inside.manifest.keep, inside.head is not None) == (6, "hidden", True)
    before = stored(tmp_path)
    with counted() as counts:
        annotate(replace(asked, held_out_rows=10), tmp_path)
    assert sum(counts) == 4 and rows_of(tmp_path / "held-out") == 10 and stored(tmp_path) == before


@pytest.mark.parametrize("sample", [2000, 150])
def test_what_is_to_come_is_told_beforehand(sample: int, toy: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and tokens within 10 %, from all rows or from some; bytes within 20 %, of which the toys' many small shards are most."""
    told, real = list[Estimate](), annotating._Filling._estimate
    monkeypatch.setattr(annotating, "SAMPLE_ROWS", sample)
    monkeypatch.setattr(annotating, "PILOT_ROWS", 32)
    monkeypatch.setattr(annotating, "PIECE_ROWS", 64)
    pilot = dict[str, dict[str, Any]]()

    def estimate(self: annotating._Filling) -> Estimate:
        told.append(real(self))
        pilot.update(self.cache.shards.entered())
        return told[-1]

    monkeypatch.setattr(annotating._Filling, "_estimate", estimate)
    cache = annotate(replace(asking(toy), data=Data(toy["many"])), tmp_path)
    came = [line for name, line in cache.shards.entered().items() if name not in pilot]
    for name, tolerance in {"rows": 0.1, "tokens": 0.1, "bytes": 0.2}.items():
        assert getattr(told[0], name) == pytest.approx(sum(line[name] for line in came), rel=tolerance), name
    annotate(replace(asking(toy), data=Data(toy["many"])), tmp_path)
    assert (told[1].rows, told[1].tokens, told[1].bytes) == (0, 0, 0)


def test_an_estimate_is_a_line() -> None:
    line = "12,345 rows are to come, about 678,900 completion tokens, 12.3 MB"
    assert str(Estimate(12345, 678900, 12_340_000, 125)) == f"{line} and 2:05 minutes"
    assert str(Estimate(12345, 678900, 12_340_000, None)) == line and str(Estimate(0, 0, 0, None)) == "nothing more is to come"


# Going on


def test_killed_at_every_moment_it_goes_on_and_no_row_is_lost_or_doubled(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    """kill -9 before each third of its file operations."""
    wanted = stored(whole("sampled:50"))

    def killed(moment: int, out: Path) -> None:
        with killed_at(moment):
            annotate(asking(toy), out)

    moment, ends = 1, list[int]()
    while (end := forked(partial(killed, moment, tmp_path / str(moment)))) != 0:
        assert os.WTERMSIG(end) == signal.SIGKILL
        ends.append(moment)
        moment += 3
    assert len(ends) >= 12
    for at in ends:
        annotate(asking(toy), tmp_path / str(at))
        same_rows(stored(tmp_path / str(at)), wanted)
        assert verify(tmp_path / str(at)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 2, 9, 20])
def test_asked_to_stop_it_saves_what_it_has(at: int, number: int, toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    """In the pilot, in the first piece, in a later one: passes that were scored are not asked again."""
    real, scored = Local._say, 0

    def say(self: Local, batch: Any) -> Any:
        nonlocal scored
        scored += 1
        if scored == at:
            os.kill(os.getpid(), number)
        return real(self, batch)

    asked = asking(toy, tokens_per_pass=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Local, "_say", say)
        with pytest.raises(Stopped, match=r"stopped after \d+ rows, which are saved; the same command goes on") as stopped:
            annotate(asked, tmp_path)
    saved = rows_of(tmp_path)
    assert stopped.value.number == number and f"after {saved} rows" in str(stopped.value)
    assert saved == (0 if at <= 2 else len(stored(tmp_path))) and (at < 20 or saved > 8)
    remade(asked, tmp_path, rows_of(whole("sampled:50")) - saved, whole("sampled:50"))


def command(toy: dict[str, str], out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "limbeck",
        "cache",
        "--teacher",
        toy["teacher"],
        "--dtype",
        "float32",
        "--data",
        toy["many"],
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_was_killed_goes_on(number: int, toy: dict[str, str], tmp_path: Path) -> None:
    """A real one, once its first shard is there."""
    where = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(toy, tmp_path / "run", "--tokens-per-pass", "40"), env=where, **pipes)
    while not [*(tmp_path / "run").glob("journal/*.jsonl")] and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    saved = rows_of(tmp_path / "run")
    if number == signal.SIGTERM:
        line = rf"limbeck: {tmp_path}/run: stopped after {saved} rows, which are saved; the same command goes on\n"
        assert process.returncode == 75 and re.search(line + "$", err) and "Traceback" not in err
    else:
        assert process.returncode == -number
    asked = replace(asking(toy), data=Data(toy["many"]))
    annotate(asked, tmp_path / "whole")
    assert 0 < saved < rows_of(tmp_path / "whole")
    remade(asked, tmp_path / "run", rows_of(tmp_path / "whole") - saved, tmp_path / "whole")


def test_three_processes_fill_one_cache_and_one_of_them_dies(toy: dict[str, str], tmp_path: Path) -> None:
    """All rows are there; twice are at most those of a pilot that another had in hand, and they say the same."""
    asked = replace(asking(toy, tokens_per_pass=100), data=Data(toy["many"]))
    annotate(asked, tmp_path / "whole")
    wanted, out = stored(tmp_path / "whole"), tmp_path / "run"
    children = [_started(asked, out) for _ in range(3)]
    while not [*out.glob("journal/*.jsonl")]:
        time.sleep(0.002)
    os.kill(children[0], signal.SIGKILL)
    assert [os.waitpid(child, 0)[1] for child in children] == [signal.SIGKILL, 0, 0]
    found = stored(out)
    assert verify(out) == [] and len(wanted) <= len(found) <= len(wanted) + 2 * 4
    same_rows(list({row["key"]: row for row in found}.values()), wanted)
    same_rows(list({row["key"]: row for row in reversed(found)}.values())[::-1], wanted)
    with counted() as counts:
        annotate(asked, out)
    assert counts == []


def test_a_piece_has_one_owner_until_it_is_done_or_dead(tmp_path: Path) -> None:
    shards, (heard, told) = Shards(tmp_path, "x"), os.pipe()
    child = os.fork()
    if child == 0:
        with shards.claimed(3):
            os.write(told, b"!")
            time.sleep(60)
        os._exit(0)
    assert os.read(heard, 1) == b"!"
    claims = [shards.claimed(piece) for piece in (3, 4)]
    for claim, free in zip(claims, (False, True), strict=True):
        with claim as mine:
            assert mine == free
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with shards.claimed(3) as mine:
        assert mine


def _started(asked: Annotation, out: Path) -> int:
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            annotate(asked, out)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def test_what_a_killed_process_left_half_written_goes_after_an_hour(toy: dict[str, str], tmp_path: Path) -> None:
    annotate(asking(toy), tmp_path)
    old, new = (tmp_path / "shards" / f".{name}.parquet.abc{UNDONE}" for name in ("old", "new"))
    for path, age in ((old, 4000), (new, 10)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    annotate(asking(toy), tmp_path)
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("size", [100, 8000])
def test_a_write_that_fails_is_one_line_and_nothing_is_lost(size: int, toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    """In the manifest, in a shard."""
    held, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, held[1]))
    try:
        with pytest.raises(
            LimbeckError, match=r"cannot write .*: File too large; raise the limit on the size of files, and give the same command again"
        ):
            annotate(asking(toy), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)
        signal.signal(signal.SIGXFSZ, before)
    annotate(asking(toy), tmp_path)
    same_rows(stored(tmp_path), stored(whole("sampled:50")))


def test_a_full_disk_is_one_line_and_nothing_is_lost(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    """A real one, where this machine lets us mount it; at every size in which something else no longer fits."""
    disk = tmp_path / "disk"
    disk.mkdir()
    for size in (4, 12, 28, 44):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with pytest.raises(LimbeckError, match=r"cannot write .*: No space left on device; free some space, and give the same command again"):
                annotate(asking(toy), disk / "cache")
            assert subprocess.run(["mount", "-o", "remount,size=40m", str(disk)]).returncode == 0
            annotate(asking(toy), disk / "cache")
            same_rows(stored(disk / "cache"), stored(whole("sampled:50")))
        finally:
            subprocess.run(["umount", str(disk)], check=True)


# What is asked wrongly

ASK = "cache --teacher teacher --data data.jsonl --dtype float32"
WRONG = {
    "cache --data data.jsonl --out new": "cache needs --teacher; only --verify does without",
    "cache --teacher teacher --out new": "cache needs --data; only --verify does without",
    f"{ASK} --keep sampeld:50 --out new": 'keep "sampeld:50" is not known; did you mean "sampled"?',
    f"{ASK} --keep sampled --out new": 'keep "sampled" needs a number; give sampled:50',
    f"{ASK} --keep sampled:many --out new": 'keep "sampled:many" needs a number; give sampled:50',
    f"{ASK} --keep hidden:3 --out new": 'keep "hidden:3" takes no number; give hidden',
    f"{ASK} --keep top:0 --out new": "keep top:0: give a number from 1 to 1000",
    f"{ASK} --keep top:258 --out new": "keep top:258: the vocabulary has 258 tokens; give fewer, or keep dense",
    f"{ASK} --temperature 0 --out new": "temperatures must be above 0 and finite, found 0.0",
    f"{ASK} --temperature nan --out new": "temperatures must be above 0 and finite, found nan",
    f"{ASK} --seed -1 --out new": "seed must lie between 0 and 2^63, found -1",
    f"{ASK} --max-tokens 0 --out new": "max_tokens, tokens_per_pass and held_out_rows must be at least 1",
    f"{ASK.replace('float32', 'float8')} --out new": "Local.dtype: input should be 'auto', 'float32' or 'bfloat16', found 'float8'",
    f"{ASK.replace('data.jsonl', 'empty.jsonl')} --out new": "empty.jsonl holds no rows; give it at least one",
    f"{ASK.replace('data.jsonl', 'nothing.jsonl')} --out new": "there is no file nothing.jsonl",
    f"{ASK.replace('--teacher teacher', '--teacher nobody')} --out new": "nobody",
    f"{ASK.replace('--teacher teacher', '--teacher @student')} --out new": "@student",
    f"{ASK} --keep sampled:49 --out there": "there is another cache (keep is sampled:50 there, sampled:49 here); give another --out",
    f"{ASK} --seed 1 --out there": "there is another cache (seed is 0 there, 1 here); give another --out",
    f"{ASK.replace('--teacher teacher', '--teacher student')} --out there": "there is another cache (its teacher's fingerprint is",
    f"{ASK.replace('float32', 'bfloat16')} --out there": "there is another cache (its teacher's arithmetic is float32 there, bfloat16 here)",
    "cache --verify --out data.jsonl": "data.jsonl holds no cache, for there is no manifest.json in it",
    "cache --verify --out nowhere": "nowhere holds no cache, for there is no manifest.json in it",
    f"{ASK} --out data.jsonl": "cannot write data.jsonl/manifest.json: ",
    f"{ASK} --out /proc/cache": "cannot write /proc/cache/manifest.json: ",
}


@pytest.fixture(scope="module")
def home(toy: dict[str, str]) -> Path:
    made = Path(toy["data"]).parent
    (made / "empty.jsonl").write_text("")
    annotate(asking(toy), made / "there")
    return made


@pytest.mark.parametrize("arguments", WRONG)
def test_what_is_asked_wrongly_is_one_line_and_makes_nothing(arguments: str, home: Path, monkeypatch, capsys) -> None:
    code, _, err = said(arguments, home, monkeypatch, capsys)
    complaints = [line for line in err.splitlines() if line.startswith("limbeck: ")]
    assert code == 2 and len(complaints) == 1 and WRONG[arguments] in complaints[0] and err.endswith(complaints[0] + "\n")
    assert not (home / "new").exists() and verify(home / "there") == []


def test_rows_without_room_for_an_answer_are_said(toy: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a completion within 5 tokens; raise max_tokens, or give other rows"):
        annotate(replace(asking(toy), max_tokens=5), tmp_path)
    with pytest.raises(RecipeError, match="temperatures must be above 0 and finite"):
        asking(toy, temperatures=[])


def test_the_command_fills_says_and_verifies(home: Path, monkeypatch, capsys) -> None:
    """And once more asks nobody; what is damaged then ends with 2."""
    ask = f"{ASK} --keep top:5 --temperature 1 --temperature 2 --held-out heldout.jsonl --out filled"
    code, out, _ = said(ask, home, monkeypatch, capsys)
    assert code == 0 and re.search(r"filled: \d+ rows are to come, about [\d,]+ completion tokens", out) and "bytes a token" in out
    with counted() as counts:
        assert said(ask, home, monkeypatch, capsys)[0] == 0
    assert counts == []
    assert said("cache --verify --out filled", home, monkeypatch, capsys) == (0, "filled: every byte is as it was written\n", "")
    path = min((home / "filled" / "shards").iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    code, out, _ = said("cache --verify --out filled", home, monkeypatch, capsys)
    assert (code, out.count("\n")) == (2, 1) and out.startswith(f"{path.name} is damaged: its bytes are not those that were written (")
