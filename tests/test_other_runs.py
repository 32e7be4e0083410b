"""Whole runs of other kinds of models: resumed, saved, named again, checked, measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import other_toys
import pytest
import torch
import toys
from other_toys import MASKED
from safetensors.torch import load_file
from test_other_models import drawn, home, learner, model_of, pair, terms  # noqa: F401  # home is a fixture
from test_runs import _failing_at, metrics, same_bits
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import limbeck as lb
from limbeck.batch import Batch
from limbeck.check import check
from limbeck.errors import ModelError
from limbeck.files import read_json
from limbeck.kinds import open_kind
from limbeck.machine import Opening
from limbeck.objective import Objective
from limbeck.run import Run
from limbeck.sources import Share
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.robustness import Robustness
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import of_runs


def run_of(home: Path, kind: str, **numbers: Any) -> lb.Recipe:
    data = str(home / f"{kind}.jsonl")
    source = lb.Masked(data, sequences=8) if kind in MASKED else lb.Corpus(data, sequences=8)
    student = lb.Student(model_of(home, kind, "student"), lb.AdamW(3e-3), dtype="float32")
    return lb.Recipe(student, source, lb.Local(model_of(home, kind, "teacher"), dtype="float32"), terms(kind),
                     **{"steps": 4, "save_every": 3, "evaluations": [lb.Likelihood(str(home / f"{kind}-heldout.jsonl"), samples=0)],
                        "accept_license": "unknown licence of other_toys:small", **numbers})  # fmt: skip


@pytest.mark.parametrize("kind", ["bert-classes", "module", "distilbert", "t5"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(kind: str, home: Path, tmp_path: Path) -> None:
    made = run_of(home, kind)
    lb.distill(made, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_step", _failing_at(3, Run.log_step))
        with pytest.raises(KeyboardInterrupt):
            lb.distill(made, tmp_path / "broken")
    lb.distill(made, tmp_path / "broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    same_bits(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["bert-classes", "module", "bert", "t5"])
def test_steps_move_the_student_on_heldout_rows(kind: str, home: Path, tmp_path: Path) -> None:
    lb.distill(replace(run_of(home, kind, steps=20, save_every=None), objective=Objective([lb.ForwardKL()])), tmp_path / "run")
    before, after = (read_json(tmp_path / "run" / "evaluations.json")[step]["heldout"] for step in ("0", "20"))
    assert after["kl_nats"] < 0.97 * before["kl_nats"]


@pytest.mark.parametrize(
    "kind, auto", [("bert-classes", AutoModelForSequenceClassification), ("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)]
)
def test_a_finished_student_is_a_folder_of_its_kind(kind: str, auto: Any, home: Path, tmp_path: Path) -> None:
    lb.distill(run_of(home, kind, steps=1), tmp_path / "run")
    saved = tmp_path / "run" / "student"
    assert type(auto.from_pretrained(saved)).__name__ == read_json(saved / "config.json")["architectures"][0]
    tags = {"bert-classes": "text-classification", "bert": "fill-mask", "t5": None}[kind]
    assert (f"pipeline_tag: {tags}" if tags else "library_name: transformers") in (saved / "README.md").read_text()
    assert ("pipeline_tag" in (saved / "README.md").read_text()) == bool(tags)
    teacher = lb.Local(str(saved), dtype="float32").load(learner(model_of(home, kind, "student")))
    assert teacher.opened.vocabulary.fingerprint == learner(model_of(home, kind, "student")).live.vocabulary.fingerprint


def test_a_finished_module_is_named_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = lb.distill(run_of(home, "module", steps=3), tmp_path / "run")
    saved, batch = tmp_path / "run" / "student", drawn(home, "module", student)
    assert sorted(file.name for file in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(ModelError, match=r"is made by other_toys:small\(.*\), which is no code of the working folder; read it"):
        monkeypatch.chdir(tmp_path)
        open_kind(str(saved), Opening("float32"))
    monkeypatch.chdir(Path(__file__).parent)
    again = open_kind(str(saved), Opening("float32"))
    assert torch.equal(again.forward(batch).hidden_ND, student.live.forward(batch).hidden_ND)
    lb.distill(replace(run_of(home, "module", steps=1), teacher=lb.Local(str(saved), dtype="float32")), tmp_path / "next")
    weights = load_file(saved / "model.safetensors")
    told = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**told, "module": "other_toys:small(width=9)"}))
    with pytest.raises(ModelError, match=r"the weights in .* are not those of other_toys:small\(width=9\)"):
        open_kind(str(saved), Opening("float32"))
    (saved / "config.json").write_text(json.dumps({**told, "module": "os:system(command='true')"}))
    with pytest.raises(ModelError, match=r"os:system.* no code of the working folder"):
        open_kind(str(saved), Opening("float32"))
    assert weights.keys() == again.module.state_dict().keys()


def test_a_module_may_read_another_column_and_name_its_classes(tmp_path: Path) -> None:
    toys.jsonl(tmp_path / "images.jsonl", [{"image": [[n, 1, 2], [3, 4, 5]], "label": n % 3} for n in range(4)])
    student = learner("other_toys:picture")
    batch = lb.Corpus(str(tmp_path / "images.jsonl"), sequences=4).load(student.live.vocabulary, Share()).draw(0, student)
    assert student.forward(batch).hidden_ND.shape == (4, 3)
    toys.jsonl(tmp_path / "named.jsonl", [{"features": [0.0] * 6, "label": "good"}])
    named = learner("other_toys:named")
    batch = lb.Corpus(str(tmp_path / "named.jsonl"), sequences=1).load(named.live.vocabulary, Share()).draw(0, named)
    assert batch.tokens_N.tolist() == [2] and named.live.vocabulary.text([2, 0]) == "good, bad"


def test_accuracy_is_the_share_of_the_likeliest(home: Path) -> None:
    for kind in ("module", "bert", "t5"):
        student, _, _, _ = pair(home, kind, lb.ForwardKL())
        found = lb.Accuracy(str(home / f"{kind}.jsonl"), tokens_per_pass=60).run(student, lb.Silent())
        texts = [text for row in other_toys.rows(kind, 24) for text in student.live.vocabulary.texts(row, lb.Data("x"), 1024)]
        batch = Batch.of(texts, "corpus")
        outputs = student.forward(batch)
        right_N = outputs.head.prepared(torch.float32).logits(outputs.hidden_ND).argmax(-1) == batch.tokens_N
        assert found["accuracy"] == pytest.approx(float(right_N.double().mean())) and found["tokens"] == len(right_N)
        low, high = found["accuracy_interval"]
        assert low <= found["accuracy"] <= high


@pytest.mark.parametrize("kind", ["bert-classes", "module", "distilbert", "t5"])
def test_a_recipe_is_checked_before_it_costs_anything(kind: str, home: Path, tmp_path: Path) -> None:
    lines = check(run_of(home, kind), tmp_path / "out")
    assert [line for line in lines if line.verdict == "problem"] == []
    assert any(line.what == "self-test" and "to oneself" in line.found for line in lines)


@pytest.mark.parametrize("kind", ["bert-classes", "module", "distilbert", "t5"])
def test_what_transferred_is_measured_as_far_as_it_can_be(kind: str, home: Path, tmp_path: Path) -> None:
    data = str(home / f"{kind}-heldout.jsonl")
    lb.distill(run_of(home, kind, save_every=None), tmp_path / "run")
    asked = Robustness(("mistyped",), adversarial=1)
    found = evaluate_transfer(of_runs([tmp_path / "run"], None, False), Asked(data, max_tokens=8), tmp_path / "e", robustness=asked)
    after = found["figures"]["after"]["given"]
    known = lb.Likelihood(data).run(*replace(run_of(home, kind), student=lb.Student(str(tmp_path / "run" / "student"), dtype="float32")).open_pair())
    assert after["kl_nats"]["value"] == pytest.approx(known["kl_nats"], rel=1e-4) and set(found["figures"]["after"]) == {"given"}
    assert ("bits_per_byte" in after) == (kind == "t5")  # classes and hidden tokens have no bytes
    assert sum("does not write" in each or "nobody writes" in each for each in found["missing"])
    robust = found["robustness"]
    assert ("mistyped" in robust["figures"]) == (kind == "t5") == bool(robust["adversarial"]) and bool(robust["missing"]) == (kind != "t5")
