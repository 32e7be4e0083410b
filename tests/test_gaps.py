"""Where a student is behind: slices, recovered gaps by hand, what is found among many and how often by mistake, and what is advised."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from scipy import stats

import limbeck as lb
from limbeck.batch import Text
from limbeck.errors import DataError
from limbeck.evaluate.statistics import paired, recovered, student_t
from limbeck.transfer import advice as rules
from limbeck.transfer.advice import Evidence, advised
from limbeck.transfer.gaps import above_rest, figure, judged, slices_of, worst
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked, Rows
from limbeck.transfer.slices import (
    Cut,
    by_certainty,
    by_class,
    by_difficulty,
    by_position,
    categories,
    doubts,
    named,
    pieces,
)
from limbeck.transfer.subjects import of_runs
from limbeck.transfer.summary import shown
from limbeck.transfer.tokens import TEMPERATURES, Apart, Said, Tokens
from limbeck.transfer.topics import topics

# Synthetic tables


def said(nats_N: Any, **more: Any) -> Said:
    """One model, of whom only nats are looked at."""
    nats_N = np.asarray(nats_N, float)
    zero_N = np.zeros(len(nats_N))
    kept: dict[str, Any] = {"entropy_N": zero_N, "top_N": zero_N, "confidence_N": zero_N, "missed_N": zero_N}
    return Said(**{"nats_N": nats_N, **kept, "log_sum_NG": np.zeros((len(nats_N), len(TEMPERATURES))), **more})


def tokens(lengths: Any, kl_N: Any, nats_N: Any = None, teacher_N: Any = None, **more: Any) -> Tokens:
    """A table of sequences of these lengths."""
    lengths, count = np.asarray(lengths), int(np.sum(lengths))
    sequence_N = np.repeat(np.arange(len(lengths)), lengths)
    position_N = np.concatenate([np.arange(n) for n in lengths])
    kl_N, zero_N = np.asarray(kl_N, float), np.zeros(count)
    student = said(kl_N if nats_N is None else nats_N, **more)
    return Tokens(sequence_N, position_N, np.zeros(count, int), np.zeros(len(lengths)), student, said(zero_N if teacher_N is None else teacher_N),
                  Apart(kl_N, zero_N, zero_N))  # fmt: skip


def noisy(seed: int, sequences: int = 60, length: int = 6, category: Any = None, above: float = 0.0) -> tuple[Tokens, list[str]]:
    """KL of lognormal sequences, tokens of one alike; one category above the others or not."""
    draw = np.random.default_rng(seed)
    labels = [f"c{n % 5}" for n in range(sequences)] if category is None else list(category)
    level_B = draw.lognormal(0, 0.6, sequences) + above * np.array([label == "c3" for label in labels])
    return tokens([length] * sequences, np.repeat(level_B, length) * draw.lognormal(0, 0.4, sequences * length)), labels


def cuts_of(table: Tokens, labels: list[str]) -> list[Cut]:
    return [named("category", labels, table), by_position(table)]


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


def test_a_planted_slice_is_found() -> None:
    hits = 0
    for seed in range(50):
        table, labels = noisy(seed, above=2.0)
        hits += found_in(table, cuts_of(table, labels)) == ["c3"]
    assert hits >= 45


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


# Ways to cut


def test_positions_double() -> None:
    assert by_position(tokens([9], range(9))).place_N.tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4]
    assert by_position(tokens([9], range(9))).names == ["0", "1", "2 to 3", "4 to 7", "8 to 15"]


def test_quarters_are_of_equal_size_and_keep_equals_together() -> None:
    table = tokens([2] * 8, np.zeros(16), teacher_N=np.repeat([3, 1, 2, 4, 8, 7, 6, 5], 2))
    names = [by_difficulty(table).names[place] for place in by_difficulty(table).place_N[::2]]
    assert [names.count(name) for name in dict.fromkeys(sorted(names))] == [2, 2, 2, 2]
    assert names[1] == "easiest quarter" and names[4] == "hardest quarter"
    assert len(set(by_certainty(table).place_N)) == 1  # the same entropy everywhere


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toys.opened(tmp_path_factory.mktemp("bytewise")).vocabulary


def test_classes_of_tokens_by_their_text(bytewise: Any) -> None:
    text = "one 7, té"
    ids = [*bytewise.ids(text), 257]
    table = tokens([len(ids)], np.zeros(len(ids)))
    table = Tokens(table.sequence_N, table.position_N, np.array(ids), table.bytes_B, table.student, table.teacher, table.apart)
    cut = by_class(table, pieces(sorted(set(ids)), bytewise))
    assert [cut.names[place] for place in cut.place_N] == [
        "word start", "word continued", "word continued", "white space", "number", "punctuation", "white space", "word start",
        "part of a character", "part of a character", "end or special"]  # fmt: skip


class Words:
    """A vocabulary whose tokens are pieces of words, or whole words."""

    outcomes = "tokens"

    def __init__(self, names: list[str]) -> None:
        self.map = {name: n for n, name in enumerate(names)}
        self.names, self.end_ids, self.tokenizer = names, frozenset[int](), self
        self.all_special_ids = list[int]()

    def text(self, ids: list[int]) -> str:
        return "".join(self.names[n].replace("Ġ", " ").replace("▁", " ").replace("##", "") for n in ids)

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.names[number]


@pytest.mark.parametrize(
    "names, classes",
    [
        (["The", "Ġcat", "alog", "42", "."], ["word start", "word start", "word continued", "number", "punctuation"]),
        (["▁The", "▁cat", "alog", "▁42", "▁."], ["word start", "word start", "word continued", "number", "punctuation"]),
        (["the", "cat", "##alog", "42", "."], ["word start", "word start", "word continued", "number", "punctuation"]),
        (["red", "green", "7"], ["word start", "word start", "number"]),
    ],
)  # fmt: skip
def test_words_begin_where_their_tokenizer_says_so(names: list[str], classes: list[str]) -> None:
    table = tokens([len(names)], np.zeros(len(names)))
    table = Tokens(table.sequence_N, table.position_N, np.arange(len(names)), table.bytes_B, table.student, table.teacher, table.apart)
    cut = by_class(table, pieces(range(len(names)), Words(names)))  # type: ignore[arg-type]
    assert [cut.names[place] for place in cut.place_N] == classes


def rows_with(**columns: list[Any]) -> Rows:
    count = len(next(iter(columns.values())))
    told = [{name: values[n] for name, values in columns.items()} | {"row": n} for n in range(count)]
    return Rows([[1]] * count, ["?"] * count, told, [Text.answered([1], [2], each) for each in told])


def test_a_column_that_no_row_has_is_refused() -> None:
    with pytest.raises(DataError, match=r'no row has the column "topik" to slice by; did you mean "topic"\?'):
        categories(rows_with(topic=["a"], level=[1]), "topik")
    with pytest.raises(DataError, match=r"known: level, topic"):
        categories(rows_with(topic=["a"], level=[1]), "zzz")
    assert categories(rows_with(topic=["a"]), None) is None


def test_empty_categories_and_one_alone_are_said() -> None:
    found = categories(rows_with(category=["a", None, " ", "b", 3]), None)
    assert found == {0: "a", 1: "(none)", 2: "(none)", 3: "b", 4: "3"}
    assert doubts(found) == ["2 of 5 rows have no category; they are one slice, (none)"]
    assert "none to compare" in doubts(categories(rows_with(kind=["a", "a"]), "kind"))[0]
    assert doubts(categories(rows_with(kind=[None, ""]), "kind")) == [
        "no row has a category, so that there are none to compare; name another column with --category"]  # fmt: skip
    many = categories(rows_with(kind=[*range(100), 5]), "kind")
    assert len(set(many.values())) == 41 and many[5] == many[100] == "5"


def test_prompts_are_clustered_by_their_words() -> None:
    draw = np.random.default_rng(0)
    about = {"cook": ["boil", "bake", "fry", "salt", "oven", "soup"], "code": ["loop", "class", "bug", "compile", "stack", "byte"]}
    texts = {n: f"please {' '.join(draw.choice(about['cook' if n % 2 else 'code'], 4))} the {n}" for n in range(40)}
    found = topics(texts)
    assert len(set(found.values())) == 2 and len({found[n] for n in range(0, 40, 2)}) == 1 and found == topics(texts)
    assert set(found[1].split(", ")) < set(about["cook"]) and set(found[0].split(", ")) < set(about["code"])
    assert topics(dict.fromkeys(range(30), "the same")) == {} and topics({0: "a", 1: "b"}) == {}


# Advice


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
    found = evaluate_transfer(of_runs([run], None, False), Asked(str(run.parent / "held.jsonl"), max_tokens=6), run / "evaluation", "level")
    assert {each["name"] for each in found["gaps"] if each["kind"] == "category"} == {"0", "1", "2"} and found["figures"] == evaluated["figures"]


def test_a_wrong_column_costs_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='did you mean "level"'):
        evaluate_transfer(of_runs([run], None, False), Asked(str(run.parent / "held.jsonl"), max_tokens=6), tmp_path / "e", "levl")
    assert not (tmp_path / "e" / "texts").exists()


def test_paired_is_unchanged_by_shares_of_t() -> None:
    draw = np.random.default_rng(0)
    mine = draw.normal(size=30)
    assert paired(mine, mine, np.ones(30))["interval"] == [0.0, 0.0]
