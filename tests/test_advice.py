"""What is advised: each rule speaks of numbers that ask for it, and of no others."""

from typing import Any

import numpy as np
import pytest
from tabled import cuts_of, noisy, tokens

from limbeck.transfer import advice as rules
from limbeck.transfer.advice import Evidence, advised
from limbeck.transfer.gaps import judged, slices_of, worst


def told(rule: Any, evidence: Evidence) -> list[str]:
    return [says for says, _ in rule(evidence)]


def evidence(above: float, teacher_above: float = 0.0, seed: int = 0) -> Evidence:
    """A student with a category that is worse by so much, before which it was as far from the teacher everywhere."""
    table, labels = noisy(seed, above=above)
    draw, bad_N = np.random.default_rng(seed + 1), np.array([labels[b] == "c3" for b in table.sequence_N])
    teacher_N = draw.gamma(4, 0.25, len(table)) + teacher_above * bad_N
    made = tokens([6] * 60, table.apart.kl_N, teacher_N + table.apart.kl_N, teacher_N)
    before = tokens([6] * 60, 10 * table.apart.kl_N, teacher_N + 10 * table.apart.kl_N, teacher_N)
    by_who = {"before": before, "after": made}
    found = list(slices_of("given", by_who, cuts_of(made, labels), judged(list(by_who)), True))
    return Evidence("after", "before", {who: {"given": each} for who, each in by_who.items()}, found)


def test_more_of_what_is_surely_lacking() -> None:
    (says,) = told(rules.more_data, evidence(3.0))
    assert 'category "c3"' in says and told(rules.more_data, evidence(0.0)) == []
    (_, because), *_ = rules.more_data(evidence(3.0))
    assert "surely at least" in because and "12 sequences" in because


def test_what_is_surely_but_hardly_worse_is_not_spoken_of() -> None:
    draw = np.random.default_rng(2)
    labels = [f"c{n % 5}" for n in range(60)]
    hardly_B = 5 + 0.2 * np.array([label == "c3" for label in labels])
    table = tokens([6] * 60, np.repeat(hardly_B, 6) + draw.normal(0, 0.05, 360))
    found = list(slices_of("given", {"after": table}, cuts_of(table, labels), {"after": None}, True))
    assert [each["name"] for each in worst(found, "after")] == ["c3"]
    assert told(rules.more_data, Evidence("after", None, {}, found)) == []


def test_a_better_teacher_only_where_it_is_surely_worse_itself() -> None:
    assert told(rules.better_teacher, evidence(3.0, teacher_above=2.0)) == [
        'a better teacher for category "c3", or right answers to learn from by cross-entropy']  # fmt: skip
    assert told(rules.better_teacher, evidence(3.0)) == told(rules.better_teacher, evidence(0.0, teacher_above=2.0)) == []


def late(above: float) -> Evidence:
    """Farther on its own text by so much, from the middle on."""
    own, theirs = noisy(1, length=8)[0], noisy(2, length=8)[0]
    own = tokens([8] * 60, own.apart.kl_N + above * (own.position_N >= 4))
    return Evidence("after", None, {"after": {"own": own, "teacher": theirs}})


def test_own_text_where_it_strays_on_it() -> None:
    assert "OnPolicy" in told(rules.on_policy, late(2.0))[0] and told(rules.on_policy, late(0.0)) == []
    assert told(rules.on_policy, Evidence("after", None, {"after": {"own": noisy(1)[0]}})) == []


@pytest.mark.parametrize("apart, speaks", [(0.5, True), (0.0, False), (-0.5, False)])
def test_fine_tuning_where_it_foretells_better(apart: float, speaks: bool) -> None:
    draw = np.random.default_rng(5)
    nats_N = draw.gamma(4, 0.5, 200)
    mine, theirs = tokens([5] * 40, nats_N, nats_N + apart + draw.normal(0, 0.1, 200)), tokens([5] * 40, nats_N, nats_N)
    found = Evidence("after", "fine-tuned", {"after": {"given": mine}, "fine-tuned": {"given": theirs}})
    assert bool(told(rules.fine_tuning, found)) == speaks
    assert told(rules.fine_tuning, Evidence("after", "before", {"after": {"given": mine}})) == []


@pytest.mark.parametrize("left, above, speaks", [(0.9, 0.0, True), (0.2, 0.0, False), (0.9, 5.0, False)])
def test_longer_where_little_was_closed_everywhere(left: float, above: float, speaks: bool) -> None:
    table, labels = noisy(6, above=above)
    by_who = {"before": tokens([6] * 60, table.apart.kl_N / left), "after": table}
    found = list(slices_of("given", by_who, cuts_of(table, labels), judged(list(by_who)), True))
    assert bool(told(rules.go_on, Evidence("after", "before", {}, found))) == speaks


OVER, ALIKE, UNDER = (0.9, 0.6, 0.3, 0.05, True), (0.6, 0.62, 0.04, 0.06, False), (0.6, 0.9, 0.3, 0.05, False)


@pytest.mark.parametrize("confidence, right, error, below, speaks", [OVER, ALIKE, UNDER])
def test_temperature_where_it_is_surer_than_right(confidence: float, right: float, error: float, below: float, speaks: bool) -> None:
    hit_N = np.random.default_rng(7).random(400) < right
    table = tokens([5] * 80, np.zeros(400), confidence_N=np.full(400, confidence), top_N=np.where(hit_N, 0, 1))
    raw = {"error": error, "interval": [error - 0.04, error + 0.04], "if_calibrated": {"mean": below / 2, "below": below}}
    calibration = {"text": "given", "raw": raw,
                   "scaled": {"error": 0.02, "temperatures": [1.8, 2.0] if confidence > right else [0.7, 0.7]}}  # fmt: skip
    found = Evidence("after", None, {"after": {"given": table}}, (), calibration)
    assert bool(told(rules.temperature, found)) == speaks
    if speaks:
        assert "1.9" in told(rules.temperature, found)[0]


def test_nothing_is_advised_where_nothing_is_known() -> None:
    assert advised(Evidence("after", None, {"after": {}})) == []
