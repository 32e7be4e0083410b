"""A corpus from a teacher: resumed, chosen, cleaned, counted, priced."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

import limbeck as lb
from limbeck.answers import Answer, Bill, Given, Purse, Question, parted
from limbeck.choose import Candidate, Tally, chosen, chrf, selected
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data
from limbeck.errors import LimbeckError, RecipeError
from limbeck.files import read_json, read_jsonl
from limbeck.ledger import Ledger
from limbeck.overlap import Overlap, near_duplicates

PROMPTS = 11
"""Of the twelve rows of the toys one stands twice."""
SHORT = lb.Sampling(max_tokens=12, temperature=2.0)


def small(completion: str, row: dict) -> float:
    """A verifier for the toys: whether there is a small letter."""
    return float(any("a" <= letter <= "z" for letter in completion))


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict:
    home = tmp_path_factory.mktemp("write")
    teacher = toys.folder(home / "teacher", seed=2, sharp=2.0)
    (home / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    ends = [257, *range(65, 91), *range(128, 170)]  # the toy seldom ends by itself: capitals do it for it
    (Path(teacher) / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (Path(teacher) / "README.md").write_text("---\nlicense: mit\n---\n")
    return {"home": home, "teacher": lb.Local(teacher, dtype="float32"), "prompts": Data(toys.jsonl(home / "prompts.jsonl", toys.rows(12)))}


def order(toy, **settings) -> Order:
    return Order(toy["teacher"], toy["prompts"], **{"samples": 4, "sampling": SHORT, "similarity": None, **settings})


def corpus(out: Path) -> list[dict]:
    return read_jsonl(out / "corpus.jsonl")


def test_every_answer_is_kept_or_dropped_for_a_reason(toy, tmp_path) -> None:
    card = write_corpus(order(toy, keep="verified", verifier="test_corpus:small"), tmp_path)
    assert card.answers == PROMPTS * 4 == card.rows + sum(card.dropped.values())
    assert card.rows == len(corpus(tmp_path)) and all(row["reward"] == 1.0 for row in corpus(tmp_path))
    assert card.took.completion_tokens == card.spent.completion_tokens > 0
    said = read_json(tmp_path / "card.json")
    assert [found["name"] for found in said["licences"]] == ["mit", "apache-2.0"]
    assert "license: mit" in (tmp_path / "README.md").read_text()


def test_text_and_bills_are_those_of_one_call_after_a_stop_and_another_choice_costs_nothing(toy, tmp_path, monkeypatch) -> None:
    write_corpus(order(toy), tmp_path / "whole")
    real = lb.Local.answers

    def stopping(self, *given):
        for number, each in enumerate(real(self, *given)):
            if number == 17:
                raise KeyboardInterrupt
            yield each

    monkeypatch.setattr(lb.Local, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(order(toy), tmp_path / "cut")
    with Ledger(tmp_path / "cut" / "ledger.sqlite") as ledger:
        assert len(ledger) == 17
    asked = list[int]()

    def counting(self, questions, *given):
        asked.append(sum(len(each.samples) for each in questions))
        return real(self, questions, *given)

    monkeypatch.setattr(lb.Local, "answers", counting)
    write_corpus(order(toy), tmp_path / "cut")
    assert asked == [PROMPTS * 4 - 17]
    assert corpus(tmp_path / "cut") == corpus(tmp_path / "whole")
    write_corpus(order(toy, keep="mbr"), tmp_path / "cut")
    assert asked == [PROMPTS * 4 - 17] and len(corpus(tmp_path / "cut")) <= PROMPTS
    write_corpus(order(toy, samples=5), tmp_path / "cut")
    assert asked == [PROMPTS * 4 - 17, PROMPTS]


def test_a_killed_process_loses_nothing_that_was_recorded(toy, tmp_path) -> None:
    code = (
        "import limbeck as lb; from limbeck.corpus import Order, write_corpus; from limbeck.data import Data; from pathlib import Path;"
        f"o = Order(lb.Local({toy['teacher'].model!r}, dtype='float32'), Data({toy['prompts'].path!r}), samples=40,"
        f"sampling=lb.Sampling(max_tokens=12, temperature=2.0), similarity=None); write_corpus(o, Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (there := _count(tmp_path)):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = _count(tmp_path)
    assert there > 0
    card = write_corpus(order(toy, samples=40), tmp_path)
    assert _count(tmp_path) == card.answers == PROMPTS * 40


def _count(out: Path) -> int:
    if not (out / "ledger.sqlite").exists():
        return 0
    try:
        with Ledger(out / "ledger.sqlite") as ledger:
            return len(ledger)
    except LimbeckError:
        return 0


def test_a_budget_is_never_passed_and_the_corpus_is_made_of_what_it_bought(toy, tmp_path) -> None:
    whole = write_corpus(order(toy), tmp_path / "whole").took.flops
    card = write_corpus(order(toy, budget_flops=whole / 2), tmp_path / "half")
    each = card.spent.flops / (card.spent.prompt_tokens + card.spent.completion_tokens)
    assert whole / 2 - 200 * each < card.spent.flops <= whole / 2, "less is left than one answer may take"
    assert 0 < card.answers < PROMPTS * 4 and "budget" in card.ended
    again = write_corpus(order(toy, budget_flops=whole * 2), tmp_path / "half")
    assert again.answers == PROMPTS * 4 and corpus(tmp_path / "half") == corpus(tmp_path / "whole")


def test_a_student_learns_from_it_and_from_samples_drawn_on_the_way(toy, tmp_path) -> None:
    write_corpus(order(toy, sampling=lb.Sampling(max_tokens=64, temperature=2.0)), tmp_path / "corpus")
    other = toys.folder(tmp_path / "student", kind="gpt2", seed=1)
    student = lb.Student(other, lb.AdamW(1e-2), dtype="float32")
    lb.distill(lb.Recipe(student, lb.Corpus(str(tmp_path / "corpus" / "corpus.jsonl"), 4), steps=3), tmp_path / "run")
    source = lb.TeacherSamples(toy["prompts"].path, toy["teacher"], sequences=4, samples=4, sampling=SHORT, keep="best", verifier="test_corpus:small")
    lb.distill(lb.Recipe(student, source, steps=3), tmp_path / "live")
    assert len(read_jsonl(tmp_path / "live" / "metrics.jsonl")) == 3


@pytest.mark.parametrize(("settings", "said"), [
    ({"samples": 0}, "samples must be at least 1"),
    ({"keep": "bets"}, 'did you mean "best"'),
    ({"keep": "best:0"}, "write it like best:2"),
    ({"keep": "verified"}, "needs a verifier"),
    ({"budget_usd": 0.0}, "budget_usd must be above 0"),
    ({"reasoning": "both"}, "apart"),
    ({"similarity": 2.0}, "between 0 and 1"),
    ({"seed": -1}, "between 0 and 2"),
])  # fmt: skip
def test_bad_orders(toy, settings, said) -> None:
    with pytest.raises(RecipeError, match=said):
        order(toy, **settings)


def test_an_unknown_licence_stops_before_anything_is_made(toy, tmp_path) -> None:
    teacher = lb.Local(toys.folder(tmp_path / "teacher"), dtype="float32")
    (tmp_path / "teacher" / "README.md").unlink()
    with pytest.raises(RecipeError, match="accept_license") as stopped:
        write_corpus(Order(teacher, toy["prompts"], sampling=SHORT), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    name = json.loads(str(stopped.value).split("accept_license: ")[1].split(" in the recipe")[0])
    write_corpus(Order(teacher, toy["prompts"], sampling=SHORT, similarity=None, accept_license=[name]), tmp_path / "out")


def given(text: str, sample: int = 0, prompt: str = "p", **more) -> Given:
    return Given(Question({"prompt": prompt}, Data("x.jsonl"), (0, 1, 2, 3)), sample, Answer(text, **more), Bill())


def test_choices() -> None:
    def places(way: str, *pairs, above: float = 0.0) -> list[int]:
        return chosen(way, above).choose([Candidate(Answer(text), reward, said) for text, reward, said in pairs])

    group = [("aaaa", 0.5, "1"), ("bb", 1.0, "2"), ("cccccc", 1.0, "2"), ("d", -1.0, None)]
    assert places("all", *group) == [0, 1, 2, 3]
    assert places("verified", *group, above=0.5) == [1, 2]
    assert places("best", *group) == [1] and places("best:3", *group) == [0, 1, 2]
    assert places("majority", *group) == [1, 2] and places("majority:1", *group) == [1]
    assert places("majority", ("a", 0, "x"), ("b", 0, "y")) == [0]
    texts = ["dogs bark", "the cat sat on a mat", "the cat sat on the mat", "the cat sat on the mat"]
    assert places("mbr", *((text, None, None) for text in texts)) == [2]
    assert places("mbr:2", *((text, None, None) for text in texts)) == [2, 3]


def test_chrf_by_hand() -> None:
    """Two of three letters and one of two pairs in common; recall counts four times."""
    precision = recall = (2 / 3 + 1 / 2 + 0) / 3
    assert chrf("abd", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert chrf("abc", "abc") == 1.0 and chrf("", "abc") == 0.0


def test_answers_that_are_not_whole_are_dropped_first() -> None:
    tally = Tally()
    some = [given("cut", 0, finish="length"), given(" ", 1), given("no", 2, finish="filter"), given("yes", 3)]
    assert [kept.answer.text for kept in selected(some, chosen("all"), None, tally)] == ["yes"]
    assert tally.dropped == {"cut by length": 1, "empty": 1, "withheld": 1} and tally.answered == 4


@pytest.mark.parametrize(("text", "reasoning", "answer"), [
    ("<think>\nhm\n</think>\n\n42", "hm", "42"),
    ("hm</think>42", "hm", "42"),
    ("<think>for ever", "for ever", ""),
    ("plain", "", "plain"),
])  # fmt: skip
def test_thinking_is_kept_apart(text, reasoning, answer) -> None:
    assert parted(text) == (reasoning, answer)


def test_overlap_and_duplicates(tmp_path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    sets = [Data(toys.jsonl(tmp_path / "test.jsonl", [{"prompt": long}, {"prompt": "what is the capital of Peru"}, {"prompt": "two"}]))]
    overlap = Overlap(sets)
    assert overlap.found("so: ONE, two three four five six seven eight nine ten eleven twelve thirteen!") == sets[0].path
    assert overlap.found("tell me what is the capital of Peru?") == sets[0].path
    assert overlap.found("two three four five six seven eight nine ten eleven twelve") is None
    texts = ["a b c d e f g h", "a b c d e f g h i", "z y x w v", "A b c d e f g h"]
    assert near_duplicates(texts, 0.8) == [0, 2] and near_duplicates(texts, 0.9) == [0, 1, 2]
    assert near_duplicates(texts, 1.0) == [0, 1, 2, 3]


def test_a_purse_sets_aside_the_worst() -> None:
    purse = Purse(usd=1.0)
    assert (purse.take(Bill(usd=0.6)), purse.take(Bill(usd=0.6)), purse.refused) == ("now", "later", False)
    purse.settle(Bill(usd=0.6), Bill(usd=0.1))
    assert purse.take(Bill(usd=0.6)) == "now" and purse.spent.usd == 0.1
    assert purse.take(Bill(usd=0.95)) == "never" and purse.refused


def test_a_ledger_refuses_what_is_none(tmp_path) -> None:
    (tmp_path / "ledger.sqlite").write_text("no database at all, however long this line is made to be for SQLite")
    with pytest.raises(LimbeckError, match="cannot be used"):
        Ledger(tmp_path / "ledger.sqlite")
