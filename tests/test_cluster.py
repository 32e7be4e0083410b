"""On a cluster: what one process makes, whoever does the pieces and whoever dies. One Ray of this machine for the whole file."""

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys
import watched
from deaths import processes
from faulty import Faulty, faulty
from typer.testing import CliRunner

import limbeck as lb
from limbeck import cluster
from limbeck.allocate import Pilot
from limbeck.annotate import Annotation, annotate
from limbeck.answers import Answer, Bill, Given, Purse, Question
from limbeck.batch import Batch
from limbeck.cache import Cache
from limbeck.cli import app
from limbeck.cluster import Cluster, Resources
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data
from limbeck.dialogue import Dialogues
from limbeck.errors import DataError, LimbeckError, RecipeError, Stopped
from limbeck.files import read_json, read_jsonl, write_jsonl
from limbeck.insides import Layers
from limbeck.ledger import Journal, Ledger
from limbeck.pool import Pool
from limbeck.spread import cache as caches
from limbeck.spread import corpus as corpora
from limbeck.spread import stages as placed
from limbeck.spread.work import Desk, Over, carried_out
from limbeck.stages import distill_stages
from limbeck.transfer.measure import evaluate_transfer

pytest.importorskip("ray", reason="clusters are Ray's, an extra: pip install 'limbeck[ray]'")

PROMPTS = 40


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cluster")
    write_jsonl(home / "prompts.jsonl", [{"prompt": f"question {n}"} for n in range(PROMPTS)])
    toys.jsonl(home / "train.jsonl", [{**row, "prompt": f"{n} {row['prompt']}"} for n, row in enumerate(toys.rows(600))])
    toys.jsonl(home / "heldout.jsonl", toys.rows(24, seed=2))
    for name, seed in (("teacher", 2), ("student", 1)):
        toys.folder(home / name, seed=seed)
    return home


@pytest.fixture(scope="module")
def four(home: Path) -> Iterator[Cluster]:
    """A cluster with room for four workers."""
    with pytest.MonkeyPatch.context() as patch, cluster.joined("ray", Resources(workers=4)) as found:
        patch.chdir(home)
        yield found


def of(four: Cluster, workers: int, **settings: Any) -> Cluster:
    return replace(four, resources=Resources(num_cpus=0.5, workers=workers, **settings))


def order(there: Faulty, **settings: Any) -> Order:
    teacher = lb.Endpoint(there.url, "toy", concurrency=4, usd_in=1e6, usd_out=1e6)
    asked: dict[str, Any] = {"samples": 2, "sampling": lb.Sampling(max_tokens=16), "similarity": None, **settings}
    return Order(teacher, Data("prompts.jsonl"), accept_license=["unknown licence of toy"], **asked)


def corpus(out: Path) -> list[dict[str, Any]]:
    return read_jsonl(out / "corpus.jsonl")


@contextmanager
def later(seconds: float, work: Any) -> Iterator[None]:
    timer = threading.Timer(seconds, work)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# The same rows


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that comes to the driver."""
    found, real = list[bytes](), Over.watched

    def watched(self: Over, work: Any) -> Iterator[Any]:
        for each in real(self, work):
            found.append(pickle.dumps(each))
            yield each

    monkeypatch.setattr(Over, "watched", watched)
    return found


def test_a_corpus_is_that_of_one_process_and_no_row_comes_to_the_driver(four: Cluster, tmp_path: Path, told: list[bytes]) -> None:
    with faulty() as there:
        card = write_corpus(order(there), tmp_path / "local")
        there.asked.clear()
        found = corpora.spread(of(four, 4), order(there), tmp_path / "out", prompts=8)
        assert set(there.asked.values()) == {1} and there.asked.total() == 2 * PROMPTS
    assert corpus(tmp_path / "out") == corpus(tmp_path / "local") and len(corpus(tmp_path / "out")) == 2 * PROMPTS
    assert (found.counts(), replace(found.took, seconds=0), found.ended) == (card.counts(), replace(card.took, seconds=0), card.ended)
    assert len(told) > PROMPTS // 8 and not any(b"question 7" in each or b"re: q" in each for each in told)
    assert [*(tmp_path / "out" / "journals").iterdir()] == []


def test_a_cache_is_that_of_one_process(four: Cluster, home: Path, tmp_path: Path, told: list[bytes]) -> None:
    asked = Annotation(lb.Local("teacher", dtype="float32"), Data("train.jsonl"), held_out=Data("heldout.jsonl"), held_out_rows=8)
    local = annotate(asked, tmp_path / "local")
    found = caches.spread(of(four, 3), asked, tmp_path / "out")
    assert (found.rows, found.tokens) == (len(local), local.bytes_and_tokens[1])
    for inside in ("", "held-out"):
        assert stored(tmp_path / "out" / inside) == stored(tmp_path / "local" / inside) != {}
    assert not any(b"prompt" in each for each in told)


def stored(out: Path) -> dict[bytes, Any]:
    shards = Cache.open(out).shards
    tables = [shards.open(name).read() for name in shards.entered()]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == len({row["key"] for row in rows}), "a row twice"
    return {row["key"]: row for row in rows}


def test_an_evaluation_is_that_of_one_process_though_a_worker_dies(four: Cluster, home: Path, tmp_path: Path, told: list[bytes]) -> None:
    """Texts, answers to tasks, tables, edits and suffixes byte by byte."""
    watched.prepare(home)
    who, asked, tasks, robustness = watched.asked(home)
    evaluate_transfer(who.subjects(), asked, tmp_path / "local", tasks, robustness)
    out, killed = tmp_path / "out", list[int]()
    job = watched.Watched(who, asked, out, tasks, robustness, sizes=watched.SMALL)

    def kill() -> None:
        while sum(each["done"] for each in watched.pieces(out)) < 4:
            time.sleep(0.01)
        killed.append(processes("Hand", four.address[1])[0])
        os.kill(killed[0], signal.SIGKILL)

    with later(0.0, kill):
        carried_out(job, of(four, 2), out)
    assert watched.kept(out) == watched.kept(tmp_path / "local") and killed
    assert not any(b"green" in each for each in told)
    lines = watched.pieces(out)
    for what in ("writing (prompts)", "reading (passes)"):
        mine = [each for each in lines if each["round"] == what]
        ended = [each["number"] for each in mine if each["done"]]
        assert {*ended} == {*range(mine[0]["pieces"])} and len(ended) > 8 and len({each["who"] for each in mine if each["done"]}) >= 2
        assert len(mine) <= 2 * (mine[0]["pieces"] + len(killed)), "each once, but for one that was under way"


def test_stages_that_do_not_wait_for_each_other_are_the_same_at_once(four: Cluster, home: Path, tmp_path: Path) -> None:
    def stage(teacher: str) -> lb.Recipe:
        student = lb.Student("student", lb.AdamW(3e-3), dtype="float32")
        return lb.Recipe(student, lb.Corpus("train.jsonl", sequences=4), lb.Local(teacher, dtype="float32"), lb.ForwardKL(), steps=2)

    made = lb.Pipeline({"one": stage("teacher"), "two": replace(stage("teacher"), seed=1), "three": stage("@two")}, {"three": Resources(0.5)})
    ready = placed._Stages(made, tmp_path)
    assert [*ready.ready()] == ["one", "two"] and [*ready.more("one")] == [] and [*ready.more("two")] == ["three"]
    distill_stages(made, tmp_path / "local")
    assert placed.spread(of(four, 2), made, tmp_path / "out") == tmp_path / "out" / "three"
    for name in made.stages:
        assert (tmp_path / "out" / name / "metrics.jsonl").read_bytes() == (tmp_path / "local" / name / "metrics.jsonl").read_bytes(), name
    assert read_json(tmp_path / "out" / "summary.json") == read_json(tmp_path / "local" / "summary.json")
    assert placed.spread(of(four, 2), made, tmp_path / "out") == tmp_path / "out" / "three", "and once more it is finished"


@pytest.mark.parametrize("kind", ["dialogues", "pilot"])
def test_what_follows_from_answers_is_asked_in_pieces_too(kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of dialogues, several teachers: after the pieces, here one after the other, nothing is left to be asked."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(corpora, "DeskPurse", lambda desk, piece, usd, flops: Purse(usd, flops))
    with faulty() as one, faulty(models=["other"]) as two:
        asked = replace(order(one), dialogues=Dialogues(2))
        if kind == "pilot":
            several = [*asked.teacher, lb.Endpoint(two.url, "other", concurrency=4, usd_in=1e6, usd_out=1e6)]
            pilot, accepted = Pilot(4, 2, "coverage"), [f"unknown licence of {name}" for name in ("toy", "other")]
            asked = replace(asked, teacher=several, samples=1, pilot=pilot, verifier=lb.Regex("re"), budget_usd=1e6, accept_license=accepted)
        write_corpus(asked, tmp_path / "local")
        once = [set(each.asked.values()) for each in (one, two)]
        for each in (one, two):
            each.asked.clear()
        job = corpora.Writing(asked, tmp_path / "out", prompts=8)
        (tmp_path / "out").mkdir()
        begun = job.begin()
        for number in range(begun.pieces):
            job.piece(number, begun, None)
        before = one.asked.total() + two.asked.total()
        job.end(begun)
        assert one.asked.total() + two.asked.total() == before > 2 * PROMPTS
        assert [set(each.asked.values()) for each in (one, two)] == once
    assert corpus(tmp_path / "out") == corpus(tmp_path / "local") != []


# A pool


def test_a_pool_says_what_its_model_says_to_the_bit_and_outlives_an_actor(four: Cluster, home: Path) -> None:
    local = lb.Local("teacher", dtype="float32")
    student = lb.Student("student", dtype="float32").load(1)
    texts = [text for row in toys.rows(60) for text in student.live.vocabulary.texts(row, Data("x"), 100)]
    parts = Batch.of(texts, "corpus").split(120)
    pool, alone = Pool(local, 2, resources=Resources(0.5)).load(student), local.load(student)
    assert (pool.says, pool.described, pool.identity, pool.licences) == (local.says, alone.described, local.identity, local.licences)
    for layers in (Layers(), Layers(frozenset({0, 1}), frozenset({1}))):
        pool.lay_open(layers)
        alone.lay_open(layers)
        for number, (mine, theirs) in enumerate(zip(pool.score(parts), alone.score(parts), strict=True)):
            assert mine.fingerprint == theirs.fingerprint
            assert mine.rows(slice(None)).log_probs().equal(theirs.rows(slice(None)).log_probs()), number  # type: ignore[union-attr]
            _same_features(mine, theirs)
            if number == 3:
                os.kill(processes("Hand", four.address[1])[-1], signal.SIGKILL)
    with pytest.raises(RecipeError, match=r"Pool holds a model that others can open too, found Mixture; give Pool\(Local\(model\)\)"):
        Pool(lb.Mixture({"a": local}))


def _same_features(mine: Any, theirs: Any) -> None:
    if theirs.features is None:
        assert mine.features is None
        return
    assert all(mine.features.states[layer].equal(states) for layer, states in theirs.features.states.items())
    for layer, attention in theirs.features.attentions.items():
        for block in attention.blocks:
            assert all(map(lambda a, b: a.equal(b), mine.features.attentions[layer].rows(block), attention.rows(block)))


def test_a_pool_teaches_as_its_model_does(four: Cluster, home: Path, tmp_path: Path) -> None:
    """With hidden states compared, so that layers of a model elsewhere are laid open."""
    local = lb.Local("teacher", dtype="float32")
    objective = lb.ForwardKL() + lb.HiddenStates()
    made = lb.Recipe(lb.Student("student", dtype="float32"), lb.Corpus("train.jsonl", sequences=4), local, objective, steps=2)
    lb.distill(made, tmp_path / "local")
    lb.distill(replace(made, teacher=Pool(local, 1)), tmp_path / "pool")
    assert (tmp_path / "pool" / "metrics.jsonl").read_bytes() == (tmp_path / "local" / "metrics.jsonl").read_bytes()


# Killed and stopped


def test_a_worker_that_dies_loses_and_doubles_nothing(four: Cluster, tmp_path: Path) -> None:
    with faulty(pause=0.1) as there:
        write_corpus(order(there), tmp_path / "local")
        there.asked.clear()

        def kill() -> None:
            while there.asked.total() < 10:
                time.sleep(0.01)
            os.kill(processes("Hand", four.address[1])[0], signal.SIGKILL)

        with later(0.0, kill):
            corpora.spread(of(four, 2), order(there), tmp_path / "out", prompts=8)
        assert len(there.asked) == 2 * PROMPTS <= there.asked.total() <= 2 * PROMPTS + 4
    assert corpus(tmp_path / "out") == corpus(tmp_path / "local")
    with Ledger(tmp_path / "out" / "ledger.sqlite") as ledger:
        assert len(ledger) == 2 * PROMPTS


def test_a_signal_lets_workers_save_and_one_process_goes_on(four: Cluster, tmp_path: Path) -> None:
    """Nothing is asked twice, as calls under way are waited for; and a cluster goes on from one process as well."""
    with faulty(pause=0.1) as there:

        def stop() -> None:
            while there.asked.total() < 12:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        with later(0.0, stop), pytest.raises(Stopped, match="stopped; what was done is saved, and the same command goes on") as raised:
            corpora.spread(of(four, 2), order(there), tmp_path / "out", prompts=8)
        assert raised.value.number == signal.SIGTERM and 12 <= there.asked.total() < 2 * PROMPTS
        write_corpus(order(there), tmp_path / "out")
        assert set(there.asked.values()) == {1} and there.asked.total() == 2 * PROMPTS
        corpora.spread(of(four, 2), order(there, samples=3), tmp_path / "out", prompts=8)
        assert set(there.asked.values()) == {1} and len(corpus(tmp_path / "out")) == 3 * PROMPTS


def test_a_budget_holds_over_all_workers(four: Cluster, tmp_path: Path) -> None:
    """Ten tokens a call at a dollar each."""
    with faulty() as there:
        card = corpora.spread(of(four, 2), order(there, budget_usd=300.0), tmp_path / "out", prompts=4)
        assert there.tokens <= 300 and card.spent.usd == there.tokens and 300 - there.tokens < 150
    assert card.ended == "the budget was spent (budget_usd=300)"


def test_what_a_piece_that_died_had_set_aside_is_given_back() -> None:
    desk = Desk()
    desk.open_purse(10.0, None, Bill(usd=1.0))
    assert desk.begin(0) is None and desk.take(0, Bill(usd=6.0)) == "now" and desk.take(1, Bill(usd=6.0)) == "later"
    assert desk.begin(0) is None and desk.take(1, Bill(usd=6.0)) == "now"
    desk.settle(1, Bill(usd=6.0), Bill(usd=5.0))
    assert desk.take(0, Bill(usd=5.0)) == "never" and desk.take(0, Bill(usd=4.0)) == "now"
    desk.ring(15)
    assert desk.begin(0) == desk.rung() == 15


# Refused


def test_what_is_wrong_is_one_line(four: Cluster, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Annotation(lb.Local("teacher", dtype="float32"), Data("train.jsonl"), max_tokens=5)
    with pytest.raises(RecipeError, match="a worker asks for 4 GPU, and no machine of the cluster has more than 0; ask for less, or join another"):
        caches.spread(of(four, 1, num_gpus=4), asked, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "refused before anything is begun"
    with pytest.raises(DataError, match=r"train\.jsonl: no row has a completion within 5 tokens"):  # met by a worker
        caches.spread(of(four, 1), asked, tmp_path / "out")
    monkeypatch.setattr(cluster, "_look", lambda probe, token: "No such file or directory")
    with pytest.raises(LimbeckError, match=r"does not see .*out as this machine does \(No such file or directory\); give an --out on a disk"):
        four.see_folder(tmp_path / "out")


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            LimbeckError, match=f"no cluster answers at {address} \\(Connection refused\\); begin it \\(ray start\\), or give another"
        ):
            cluster._asked(address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(LimbeckError, match="no cluster answers at"):
            cluster._asked("ray")
    with pytest.raises(LimbeckError, match=r"ray://head:10001 is the door of Ray's client, and Ray Data does not go through it; give the command on"):
        cluster._asked("ray://head:10001")
    with pytest.raises(RecipeError, match='"rya" is no cluster; give --on ray, auto or HOST:PORT'):
        cluster._asked("rya")
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(LimbeckError, match="clusters are Ray's, and it is not installed; pip install 'limbeck"):
        cluster.ray()


def test_a_journal_is_mended_and_taken_in_once(tmp_path: Path) -> None:
    """A line that was cut goes; the same answer of two pieces stays once, and both are paid; a journal that comes again is none."""
    asked, path = Question({"prompt": "a"}, Data("x"), (0, 1)), tmp_path / "ledger.sqlite"
    given = [Given(asked, n, Answer(f"answer {n}"), Bill(1, 1, usd=1.0)) for n in (0, 1)]
    Ledger(path).__exit__()
    with Journal(path, "one-0") as journal:
        journal.record(given[0], "who")
    with (tmp_path / "journals" / "one-0.jsonl").open("a") as file:
        file.write('{"row": ["who", "torn')
    with Journal(path, "one-0") as journal:
        assert [each.sample for each in journal.given("who", asked)] == [0]
        journal.record(given[1], "who")
    kept = (tmp_path / "journals" / "one-0.jsonl").read_bytes()
    with Journal(path, "one-1") as journal:
        journal.record(given[0], "who")
    for _ in range(2):
        with Ledger(path) as ledger:
            assert (len(ledger), ledger.spent().usd) == (2, 3.0) and ledger.given("who", asked)[1] == given[1]
        (tmp_path / "journals" / "one-0.jsonl").write_bytes(kept)  # as a kill before it was removed leaves it
    with Journal(path, "two-0") as journal:
        assert [each.sample for each in journal.given("who", asked)] == [0, 1]


def test_resources_are_read_and_refused() -> None:
    assert Resources.of(["num_gpus=0.5", "fast_disk=2"], 3) == Resources(num_gpus=0.5, custom={"fast_disk": 2.0}, workers=3)
    assert Resources(2.0, custom={"disk": 1.0}).room({"CPU": 8.0, "disk": 3.0}) == 3
    for wrong in (["num_gpus"], ["=1"], ["num_gpus=many"]):
        with pytest.raises(RecipeError, match="write what a worker needs like num_gpus=1"):
            Resources.of(wrong)
    with pytest.raises(RecipeError, match="a worker needs num_cpus of at least 0 and finite, found -1"):
        Resources(-1)
    with pytest.raises(RecipeError, match="workers must be at least 1, found 0"):
        Resources(workers=0)
    found = CliRunner().invoke(app, ["cache", "--teacher", "a", "--data", "b", "--out", "c", "--workers", "2"])
    assert "--workers says what workers of a cluster are; give --on ray with it" in str(found.exception)
