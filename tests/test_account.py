"""One ledger and one purse for all that is asked: judges, prompts that are made, users that are played."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import tellers
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from tellers import ASKED, Teller
from typer.testing import CliRunner

from limbeck.answers import Bill, Purse
from limbeck.cli import app
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data
from limbeck.dialogue import Dialogues
from limbeck.endpoint import Endpoint
from limbeck.errors import LimbeckError, RecipeError
from limbeck.files import read_json, read_jsonl
from limbeck.instruct import Instruct
from limbeck.judges import Judge
from limbeck.server import Server

AMOUNTS = st.integers(1, 20)


@settings(deadline=None)
@given(st.integers(0, 200), st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=60), st.integers(1, 6), st.randoms())
def test_a_purse_is_never_passed_and_left_with_less_than_one_more(limit: int, bills: list[tuple[int, int]], at_once: int, draw) -> None:
    purse, under_way, done = Purse(usd=limit), list[tuple[int, int]](), 0
    jobs = purse.afford(((max(bill), min(bill)), Bill(usd=max(bill))) for bill in bills)
    while True:
        while len(under_way) < at_once and (job := next(jobs, None)) is not None:
            under_way.append(job)
            assert purse.spent.usd + sum(worst for worst, _ in under_way) <= limit
        if not under_way:
            break
        worst, took = under_way.pop(draw.randrange(len(under_way)))
        purse.settle(Bill(usd=worst), Bill(usd=took))
        done += 1
    assert purse.refused == (done < len(bills))
    assert done == len(bills) or limit - purse.spent.usd < max(bills[done])


@pytest.mark.parametrize("concurrency", [1, 8])
def test_so_it_is_with_threads(concurrency: int) -> None:
    purse, draw = Purse(usd=500), random.Random(0)
    bills = [(10, draw.randint(1, 10)) for _ in range(300)]
    server = Server("http://127.0.0.1:9/v1", "toy", concurrency=concurrency)
    for (worst, took), _ in server.each(purse.afford((bill, Bill(usd=bill[0])) for bill in bills), lambda bill: bill):
        purse.settle(Bill(usd=worst), Bill(usd=took))
    assert purse.refused and 490 < purse.spent.usd <= 500


@pytest.fixture
def prompts(tmp_path) -> Data:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    toys.jsonl(tmp_path / "seeds.jsonl", [{"prompt": f"Name river {n} of Europe."} for n in range(12)])
    ASKED.clear()
    return Data(toys.jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {n}"} for n in range(5)]))


def judged(prompts: Data, **more) -> Order:
    judge = Judge(Teller("tellers:marks", "judge"))
    return Order(Teller("tellers:echo"), prompts, **{"samples": 2, "keep": "best", "verifier": judge, "similarity": None, **more})


def test_a_judge_is_paid_and_recorded_once(prompts, tmp_path) -> None:
    card = write_corpus(judged(prompts), tmp_path / "out")
    assert (card.answers, card.spent.flops, card.took, len(ASKED)) == (10, 20.0, card.spent, 20)
    rows = read_jsonl(tmp_path / "out" / "corpus.jsonl")
    write_corpus(judged(prompts), tmp_path / "out")
    assert set(ASKED.values()) == {1} and rows == read_jsonl(tmp_path / "out" / "corpus.jsonl")
    write_corpus(judged(prompts, verifier=Judge(Teller("tellers:marks", "judge"), criterion="Be strict.")), tmp_path / "out")
    assert len(ASKED) == 30 and set(ASKED.values()) == {1}
    write_corpus(judged(prompts, verifier=Judge(Teller("tellers:rambling", "another"))), tmp_path / "out")
    assert len(ASKED) == 50 and set(ASKED.values()) == {1}


def test_a_judge_stands_under_terms_of_its_own(prompts, tmp_path) -> None:
    judge = Judge(Endpoint("https://api.openai.com/v1", "m"))
    with pytest.raises(RecipeError, match=r"provider api\.openai\.com"):
        write_corpus(judged(prompts, verifier=judge), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not ASKED


def test_a_judge_without_money_says_so_and_goes_on_with_more(prompts, tmp_path) -> None:
    with pytest.raises(RecipeError, match="the budget was spent before the judge had marked all: 7 of 10 answers are left"):
        write_corpus(judged(prompts, budget_flops=13.0), tmp_path / "out")
    assert len(ASKED) == 13
    card = write_corpus(judged(prompts, budget_flops=20.0), tmp_path / "out")
    assert set(ASKED.values()) == {1} and card.ended == "all was answered" and card.rows == 5


def made(prompts: Data, **more) -> Order:
    work = Instruct(Data(str(Path(prompts.path).parent / "seeds.jsonl")), 9, answers=2)
    return Order(Teller("tellers:everybody"), instruct=work, dialogues=Dialogues(4), user=Teller("tellers:person", "user"), similarity=None, **more)


def test_prompts_are_made_answered_and_gone_on_with(prompts, tmp_path) -> None:
    card = write_corpus(made(prompts), tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out" / "prompts.jsonl")) == 9 == card.prompts == card.rows
    assert card.tasks == {"kept": 9, "rounds": 2, "ended": "count"} and sum(card.dialogues.values()) == 9 and set(card.dialogues) == {"turns", "user"}
    rows = read_jsonl(tmp_path / "out" / "corpus.jsonl")
    turns = [sum(message["role"] == "assistant" for message in row["messages"]) for row in rows]
    assert max(turns) == 4 and all(row["made_by"] == "teller" for row in rows)
    assert card.took.flops == len(ASKED) and set(ASKED.values()) == {1}
    assert ("tasks: kept", 9) in card.counts() and ("dialogues: turns", card.dialogues["turns"]) in card.counts()
    assert read_json(tmp_path / "out" / "card.json")["licences"][0]["name"] == "mit", "that of the seeds"


@pytest.mark.parametrize("answers", [1, 3, 7, 20, 30, 45])
def test_all_of_that_goes_on_after_a_kill_and_asks_nothing_twice(answers: int, prompts, tmp_path) -> None:
    whole = write_corpus(made(prompts), tmp_path / "whole")
    asked = dict(ASKED)
    ASKED.clear()
    with tellers.killed_after(min(answers, len(asked) - 1)), pytest.raises(KeyboardInterrupt):
        write_corpus(made(prompts), tmp_path / "cut")
    card = write_corpus(made(prompts), tmp_path / "cut")
    assert dict(ASKED) == asked and set(asked.values()) == {1}
    assert (card.took.flops, card.dialogues, card.tasks) == (whole.took.flops, whole.dialogues, whole.tasks)
    for name in ("corpus.jsonl", "prompts.jsonl"):
        assert read_jsonl(tmp_path / "cut" / name) == read_jsonl(tmp_path / "whole" / name)


def test_a_budget_that_ends_anywhere_leaves_a_corpus_of_what_there_is(prompts, tmp_path) -> None:
    for budget in range(2, 80, 7):
        try:
            card = write_corpus(made(prompts, budget_flops=float(budget)), tmp_path / "out")
        except LimbeckError as error:
            assert budget == 2 and "no answer was kept" in str(error)
        else:
            assert card.spent.flops <= budget and (card.spent.flops == len(ASKED) == budget or card.ended == "all was answered")
    assert set(ASKED.values()) == {1} and "purse" not in card.dialogues


def test_an_order_survives_yaml() -> None:
    """In a process of its own: parts are known by name when the order is read."""
    code = """
import yaml
from limbeck.config import build, to_yaml
from limbeck.corpus import Order
order = build(dict(teacher=["Local('a')", "Endpoint('http://h/v1', 'm', parameters=7e9)"], instruct="Instruct('s.jsonl', 5)", dialogues="Dialogues",
    user="Local('u')", pilot="Pilot(sound=Number)", verifier="Judge(Local('j'))", budget_flops=1.0), Order)
assert build(yaml.safe_load(to_yaml(order)), Order) == order and len(order.teacher) == 2
assert build(dict(teacher="Local('a')", prompts="p.jsonl"), Order).teacher[0].model == "a"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


WRITE = ["write", "--seeds", "seeds.jsonl", "--instruct", "6", "--out", "out", "--turns", "2"]


def test_the_command_line_says_all_of_it(prompts, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*WRITE, "--teacher", "Teller('tellers:everybody')", "--user", "Teller('tellers:person', 'user')", "--persona", "You are a child."]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0 and "dialogues: turns" in done.output and "tasks: kept" in done.output
    settings = read_json(tmp_path / "out" / "card.json")["made_by"]
    assert (settings["dialogues"]["persona"], settings["dialogues"]["turns"], settings["instruct"]["count"]) == ("You are a child.", 2, 6)
    shared = ["write", "--prompts", "prompts.jsonl", "--out", "two", "--verifier", "tellers:sound", "--budget-flops", "60", "--pilot", "2"]
    for label in ("one", "two"):
        shared += ["--teacher", f"Teller('tellers:echo', '{label}')"]
    done = CliRunner().invoke(app, [*shared, "--pilot-samples", "3", "--sound", "tellers:sound"], catch_exceptions=False)
    assert done.exit_code == 0 and "best diversity by the pilot: 3.00" in done.output and "FLOPs" in done.output


@pytest.mark.parametrize(("more", "said"), [
    (["--prompts", "prompts.jsonl"], "give the one or the two"),
    (["--teacher", "http://localhost:1/v1"], "go together"),
    (["--model", "m"], "go together"),
    (["--sound", "Number"], "give several"),
    (["--turns", "1", "--persona", "You are a child."], "give --turns 2"),
    (["--turns", "0"], "must be at least 1"),
    (["--template", "plain"], "a dialogue has turns"),
    (["--teacher", "Teller('tellers:everybody', 'b')"], "give a verifier"),
    (["--user", "Local("], "cannot read"),
])  # fmt: skip
def test_what_does_not_go_together(more: list[str], said: str, prompts, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LimbeckError, match=said):
        CliRunner().invoke(app, [*WRITE, "--teacher", "Teller('tellers:everybody')", *more], catch_exceptions=False)
