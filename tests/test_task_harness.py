"""Likelihoods of continuations, and tasks of lm-evaluation-harness beside its own reader of the same models."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys

import limbeck as lb
from limbeck.errors import CheckpointError, RecipeError
from limbeck.files import read_jsonl
from limbeck.transfer.continuations import log_likelihoods
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import Subjects
from limbeck.transfer.task_harness import HarnessExam, by_prompt, stopped
from limbeck.transfer.tasks import TasksAsked

ROWS = [{"question": f"Which is number {n}?", "choices": ["one", "two", "three"], "answer": n % 3} for n in range(8)]


def test_likelihoods_against_a_plain_pass_of_each(tmp_path: Path) -> None:
    model = toys.opened(tmp_path / "m")
    pairs = [([5, 6, 7], [8, 9]), ([5], [70]), ([1, 2, 3, 4], [65, 66, 67])]
    with torch.no_grad():
        best = model.module(torch.tensor([[5, 6]])).logits[0, -1, : model.vocabulary.size].argmax()
    pairs.append(([5, 6], [int(best)]))
    for (context, answer), (nats, greedy) in zip(pairs, log_likelihoods(model, pairs, tokens_per_pass=8), strict=True):
        with torch.no_grad():
            logits_SV = model.module(torch.tensor([[*context, *answer]])).logits[0, :, : model.vocabulary.size].double()
        rows_NV = logits_SV.log_softmax(-1)[len(context) - 1 : -1]
        assert nats == pytest.approx(sum(float(row[token]) for row, token in zip(rows_NV, answer, strict=True)), abs=1e-4)
        assert greedy == all(int(row.argmax()) == token for row, token in zip(rows_NV, answer, strict=True))
    assert log_likelihoods(model, pairs)[3][1]


def test_what_is_longer_than_the_context_loses_its_beginning(tmp_path: Path) -> None:
    model = toys.opened(tmp_path / "m")
    long = [n % 200 for n in range(300)]
    assert log_likelihoods(model, [(long, [3, 4])])[0] == pytest.approx(log_likelihoods(model, [(long[-254:], [3, 4])])[0])


def test_the_harness_is_asked_for_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RecipeError, match=r"lm_eval:mmlu is a task .* not installed; pip install 'limbeck\[lm-eval\]'"):
        TasksAsked(["lm_eval:mmlu"])


def test_the_metrics_of_a_prompt() -> None:
    def sample(n: int, chosen: str, **metrics: object) -> dict:
        said = {"arguments": [("q", "x"), ("q", "y")], "resps": [[(-2.0, False)], [(-1.0, True)]], "target": 1}
        return {"doc_id": n, "filter": chosen, "metrics": list(metrics), **said, **metrics}

    rows, whole = by_prompt(
        {
            "t": [
                sample(0, "none", acc=1.0, f1=(1, 2)),
                sample(1, "none", acc=0.0, f1=(0, 1)),
                sample(0, "loose", acc=1.0),
                sample(1, "loose", acc=1.0),
            ]
        },
        {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": 0.7, "acc,loose": 1.0, "alias": "t"}},
    )
    assert rows[0] == {"place": "t:0", "prompt": "q", "completion": "y", "wanted": "1", "metrics": {"acc": 1.0, "acc,loose": 1.0}}
    assert whole == {"f1": 0.7}
    assert by_prompt({"t": [sample(0, "none", word=3.0)]}, {"t": {"word,none": 20.1}})[0][0]["metrics"] == {}


def test_answers_are_kept_beside_the_metrics_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, whoever asks again, and left alone by other settings."""
    sample = {
        "doc_id": 0,
        "filter": "none",
        "metrics": ["acc", "f1"],
        "acc": 1.0,
        "f1": (1, 2),
        "arguments": [("q", "x")],
        "resps": [["x"]],
        "target": 1,
    }
    asked = list[str]()

    def evaluated(self: HarnessExam, who: str, model: object) -> dict:
        asked.append(who)
        return {"samples": {"t": [sample]}, "results": {"t": {"acc,none": 1.0, "f1,none": 0.7}}}

    monkeypatch.setattr(HarnessExam, "_evaluated", evaluated)
    tasks = SimpleNamespace(named={"lm_eval:t": "t"}, rows=8, max_tokens=5)
    exam = HarnessExam("lm_eval:t", tasks, Asked("x"), tmp_path / "t")
    for who in ("teacher", "a.b", "teacher"):
        for work in exam.works(who, lambda work: work(None)):
            work.make()
    assert asked == ["teacher", "a.b"] and sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "a.b.jsonl", "settings.json", "teacher.jsonl", "whole"]  # fmt: skip
    outcome = exam.outcome("a.b")
    assert outcome.more == {"f1": {"value": 0.7, "interval": None}} and outcome.sums["right"][0].tolist() == [1.0]
    with pytest.raises(CheckpointError, match="answers with other max_tokens"):
        next(HarnessExam("lm_eval:t", SimpleNamespace(**{**vars(tasks), "max_tokens": 6}), Asked("x"), tmp_path / "t").works("c", None))


def test_texts_are_cut_at_the_first_stop() -> None:
    assert stopped("a\nb.c", [".", "\n"]) == "a" and stopped("ab", "\n") == "ab" and stopped("ab", None) == "ab" and stopped("a.b", ".") == "a"


YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output}
{more}
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: answer
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""


ROLLING = """task: rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: byte_perplexity
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval")
    place = tmp_path
    toys.jsonl(place / "held.jsonl", toys.rows(2))
    toys.jsonl(place / "mmlu.jsonl", ROWS)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(place / "cache"))
    for seed, name in enumerate(("teacher", "after")):  # no rows of the head beyond the tokens: theirs would write them
        toys.folder(place / f"whole-{name}", seed=seed, rows=258)
    going = "generation_kwargs:\n  until: []\n  max_gen_toks: 5"
    files = {"choice": ("multiple_choice", 'doc_to_choice: "{{choices}}"', "acc"), "going": ("generate_until", going, "exact_match")}
    for name, (output, more, metric) in files.items():
        (place / f"{name}.yaml").write_text(YAML.format(name=name, data=place / "mmlu.jsonl", output=output, more=more, metric=metric))
    toys.jsonl(place / "texts.jsonl", [{"text": "red green blue " * n} for n in range(1, 9)])
    (place / "rolling.yaml").write_text(ROLLING.format(data=place / "texts.jsonl"))
    return place


@pytest.mark.filterwarnings("ignore")
def test_the_harness_says_the_same_of_our_reading_as_of_its_own(harness: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    specs = [f"lm_eval:{harness}/{name}.yaml" for name in ("choice", "going", "rolling")]
    teacher = lb.Local(str(harness / "whole-teacher"), dtype="float32")
    subjects = Subjects({"after": lb.Student(str(harness / "whole-after"), dtype="float32")}, teacher)
    found = evaluate_transfer(subjects, Asked(str(harness / "held.jsonl"), rows=2, max_tokens=4), tmp_path / "e", TasksAsked(specs))
    for who in ("teacher", "after"):
        theirs = HFLM(pretrained=str(harness / f"whole-{who}"), device="cpu", dtype="float32", batch_size=2)
        known = simple_evaluate(
            theirs, tasks=[f"{harness}/{name}.yaml" for name in ("choice", "going", "rolling")], apply_chat_template=True, bootstrap_iters=0
        )
        kept = {name: read_jsonl(tmp_path / "e" / "tasks" / name / f"{who}.jsonl") for name in ("choice", "going")}
        assert [row["metrics"]["acc"] for row in kept["choice"]] == [each["acc"] for each in known["samples"]["choice"]]
        assert [row["completion"] for row in kept["going"]] == [each["resps"][0][0] for each in known["samples"]["going"]]
        right = found["tasks"]["choice"]["figures"][who]["right"]
        assert right["value"] == pytest.approx(known["results"]["choice"]["acc,none"])
        whole = found["tasks"]["rolling"]["figures"][who]["byte_perplexity"]
        assert whole == {"value": pytest.approx(known["results"]["rolling"]["byte_perplexity,none"], rel=1e-4), "interval": None}
    assert found["tasks"]["choice"]["verifier"] == "acc" and found["tasks"]["choice"]["shape"] == "lm_eval"
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["tasks"] == found["tasks"]


def test_tasks_that_the_harness_does_not_know(harness: Path) -> None:
    with pytest.raises(RecipeError, match=r'no task "gsm8kk"; did you mean "gsm8k'):
        TasksAsked(["lm_eval:gsm8kk"])
    with pytest.raises(RecipeError, match=r"there is no file nowhere\.yaml"):
        TasksAsked(["lm_eval:nowhere.yaml"])
