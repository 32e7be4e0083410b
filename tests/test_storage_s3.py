"""An S3-compatible server on loopback: a corpus, a cache and a run in it, killed, cut off, and gone on with on another machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import fsspec
import pytest
import stores
from caches import asking, counted, furnish, same_rows, small_pieces, stored
from stores import files, machine, objects
from test_corpus import PROMPTS, order, toy  # noqa: F401
from test_storage import made, settled, whole  # noqa: F401

import limbeck as lb
from limbeck import storage
from limbeck.annotate import annotate
from limbeck.corpus import write_corpus
from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.ledger import Ledger
from limbeck.student import Student

LEASE = "1"


@pytest.fixture(autouse=True)
def short_leases(monkeypatch) -> None:
    monkeypatch.setenv("LIMBECK_LEASE_SECONDS", LEASE)


@pytest.fixture(autouse=True)
def configured():
    with stores.configured():
        yield


@pytest.fixture(scope="module")
def bucket():
    with stores.s3() as url:
        yield url


def test_a_key_stands_in_no_file(made, bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretkey")
    with machine(tmp_path / "one"):
        lb.distill(replace(made, steps=1, evaluations=[], evaluate_every=None, save_every=None), f"{bucket}/secret")
        assert not [name for name, data in objects(f"{bucket}/secret").items() if b"verysecretkey" in data]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"verysecretkey" in path.read_bytes()]


def test_a_bucket_that_is_not_there_is_one_line(made, bucket, tmp_path) -> None:
    with (
        machine(tmp_path / "one"),
        pytest.raises(LimbeckError, match=r"^s3://nobodys/run cannot be used: FileNotFoundError: .*bucket does not exist"),
    ):
        lb.distill(made, "s3://nobodys/run")


@pytest.mark.parametrize("other", [False, True], ids=["the same machine", "another machine"])
def test_a_command_that_is_killed_goes_on(other, made, bucket, whole, tmp_path) -> None:
    """kill -9 of a real process, whose steps are slow, after its first checkpoint has been sent."""
    url = f"{bucket}/killed-{other}"
    (tmp_path / "recipe.yaml").write_text(made.yaml)
    code = ("import sys, time; from limbeck.student import Student; real = Student.step\n"
            "def step(self, *given):\n    time.sleep(0.4)\n    return real(self, *given)\n"
            "Student.step = step; from limbeck.cli import main; main()")  # fmt: skip
    command = [sys.executable, "-c", code, "distill", str(tmp_path / "recipe.yaml"), "--out", url]
    where = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "one")}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=where)
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    while process.poll() is None and not fs.exists(f"{url}/checkpoints/step-00000002/state.json"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(float(LEASE))
    with machine(tmp_path / ("two" if other else "one")):
        lb.distill(made, url)
        assert settled(objects(url)) == whole
        assert files(storage.here(url)) == objects(url)


def test_the_connection_is_cut_in_the_middle_and_nothing_is_lost(made, whole, tmp_path, monkeypatch, capfd) -> None:
    """The server stops after the first step, and is there again at the end."""
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr(storage, "EVERY_SECONDS", 0.2)
    real, steps, server = Student.step, 0, list[ThreadedMotoServer]()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")

    def up(port: int) -> int:
        server.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False))
        server[-1].start()
        return server[-1].get_host_and_port()[1]

    def stepping(self, *given):
        nonlocal steps
        steps += 1
        if steps == 1:
            server[-1].stop()
            time.sleep(0.6)
        if steps == 4:
            threading.Timer(0.3, up, [port]).start()
        return real(self, *given)

    port = up(0)
    stores.led(monkeypatch, port)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("cut")
    monkeypatch.setattr(Student, "step", stepping)
    try:
        with machine(tmp_path / "one"):
            monkeypatch.setattr(storage, "PAUSES", (0.5,) * 20)
            lb.distill(made, "s3://cut/run")
            assert settled(objects("s3://cut/run")) == whole
    finally:
        server[-1].stop()
    assert "s3://cut/run does not answer (EndpointConnectionError: Could not connect" in capfd.readouterr().err


def test_a_corpus_is_gone_on_with_elsewhere_and_no_answer_is_asked_twice(toy, bucket, tmp_path, monkeypatch) -> None:
    url = f"{bucket}/corpus"
    write_corpus(order(toy), tmp_path / "whole")
    with machine(tmp_path / "one"):
        killed_at_record(toy, url, 20)
    time.sleep(float(LEASE))
    asked = list[int]()
    real = Ledger.record
    monkeypatch.setattr(Ledger, "record", lambda self, *given: (asked.append(1), real(self, *given)))
    with machine(tmp_path / "one"):
        card = write_corpus(order(toy), url)
        assert card.answers == PROMPTS * 4 and len(asked) == PROMPTS * 4 - 20
        assert objects(url)["corpus.jsonl"] == (tmp_path / "whole" / "corpus.jsonl").read_bytes()
    asked.clear()
    with machine(tmp_path / "two"):
        assert write_corpus(order(toy), url).answers == PROMPTS * 4 and not asked
        lines = Data(f"{url}/corpus.jsonl").rows()
        assert len(lines) == len((tmp_path / "whole" / "corpus.jsonl").read_text().splitlines())


def killed_at_record(toy, url: str, answers: int) -> None:
    """A process of its own that dies when so many answers are in its ledger."""
    code = (
        "import os, signal, limbeck as lb; from limbeck.corpus import Order, write_corpus\n"
        "from limbeck.data import Data; from limbeck.ledger import Ledger\n"
        "real = Ledger.record\n"
        f"def record(self, *given):\n    real(self, *given)\n    len(self) < {answers} or os.kill(os.getpid(), signal.SIGKILL)\n"
        "Ledger.record = record\n"
        f"write_corpus(Order(lb.Local({toy['teacher'].model!r}, dtype='float32'), Data({toy['prompts'].path!r}), samples=4,"
        f"sampling=lb.Sampling(max_tokens=12, temperature=2.0), similarity=None), {url!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL


def test_a_cache_is_filled_gone_on_with_elsewhere_and_learnt_from(bucket, tmp_path, monkeypatch) -> None:
    toy, url = furnish(tmp_path / "toys"), f"{bucket}/scores"
    with small_pieces():
        annotate(asking(toy), tmp_path / "whole")
        with machine(tmp_path / "one"), monkeypatch.context() as patch:
            real, writes = storage.Kept.told, 0

            def told(self, path):
                nonlocal writes
                writes += path.suffix == ".parquet"
                if writes == 3:
                    raise KeyboardInterrupt
                return real(self, path)

            patch.setattr(storage.Kept, "told", told)
            with pytest.raises(KeyboardInterrupt):
                annotate(asking(toy), url)
        with machine(tmp_path / "two"):
            with counted() as asked:
                annotate(asking(toy), url)
            assert 0 < sum(asked) < 48
            same_rows(stored(storage.here(url)), stored(tmp_path / "whole"))
            with counted() as asked:
                annotate(asking(toy), url)
            assert sum(asked) == 0
    with machine(tmp_path / "three"):
        fs = fsspec.filesystem("s3")
        fs.put(toy["student"], "bucket/student", recursive=True)  # a folder that none of ours wrote
        recipe = lb.Recipe(
            lb.Student(f"{bucket}/student", dtype="float32"), lb.Corpus(toy["data"], 2), lb.Cached(url), lb.Objective([lb.ForwardKL()]), steps=2
        )
        lb.distill(recipe, f"{bucket}/learnt")
        said = objects(f"{bucket}/learnt")
        assert b"model: s3://bucket/student" in said["recipe.yaml"] and b"folder: s3://bucket/scores" in said["recipe.yaml"]
        lb.distill(lb.Recipe.read(f"{bucket}/learnt/recipe.yaml"), tmp_path / "again")
        assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == said["metrics.jsonl"]


def test_the_command_line_takes_urls_and_names_them(made, bucket, tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(replace(made, steps=1, evaluations=[], evaluate_every=None, save_every=None).yaml)

    def said(*command: str) -> subprocess.CompletedProcess[str]:
        where = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "one")}
        return subprocess.run([sys.executable, "-m", "limbeck", *command], capture_output=True, text=True, env=where)

    done = said("distill", str(tmp_path / "recipe.yaml"), "--out", f"{bucket}/cli")
    assert done.stdout == f"student: {bucket}/cli/student\n", done.stderr
    assert said("report", f"{bucket}/cli").stdout == f"report: {bucket}/cli/report.html\n"
    other = said("distill", str(tmp_path / "recipe.yaml"), "--set", "steps=2", "--out", f"{bucket}/cli")
    assert other.stderr.splitlines()[-1].startswith(f"limbeck: {bucket}/cli holds a run of another recipe (steps is 1 there, 2 here)")
    assert "report.html" in objects(f"{bucket}/cli") and json.loads(objects(f"{bucket}/cli")["provenance.json"])["seed"] == 0
