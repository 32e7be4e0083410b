"""Several servers of one model: who is asked, who is left out, and that nothing is lost or asked twice."""

import threading
from pathlib import Path

import pytest
import torch
import toys
from faulty import faulty
from vllm_double import served

from limbeck import Student, balance
from limbeck.answers import Purse, Question
from limbeck.balance import FIRST_REST_SECONDS, LONGEST_REST_SECONDS, Place, Places
from limbeck.batch import Batch, Span, Text
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.endpoint import Endpoint
from limbeck.errors import EndpointError, RecipeError
from limbeck.server import Server

ASKED = Data("asked.jsonl")
NOBODY = "http://127.0.0.1:9/v1"
"""A port at which nobody listens."""


def questions(count: int) -> list[Question]:
    return [Question({"prompt": f"question {n}"}, ASKED, (0,)) for n in range(count)]


def server(*urls: str, **settings: float) -> Server:
    return Server(urls, "toy", **{"wait_seconds": 0.001, "seconds": 0.5, **settings})  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until it is changed."""
    now = [100.0]
    monkeypatch.setattr(balance.time, "monotonic", lambda: now[0])
    return now


def test_the_one_with_the_fewest_calls_under_way_is_next(clock: list[float]) -> None:
    places = Places([Place("a", None), Place("b", None)])
    one, two, three = places.take(), places.take(), places.take()
    assert [one.url, two.url] == ["a", "b"] and three.url == "a"
    places.give_back(one, failed=False)
    places.give_back(three, failed=False)
    assert places.take().url == "a" and {places.take().url, places.take().url} == {"a", "b"}
    assert [each.under_way for each in places.all] == [2, 2]


def test_one_that_fails_rests_for_longer_each_time_and_comes_back(clock: list[float]) -> None:
    a, b = Place("a", None), Place("b", None)
    places, rests = Places([a, b]), list[float]()
    for _ in range(9):
        a.under_way += 1
        places.give_back(a, failed=True)
        rests.append(a.rests_until - clock[0])
        assert not places.none_lives
        assert [places.take() for _ in range(3)] == [b, b, b], "however much it has to do"
        clock[0] = a.rests_until
    assert rests[:3] == [FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS, 4 * FIRST_REST_SECONDS] and rests[-1] == LONGEST_REST_SECONDS
    assert places.take() is a
    places.give_back(a, failed=False)
    a.under_way += 1
    places.give_back(a, failed=True)
    assert a.rests_until - clock[0] == FIRST_REST_SECONDS, "an answer makes it as good as new"


def test_where_all_rest_the_shortest_rest_is_asked(clock: list[float]) -> None:
    a, b = Place("a", None), Place("b", None)
    places = Places([a, b])
    for each, times in ((a, 3), (b, 1)):
        for _ in range(times):
            each.under_way += 1
            places.give_back(each, failed=True)
    assert places.none_lives and places.take() is b


def test_the_work_is_shared_and_a_dead_server_costs_one_try() -> None:
    with faulty(share=0.0, pause=0.01) as one, faulty(share=0.0, pause=0.01) as two:
        given = list(server(one.url, NOBODY, two.url).answers(questions(100), Sampling(16), Purse()))
    assert sorted(each.question.row["prompt"] for each in given) == sorted(f"question {n}" for n in range(100))
    assert one.delivered.total() + two.delivered.total() == one.asked.total() + two.asked.total() == 100, "nothing is asked twice"
    assert min(one.asked.total(), two.asked.total()) >= 30


def test_one_dies_on_the_way_and_nothing_is_lost() -> None:
    """What was answered before is not asked again; the other one does the rest."""
    with faulty(share=0.0, pause=0.005) as one, faulty(share=0.0, pause=0.005) as two:
        both, got, dead = server(one.url, two.url), list[str](), threading.Event()
        for given in both.answers(questions(120), Sampling(16), Purse()):
            got.append(given.question.row["prompt"])
            if len(got) == 30 and not dead.is_set():
                two.faults, two.share = ("drop",), 1.0
                dead.set()
    assert sorted(got) == sorted(f"question {n}" for n in range(120))
    assert one.delivered.total() + two.delivered.total() == 120 and not set(one.delivered) & set(two.delivered)
    assert two.made["drop"] <= 8, "those under way, and a try now and then"


def test_all_dead_is_one_line() -> None:
    with pytest.raises(EndpointError, match=r"http://127.0.0.1:9/v1 and http://127.0.0.1:9/v1 did not answer .* in 3 tries"):
        list(server(NOBODY, NOBODY, tries=3).answers(questions(3), Sampling(16), Purse()))


def test_no_url_is_refused() -> None:
    with pytest.raises(RecipeError, match="a URL up to /v1, or a list of them; found none"):
        Endpoint([], "toy")


def test_several_teachers_say_what_one_says(tmp_path: Path) -> None:
    folders = [toys.folder(tmp_path / name, rows=258, seed=seed) for name, seed in (("teacher", 1), ("student", 2))]
    student = Student(folders[1], dtype="float32").load(1)
    whole = Batch.of([Text([*range(n, n + 6 + n % 3)], [Span(2, 5)]) for n in range(12)], "corpus")
    parts = whole.split(20)
    asked = [list[dict](), list[dict]()]
    with served(folders[0], asked=asked[0]) as one, served(folders[0], asked=asked[1]) as two:
        teacher = Endpoint([one, two], "toy", top=4, tokenizer=folders[0], concurrency=4)
        assert (
            one in teacher.described
            and two in teacher.described
            and len(teacher.licences) == len(Endpoint(one, "toy", tokenizer=folders[0]).licences)
        )
        several, alone = (list(each.load(student).score(parts)) for each in (teacher, Endpoint(one, "toy", top=4, tokenizer=folders[0])))
    assert all(asked)
    for mine, theirs in zip(several, alone, strict=True):
        assert torch.equal(mine.log_p_NK, theirs.log_p_NK) and torch.equal(mine.ids_NK, theirs.ids_NK)


def test_each_server_must_serve_the_model(tmp_path: Path) -> None:
    with faulty(share=0.0) as one, faulty(share=0.0, models=["other"]) as two, pytest.raises(EndpointError, match=f'{two.url} does not serve "toy"'):
        Endpoint([one.url, two.url], "toy").load(None)
