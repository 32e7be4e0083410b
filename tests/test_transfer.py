"""What transferred: the table of tokens and every figure against slow float64, and an evaluation that goes on."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toys

import limbeck as lb
from limbeck.batch import Text
from limbeck.errors import CheckpointError, DataError, RecipeError, VocabularyError
from limbeck.transfer.baselines import ready_text
from limbeck.transfer.figures import as_teacher, by_position, differences, figures
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import Subjects, asked_for, of_runs
from limbeck.transfer.tokens import TEMPERATURES, Tokens, columns, heard, joined

TEXTS = [Text.answered([5, 6, 7], [8, 9, 10, 11], {}), Text.answered([5], [70, 71], {}), Text.answered([1, 2, 3, 4], [65, 66, 67], {})]


# The table


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[lb.Student, lb.Teacher]:
    """A student and a teacher that differ, in float32."""
    folder = tmp_path_factory.mktemp("pair")
    names = [toys.folder(folder / name, seed=seed) for name, seed in (("student", 1), ("teacher", 2))]
    student = lb.Student(names[0], dtype="float32").load(1)
    return student, lb.Local(names[1], dtype="float32").load(student)


def table(student: lb.Student, teacher: lb.Teacher, tokens_per_pass: int, cuts: tuple[int | None, ...] = (None,)) -> Tokens:
    """The table of TEXTS, made of stretches of passes that end at these cuts."""
    stretches = [slice(start, stop) for start, stop in zip((0, *cuts[:-1]), cuts, strict=True)]
    found = [columns(TEXTS, student, heard(TEXTS, teacher, tokens_per_pass, some), tokens_per_pass, passes=some) for some in stretches]
    return joined(TEXTS, found, student.live.vocabulary)


@pytest.fixture(scope="module")
def found(pair: tuple[lb.Student, lb.Teacher]) -> Tokens:
    return table(*pair, 8)


def log_probs(module: torch.nn.Module, tokens: list[int], rows: int) -> np.ndarray:
    """Of each next token, in float64, one sequence at a time."""
    with torch.no_grad():
        logits = module(torch.tensor([tokens])).logits[0, :, :rows].double()
    return torch.log_softmax(logits, -1).numpy()


def by_hand(pair: tuple[lb.Student, lb.Teacher]) -> list[dict[str, float]]:
    """Every column, from the formulas, token by token in the order of the texts."""
    student, teacher = pair
    rows = list[dict[str, float]]()
    for text in TEXTS:
        q_SV, p_SV = (log_probs(model.module, text.tokens, student.live.vocabulary.size) for model in (student.live, teacher.opened))
        for place in text.places:
            log_q, log_p, token = q_SV[place - 1], p_SV[place - 1], text.tokens[place]
            q, p = np.exp(log_q), np.exp(log_p)
            rows.append({
                "nats": -log_q[token], "teacher nats": -log_p[token], "entropy": -(q * log_q).sum(), "kl": (p * (log_p - log_q)).sum(),
                "reverse": (q * (log_q - log_p)).sum(), "accepted": np.minimum(p, q).sum(), "confidence": q.max(), "top": q.argmax(),
                "tempered": [-np.log(np.exp(log_q / t)[token] / np.exp(log_q / t).sum()) for t in TEMPERATURES],
                "sure": [np.exp(log_q / t).max() / np.exp(log_q / t).sum() for t in TEMPERATURES],
            })  # fmt: skip
    return rows


def test_every_column_is_what_its_formula_says(pair: tuple[lb.Student, lb.Teacher], found: Tokens) -> None:
    hand = by_hand(pair)
    columns = {"nats": found.student.nats_N, "teacher nats": found.of("teacher").nats_N, "entropy": found.student.entropy_N, "kl": found.apart.kl_N,
               "reverse": found.apart.reverse_kl_N, "accepted": found.apart.accepted_N, "confidence": found.student.confidence_N,
               "top": found.student.top_N}  # fmt: skip
    for name, column in columns.items():
        np.testing.assert_allclose(column, [row[name] for row in hand], rtol=1e-4, atol=1e-5, err_msg=name)
    for g in range(len(TEMPERATURES)):
        nats_N, sure_N = found.student.tempered(g)
        np.testing.assert_allclose(nats_N, [row["tempered"][g] for row in hand], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sure_N, [row["sure"][g] for row in hand], rtol=1e-4)


def test_rows_stand_where_their_tokens_stand(found: Tokens) -> None:
    assert found.token_N.tolist() == [token for text in TEXTS for token in text.tokens[text.spans[0].start :]]
    assert found.sequence_N.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2] and found.position_N.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]


@pytest.mark.parametrize("tokens_per_pass", [1, 14, 1000])
def test_passes_change_nothing(pair: tuple[lb.Student, lb.Teacher], found: Tokens, tokens_per_pass: int) -> None:
    other = table(*pair, tokens_per_pass)
    np.testing.assert_allclose(other.apart.kl_N, found.apart.kl_N, rtol=1e-4, atol=1e-6)
    assert (other.token_N == found.token_N).all()


def test_a_table_is_made_of_stretches(pair: tuple[lb.Student, lb.Teacher], found: Tokens, tmp_path: Path) -> None:
    table(*pair, 8, (1, 2, None)).save(tmp_path / "three")
    found.save(tmp_path / "one")
    assert (tmp_path / "three" / "tokens.safetensors").read_bytes() == (tmp_path / "one" / "tokens.safetensors").read_bytes()


def test_a_table_is_read_as_it_was_written_and_damage_is_said(found: Tokens, tmp_path: Path) -> None:
    found.save(tmp_path / "t")
    again = Tokens.read(tmp_path / "t")
    assert (again.apart.kl_N == found.apart.kl_N).all() and (again.student.log_sum_NG == found.student.log_sum_NG).all()
    file = tmp_path / "t" / "tokens.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"is damaged .* remove it"):
        Tokens.read(tmp_path / "t")


def test_one_who_teaches_himself_is_not_apart(pair: tuple[lb.Student, lb.Teacher]) -> None:
    student = pair[0]
    same = lb.Local(student.model, dtype="float32").load(student)
    sums = figures(table(student, same, 100))
    assert sums["kl_nats"]["value"] == pytest.approx(0, abs=1e-6) and sums["agreement"]["value"] == 1
    assert sums["acceptance"]["value"] == pytest.approx(1, abs=1e-5)


# Figures


def test_figures_are_sums_divided_once(pair: tuple[lb.Student, lb.Teacher], found: Tokens) -> None:
    hand, sums = by_hand(pair), figures(found)
    nats = sum(row["nats"] for row in hand)
    spoken = [pair[0].live.vocabulary.text(text.tokens[text.spans[0].start :]) for text in TEXTS]
    assert sums["ce_nats"]["value"] == pytest.approx(nats / len(hand), rel=1e-5)
    assert sums["perplexity"]["value"] == pytest.approx(math.exp(nats / len(hand)), rel=1e-5)
    assert sums["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / sum(len(each.encode()) for each in spoken), rel=1e-5)
    assert sums["kl_nats"]["value"] == pytest.approx(sum(row["kl"] for row in hand) / len(hand), rel=1e-4)
    assert figures(as_teacher(found))["ce_nats"]["value"] == pytest.approx(sum(row["teacher nats"] for row in hand) / len(hand), rel=1e-5)


def test_differences_are_of_pairs(found: Tokens) -> None:
    apart = differences(found, as_teacher(found))
    assert apart["ce_nats"]["value"] == pytest.approx(float((found.student.nats_N - found.of("teacher").nats_N).mean()), rel=1e-5)
    assert "kl_nats" not in apart  # the teacher has none


def test_positions_double_and_hold_every_token(found: Tokens) -> None:
    places = by_position(found)
    assert [(each["first"], each["last"], each["tokens"]) for each in places] == [(0, 0, 3), (1, 1, 3), (2, 3, 3)]
    assert places[0]["kl_nats"]["value"] == pytest.approx(float(found.apart.kl_N[[0, 4, 6]].mean()), rel=1e-5)


# The evaluation of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short distillation, beside its held-out rows."""
    folder = tmp_path_factory.mktemp("runs")
    teacher, student = toys.folder(folder / "teacher", seed=0), toys.folder(folder / "student", seed=1)
    toys.jsonl(folder / "held.jsonl", toys.rows(12, seed=5))
    source = lb.Corpus(toys.jsonl(folder / "data.jsonl", toys.rows(40)), sequences=8)
    lb.distill(lb.Recipe(lb.Student(student), source, lb.Local(teacher), lb.ForwardKL(), steps=3, save_every=None), folder / "run")
    return folder / "run"


def asked(run: Path, **more: object) -> Asked:
    return Asked(str(run.parent / "held.jsonl"), max_tokens=8, **more)


@pytest.fixture(scope="module")
def evaluated(run: Path) -> dict:
    return evaluate_transfer(of_runs([run], None, True), asked(run), run / "evaluation")


def test_all_are_measured_on_all_texts(evaluated: dict) -> None:
    assert list(evaluated["figures"]) == ["teacher", "before", "after", "fine-tuned", "from scratch"] and evaluated["missing"] == []
    assert all(set(texts) == {"given", "teacher", "own"} for who, texts in evaluated["figures"].items() if who != "teacher")
    assert evaluated["figures"]["after"]["given"]["kl_nats"]["value"] < evaluated["figures"]["before"]["given"]["kl_nats"]["value"]
    assert set(evaluated["diversity"]) == set(evaluated["speeds"]) == set(evaluated["figures"])
    assert evaluated["speeds"]["after"]["kept_bytes_per_token"] == 2 * 2 * 2 * 8 * 2  # keys and values, layers, heads, width, bytes
    assert len(evaluated["samples"]) == 12 and set(evaluated["samples"][0]["completions"]) == set(evaluated["figures"])


def test_it_agrees_with_the_evaluation_of_training(run: Path, evaluated: dict) -> None:
    recipe = lb.Recipe(lb.Student(str(run / "student")), lb.Corpus(str(run.parent / "held.jsonl")), lb.Local(str(run.parent / "teacher")))
    known = lb.Likelihood(str(run.parent / "held.jsonl")).run(*recipe.open_pair())
    for name in ("ce_nats", "kl_nats", "reverse_kl_nats"):
        assert evaluated["figures"]["after"]["given"][name]["value"] == pytest.approx(known[name], rel=1e-3)


def test_the_same_again_costs_nothing_and_says_the_same(run: Path, evaluated: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.transfer.reading.columns", None)
    monkeypatch.setattr("limbeck.transfer.measure.write", None)
    assert evaluate_transfer(of_runs([run], None, True), asked(run), run / "evaluation") == evaluated


def test_one_that_was_killed_goes_on(run: Path, evaluated: dict, tmp_path: Path) -> None:
    shutil.copytree(run / "evaluation", tmp_path / "e")
    shutil.rmtree(tmp_path / "e" / "tables" / "after")
    (tmp_path / "e" / "evaluation.json").unlink()
    again = evaluate_transfer(of_runs([run], None, True), asked(run), tmp_path / "e")
    assert again["figures"] == evaluated["figures"] and json.loads((tmp_path / "e" / "evaluation.json").read_text()) == again


def test_a_folder_of_another_evaluation_is_left_alone(run: Path, evaluated: dict) -> None:
    with pytest.raises(CheckpointError, match="evaluation with other settings; give another --out"):
        evaluate_transfer(of_runs([run], None, False), asked(run, rows=5), run / "evaluation")


def test_a_run_that_goes_on_is_measured_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(run / "recipe.yaml", tmp_path / "run")
    subjects = of_runs([tmp_path / "run"], None, False)
    found = evaluate_transfer(subjects, asked(run), tmp_path / "e")
    assert list(subjects.students) == ["before"] and any("no student yet" in each for each in found["missing"])
    assert any("--baselines" in each for each in found["missing"])


def test_without_a_teacher_figures_are_of_the_student_alone(run: Path, tmp_path: Path) -> None:
    found = evaluate_transfer(asked_for([], str(run / "student"), None, False), asked(run), tmp_path)
    assert list(found["figures"]) == ["student"] and "kl_nats" not in found["figures"]["student"]["given"]
    assert any("no teacher" in each for each in found["missing"])


def test_rows_without_completions_are_answered(run: Path, tmp_path: Path) -> None:
    data = toys.jsonl(tmp_path / "prompts.jsonl", [{"prompt": each["prompt"]} for each in toys.rows(5)])
    found = evaluate_transfer(of_runs([run], None, False), Asked(data, max_tokens=4), tmp_path / "e")
    assert set(found["figures"]["after"]) == {"teacher", "own"} and any("5 of 5 rows have no completion" in each for each in found["missing"])
    assert found["calibration"]["after"]["text"] == "teacher"


def test_plain_text_is_read_and_nobody_writes(run: Path, tmp_path: Path) -> None:
    data = toys.jsonl(tmp_path / "text.jsonl", [{"text": "red green blue"}, {"text": "one two"}])
    found = evaluate_transfer(of_runs([run], None, False), Asked(data), tmp_path / "e")
    assert set(found["figures"]["after"]) == {"given"} and any("no row has a prompt" in each for each in found["missing"])


def test_several_answers_to_a_prompt(run: Path, tmp_path: Path) -> None:
    found = evaluate_transfer(of_runs([run], None, False), asked(run, each=3, rows=4), tmp_path / "e")
    assert found["diversity"]["after"]["answers"] == 12 and found["figures"]["after"]["own"]["ce_nats"]["value"] > 0


def test_several_runs_are_named_after_their_folders(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("evaluation", "baselines"))
    assert list(of_runs([run, tmp_path / "other"], None, False).students) == ["run: before", "run", "other"]


# What is asked wrongly


def test_vocabularies_that_differ(run: Path, tmp_path: Path) -> None:
    stranger = toys.folder(tmp_path / "stranger", template=None)
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(stranger)
    made.add_tokens(["zzz"])
    made.save_pretrained(stranger)
    with pytest.raises(VocabularyError):
        evaluate_transfer(Subjects({"student": lb.Student(stranger)}, lb.Local(str(run.parent / "teacher"))), asked(run), tmp_path / "e")


def test_teachers_that_differ(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("evaluation", "baselines"))
    other = toys.folder(tmp_path / "other-teacher", seed=9)
    recipe = tmp_path / "other" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(run.parent / "teacher"), other))
    with pytest.raises(RecipeError, match=r"teachers of their own .* give one: --teacher"):
        of_runs([run, tmp_path / "other"], None, False)
    assert of_runs([run, tmp_path / "other"], lb.Local(other), False).teacher == lb.Local(other)


@pytest.mark.parametrize(("runs", "student", "match"), [((), None, "found neither"), (("run",), "x", "found both")])
def test_who_is_measured_must_be_said(run: Path, runs: tuple[str, ...], student: str | None, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        asked_for([run for _ in runs], student, None, False)


def test_folders_that_are_no_runs(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found nothing; give the --out"):
        of_runs([tmp_path / "none"], None, False)
    (tmp_path / "stages" / "first").mkdir(parents=True)
    (tmp_path / "stages" / "pipeline.yaml").write_text("")
    (tmp_path / "stages" / "first" / "recipe.yaml").write_text("")
    with pytest.raises(CheckpointError, match=r"pipeline of stages; give those .*stages/first"):
        of_runs([tmp_path / "stages"], None, False)


def test_a_run_on_its_own_words_has_no_text_for_baselines(run: Path) -> None:
    own = lb.OnPolicy(str(run.parent / "held.jsonl"))
    corpus = lb.Corpus(str(run.parent / "data.jsonl"))
    assert ready_text(own) is None and ready_text(lb.Mix(0.5, own, corpus)) == corpus and ready_text(corpus) is corpus


def test_no_row_at_all(run: Path, tmp_path: Path) -> None:
    data = toys.jsonl(tmp_path / "long.jsonl", [{"prompt": "x" * 400, "completion": "y"}])
    with pytest.raises(DataError, match="no row has a prompt or a completion within"):
        evaluate_transfer(of_runs([run], None, False), Asked(data), tmp_path / "e")


def test_a_run_whose_teacher_is_the_student_itself(tmp_path: Path) -> None:
    """Without its adapters it is a model like any other; as it is while it learns, or on average, it can judge nobody."""
    terms, start = lb.Objective([lb.CrossEntropy(), lb.ForwardKL()]), toys.folder(tmp_path / "start")
    data = toys.jsonl(tmp_path / "data.jsonl", toys.rows(8))
    teachers = {
        "plain": (lb.Local("@student"), lb.LoRA(rank=2)),
        "hint": (lb.Privileged("@student", "{category}"), None),
        "average": (lb.Average(0.5), None),
    }
    for name, (teacher, lora) in teachers.items():
        student = lb.Student(start, lora=lora)
        lb.distill(lb.Recipe(student, lb.Corpus(data, sequences=4), teacher, terms, steps=2, save_every=None), tmp_path / name)
    plain, hint, average = (of_runs([tmp_path / name], None, False) for name in teachers)
    assert plain.teacher == lb.Local(start)
    for each in (hint, average):
        assert each.teacher == lb.Silent() and "would judge each student by itself; give a teacher with --teacher" in each.missing[0]
