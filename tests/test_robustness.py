"""Robustness: what is lost and kept by hand in float64, a planted weakness that is found, and a search that beats chance."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from typer.testing import CliRunner

import limbeck as lb
from limbeck.cli import app
from limbeck.data import Data
from limbeck.errors import CheckpointError, RecipeError
from limbeck.transfer import reading, robustness
from limbeck.transfer.adversarial import LENGTH, Search
from limbeck.transfer.lost import kept, only
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.reading import Reading
from limbeck.transfer.robustness import Robustness, asked_for
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import Subjects
from limbeck.transfer.tokens import Tokens

# What was kept


def test_kept_is_one_where_both_lose_the_same_share() -> None:
    worth = np.array([4.0, 6.0, 5.0, 7.0])
    found = kept(0.25 * worth, worth, 0.25 * 2 * worth, 2 * worth)
    assert found["value"] == 1 and found["interval"] == [1, 1] and found["share_lost"] == 0.25


def test_kept_by_hand_and_its_interval_holds_the_truth() -> None:
    draw, held, truth = np.random.default_rng(0), 0, 1 - (0.3 - 0.1)
    for _ in range(200):
        worth, theirs = draw.normal(5, 1, 60), draw.normal(6, 1, 60)
        lost, their_lost = 0.3 * worth + draw.normal(0, 1, 60), 0.1 * theirs + draw.normal(0, 1, 60)
        found = kept(lost, worth, their_lost, theirs)
        assert found["value"] == pytest.approx(1 - (lost.sum() / worth.sum() - their_lost.sum() / theirs.sum()))
        held += found["interval"][0] <= truth <= found["interval"][1]
    assert 0.90 * 200 <= held <= 0.985 * 200  # of 0.95, three standard errors and a half


def test_one_who_ignores_the_prompt_is_not_robust_but_unknown() -> None:
    draw = np.random.default_rng(1)
    found = kept(np.zeros(40), draw.normal(0, 1, 40), np.full(40, 0.5), np.full(40, 5.0))
    assert found["value"] is None and "worth nothing to the student" in found["why"]


# An evaluation


def folders(folder: Path) -> tuple[str, str, str]:
    data = toys.jsonl(folder / "held.jsonl", [{**row, "prompt": f"{row['prompt']} {n} Please?"} for n, row in enumerate(toys.rows(12, seed=5))])
    return toys.folder(folder / "teacher", seed=0), toys.folder(folder / "student", seed=1), data


def evaluated(folder: Path, asked: Robustness, students: tuple[str, ...] = ("student",), data: str = "held.jsonl", out: str = "e", **more) -> dict:
    subjects = Subjects({name: lb.Student(str(folder / name), dtype="float32") for name in students},
                        more.pop("teacher", None) or lb.Local(str(folder / "teacher"), dtype="float32"))  # fmt: skip
    return evaluate_transfer(subjects, Asked(str(folder / data), max_tokens=8, **more), folder / out, robustness=asked)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust")
    folders(folder)
    return folder


FEW = Robustness(("upper", "truncated", "distractor"))


@pytest.fixture(scope="module")
def found(place: Path) -> dict:
    return evaluated(place, FEW)


def nats(folder: str, tokens: list[int], start: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of every outcome at each token from `start` on, and nats of the tokens, in float64."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    with torch.no_grad():
        log_NV = torch.log_softmax(module(torch.tensor([tokens])).logits[0, start - 1 : -1, :258], -1).numpy()
    return log_NV, -log_NV[np.arange(len(tokens) - start), tokens[start:]]


def by_hand(place: Path, edited: list[dict]) -> dict[str, np.ndarray]:
    """Sums of each sequence [B]: nats of both, their divergence and agreement."""
    tokenizer, rows = toys.tokenizer(), [json.loads(line) for line in (place / "held.jsonl").read_text().splitlines()]
    sums: dict[str, list] = {"student": [], "teacher": [], "kl": [], "agreed": [], "tokens": []}
    for each in edited:
        prompt = tokenizer(f"<|im_start|>user\n{each['asked']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = tokenizer(rows[each["row"]]["completion"] + "<|im_end|>")["input_ids"]
        (log_q, mine), (log_p, theirs) = (nats(str(place / name), prompt + answer, len(prompt)) for name in ("student", "teacher"))
        for key, value in {"student": mine, "teacher": theirs, "kl": (np.exp(log_p) * (log_p - log_q)).sum(-1),
                           "agreed": log_p.argmax(-1) == log_q.argmax(-1), "tokens": np.ones(len(answer))}.items():  # fmt: skip
            sums[key].append(value.sum())
    return {key: np.array(value, float) for key, value in sums.items()}


def read(place: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (place / "e" / "robustness" / f"{name}.jsonl").read_text().splitlines()]


def test_figures_are_what_float64_says(place: Path, found: dict) -> None:
    robust = found["robustness"]
    rows = [json.loads(line) for line in (place / "held.jsonl").read_text().splitlines()]
    clean = by_hand(place, [{"row": n, "asked": row["prompt"]} for n, row in enumerate(rows)])
    another, tokens = by_hand(place, read(place, "another")), clean["tokens"].sum()
    for edit in ("upper", "truncated", "distractor-after"):
        hand, own = by_hand(place, read(place, edit)), robust["figures"][edit]
        assert len(read(place, edit)) == 12 == robust["edits"][edit]["prompts"]
        assert own["student"]["kl_nats"]["value"] == pytest.approx(hand["kl"].sum() / tokens, rel=1e-4)
        assert own["student"]["agreement"]["value"] == pytest.approx(hand["agreed"].sum() / tokens)
        lost = {who: hand[who] - clean[who] for who in ("student", "teacher")}
        for who in ("student", "teacher"):
            assert own[who]["ce_nats"]["value"] == pytest.approx(hand[who].sum() / tokens, rel=1e-5)
            assert own[who]["lost"]["ce_nats"]["value"] == pytest.approx(lost[who].sum() / tokens, rel=1e-3, abs=1e-6)
            low, high = own[who]["lost"]["ce_nats"]["interval"]
            assert low < own[who]["lost"]["ce_nats"]["value"] < high
        worth = {who: another[who] - clean[who] for who in ("student", "teacher")}
        wanted = kept(lost["student"], worth["student"], lost["teacher"], worth["teacher"])
        own_kept = robust["kept"]["student"][edit]
        assert own_kept["value"] == (None if wanted["value"] is None else pytest.approx(wanted["value"], rel=1e-3))
        assert own_kept["more_nats"]["value"] == pytest.approx((lost["student"] - lost["teacher"]).sum() / tokens, rel=1e-3, abs=1e-6)


def test_the_data_answers_where_it_can_and_the_clean_table_is_its(place: Path, found: dict) -> None:
    assert found["robustness"]["text"] == "given" and not (place / "e" / "tables" / "student" / "clean").exists()
    assert found["robustness"]["figures"]["clean"]["student"]["kl_nats"] == found["figures"]["student"]["given"]["kl_nats"]
    assert "lost" not in found["robustness"]["figures"]["clean"]["student"] and found["robustness"]["missing"] == []


def test_an_edit_leaves_answers_alone(place: Path) -> None:
    clean, upper = (Tokens.read(place / "e" / "tables" / "student" / name) for name in ("given", "upper"))
    assert (clean.token_N == upper.token_N).all() and (clean.student.nats_N != upper.student.nats_N).any()


def test_some_sequences_of_a_table(place: Path) -> None:
    whole = Tokens.read(place / "e" / "tables" / "student" / "upper")
    part = only(whole, [1, 4, 11])
    assert part.counts_B.tolist() == whole.counts_B[[1, 4, 11]].tolist()
    assert part.sums(part.apart.kl_N).tolist() == whole.sums(whole.apart.kl_N)[[1, 4, 11]].tolist() and set(part.sequence_N) == {0, 1, 2}


def hearing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of which texts a teacher will be asked, as long as the test lasts."""
    asked, heard, stretch = list[str](), reading.heard, Reading.stretch

    def stretched(self, some, told):
        monkeypatch.setattr(reading, "heard", lambda *given: asked.append(self.text) or heard(*given))
        return stretch(self, some, told)

    monkeypatch.setattr(Reading, "stretch", stretched)
    return asked


def test_the_same_again_costs_nothing_and_a_killed_one_goes_on(place: Path, found: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place, tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "e" / "tables" / "student" / "upper")
    (tmp_path / "p" / "e" / "evaluation.json").unlink()
    settings = tmp_path / "p" / "e" / "settings.json"
    settings.write_text(settings.read_text().replace(str(place), str(tmp_path / "p")))
    asked = hearing(monkeypatch)
    again = evaluated(tmp_path / "p", FEW)
    assert again["robustness"] == found["robustness"] and asked == ["upper"]
    monkeypatch.setattr(reading, "columns", None)
    assert evaluated(tmp_path / "p", FEW)["robustness"] == found["robustness"]


def test_edits_may_be_added_and_not_changed(place: Path, found: dict, tmp_path: Path) -> None:
    assert set(evaluated(place, Robustness(("upper", "lower")))["robustness"]["figures"]) == {"clean", "upper", "lower", "another"}
    evaluated(place, Robustness(("context",), longer=20), out="long")
    with pytest.raises(CheckpointError, match=r"edited otherwise \(long-context\); give another --out"):
        evaluated(place, Robustness(("context",), longer=100), out="long")


def test_the_teacher_reads_once_for_all_students(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hearing(monkeypatch)
    found = evaluated(place, FEW, ("student", "teacher"), out="two")
    assert sorted(asked) == sorted([*({*found["robustness"]["figures"]} - {"clean"}), "given", "teacher", "own", "own"])
    assert found["robustness"]["figures"]["upper"]["teacher"]["ce_nats"] and set(found["robustness"]["kept"]) == {"student", "teacher"}


# A planted weakness


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that reads capitals as it reads small letters; "brittle" is the same and never learnt capitals; "same" is the teacher."""
    folder = tmp_path_factory.mktemp("planted")
    for name in ("teacher", "same", "brittle"):
        network = toys.network(seed=3, sharp=8.0)
        if name != "brittle":
            with torch.no_grad():
                ids = {token: number for token, number in toys.tokenizer().get_vocab().items() if len(token) == 1}
                rows = network.get_input_embeddings().weight
                for small in "abcdefghijklmnopqrstuvwxyz":
                    rows[ids[small.upper()]] = rows[ids[small]]
        network.save_pretrained(folder / name)
        toys.tokenizer().save_pretrained(folder / name)
        toys.licensed(folder / name)
    toys.jsonl(folder / "held.jsonl", [{"prompt": row["prompt"]} for row in toys.rows(40, seed=6)])
    return folder


def test_a_student_who_never_learnt_capitals_is_found(planted: Path) -> None:
    robust = evaluated(planted, Robustness(("upper", "lower", "mistyped")), ("same", "brittle"), rows=40)["robustness"]
    assert robust["text"] == "teacher" and any("lower: changes no prompt" in each for each in robust["missing"])
    upper = robust["figures"]["upper"]
    assert upper["teacher"]["lost"]["ce_nats"]["value"] == pytest.approx(0, abs=1e-5) and upper["brittle"]["lost"]["ce_nats"]["interval"][0] > 0
    kept_of = robust["kept"]
    assert kept_of["same"]["upper"]["value"] == pytest.approx(1, abs=1e-4)
    assert kept_of["brittle"]["upper"]["interval"][1] < 1 and kept_of["brittle"]["upper"]["more_nats"]["interval"][0] > 0
    assert kept_of["brittle"]["upper"]["interval"][1] < kept_of["brittle"]["mistyped"]["interval"][0]  # small letters it knows
    assert kept_of["brittle"]["upper"]["value"] < kept_of["brittle"]["all"]["value"] < 1
    assert upper["brittle"]["steady"]["value"] < upper["same"]["steady"]["value"] == 1 and upper["brittle"]["kl_nats"]["value"] > 0.01


# Other text


def test_other_text_is_set_beside_the_clean_one(place: Path) -> None:
    toys.jsonl(place / "other.jsonl", [{"prompt": f"{n} + {n}", "completion": f"{2 * n}" * 3} for n in range(10, 15)])
    asked = Robustness(("upper",), other=str(place / "other.jsonl"))
    robust = evaluated(place, asked, out="other")["robustness"]
    own = robust["figures"]["other"]["student"]
    clean = robust["figures"]["clean"]["student"]["ce_nats"]["value"]
    assert own["lost"]["ce_nats"]["value"] == pytest.approx(own["ce_nats"]["value"] - clean) and "teacher" in robust["figures"]["other"]
    low, high = own["lost"]["ce_nats"]["interval"]
    assert low < own["lost"]["ce_nats"]["value"] < high
    toys.jsonl(place / "third.jsonl", [{"text": "abc def"}])
    with pytest.raises(CheckpointError, match="holds figures of other data"):
        evaluated(place, Robustness(("upper",), other=str(place / "third.jsonl")), out="other")


def test_other_prompts_are_answered_by_the_teacher(planted: Path) -> None:
    toys.jsonl(planted / "other.jsonl", [{"prompt": f"{n} + {n}"} for n in range(10, 15)])
    robust = evaluated(planted, Robustness(("upper",), other=str(planted / "other.jsonl")), ("same",), out="o", rows=6)["robustness"]
    assert robust["figures"]["other"]["same"]["kl_nats"]["value"] == pytest.approx(0, abs=1e-5)
    assert len((planted / "o" / "robustness" / "other-answers.jsonl").read_text().splitlines()) == 5


# A suffix


def search(place: Path) -> Search:
    student = lb.Student(str(place / "student"), dtype="float32").load(1)
    teacher = lb.Local(str(place / "teacher"), dtype="float32").load(student)
    vocabulary, data = student.live.vocabulary, Data("held.jsonl")
    rows = [json.loads(line) for line in (place / "held.jsonl").read_text().splitlines()]
    answers = [robustness.Answer(n, data, row, vocabulary.prompt(row, data), vocabulary.ids(row["completion"]), row["prompt"])
               for n, row in enumerate(rows)]  # fmt: skip
    return Search(student, teacher, answers, 2048, 0)


def test_a_suffix_stands_at_the_end_of_the_users_turn(place: Path) -> None:
    one = search(place)
    shown = one.vocabulary.tokenizer.decode(one.text(0, one.vocabulary.ids(" XYZ")).tokens)
    assert "Please? XYZ<|im_end|>\n<|im_start|>assistant\n" in shown
    assert all(one.is_typed([token]) and one.vocabulary.text([token]).isascii() for token in one.alphabet) and len(one.alphabet) == 94


def test_the_gradient_is_that_of_the_aim(place: Path) -> None:
    """The row of a token that stands in the suffix alone, moved a little toward another token's: the aim follows to first order."""
    one = search(place)
    suffix = one.vocabulary.ids("ABCDEFGH")
    assert len(suffix) == LENGTH and not any(set(suffix[1:3]) & {*answer.prompt, *answer.completion} for answer in one.answers)
    scores_LV, tokens = one.gradient(suffix), sum(len(answer.completion) for answer in one.answers[: one.split])
    weight, step = one.student.live.causal.get_input_embeddings().weight, 1e-3
    for place_in, v in ((1, 5), (2, 40)):
        kept_row, toward = weight[suffix[place_in]].clone(), weight[one.alphabet[v]].clone()
        moved = list[float]()
        for sign in (1, -1):
            with torch.no_grad():
                weight[suffix[place_in]] = kept_row + sign * step * toward
            moved.append(float(one.aims([suffix])[0]) * tokens)
        with torch.no_grad():
            weight[suffix[place_in]] = kept_row
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(scores_LV[place_in, v]), rel=0.05, abs=0.02)


def test_the_search_beats_random_suffixes_on_prompts_it_never_saw(place: Path) -> None:
    found = evaluated(place, Robustness(("upper",), adversarial=12), out="suffix")["robustness"]["adversarial"]["student"]
    assert found["above_random"]["interval"][0] > 0 and found["found"]["value"] > max(found["random_each"])
    assert not set(found["searched_rows"]) & set(found["measured_rows"]) and len(found["suffix"]) == LENGTH and found["steps"] == 12
    assert found["sequences_read"] <= 4 * (1 + 12 * 8) and found["aim"] == "kl_nats" and set(found["lost"]) == {"student", "teacher"}


def test_a_vocabulary_that_gives_no_suffix_back_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "is_typed", lambda self, suffix: False)
    monkeypatch.setattr("limbeck.transfer.adversarial.TRIES", 3)
    robust = evaluated(place, Robustness(("upper",), adversarial=1), out="untyped")["robustness"]
    assert robust["adversarial"] == {} and "none of 3 random suffixes of 8 tokens" in robust["missing"][-1]


def test_a_search_goes_on_where_it_was_stopped(place: Path) -> None:
    whole = evaluated(place, Robustness(("upper",), adversarial=4), out="four")["robustness"]["adversarial"]
    evaluated(place, Robustness(("upper",), adversarial=2), out="two and two")
    file = place / "two and two" / "robustness" / "suffixes" / "student.json"
    file.write_text(json.dumps({"search": json.loads(file.read_text())["search"]}))  # killed before it was measured
    assert evaluated(place, Robustness(("upper",), adversarial=4), out="two and two")["robustness"]["adversarial"] == whole


def test_without_a_teacher_the_students_nats_are_the_aim(place: Path) -> None:
    robust = evaluated(place, Robustness(("upper",), adversarial=1), out="alone", teacher=lb.Silent())["robustness"]
    assert robust["adversarial"]["student"]["aim"] == "ce_nats" and robust["kept"] == {}
    assert list(robust["figures"]["upper"]) == ["student"] and robust["figures"]["upper"]["student"]["lost"]["ce_nats"]


# What is asked wrongly, and what is missing


def test_an_edit_that_nobody_knows() -> None:
    with pytest.raises(RecipeError, match='there is no edit "typo"; did you mean "typos"'):
        Robustness(("typo",))
    with pytest.raises(RecipeError, match="--other is a setting of --robustness"):
        asked_for(False, [], "x.jsonl", 0)
    assert asked_for(False, [], None, 0) is None


def test_a_context_too_short(place: Path) -> None:
    missing = evaluated(place, Robustness(("context",)), out="short")["robustness"]["missing"]
    assert missing == ["robustness: long-context: 12 of 12 prompts leave no room for their answers within 256 tokens; ask for fewer tokens of "
                       "longer context"]  # fmt: skip


def test_rows_without_prompts_or_answers(place: Path) -> None:
    toys.jsonl(place / "text.jsonl", [{"text": "red green"}, {"text": "blue"}])
    robust = evaluated(place, FEW, data="text.jsonl", out="text")["robustness"]
    assert robust["figures"] == {} and robust["missing"] == ["robustness: no row has a prompt, so that nothing can be edited"]
    toys.jsonl(place / "bare.jsonl", [{"prompt": "red green"}, {"prompt": "blue"}])
    robust = evaluated(place, FEW, data="bare.jsonl", out="bare", teacher=lb.Silent())["robustness"]
    assert robust["figures"] == {} and "neither the data nor a teacher has answers" in robust["missing"][0]
    ids = toys.tokenizer()("red green")["input_ids"]
    toys.jsonl(place / "ids.jsonl", [{"prompt_ids": ids, "completion_ids": ids}])
    robust = evaluated(place, FEW, data="ids.jsonl", out="ids")["robustness"]
    assert "robustness: 1 of 1 prompts have no user's turn of text to edit" in robust["missing"] and list(robust["figures"]) == ["clean"]


def test_the_command_shows_what_was_lost(place: Path, tmp_path: Path) -> None:
    models = ["--student", str(place / "student"), "--teacher", str(place / "teacher"), "--data", str(place / "held.jsonl")]
    sizes = ["--max-tokens", "4", "--rows", "4", "--out", str(tmp_path / "o")]
    asked = ["evaluate", *models, *sizes, "--robustness", "--edit", "upper", "--edit", "truncation", "--adversarial", "1"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0 and all(word in done.output for word in ("loses", "kept", "truncated", "suffix"))
    assert set(json.loads((tmp_path / "o" / "evaluation.json").read_text())["robustness"]["edits"]) == {"upper", "truncated"}
