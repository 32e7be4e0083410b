"""Nothing is lost: killed at any moment, asked to stop, out of disk or memory, a run goes on to the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import toys
from test_runs import metrics, recipe, same_bits

import limbeck as lb
from limbeck import checkpoint, files
from limbeck.errors import LimbeckError, Stopped
from limbeck.files import read_json, read_jsonl
from limbeck.student import Student


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> lb.Recipe:
    """Five steps with evaluations and checkpoints between them: every kind of write is among them."""
    home = tmp_path_factory.mktemp("toys")
    toy = {"student": toys.folder(home / "student", seed=1, width=16), "teacher": toys.folder(home / "teacher", seed=2, width=16),
           "prompts": toys.jsonl(home / "prompts.jsonl", toys.rows(12)), "reward": "test_runs:many_vowels"}  # fmt: skip
    heldout = lb.Likelihood(toys.jsonl(home / "heldout.jsonl", toys.rows(4, seed=2)), own_text=True, sampling=lb.Sampling(max_tokens=3))
    small = recipe("gkd_rl", toy, steps=5, save_every=2, evaluate_every=2, evaluations=[heldout], keep="best", keep_last=2)
    return replace(small, source=replace(small.source, sequences=2, group=1, baseline="running", sampling=lb.Sampling(max_tokens=3)))


@pytest.fixture(scope="module")
def whole(made: lb.Recipe, tmp_path_factory) -> Path:
    """The run that nothing befell."""
    out = tmp_path_factory.mktemp("whole") / "run"
    lb.distill(made, out)
    return out


def forked(work: Callable[[], object]) -> int:
    """Do it in a process of its own; how that ended."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@contextmanager
def killed_at(moment: int):
    """Kill this process at its `moment`-th call of whatever changes a file: before it, so that it is not done."""
    left = moment

    def counting(real):
        def called(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return called

    import safetensors.torch

    for module, name in ((os, "replace"), (os, "fsync"), (os, "chmod"), (json, "dumps"), (files.tempfile, "mkdtemp"), (files.tempfile, "mkstemp"),
                         (files.shutil, "rmtree"), (safetensors.torch, "save"), (torch.optim.AdamW, "step")):  # fmt: skip
        setattr(module, name, counting(getattr(module, name)))
    yield


def same(run: Path, whole: Path) -> None:
    """To the bit, and nothing is left lying about."""
    for name in ("metrics.jsonl", "samples.jsonl", "evaluations.json", "recipe.yaml"):
        assert (run / name).read_text() == (whole / name).read_text(), name
    same_bits(run, whole)
    assert [path.name for path in run.rglob(".*") if path.name != ".lock"] == []
    assert checkpoint.steps(run / "checkpoints") == checkpoint.steps(whole / "checkpoints")


def test_killed_at_every_moment_it_goes_on_to_the_same_bits(made: lb.Recipe, whole: Path, tmp_path: Path) -> None:
    """kill -9 before each of its file operations and steps, a save's among them."""

    def run_until(moment: int, out: Path) -> int:
        def work() -> None:
            with killed_at(moment):
                lb.distill(made, out)

        return forked(work)

    moment, ends = 1, list[int]()
    while (end := run_until(moment, tmp_path / str(moment))) != 0:
        assert os.WTERMSIG(end) == signal.SIGKILL
        ends.append(moment)
        moment += 1 if moment < 30 else 4
    assert len(ends) > 40, "there were not that many moments"
    for at in ends:
        assert forked(lambda at=at: lb.distill(made, tmp_path / str(at))) == 0
        same(tmp_path / str(at), whole)


def test_killed_again_and_again_it_comes_to_an_end(made: lb.Recipe, whole: Path, tmp_path: Path) -> None:
    """Each attempt dies a little later than the last."""

    def work(moment: int) -> None:
        with killed_at(moment):
            lb.distill(made, tmp_path / "run")

    moment = 20
    while forked(partial(work, moment)) != 0:
        moment += 7
        assert moment < 500
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["write", "learn", "step", "measure", "save"])
def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bits(where: str, number: int, made: lb.Recipe, whole: Path, tmp_path: Path) -> None:
    real, calls = getattr(Student, where), 0

    def asked(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), number)
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, where, asked)
        if where == "save":
            calls = 2
        with pytest.raises(
            Stopped, match=rf"stopped by {signal.Signals(number).name} after \d of 5 steps, which are saved; the same command"
        ) as said:
            lb.distill(made, tmp_path / "run")
    done = int(re.findall(r"after (\d)", str(said.value))[0])
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == done and said.value.number == number
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    lb.distill(made, tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl", "evaluations.json"):
        assert (tmp_path / "run" / name).read_text() == (whole / name).read_text(), name
    same_bits(tmp_path / "run", whole)


def test_a_command_that_is_asked_to_stop_leaves_with_a_line(made: lb.Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(replace(made, steps=10_000, evaluate_every=None, keep="last").yaml)
    command = [sys.executable, "-m", "limbeck", "distill", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=where)
    while len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) < 5 and process.poll() is None:
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    done = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    assert process.returncode == 75 and "Traceback" not in said
    assert said.endswith(f"stopped by SIGTERM after {done} of 10000 steps, which are saved; the same command goes on from there\n")


def test_a_half_written_checkpoint_is_never_loaded(made: lb.Recipe, whole: Path, tmp_path: Path) -> None:
    lb.distill(made, tmp_path / "run")
    last = checkpoint.place(tmp_path / "run" / "checkpoints", 5)
    left = last.parent / f".{last.name}.abc{files.UNDONE}"
    last.rename(left)
    (left / "state.json").unlink()
    for folder in ("student",):
        files.shutil.rmtree(tmp_path / "run" / folder)
    lb.distill(made, tmp_path / "run")
    assert not left.exists() and metrics(tmp_path / "run") == metrics(whole)
    same_bits(tmp_path / "run", whole)


def test_a_full_disk_is_said_and_nothing_is_lost(made: lb.Recipe, whole: Path, tmp_path: Path) -> None:
    """A real one, of 400 kB, where this machine lets us mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(LimbeckError, match=r"cannot write .*: No space left on device; free some space, and give the same command again"):
            lb.distill(made, disk / "run")
        assert subprocess.run(["mount", "-o", "remount,size=40m", str(disk)]).returncode == 0
        lb.distill(made, disk / "run")
        same(disk / "run", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["write_text", "append_jsonl", "new_folder"])
def test_a_write_that_fails_is_one_line(name: str, made: lb.Recipe, whole: Path, tmp_path: Path) -> None:
    """The same wherever the disk gives out: in a record, in a log, in a checkpoint."""
    import resource

    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = {"write_text": 200, "append_jsonl": 3500, "new_folder": 20_000}[name]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, held[1]))
    try:
        with pytest.raises(LimbeckError, match=r"cannot write .*: File too large; raise the limit on the size of files, and give the same command"):
            lb.distill(made, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)
        signal.signal(signal.SIGXFSZ, before)
    lb.distill(made, tmp_path / "run")
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_cuts_the_pass_once(error: Exception, made: lb.Recipe, whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    real = Student.learn
    made = replace(made, tokens_per_pass=4096)

    def learn(self, batch, *args, **kwargs):
        found = real(self, batch, *args, **kwargs)  # memory may give out after some of the gradient is there
        if len(batch) > 1:
            raise error
        return found

    monkeypatch.setattr(Student, "learn", learn)
    with pytest.raises(LimbeckError, match="out of memory in passes of 2048 tokens; lower tokens_per_pass"):
        lb.distill(made, tmp_path / "run")
    assert "out of memory in passes of 4096 tokens; going on with 2048" in capsys.readouterr().err
    made = replace(made, tokens_per_pass=60)  # halves hold one sequence
    lb.distill(made, tmp_path / "other")
    assert capsys.readouterr().err.count("out of memory in passes of 60 tokens; going on with 30") == 1
    for row, other in zip(read_jsonl(whole / "metrics.jsonl"), read_jsonl(tmp_path / "other" / "metrics.jsonl"), strict=True):
        assert row["step"] == other["step"] and row.keys() == other.keys()
        assert all(other[key] == pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in row.items() if isinstance(value, float)), row


def test_a_loss_that_is_no_number_stops_before_the_step(made: lb.Recipe, tmp_path: Path, monkeypatch) -> None:
    """The last checkpoint stays, and the rows are named."""
    real = lb.ReverseKL.rows

    def rows(self, student, said, tokens):
        nats_C, gradient_CV = real(self, student, said, tokens)
        return (nats_C * float("nan") if len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) > 4 else nats_C), gradient_CV

    monkeypatch.setattr(lb.ReverseKL, "rows", rows)
    with pytest.raises(LimbeckError, match=r"the loss is nan in sequences \[0\b.*; lower the learning rate, or look at these rows"):
        lb.distill(made, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 2


def test_nothing_private_is_written(made: lb.Recipe, tmp_path: Path, monkeypatch) -> None:
    """Neither the home folder nor the user's name nor a secret of the environment, though paths and command hold them; and it goes on."""
    home = tmp_path / "home" / "alice"
    (home / "my").mkdir(parents=True)
    elsewhere = tmp_path / "disks" / "alice" / "data"
    elsewhere.mkdir(parents=True)
    for name, value in {
        "HOME": str(home),
        "LOGNAME": "alice",
        "USER": "alice",
        "HF_TOKEN": "hf_verysecret123",
        "MY_API_KEY": "sk-verysecret",
    }.items():
        monkeypatch.setenv(name, value)
    student, prompts = toys.folder(home / "my" / "student", seed=1), toys.jsonl(elsewhere / "prompts.jsonl", toys.rows(8))
    secretly = replace(made, student=lb.Student(student, dtype="float32"), source=replace(made.source, prompts=[lb.Data(prompts)]), steps=2)
    monkeypatch.setattr(sys, "argv", ["limbeck", "distill", f"{home}/my/recipe.yaml", "--set", "token=hf_verysecret123"])
    lb.distill(secretly, tmp_path / "run")
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        for word in (b"alice", b"verysecret", str(home).encode()):
            assert word not in path.read_bytes(), (path, word)
    recipe_yaml = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "model: ~/my/student" in recipe_yaml and "/disks/$USER/data/prompts.jsonl" in recipe_yaml
    assert "--set token=$HF_TOKEN" in read_json(tmp_path / "run" / "provenance.json")["command"]
    lb.distill(lb.Recipe.read(tmp_path / "run" / "recipe.yaml"), tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(tmp_path / "run")
    lb.distill(secretly, tmp_path / "run")  # the same recipe, whichever way it is spelt
