"""Several teachers and one budget: estimates against enumeration, shares against every share, and whole pilots."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
import tellers
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from tellers import Teller

import limbeck as lb
from limbeck.allocate import Pilot, Price, Worth
from limbeck.answers import Answer, Bill, Given, Question
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data
from limbeck.endpoint import Endpoint
from limbeck.errors import RecipeError
from limbeck.files import read_json, read_jsonl
from limbeck.ledger import Ledger

SAMPLES = 4
POOLS = st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=SAMPLES, max_size=SAMPLES)
"""What one teacher answered to one prompt; "" is wrong."""


def worth(pools: list[list[list[str]]]) -> Worth:
    """Of T teachers, P prompts each."""
    seen = [Counter((p, said) for p, pool in enumerate(prompts) for said in pool if said) for prompts in pools]
    return Worth(seen, SAMPLES, len(pools[0]))


def enumerated(pools: list[list[list[str]]], counts: tuple[int, ...]) -> float:
    """Different right answers a prompt, over every way to draw so many of each teacher's without replacement."""
    found = []
    for several in zip(*pools, strict=True):
        ways = product(*(combinations(pool, k) for pool, k in zip(several, counts, strict=True)))
        found.append(np.mean([len({said for drawn in way for said in drawn} - {""}) for way in ways]))
    return float(np.mean(found))


TWO = st.lists(st.lists(POOLS, min_size=2, max_size=2), min_size=2, max_size=2)


@settings(deadline=None)
@given(TWO, st.integers(0, SAMPLES), st.integers(0, SAMPLES))
def test_estimates_are_the_means_over_all_draws(pools, first: int, second: int) -> None:
    assert worth(pools).of((first, second)).mean() == pytest.approx(enumerated(pools, (first, second)))


@settings(deadline=None, max_examples=60)
@given(TWO, st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.sampled_from([1.0, 1.5, 4.0]), st.sampled_from([0.0, 1.0]), st.floats(0, 20))
def test_the_best_share_is_the_best_of_all(pools, one: float, other: float, prompt: float, budget: float) -> None:
    def cost(way: tuple[int, int]) -> float:
        return way[0] * one + way[1] * other + (prompt if way[1] else 0.0)

    ways = [way for way in product(range(SAMPLES + 1), repeat=2) if cost(way) <= budget]
    best = max(ways, key=lambda way: (round(enumerated(pools, way), 9), -cost(way)))
    found = worth(pools).best([Price(one, one), Price(other + prompt, other)], budget)
    assert enumerated(pools, found) == pytest.approx(enumerated(pools, best)) and cost(found) == cost(best)


def test_a_price_is_that_of_the_one_who_reads_and_of_the_others() -> None:
    def asked(n: int, *bills: tuple[int, float]) -> list[Given]:
        question = Question({"prompt": f"question {n}"}, Data("prompts.jsonl"))
        return [Given(question, sample, Answer(""), Bill(prompt_tokens=read, flops=flops)) for sample, (read, flops) in enumerate(bills)]

    price = Price.of([*asked(0, (0, 3.0), (7, 10.0), (0, 3.0)), *asked(1, (9, 12.0), (0, 4.0), (0, 2.0))], "flops", beside=1.0)
    assert price == Price(12.0, 4.0) and [price(k) for k in range(3)] == [0.0, 12.0, 16.0]
    assert (price.buys(6.0), price.buys(12.0), price.buys(20.0)) == (0.5, 1.0, 3.0)
    assert Price.of(asked(0, (5, 2.0)), "flops", 0.0) == Price(2.0, 2.0)


WEAK = Teller("tellers:weak", "weak", flops=1.0)
STRONG = Teller("tellers:strong", "strong", flops=2.0)
PROMPTS, PILOT = 60, 50


@pytest.fixture
def prompts(tmp_path) -> Data:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    rows = [{"prompt": f"question {n}", "answer": n, "easy": n % 10 < 7} for n in range(PROMPTS)]
    return Data(toys.jsonl(tmp_path / "prompts.jsonl", rows))


def order(prompts: Data, a_prompt: float, **more) -> Order:
    """With so many FLOPs for each prompt outside the pilot, which takes 50 x 8 x (1 + 2)."""
    budget = PILOT * 8 * 3 + (PROMPTS - PILOT) * a_prompt
    pilot = Pilot(PILOT, 8, "coverage", "tellers:sound")
    asked = {"keep": "verified", "verifier": "Number", "similarity": None, "budget_flops": budget, "pilot": pilot, **more}
    return Order([WEAK, STRONG], prompts, **asked)


@pytest.mark.parametrize(("a_prompt", "winner"), [(2.0, "weak"), (8.0, "strong")])
def test_the_weak_one_wins_under_one_budget_and_the_strong_one_under_another(a_prompt: float, winner: str, prompts, tmp_path) -> None:
    card = write_corpus(order(prompts, a_prompt), tmp_path / "out")
    weak, strong = card.pilot.teachers
    assert (weak.coverage > strong.coverage) == (winner == "weak")
    assert [each.samples * each.cost for each in (weak, strong)] == [a_prompt] * 2, "compared at equal FLOPs"
    assert (weak.taken, strong.taken) == (2, 0) if winner == "weak" else strong.taken >= 3
    assert weak.coverage_interval[0] < weak.coverage < weak.coverage_interval[1]
    # of what the strong one says rightly a third is lucky
    assert strong.false_positives_interval[0] < 1 / 3 < strong.false_positives_interval[1] and weak.false_positives == 0.0
    assert card.spent.flops == PILOT * 8 * 3 + (PROMPTS - PILOT) * (weak.taken + 2 * strong.taken) <= order(prompts, a_prompt).budget_flops
    rows = read_jsonl(tmp_path / "out" / "corpus.jsonl")
    assert {row["teacher"] for row in rows} == {"weak", "strong"} and len(rows) == card.rows
    assert read_json(tmp_path / "out" / "card.json")["pilot"]["teachers"][0]["taken"] == weak.taken
    assert "| weak | 1 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("answers", [100, 600, 1205])
def test_a_pilot_that_was_killed_goes_on_and_asks_nothing_twice(answers: int, prompts, tmp_path) -> None:
    tellers.ASKED.clear()
    whole = write_corpus(order(prompts, 8.0), tmp_path / "whole")
    asked = dict(tellers.ASKED)
    tellers.ASKED.clear()
    with tellers.killed_after(min(answers, len(asked) - 3)), pytest.raises(KeyboardInterrupt):
        write_corpus(order(prompts, 8.0), tmp_path / "cut")
    card = write_corpus(order(prompts, 8.0), tmp_path / "cut")
    assert dict(tellers.ASKED) == asked and set(asked.values()) == {1}
    assert (card.pilot, card.dropped, card.took.flops) == (whole.pilot, whole.dropped, whole.took.flops)
    assert read_jsonl(tmp_path / "cut" / "corpus.jsonl") == read_jsonl(tmp_path / "whole" / "corpus.jsonl")


def test_what_is_left_over_is_said(prompts, tmp_path) -> None:
    rich = write_corpus(order(prompts, 100.0), tmp_path / "rich").pilot
    assert rich.capped and rich.unspent > 0 and "raise those" in str(rich)
    poor = write_corpus(order(prompts, 2.5), tmp_path / "poor").pilot
    assert not poor.capped and poor.unspent == pytest.approx(5.0)
    with pytest.raises(RecipeError, match=r"0\.5 FLOPs are left for each of 10 prompts, and a sample costs 1"):
        write_corpus(order(prompts, 0.5), tmp_path / "none")
    with pytest.raises(RecipeError, match="does not reach for the pilot: 350 of 400 answers of strong"):
        write_corpus(order(prompts, 0.0, budget_flops=1100.0), tmp_path / "less")


def test_a_model_and_a_teller_share_flops(prompts, tmp_path) -> None:
    folder = toys.folder(tmp_path / "toy", seed=2)
    (tmp_path / "toy" / "README.md").write_text("---\nlicense: mit\n---\n")
    who = [lb.Local(folder, dtype="float32"), Teller("tellers:weak", "weak", flops=1e6)]
    asked = Order(who, prompts, sampling=lb.Sampling(max_tokens=4), keep="verified", verifier="Number", similarity=None,
                  budget_flops=2e9, pilot=Pilot(4, 2, "coverage"))  # fmt: skip
    card = write_corpus(asked, tmp_path / "out")
    local, teller = card.pilot.teachers
    with Ledger(tmp_path / "out" / "ledger.sqlite") as ledger:
        assert ledger.spent().flops == card.took.flops
    assert local.cost > 1e5 and teller.cost == 1e6 and local.coverage == 0.0 and (local.taken, teller.taken) == (0, 2)


@pytest.mark.parametrize(("settings", "said"), [
    ({"verifier": None, "keep": "all"}, "give a verifier"),
    ({"budget_usd": 1.0}, "either budget_usd or budget_flops"),
    ({"budget_flops": None}, "either budget_usd or budget_flops"),
    ({"samples": 4}, "leave samples out"),
    ({"pilot": None}, "give pilot: Pilot"),
    ({"pilot": Pilot(samples=1000)}, "lower Pilot.samples"),
    ({"teacher": [WEAK, WEAK]}, "called weak"),
    ({"teacher": [WEAK, Endpoint("http://localhost:9/v1", "m")]}, "budget is in FLOPs, and m costs none; give its parameters"),
    ({"teacher": [lb.Local("a"), WEAK], "budget_flops": None, "budget_usd": 1.0}, "budget is in US dollars, and a costs none"),
])  # fmt: skip
def test_orders_that_cannot_be_piloted(settings: dict, said: str, prompts) -> None:
    asked = {"teacher": [WEAK, STRONG], "keep": "verified", "verifier": "Number", "budget_flops": 1.0, "pilot": Pilot(), **settings}
    with pytest.raises(RecipeError, match=said):
        Order(prompts=prompts, **asked)


def test_one_that_turns_out_to_cost_nothing(prompts, tmp_path) -> None:
    free = Teller("tellers:weak", "free", flops=0.0)
    asked = Order([free, STRONG], prompts, keep="verified", verifier="Number", budget_flops=2e4, pilot=Pilot(2, 2))
    with pytest.raises(RecipeError, match="free costs none"):
        write_corpus(asked, tmp_path / "out")
