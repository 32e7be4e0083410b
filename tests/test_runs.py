"""Whole runs of toys: what holds for every named recipe, and what a run folder promises."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import limbeck as lb
from limbeck.errors import CheckpointError, LimbeckError, ModelError, RecipeError
from limbeck.files import read_json, read_jsonl
from limbeck.methods import METHODS as EVERY
from limbeck.methods import named
from limbeck.run import Run

METHODS = {name: method for name, method in EVERY.items() if name != "distilbert"}
"""Those of causal models; the other stands in test_other_models."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    """A student, a teacher that is sharper and deeper, and text."""
    home = tmp_path_factory.mktemp("toys")
    return {
        "student": toys.folder(home / "student", seed=1),
        "teacher": toys.folder(home / "teacher", seed=2, layers=3, sharp=8.0),
        "data": toys.jsonl(home / "train.jsonl", toys.rows(24)),
        "prompts": toys.jsonl(home / "prompts.jsonl", toys.rows(24, seed=1)),
        "heldout": toys.jsonl(home / "heldout.jsonl", toys.rows(12, seed=2)),
        "reward": "test_runs:many_vowels",
    }


def many_vowels(completion: str, row: dict) -> float:
    """A verifier for the toys."""
    return sum(letter in "aeiou" for letter in completion) / 10


def recipe(method: str, toy: dict[str, str], **numbers) -> lb.Recipe:
    """A named method at toy size: eight sequences a step, eight tokens an answer, float32."""
    import inspect

    takes = inspect.signature(METHODS[method]).parameters
    made = named(method, **{name: value for name, value in toy.items() if name in takes})
    small = {"sequences": 8, "sampling": lb.Sampling(max_tokens=8)}

    def shrink(source):
        if isinstance(source, lb.Mix):
            return lb.Mix(source.fraction, shrink(source.first), shrink(source.second))
        return replace(source, **{key: value for key, value in small.items() if hasattr(source, key)})

    student = replace(made.student, dtype="float32", optimizer=lb.AdamW(3e-3))
    return replace(made, student=student, teacher=exact(made.teacher), source=shrink(made.source), **{"steps": 4, "tokens_per_pass": 256, **numbers})


def exact(teacher: lb.Teacher) -> lb.Teacher:
    """The same in float32: in bfloat16 another padding is another rounding."""
    match teacher:
        case lb.Local():
            return replace(teacher, dtype="float32")
        case lb.Aligned():
            return replace(teacher, teacher=exact(teacher.teacher))
        case _:
            return teacher


def metrics(out: Path) -> str:
    return (out / "metrics.jsonl").read_text()


def same_bits(one: Path, two: Path) -> None:
    """The students of two runs."""
    a, b = (load_file(run / "student" / "model.safetensors") for run in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_goes_through_yaml_and_back(method: str, toy, tmp_path) -> None:
    made = recipe(method, toy)
    (tmp_path / "recipe.yaml").write_text(made.yaml)
    assert lb.Recipe.read(tmp_path / "recipe.yaml") == made


@pytest.mark.parametrize("method", METHODS)
def test_passes_of_another_size_change_no_step(method: str, toy, tmp_path) -> None:
    """*Cut*: the weights after three steps are the same, however a step is cut into passes."""
    after = []
    for size in (40, 4096):
        lb.distill(recipe(method, toy, steps=3, tokens_per_pass=size), tmp_path / str(size))
        after.append(load_file(tmp_path / str(size) / "student" / "model.safetensors"))
    before = load_file(Path(toy["student"]) / "model.safetensors")
    for name, weight in after[0].items():
        moved = (weight - before[name]).abs().max()
        assert (weight - after[1][name]).abs().max() <= 2e-2 * moved, name  # Adam divides rounding by rounding where gradients vanish


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(method: str, toy, tmp_path) -> None:
    """*Resume*: four steps in one go, or three of them, a lost fourth, and the same command again."""
    made = recipe(method, toy, save_every=3, evaluations=[lb.Likelihood(toy["heldout"], own_text=True, sampling=lb.Sampling(max_tokens=4))])
    lb.distill(made, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_step", _failing_at(3, Run.log_step))
        with pytest.raises(KeyboardInterrupt):
            lb.distill(made, tmp_path / "broken")
    lb.distill(made, tmp_path / "broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    same_bits(tmp_path / "broken", tmp_path / "whole")


def _failing_at(step: int, real):
    def log_step(self, at, moved):
        real(self, at, moved)
        if at == step:
            raise KeyboardInterrupt

    return log_step


@pytest.mark.parametrize("method", ["kd", "gkd", "on_policy", "distillm", "sft"])
def test_ten_steps_move_the_student_on_heldout_text(method: str, toy, tmp_path) -> None:
    """*Moves*: nearer to the teacher (likelier text, for fine-tuning) on text that was not learnt from."""
    lb.distill(recipe(method, toy, steps=10, evaluations=[lb.Likelihood(toy["heldout"])]), tmp_path / "run")
    before, after = (read_json(tmp_path / "run" / "evaluations.json")[step]["heldout"] for step in ("0", "10"))
    figure = "ce_nats" if method == "sft" else "kl_nats"
    assert after[figure] < 0.97 * before[figure]


def test_a_reward_is_earned_more_often(toy, tmp_path) -> None:
    """Policy gradient alone, on a verifier: answers that earn become likelier."""
    source = lb.OnPolicy(toy["prompts"], sequences=8, group=8, reward=toy["reward"], sampling=lb.Sampling(max_tokens=8))
    made = lb.Recipe(lb.Student(toy["student"], lb.AdamW(1e-2), dtype="float32"), source, objective="PolicyGradient()", steps=25)
    student = lb.distill(made, tmp_path / "run")

    def earned(folder: str) -> float:
        live = lb.Student(folder, dtype="float32").load(1)
        prompts = [live.live.vocabulary.prompt(row, lb.Data("x")) for row in toys.rows(200, seed=9)]
        written = live.write(prompts, lb.Sampling(max_tokens=8), 5, 0, range(200))
        return sum(many_vowels(live.live.vocabulary.text(new.tokens), {}) for new in written) / 200

    logged = [row["reward"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "reward" in row]
    assert len(logged) == 25 and sum(logged[-5:]) > 1.5 * sum(logged[:5])
    assert student.live.name == toy["student"]
    assert earned(str(tmp_path / "run" / "student")) > 1.5 * earned(toy["student"])


def test_a_verifier_chooses_what_is_learnt_from(toy, tmp_path) -> None:
    source = lb.OnPolicy(toy["prompts"], sequences=16, group=4, reward=toy["reward"], keep_above=0.0, sampling=lb.Sampling(max_tokens=16))
    live = lb.Student(toy["student"], dtype="float32").load(1)
    batch = source.load(live.live.vocabulary, lb.sources.Share()).draw(0, live)
    words = [live.live.vocabulary.text(tokens.tolist()) for tokens in batch.sequences()]
    answers = [text.rpartition("assistant\n")[2] for text in words]
    assert 0 < len(batch) < 64
    assert all(many_vowels(answer, {}) > 0 for answer in answers)


def test_the_student_loads_in_transformers_and_says_the_same(toy, tmp_path) -> None:
    student = lb.distill(recipe("kd", toy), tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, student.live.module(ids).logits)
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "ForwardKL" in card and card.startswith("---\n")


def test_adapters_alone_move_and_are_folded_in(toy, tmp_path) -> None:
    made = recipe("kd", toy, steps=6)
    made = replace(made, student=replace(made.student, lora=lb.LoRA(4)))
    student = lb.distill(made, tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        said = student.live.module(ids).logits
        torch.testing.assert_close(loaded(ids).logits, said, atol=1e-5, rtol=1e-4)
        with student.unadapted():
            torch.testing.assert_close(student.live.module(ids).logits, AutoModelForCausalLM.from_pretrained(toy["student"])(ids).logits)
    assert (said - loaded(ids).logits).abs().max() < 1e-4 < (said - AutoModelForCausalLM.from_pretrained(toy["student"])(ids).logits).abs().max()


def test_the_student_without_its_adapters_can_teach(toy, tmp_path) -> None:
    """An anchor: it starts at 0 and holds the adapters back."""
    student = lb.Student(toy["student"], lora=lb.LoRA(4), dtype="float32", optimizer=lb.AdamW(1e-2))
    made = lb.Recipe(student, lb.Corpus(toy["data"]), lb.Local("@student"), "CrossEntropy() + ForwardKL()", steps=5)
    lb.distill(made, tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["nats/ForwardKL"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["nats/ForwardKL"] > 1e-4
    with pytest.raises(RecipeError, match="student without adapters, and it has none"):
        lb.distill(replace(made, student=lb.Student(toy["student"])), tmp_path / "other")


def test_activation_checkpoints_change_no_gradient(toy, tmp_path) -> None:
    made = recipe("kd", toy)
    lb.distill(made, tmp_path / "plain")
    lb.distill(replace(made, student=replace(made.student, gradient_checkpointing=True)), tmp_path / "saving")
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "saving")


def test_the_best_is_kept_and_worse_stops_early(toy, tmp_path) -> None:
    made = recipe("kd", toy, steps=40, evaluations=[lb.Likelihood(toy["heldout"])], evaluate_every=1, keep="best", early_stop=3, keep_last=2)
    made = replace(made, student=replace(made.student, optimizer=lb.AdamW(0.2, schedule="constant", warmup=0.0, clip=None)))
    lb.distill(made, tmp_path / "run")
    found = {int(step): e["heldout"]["kl_nats"] for step, e in read_json(tmp_path / "run" / "evaluations.json").items()}
    assert max(found) < 40, "a rate of 0.2 must get worse"
    best = min(found, key=found.__getitem__)
    assert max(found) == best + 3
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == len(found) + max(found), "each step and each evaluation once"
    figures = lb.Likelihood(toy["heldout"]).run(*replace(made, student=replace(made.student, model=str(tmp_path / "run" / "student"))).open_pair())
    assert figures["kl_nats"] == pytest.approx(found[best], rel=1e-5)
    again = lb.distill(made, tmp_path / "run").live.module.state_dict()  # finished: nothing is done, the same student comes back
    assert all(torch.equal(weight, again[name]) for name, weight in load_file(tmp_path / "run" / "student" / "model.safetensors").items())


@pytest.mark.parametrize(("every", "last", "kept"), [(2, 9, [2, 4]), (1, 2, [3, 4]), (50, 9, [4]), (None, 9, [4])])
def test_checkpoints_are_made_and_kept_as_asked(every: int | None, last: int, kept: list[int], toy, tmp_path) -> None:
    lb.distill(recipe("kd", toy, save_every=every, keep_last=last), tmp_path / "run")
    assert lb.checkpoint.steps(tmp_path / "run" / "checkpoints") == kept


def test_a_time_limit_stops_and_says_so(toy, tmp_path) -> None:
    lb.distill(recipe("kd", toy, steps=10_000, time_limit_minutes=1e-3), tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert 1 <= len(rows) < 10_000
    assert (tmp_path / "run" / "student").exists()


def test_a_folder_of_another_recipe_or_in_use_is_refused(toy, tmp_path) -> None:
    lb.distill(recipe("kd", toy), tmp_path / "run")
    with pytest.raises(CheckpointError, match="steps is 4 there, 5 here"):
        lb.distill(recipe("kd", toy, steps=5), tmp_path / "run")
    with Run(tmp_path / "run", recipe("kd", toy)), pytest.raises(CheckpointError, match="in use by another process"):
        Run(tmp_path / "run", recipe("kd", toy))


def test_a_damaged_checkpoint_is_named(toy, tmp_path) -> None:
    made = recipe("kd", toy)
    lb.distill(made, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "student")
    state = tmp_path / "run" / "checkpoints" / "step-00000004" / toys.CHECKPOINT
    whole = state.read_bytes()
    for damaged, why in ((whole[:-100], r"bytes of"), (b"\xff" * 8 + whole[8:], "header")):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"step-00000004 cannot be read \(.*{why}.*; remove it to go on from the one before"):
            lb.distill(made, tmp_path / "run")
    state.unlink()
    with pytest.raises(CheckpointError, match=f"0 of 1 files are there; {toys.CHECKPOINT} is not"):
        lb.distill(made, tmp_path / "run")


def test_a_gradient_that_is_no_number_changes_nothing(toy) -> None:
    student = lb.Student(toy["student"], dtype="float32").load(1)
    weights = list(student.live.module.parameters())
    before = [weight.clone() for weight in weights]
    weights[0].grad = torch.full_like(weights[0], math.nan)
    with pytest.raises(LimbeckError, match="norm is nan; nothing was changed"):
        student.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_provenance_says_what_a_run_is_made_of(toy, tmp_path) -> None:
    lb.distill(recipe("kd", toy), tmp_path / "run")
    facts = read_json(tmp_path / "run" / "provenance.json")
    assert facts["teacher"]["arithmetic"] == "float32" and facts["seed"] == 0
    assert facts["packages"]["torch"] == torch.__version__
    assert {role: [each["name"] for each in found] for role, found in facts["licences"].items()} == {
        "student": ["apache-2.0"], "teacher": ["apache-2.0"], "source": ["apache-2.0"],
    }  # fmt: skip
    assert str(Path.home()) not in json.dumps(facts)


@pytest.mark.parametrize("name", ["missing/folder", "/missing/folder", "model.gguf"])
def test_a_model_that_is_not_there_is_said_in_one_line(name: str, toy, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        lb.Student(name).load(1)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_metrics_reach_a_tracker(toy, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    lb.distill(recipe("kd", toy, trackers=["tensorboard"]), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    with pytest.raises(RecipeError, match="the tracker wandb is not installed"):
        lb.distill(recipe("kd", toy, trackers=["wandb"]), tmp_path / "other")


def test_adapters_begin_alike_whatever_was_drawn_before(toy, tmp_path) -> None:
    made = recipe("kd", toy, steps=2)
    made = replace(made, student=replace(made.student, lora=lb.LoRA(4)))
    lb.distill(made, tmp_path / "one")
    torch.rand(7)
    lb.distill(made, tmp_path / "two")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
