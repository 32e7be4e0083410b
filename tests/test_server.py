"""A server that fails in every way: nothing is lost, nothing is asked twice, no more is spent than allowed."""

import threading
from collections import Counter

import pytest
from faulty import FAULTS, faulty
from typer.testing import CliRunner

from limbeck.answers import Bill, Purse, Question
from limbeck.cli import app
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.endpoint import Endpoint
from limbeck.errors import EndpointError
from limbeck.files import read_json, read_jsonl, write_jsonl
from limbeck.ledger import Ledger
from limbeck.server import Server

SHORT = Sampling(max_tokens=16)
ASKED = Data("asked.jsonl")


def questions(count: int, samples: int = 1) -> list[Question]:
    return [Question({"prompt": f"question {n}"}, ASKED, tuple(range(samples))) for n in range(count)]


def server(url: str, **settings) -> Server:
    return Server(url, "toy", **{"wait_seconds": 0.001, "seconds": 0.5, **settings})


def test_a_thousand_calls_through_every_fault(tmp_path) -> None:
    """Each question is recorded once, and the server delivered no answer that was not."""
    with faulty(share=0.2) as there, Ledger(tmp_path / "ledger.sqlite") as ledger:
        for given in server(there.url, tries=30).answers(questions(250, samples=4), SHORT, Purse()):
            ledger.record(given, "toy")
        found = [given for question in questions(250, samples=4) for given in ledger.given("toy", question)]
    assert set(FAULTS) <= set(there.made)
    assert len(found) == 1000 and all(given.answer.text == f"re: {given.question.row['prompt']}" for given in found)
    assert set(there.delivered.values()) == {1} and len(there.delivered) == 1000
    assert ledger_bill(found) == Bill(7000, 3000, seconds=ledger_bill(found).seconds)


def ledger_bill(found) -> Bill:
    return sum((given.bill for given in found), Bill())


def test_a_budget_in_dollars_holds_on_the_servers_side(tmp_path) -> None:
    """Ten tokens at a dollar each: a budget of 2,000 dollars buys no more than 200 answers, many at once or not."""
    with faulty(share=0.0) as there:
        purse = Purse(usd=2000.0)
        got = list(server(there.url, usd_in=1e6, usd_out=1e6).answers(questions(500), SHORT, purse))
    assert purse.refused and purse.spent.usd == 10.0 * len(got) == there.tokens <= 2000
    assert 2000 - purse.spent.usd < 150 and there.most <= 8, "less is left than one call may take"


def test_a_corpus_is_cut_by_a_failure_and_goes_on(tmp_path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {n}"} for n in range(40)])
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")

    def order(url: str, licence: str) -> Order:
        who = Endpoint(url, "toy", tokenizer="toy")
        return Order(who, Data(str(tmp_path / "prompts.jsonl")), sampling=SHORT, similarity=None, accept_license=[licence])

    with faulty() as there:
        licence = "unknown licence of toy"
        write_corpus(order(there.url, licence), tmp_path / "whole")
        card = write_corpus(order(there.url, licence), tmp_path / "whole")
        assert there.asked.total() == 40 and card.answers == 40
    assert [row["messages"][1]["content"] for row in read_jsonl(tmp_path / "whole" / "corpus.jsonl")][:2] == ["re: question 0", "re: question 1"]


def test_two_models_under_one_name_are_noticed() -> None:
    with faulty(models=["toy", "toy-2"]) as there, pytest.raises(EndpointError, match="answered as toy, and now as toy-2"):
        list(server(there.url).answers(questions(200), SHORT, Purse()))


def test_what_was_answered_is_given_before_a_failure_is_raised() -> None:
    begun, release = list[int](), threading.Event()

    def work(job: int) -> int:
        begun.append(job)
        if job == 0:
            raise EndpointError("lost")
        release.wait(5)
        return job

    got = Counter[int]()
    each = server("http://127.0.0.1:9/v1", concurrency=4).each(range(100), work)
    threading.Timer(0.1, release.set).start()
    with pytest.raises(EndpointError, match="lost"):
        got.update(job for job, _ in each)
    assert sorted(got) == [1, 2, 3] and len(begun) <= 5


def test_the_key_is_in_no_message(monkeypatch) -> None:
    monkeypatch.setenv("TOY_KEY", "secret-of-the-house")
    with faulty(faults=["500"], share=1.0) as there, pytest.raises(EndpointError) as failed:
        list(server(there.url, key_env="TOY_KEY", tries=2).answers(questions(1), SHORT, Purse()))
    assert there.keys == {"Bearer secret-of-the-house"}
    assert "secret" not in str(failed.value) and "status 500" in str(failed.value)


@pytest.mark.parametrize(("url", "settings", "said"), [
    ("http://127.0.0.1:9/v1", {"tries": 2}, "did not answer"),
    ("https://api.openai.com/v1", {"key_env": "NO_SUCH_KEY"}, "the environment has no NO_SUCH_KEY"),
])  # fmt: skip
def test_no_server_and_no_key(url, settings, said, monkeypatch) -> None:
    with pytest.raises(EndpointError, match=said):
        server(url, **settings).get("models")


@pytest.mark.parametrize(("settings", "purse", "said"), [
    ({}, Purse(usd=1.0), "needs the price of toy"),
    ({}, Purse(flops=1.0), "needs the size of toy; give its parameters"),
    ({"parameters": 1.0}, Purse(usd=1.0), "needs the price of toy"),
    ({"usd_in": 1.0}, Purse(flops=1.0), "needs the size of toy"),
])  # fmt: skip
def test_a_budget_in_a_unit_without_a_price(settings, purse: Purse, said: str) -> None:
    with pytest.raises(EndpointError, match=said):
        next(server("http://127.0.0.1:9/v1", **settings).answers(questions(1), SHORT, purse))


def test_a_size_counts_arithmetic() -> None:
    """Seven tokens read and three written, of a model of five parameters: 100 FLOPs an answer."""
    with faulty() as there:
        purse = Purse(flops=2500.0)
        got = list(server(there.url, parameters=5.0).answers(questions(500), SHORT, purse))
    assert purse.refused and purse.spent.flops == 100.0 * len(got) and purse.spent.usd == 0.0


def test_several_servers_share_dollars_on_the_command_line(tmp_path, monkeypatch) -> None:
    """Answers of 10 tokens at 1 and at 4 dollars a token: both say the same, so the cheap one writes."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {n}"} for n in range(12)])
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    with faulty() as cheap, faulty(models=["dear"]) as dear:
        asked = ["write", "--prompts", "prompts.jsonl", "--out", "out", "--verifier", "Regex('^re')", "--budget-usd", "3000", "--pilot", "4",
                 "--pilot-samples", "2", "--max-tokens", "16"]  # fmt: skip
        for there, name, price in ((cheap, "toy", 1e6), (dear, "dear", 4e6)):
            asked += ["--teacher", f"Endpoint('{there.url}', '{name}', usd_in={price}, usd_out={price})"]
            asked += ["--accept-license", f"unknown licence of {name}"]
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    pilot = read_json(tmp_path / "out" / "card.json")["pilot"]
    assert [(each["cost"], each["taken"]) for each in pilot["teachers"]] == [(10.0, 1), (40.0, 0)]
    assert (cheap.tokens, dear.tokens) == (4 * 2 * 10 + 8 * 10, 4 * 2 * 10) and pilot["pilot_took"] == 400.0
