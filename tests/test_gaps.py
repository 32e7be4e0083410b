"""Where a student is behind: recovered gaps by hand, what is found among many, and how often by mistake."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from scipy import stats
from tabled import cuts_of, noisy, tokens

import limbeck as lb
from limbeck.errors import DataError
from limbeck.evaluate.statistics import recovered, student_t
from limbeck.transfer.gaps import above_rest, figure, judged, slices_of
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked
from limbeck.transfer.slices import Cut, by_certainty, by_difficulty, named
from limbeck.transfer.subjects import of_runs
from limbeck.transfer.summary import shown
from limbeck.transfer.tokens import Tokens

# The recovered gap


def test_the_recovered_gap_is_that_of_its_formula() -> None:
    draw = np.random.default_rng(1)
    lengths = draw.integers(1, 9, 40)
    count = int(lengths.sum())
    teacher_N, before_N = draw.gamma(2, 0.5, count), 4 + draw.gamma(2, 1.0, count)
    after_N = teacher_N + 0.25 * (before_N - teacher_N)
    by_who = {"before": tokens(lengths, before_N / 2, before_N, teacher_N), "after": tokens(lengths, after_N / 8, after_N, teacher_N)}
    label_B = ["even" if n % 2 == 0 else "odd" for n in range(40)]
    found = list(slices_of("given", by_who, [named("category", label_B, by_who["after"])], judged(list(by_who)), True))
    even = next(each for each in found if each["name"] == "even")
    here_N = np.repeat(np.arange(40) % 2 == 0, lengths)
    student, baseline, teacher = (each[here_N].sum() for each in (after_N, before_N, teacher_N))
    closed = even["students"]["after"]["recovered"]
    assert closed["against"] == "before" and closed["ce_nats"]["value"] == pytest.approx((student - baseline) / (teacher - baseline))
    assert closed["ce_nats"]["value"] == pytest.approx(0.75)
    kl, kl_before = (after_N / 8)[here_N].sum(), (before_N / 2)[here_N].sum()
    assert closed["kl_nats"]["value"] == pytest.approx((kl_before - kl) / kl_before)
    sums = [np.bincount(np.repeat(np.arange(40), lengths), weights=each)[::2] for each in (after_N, before_N, teacher_N)]
    assert closed["ce_nats"]["interval"] == recovered(*sums, lengths[::2])["interval"]  # over the slice's 20 sequences alone
    assert even["sequences"] == 20 and even["tokens"] == here_N.sum()


def test_the_interval_of_a_recovered_gap_holds_the_truth() -> None:
    held = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        before_N = draw.gamma(2, 1.0, 60 * 3)
        after_N = before_N * draw.uniform(0.2, 0.6, 180)  # the true share closed is 0.6
        by_who = {"before": tokens([3] * 60, before_N), "after": tokens([3] * 60, after_N)}
        whole = next(slices_of("teacher", by_who, [], judged(list(by_who)), False))
        low, high = whole["students"]["after"]["recovered"]["kl_nats"]["interval"]
        held += low <= 0.6 <= high
    assert held >= 88  # binomial(100, 0.95) is below 88 once in 700 times


def test_without_a_gap_there_is_none_to_close() -> None:
    draw = np.random.default_rng(3)
    same_N = draw.gamma(2, 1.0, 120)
    by_who = {"before": tokens([4] * 30, same_N, same_N, same_N + draw.normal(0, 0.1, 120)), "after": tokens([4] * 30, same_N, same_N, same_N)}
    whole = next(slices_of("given", by_who, [], judged(list(by_who)), True))
    closed = whole["students"]["after"]["recovered"]["ce_nats"]
    assert closed["value"] is None and "no sure gap" in closed["why"]


def test_the_baseline_is_fine_tuned_where_there_is_one() -> None:
    assert judged(["before", "after", "fine-tuned", "from scratch"]) == {"after": "fine-tuned"}
    assert judged(["before", "after"]) == {"after": "before"} and judged(["student"]) == {"student": None} and judged(["before"]) == {"before": None}
    assert judged(["a: before", "a", "a: fine-tuned", "b"]) == {"a": "a: fine-tuned", "b": "a: before"}  # "b" began where "a" did
    assert judged(["a: before", "a", "b: before", "b"]) == {"a": "a: before", "b": "b: before"}


# Which slices are surely worse


@pytest.mark.parametrize("freedom", [9, 12, 30, 200])
@pytest.mark.parametrize("share", [0.95, 0.975, 0.998, 0.999])
def test_quantiles_of_t(freedom: int, share: float) -> None:
    assert student_t(freedom, share) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-3)


def test_the_bound_is_that_of_bonferroni() -> None:
    table, labels = noisy(4)
    here_N = np.array([labels[b] == "c2" for b in table.sequence_N])
    kl_N = table.apart.kl_N
    mean_B = [kl_N[table.sequence_N == b].mean() for b in range(60)]
    mine = np.array([mean for mean, label in zip(mean_B, labels, strict=True) if label == "c2"])
    rest = np.array([mean for mean, label in zip(mean_B, labels, strict=True) if label != "c2"])
    error = math.sqrt(np.var(mine) / len(mine) + np.var(rest) / len(rest))  # sequences are of one length, so that ratios are means
    wide = stats.t.ppf(1 - 0.05 / 7, 11) * math.sqrt(12 / 11)
    found = above_rest(table, kl_N, here_N, 7)["above_rest"]
    assert found["value"] == pytest.approx(mine.mean() - rest.mean())
    assert found["at_least"] == pytest.approx(mine.mean() - rest.mean() - wide * error, rel=1e-3)


def found_in(table: Tokens, cuts: list[Cut]) -> list[str]:
    """The slices that are surely worse, and nothing else of them."""
    parts = [(name, here_N) for cut in cuts for name, here_N in cut.parts()]
    return [name for name, here_N in parts if above_rest(table, table.apart.kl_N, here_N, len(parts))["surely_worse"]]


def test_none_is_found_where_there_is_none_but_once_in_twenty() -> None:
    mistaken = 0
    for seed in range(400):
        table, labels = noisy(seed)
        mistaken += bool(found_in(table, cuts_of(table, labels)))
    assert mistaken <= 31  # binomial(400, 0.05) is above 31 once in 200 times


def test_slices_of_uneven_sizes_and_lengths_are_not_found_by_mistake_either() -> None:
    mistaken = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(1, 12, 80)
        level_B = draw.lognormal(0, 0.8, 80)
        table = tokens(lengths, np.repeat(level_B, lengths) * draw.lognormal(0, 0.4, lengths.sum()))
        labels = ["few" if n < 10 else "some" if n < 30 else "many" for n in range(80)]
        mistaken += bool(found_in(table, [named("category", labels, table)]))
    assert mistaken <= 25  # binomial(300, 0.05) is above 25 once in 200 times


@pytest.mark.parametrize("above, least", [(1.0, 43), (2.0, 49)])
def test_a_planted_slice_is_found(above: float, least: int) -> None:
    hits = 0
    for seed in range(50):
        table, labels = noisy(seed, above=above)
        hits += found_in(table, cuts_of(table, labels)) == ["c3"]
    assert hits >= least


def test_a_slice_of_few_sequences_says_so() -> None:
    table, _ = noisy(1, 40, category=["rare"] * 9 + ["usual"] * 31, above=0)
    high = tokens([6] * 40, np.where(table.sequence_N < 9, 50.0, table.apart.kl_N))
    found = {each["name"]: each for each in slices_of("teacher", {"s": high}, [named("category", ["rare"] * 9 + ["usual"] * 31, high)], {}, False)}
    rare = found["rare"]
    assert rare["few"].startswith("9 sequences") and rare["students"]["s"]["kl_nats"]["interval"] is None
    assert not rare["students"]["s"]["surely_worse"] and rare["students"]["s"]["above_rest"]["at_least"] is None
    assert not found["usual"]["students"]["s"]["surely_worse"] and "few" not in found["usual"]


def test_one_slice_that_is_all_is_compared_with_nothing() -> None:
    table, _ = noisy(1)
    assert above_rest(table, table.apart.kl_N, np.ones(len(table), bool), 3) == {"above_rest": None, "surely_worse": False}


def test_slices_of_a_kind_share_out_all_tokens() -> None:
    table, labels = noisy(5)
    for cut in [*cuts_of(table, labels), by_certainty(table), by_difficulty(table)]:
        parts = [here_N for _, here_N in cut.parts()]
        assert (np.sum(parts, axis=0) == 1).all()
        total = sum(figure(table, table.apart.kl_N, here_N)["value"] * here_N.sum() for here_N in parts)
        assert total == pytest.approx(table.apart.kl_N.sum())


# In an evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    teacher, student = toys.folder(folder / "teacher", seed=0), toys.folder(folder / "student", seed=1)
    kinds = [{**row, "category": ("x", "y")[n % 2], "level": n % 3} for n, row in enumerate(toys.rows(30, seed=5))]
    toys.jsonl(folder / "held.jsonl", kinds)
    source = lb.Corpus(toys.jsonl(folder / "data.jsonl", toys.rows(40)), sequences=8)
    lb.distill(lb.Recipe(lb.Student(student), source, lb.Local(teacher), lb.ForwardKL(), steps=2, save_every=None), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(run: Path) -> dict[str, Any]:
    return evaluate_transfer(of_runs([run], None, False), Asked(str(run.parent / "held.jsonl"), max_tokens=6), run / "evaluation")


def test_an_evaluation_has_its_gaps(run: Path, evaluated: dict[str, Any]) -> None:
    gaps = evaluated["gaps"]
    assert {each["text"] for each in gaps} == {"given", "teacher", "own"} and json.loads(json.dumps(gaps)) == gaps
    assert {each["name"] for each in gaps if each["kind"] == "category"} == {"x", "y"}
    whole = next(each for each in gaps if each["kind"] == "all" and each["text"] == "given")
    assert whole["students"]["after"]["kl_nats"]["value"] == pytest.approx(evaluated["figures"]["after"]["given"]["kl_nats"]["value"])
    assert whole["students"]["after"]["recovered"]["against"] == "before" and "recovered" not in whole["students"]["before"]
    assert {each["kind"] for each in gaps} >= {"all", "category", "position", "token", "difficulty", "teacher's certainty"}
    assert (run / "evaluation" / "tables" / "tokens.json").exists()


def test_the_worst_come_with_completions_and_are_shown(evaluated: dict[str, Any]) -> None:
    bad = [each for each in evaluated["gaps"] if each.get("examples", {}).get("after")]
    assert bad and all(1 <= len(each["examples"]["after"]) <= 3 for each in bad)
    assert set(bad[0]["examples"]["after"][0]["completions"]) == {"teacher", "after"}
    titles = [columns[0] for columns, _ in shown(evaluated)]
    assert any(title.startswith("after is surely worse at, on") for title in titles)


def test_the_same_tables_are_sliced_by_another_column(run: Path, evaluated: dict[str, Any]) -> None:
    found = evaluate_transfer(of_runs([run], None, False), Asked(str(run.parent / "held.jsonl"), max_tokens=6), run / "evaluation", category="level")
    assert {each["name"] for each in found["gaps"] if each["kind"] == "category"} == {"0", "1", "2"} and found["figures"] == evaluated["figures"]


def test_a_wrong_column_costs_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='did you mean "level"'):
        evaluate_transfer(of_runs([run], None, False), Asked(str(run.parent / "held.jsonl"), max_tokens=6), tmp_path / "e", category="levl")
    assert not (tmp_path / "e" / "texts").exists()
