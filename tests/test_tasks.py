"""Verified accuracy on tasks: shapes and refusals, figures by hand, answers that are kept, and the harness beside its own reader."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from test_sandbox import sandboxed

import limbeck as lb
from limbeck.errors import CheckpointError, DataError, LimbeckError, RecipeError
from limbeck.evaluate.statistics import interval, paired, recovered
from limbeck.evaluate.verified import one_of
from limbeck.files import read_jsonl, write_json, write_jsonl
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import Subjects
from limbeck.transfer.summary import shown
from limbeck.transfer.task_shapes import names, read_tasks
from limbeck.transfer.tasks import FileExam, TasksAsked, beside_whom, gone_on, ks, of_answers, safe
from limbeck.verifiers import Function

GSM = [{"question": f"Tom has {n} nuts and finds {n}. How many?", "answer": f"They are <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"} for n in range(8)]
MMLU = [{"question": f"Which is number {n}?", "choices": ["one", "two", "three"], "answer": n % 3, "subject": "counting"} for n in range(8)]
PROGRAMS = [{"task_id": "a", "prompt": 'def double(x):\n    """Twice x."""\n', "canonical_solution": "    return 2 * x\n", "entry_point": "double",
             "test": "def check(f):\n    assert f(2) == 4\n"}]  # fmt: skip
OWN = [{"prompt": f"say {n}", "answer": n} for n in range(6)]


# Shapes


def one(path: Path, rows: list[dict], verifier: str = ""):
    return read_tasks([toys.jsonl(path / "task.jsonl", rows) + verifier], 64)[0]


@pytest.mark.parametrize(
    "rows, shape, verifier, asked",
    [
        (GSM, "GSM8K", lb.Number(), "Tom has 0 nuts and finds 0. How many?"),
        (MMLU, "MMLU", lb.MultipleChoice(choices="ABC"), "Which is number 0?\nA. one\nB. two\nC. three\nAnswer:"),
        ([{**MMLU[0], "answer": "B"}], "MMLU", lb.MultipleChoice(choices="ABC"), "Which is number 0?\nA. one\nB. two\nC. three\nAnswer:"),
        (OWN, "own", lb.Number(), "say 0"),
        ([{"prompt": "a", "answer": "-1,200.5"}, {"prompt": "b", "answer": "3/4"}], "own", lb.Number(), "a"),
        ([*OWN, {"prompt": "Who?", "answer": "Apollo 11"}], "own", lb.Exact(), "say 0"),
    ],
)
def test_shapes_are_known_by_their_columns(tmp_path: Path, rows, shape: str, verifier, asked: str) -> None:
    task = one(tmp_path, rows)
    assert (task.name, task.shape.name, task.verifier) == ("task", shape, verifier)
    assert task.asked(task.rows[0], True) == {"prompt": asked} == {"prompt": task.told(task.rows[0])["prompt"]}


def test_dialogues_with_an_answer_are_asked_as_they_are(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    task = one(tmp_path, [{"messages": turns, "answer": "4"}])
    assert task.asked(task.rows[0], True) == {"messages": turns} and task.told(task.rows[0])["prompt"] == "2 + 2?"


@pytest.mark.parametrize(
    "rows, text, verifier",
    [
        (OWN, "Number", lb.Number()),
        (OWN, 'Regex("a:b")', lb.Regex("a:b")),
        ([{"prompt": "no answer at all"}], 'Regex("x", full=true)', lb.Regex("x", full=True)),
        ([{"question": "Who?", "answer": "she"}], "Exact", lb.Exact()),
        (OWN, "test_tasks:half", Function("test_tasks:half")),
    ],
)
def test_verifiers_are_named_after_the_file(tmp_path: Path, rows, text: str, verifier) -> None:
    assert one(tmp_path, rows, f":{text}").verifier == verifier


def half(completion: str, row: dict) -> float:
    return 0.5 * (len(completion) % 2)


def test_names_are_short_where_they_can_be() -> None:
    assert list(names(["a/x.jsonl", "y.parquet:Number", "lm_eval:mmlu"]).values()) == ["x", "y", "mmlu"]
    assert list(names(["a/x.jsonl", "b/x.jsonl", "lm_eval:b/y.yaml"]).values()) == ["a/x.jsonl", "b/x.jsonl", "y"]
    assert safe('a/x.jsonl:Regex("[ab]")') == "a-x.jsonl-Regex-ab"


def test_programs_are_asked_of_chats_in_words_and_cut_where_they_end_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.sandbox.probe", lambda: None)
    task = one(tmp_path, PROGRAMS)
    assert task.shape.name == "HumanEval" and task.asked(task.rows[0], False) == {"prompt": PROGRAMS[0]["prompt"]}
    assert "```python\ndef double(x):" in task.asked(task.rows[0], True)["prompt"] and task.told(task.rows[0])["prompt"] == PROGRAMS[0]["prompt"]
    assert task.read("    return 2 * x\n\nprint(double(3", False) == "    return 2 * x\n"
    assert task.read("def double(x):\n    return twice(x)\ndef twice(x): ...", True).endswith("...")


# What is asked wrongly


@pytest.mark.parametrize(
    "rows, tail, match",
    [
        ([*OWN, {"prompt": "say 7"}], "", r"task.jsonl, row 7: no answer, found columns prompt; a task of the shape own needs prompt, answer"),
        ([*OWN, {"prompt": "say 7"}], ":Number", "task.jsonl, row 7: no answer in the column answer, found columns prompt"),
        ([*GSM, {"question": "Why?", "answer": "So."}], "", "row 9: an answer with `#### 42` at its end was asked for, found .*'So.'"),
        ([{**MMLU[0], "answer": "E"}], "", "row 1: one of ABC was asked for in the column answer, found 'E'"),
        ([{**MMLU[0], "choices": "none"}], "", "found columns question, choices, answer, subject, which are no task"),
        ([{"text": "red"}], "", r"found columns text, which are no task; recognised are HumanEval \(prompt, test, entry_point\), .*name a verifier"),
        ([{"question": "Who?", "answer": "she"}], "", "no task; recognised are"),
        ([{"text": "red"}], ":Number", "found columns text, which are no task"),
        (OWN, ":Numbr", 'there is no Verifier "Numbr"; did you mean "Number"'),
        (OWN, ":ForwardKL", 'there is no Verifier "ForwardKL"'),
        (OWN, ":Number(colum='x')", 'Number has no setting "colum"'),
        (OWN, ":nowhere_at_all:check", "cannot import"),
        (OWN, ":Number('wanted')", "row 1: no answer in the column wanted"),
        ([], "", "holds no rows"),
        ([PROGRAMS[0], {**PROGRAMS[0], "test": ""}], "", "row 2: no test, found columns"),
    ],
)
def test_bad_tasks_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows, tail: str, match: str) -> None:
    monkeypatch.setattr("limbeck.sandbox.probe", lambda: None)
    with pytest.raises(LimbeckError, match=match):
        one(tmp_path, rows, tail)


@pytest.mark.parametrize(
    "specs, match",
    [
        (["gsm8k"], 'a task is a file such as math.jsonl, .*; found "gsm8k"'),
        (["nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["a.jsonl:Number", "a.jsonl:Number"], "the task a.jsonl:Number was given 2 times"),
    ],
)
def test_what_is_no_task_is_refused(specs: list[str], match: str) -> None:
    with pytest.raises(LimbeckError, match=match):
        TasksAsked(specs)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(RecipeError, match="at least 1, found 0 and 256"):
        TasksAsked(rows=0)


def test_programs_are_refused_where_no_sandbox_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RecipeError("there is no sandbox")

    monkeypatch.setattr("limbeck.sandbox.probe", missing)
    with pytest.raises(RecipeError, match="there is no sandbox"):
        one(tmp_path, PROGRAMS)


# Figures


def kept(each: int, prompts: int) -> list[dict]:
    draw = np.random.default_rng(0)
    return [{"place": n // each, "answer": n % each, "completion_ids": [1] * (1 + n % 4), "completion": "x", "ended": bool(n % 3),
             "confidence": float(draw.random())} for n in range(each * prompts)]  # fmt: skip


def test_figures_by_hand() -> None:
    rows, rewards = kept(5, 12), [float((n * 7) % 10 < 3) for n in range(60)]
    found = of_answers(rows, rewards, 5)
    right = [rewards[n : n + 5] for n in range(0, 60, 5)]
    figures = {name: sums.sum() / counts.sum() for name, (sums, counts) in found.sums.items()}
    assert figures["right"] == pytest.approx(sum(rewards) / 60) and "reward" not in figures
    for k in (2, 4, 5):  # every choice of k answers, counted
        assert figures[f"pass@{k}"] == pytest.approx(np.mean([np.mean([any(some) for some in combinations(each, k)]) for each in right]))
    assert figures["cut"] == pytest.approx(np.mean([not n % 3 for n in range(60)])) and figures["tokens"] == 2.5
    assert interval(*found.sums["right"]) == interval([sum(each) for each in right], [5] * 12)
    sure = [row["confidence"] for row in rows]
    places = [min(int(each * 15), 14) for each in sure]
    gaps = [abs(sum(sure[n] - rewards[n] for n in range(60) if places[n] == place)) for place in range(15)]
    assert found.more["calibration"]["error"] == pytest.approx(sum(gaps) / 60)
    assert [text["right"] for text in found.texts] == [each[0] == 1 for each in right]


def test_rewards_that_are_no_verdicts_are_told_beside_what_is_right() -> None:
    found = of_answers(kept(1, 4), [0.0, 0.25, 0.5, 1.0], 1)
    assert found.sums["right"][0].sum() == 3 and found.sums["reward"][0].sum() == 1.75 and ks(1) == []


def test_a_gap_that_is_nothing_in_a_resample_is_not_sure() -> None:
    teacher, before = [1.0] * 4 + [0.0] * 16, [0.0] * 20
    assert paired(teacher, before, [1.0] * 20)["interval"][0] > 0
    assert "it is 0 in" in recovered(before, before, teacher, [1.0] * 20)["why"]


def test_pass_at_k() -> None:
    assert ks(8) == [2, 4, 8] and ks(6) == [2, 4, 6] and ks(2) == [2]
    assert one_of(3, 8, 0) == 0 and one_of(3, 8, 6) == 1 and one_of(1, 8, 2) == 0.25


def test_whom_a_student_is_beside() -> None:
    assert beside_whom("after", ["before", "after", "fine-tuned", "from scratch"]) == ["before", "fine-tuned"]
    assert beside_whom("before", ["before", "after"]) == beside_whom("fine-tuned", ["before", "fine-tuned"]) == []
    several = ["a: before", "a", "a: fine-tuned", "b", "b: fine-tuned"]
    assert beside_whom("a", several) == ["a: before", "a: fine-tuned"] and beside_whom("b", several) == ["a: before", "b: fine-tuned"]
    assert beside_whom("c", ["a: before", "a", "b: before", "b", "c"]) == []  # nobody knows with whom it began
    assert beside_whom("student", ["student"]) == []


def test_a_space_that_a_tokenizer_drops_is_kept() -> None:
    dropping = SimpleNamespace(text=lambda ids: "".join(ids).removeprefix(" "))
    assert gone_on(dropping, ["def f():", "\n"], [" ", " return 1"]) == "  return 1"


# An evaluation


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students and a teacher that write letters, and files of tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    for seed, name in enumerate(("teacher", "before", "after")):
        toys.folder(folder / name, seed=seed)
    toys.jsonl(folder / "held.jsonl", toys.rows(2))
    toys.jsonl(folder / "own.jsonl", toys.rows(24))
    toys.jsonl(folder / "mmlu.jsonl", MMLU)
    return folder


def measured(place: Path, out: Path, *tasks: str, each: int = 1, students: tuple[str, ...] = ("before", "after"), **more: object) -> dict:
    teacher = lb.Local(str(place / "teacher"), dtype="float32")
    subjects = Subjects({name: lb.Student(str(place / name), dtype="float32") for name in students}, teacher)
    asked = Asked(str(place / "held.jsonl"), rows=2, each=each, max_tokens=4)
    return evaluate_transfer(subjects, asked, out, TasksAsked([f"{place}/{task}" for task in tasks], **{"max_tokens": 6, **more}))


LETTERS = 'own.jsonl:Regex("[a-m]")'


@pytest.fixture(scope="module")
def evaluated(place: Path) -> Path:
    """The folder of an evaluation that ended."""
    measured(place, place / "evaluated", LETTERS)
    return place / "evaluated"


def said(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["tasks"]


def test_all_answer_and_are_verified(place: Path, tmp_path: Path) -> None:
    found = measured(place, tmp_path / "e", LETTERS, each=3)["tasks"]["own"]
    assert (found["shape"], found["verifier"], found["prompts"]) == ("own", "Regex(pattern='[a-m]')", 24)
    rights = {}
    for who in ("teacher", "before", "after"):
        model = lb.Student(str(place / who), dtype="float32").load(1)
        ids = [model.live.vocabulary.prompt({"prompt": row["prompt"]}, lb.Data("x")) for row in toys.rows(24)]
        written = model.write([each for each in ids for _ in range(3)], lb.Sampling(6), 0, 0, range(72))
        texts = [model.live.vocabulary.text(new.tokens) for new in written]
        right = [any(letter in "abcdefghijklm" for letter in text) for text in texts]
        rights[who] = [float(sum(right[n : n + 3])) for n in range(0, 72, 3)]
        assert found["figures"][who]["right"]["value"] == pytest.approx(sum(right) / 72) and 0 < sum(right) < 72
        assert found["figures"][who]["right"]["interval"] == interval(rights[who], [3.0] * 24)
        assert found["figures"][who]["pass@3"]["value"] == pytest.approx(np.mean([each > 0 for each in rights[who]]))
        assert [each["answers"][who]["completion"] for each in found["samples"]] == texts[: 16 * 3 : 3]
    apart = found["differences"][-1]
    assert [(each["of"], each["less"]) for each in found["differences"]] == [("before", "teacher"), ("after", "teacher"), ("after", "before")]
    assert apart["figures"]["right"] == paired(rights["after"], rights["before"], [3.0] * 24)
    [closed] = found["recovered"]
    assert (closed["of"], closed["beside"]) == ("after", "before")
    assert closed["figures"]["right"] == recovered(rights["after"], rights["before"], rights["teacher"], [3.0] * 24)


def test_options_are_also_compared_by_their_likelihood(place: Path, tmp_path: Path) -> None:
    found = measured(place, tmp_path / "e", "mmlu.jsonl", students=("after",))["tasks"]["mmlu"]
    model = lb.Student(str(place / "after"), dtype="float32").load(1).live
    right = []
    for row in MMLU:
        prompt = model.vocabulary.prompt({"prompt": f"{row['question']}\nA. one\nB. two\nC. three\nAnswer:"}, lb.Data("x"))
        with torch.no_grad():
            logits_V = model.module(torch.tensor([prompt])).logits[0, -1]
        said = max(range(3), key=lambda n: float(logits_V[model.vocabulary.ids("ABC"[n])[0]]))
        right.append(said == row["answer"])
    assert found["figures"]["after"]["right_by_likelihood"]["value"] == pytest.approx(np.mean(right))
    sure = found["figures"]["after"]["calibration_by_likelihood"]
    assert 1 / 3 <= sure["confidence"] <= 1 and sure["accuracy"] == pytest.approx(np.mean(right))


class Killed(Exception):
    pass


def test_one_that_was_killed_between_two_students_goes_on(place: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote, written = [], FileExam._written

    def killed(self, model, places, told):
        wrote.append(Path(model.name).name)
        if wrote[-1] == stop:
            raise Killed
        return written(self, model, places, told)

    monkeypatch.setattr(FileExam, "_written", killed)
    stop = "after"
    with pytest.raises(Killed):
        measured(place, tmp_path / "e", LETTERS)
    assert wrote == ["teacher", "before", "after"] and not (tmp_path / "e" / "evaluation.json").exists()
    stop = ""
    wrote.clear()
    assert measured(place, tmp_path / "e", LETTERS)["tasks"] == said(evaluated) and wrote == ["after"]


def test_one_that_was_killed_in_the_midst_goes_on_with_the_next_block(
    place: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.transfer.tasks.AT_ONCE", 10)
    blocks, written = [], FileExam._written

    def killed(self, model, places, told):
        if len(blocks) == 2:
            raise Killed
        blocks.append((Path(model.name).name, len(places)))
        return written(self, model, places, told)

    monkeypatch.setattr(FileExam, "_written", killed)
    with pytest.raises(Killed):
        measured(place, tmp_path / "e", LETTERS, students=("after",))
    kept = sorted((tmp_path / "e" / "tasks" / "own" / "teacher.jsonl.stretches").iterdir())
    assert [len(read_jsonl(file)) for file in kept] == [10, 10] and blocks == [("teacher", 10)] * 2
    blocks[:] = [("done", 0)] * 3
    found = measured(place, tmp_path / "e", LETTERS, students=("after",))["tasks"]["own"]
    assert blocks[3:] == [("teacher", 4), ("after", 10), ("after", 10), ("after", 4)]
    assert found["figures"]["teacher"]["right"] == said(evaluated)["own"]["figures"]["teacher"]["right"]


def test_another_verifier_judges_what_was_written(place: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = said(evaluated)["own"]["figures"]
    shutil.copytree(evaluated, tmp_path / "e")
    monkeypatch.setattr(FileExam, "_written", None)
    second = measured(place, tmp_path / "e", 'own.jsonl:Regex("")')["tasks"]["own"]["figures"]
    assert second["after"]["right"]["value"] == 1 > first["after"]["right"]["value"] and second["after"]["tokens"] == first["after"]["tokens"]


def test_answers_of_other_settings_are_left_alone(place: Path, evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated, tmp_path / "e")
    with pytest.raises(CheckpointError, match="holds answers with other max_tokens; give another --out"):
        measured(place, tmp_path / "e", LETTERS, max_tokens=7)


def test_prompts_that_are_too_long_are_left_out_or_refused(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "red " * 100, "answer": 1}, *OWN]
    toys.jsonl(place / "long.jsonl", rows)
    found = measured(place, tmp_path / "e", "long.jsonl", students=("after",))
    assert found["tasks"]["long"]["prompts"] == 6 and "long: 1 of 7 prompts are not within the context, and left out" in found["missing"]
    assert found["tasks"]["long"]["samples"][0]["row"] == 1 and found["tasks"]["long"]["samples"][0]["wanted"] == 0
    toys.jsonl(place / "long.jsonl", rows[:1])
    with pytest.raises(DataError, match="no prompt is within the context of 256 tokens"):
        measured(place, tmp_path / "f", "long.jsonl", students=("after",))


def test_a_student_with_less_context_is_wrong_where_it_cannot_read(place: Path, tmp_path: Path) -> None:
    toys.folder(place / "short", seed=5, max_position_embeddings=64)
    toys.jsonl(place / "mixed.jsonl", [{"prompt": "red " * 13, "answer": 1}, {"prompt": "red", "answer": 1}])
    found = measured(place, tmp_path / "e", "mixed.jsonl:Regex('')", students=("short",))
    assert found["tasks"]["mixed"]["prompts"] == 2 and "mixed: 1 prompts are not within the context of short, and count as wrong" in found["missing"]
    assert found["tasks"]["mixed"]["figures"]["short"]["right"]["value"] == 0.5


def test_tables_for_a_terminal(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((evaluated / "evaluation.json").read_text())
    columns, rows = shown(found)[-1]
    assert columns == ["own: Regex(pattern='[a-m]'), 24 prompts", "teacher", "before", "after"]
    assert [row[0] for row in rows] == ["right", "cut", "tokens", "calibration error", "recovered beside before"]
    from limbeck.terminal import show_table

    show_table(["[a-m]"], [["x"]])
    assert "[a-m]" in capsys.readouterr().out


@sandboxed
def test_programs_that_go_on_with_their_prompt_pass(tmp_path: Path) -> None:
    task = one(tmp_path, [PROGRAMS[0], PROGRAMS[0], PROGRAMS[0]])
    exam = FileExam(task, TasksAsked(), Asked("x"), tmp_path / "exam")
    write_json(tmp_path / "exam" / "settings.json", {"rows": [0, 1, 2]})
    fenced = "Sure:\n```python\ndef double(x):\n    return x + x\n```"
    answers = [("    return 2 * x\n\nprint(double(3", False), ("    return 3 * x\n", False), (fenced, True)]
    write_jsonl(tmp_path / "exam" / "me.jsonl", [
        {"place": n, "answer": 0, "completion_ids": [1], "completion": text, "chat": chat, "ended": True, "confidence": 0.5}
        for n, (text, chat) in enumerate(answers)])  # fmt: skip
    assert [text["right"] for text in exam.outcome("me").texts] == [True, False, True] and exam.outcome("nobody") is None
