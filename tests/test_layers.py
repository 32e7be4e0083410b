"""Layers compared as part of an objective: what must change no gradient, whole runs, refusals, and the self-test."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from safetensors.torch import load_file
from test_objective import error, gradients, written
from torch import Tensor

import limbeck as lb
from limbeck import insides, selftest
from limbeck.batch import Batch
from limbeck.check import check
from limbeck.errors import LimbeckError, ModelError, RecipeError
from limbeck.insides import Build, Features, Layers
from limbeck.objective import Objective
from limbeck.pairing import between
from limbeck.run import Run
from limbeck.targets import Dense


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A student, a teacher of its width, one that is wider, deeper and has other heads, and text."""
    home = tmp_path_factory.mktemp("toys")
    toys.network("llama", 3, layers=3, width=48, num_attention_heads=6, num_key_value_heads=3).save_pretrained(home / "wide")
    toys.tokenizer().save_pretrained(home / "wide")
    toys.licensed(home / "wide")
    return {
        "student": toys.folder(home / "student", seed=1), "teacher": toys.folder(home / "teacher", seed=2, layers=3), "wide": str(home / "wide"),
        "gptj": toys.folder(home / "gptj", "gptj", 1),
        "data": toys.jsonl(home / "train.jsonl", toys.rows(24)), "heldout": toys.jsonl(home / "heldout.jsonl", toys.rows(12, seed=2)),
    }  # fmt: skip


def pair(toy: dict[str, str], objective: Any, teacher: str = "wide", seed: int = 0, **more: Any) -> tuple[lb.Student, lb.Local, Objective]:
    student = lb.Student(toy["student"], dtype="float32", **more).load(10)
    scorer = lb.Local(toy[teacher], dtype="float32").load(student)
    made = objective if isinstance(objective, Objective) else Objective([objective])
    return student, scorer, between(made, student, scorer, seed)


ALL = lb.ForwardKL() + 0.5 * lb.HiddenStates("even") + 2 * lb.Attentions("even")


# Gradients


def learnt(student: lb.Student, teacher: lb.Teacher, parts: list[Batch], objective: Objective) -> dict[str, Tensor]:
    total = sum(len(part.tokens_N) for part in parts)
    for part, said in zip(parts, teacher.score(parts), strict=True):
        student.learn(part, said, objective, scale=1 / total)
    joined = {f"joined.{name}": weight.grad for name, weight in (student._joined or torch.nn.ModuleDict()).named_parameters()}
    for weight in student._joined.parameters() if student._joined else []:
        weight.grad = None
    return gradients(student) | joined


@pytest.mark.parametrize("teacher", ["wide", "teacher"])
def test_cuts_and_orders_change_no_gradient(teacher: str, toy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    objective = ALL + lb.HiddenStates("last", "cosine").on("student") + lb.Attentions("last", distance="mse").on("corpus")
    student, scorer, made = pair(toy, objective, teacher)
    batch = written(sequences=7)
    whole = learnt(student, scorer, [batch], made)
    assert len([name for name in whole if name.startswith("joined.")]) == (3 if teacher == "wide" else 0)
    for parts in [*(batch.split(tokens) for tokens in (1, 40, 10**6)), [batch.select([4, 0, 6]), batch.select([2, 5, 1, 3])]]:
        for name, gradient in learnt(student, scorer, parts, made).items():
            assert error(gradient, whole[name]) < 1e-5, name
    monkeypatch.setattr(insides, "ROWS", 2)
    for name, gradient in learnt(student, scorer, [batch], made).items():
        assert error(gradient, whole[name]) < 1e-5, name


def test_an_empty_pass_learns_nothing_and_fails_at_nothing(toy: dict[str, str]) -> None:
    student, scorer, made = pair(toy, ALL)
    empty = Batch.of([], "corpus")
    (said,) = scorer.score([empty])
    nats = student.learn(empty, said, made, 1.0)
    assert {name: len(each) for name, each in nats.items()} == {"ForwardKL": 0, "HiddenStates": 0, "Attentions": 0}
    assert all(not gradient.any() for gradient in gradients(student).values())
    assert all(weight.grad is not None and not weight.grad.any() for weight in student._joined.parameters())


@pytest.mark.parametrize("term", [lb.HiddenStates(), lb.HiddenStates(distance="cosine"), lb.Attentions(), lb.Attentions(distance="mse")], ids=repr)
def test_a_teacher_that_is_the_student_teaches_nothing(term: lb.Term, toy: dict[str, str]) -> None:
    batch, found = written(), list[dict[str, Tensor]]()
    for teacher in ("student", "teacher"):
        student, scorer, made = pair(toy, term, teacher)
        found.append(learnt(student, scorer, [batch], made))
        apart = float(student.measure(batch, scorer.about(batch), made)[term.name].abs().max())
        assert apart < 1e-6 if teacher == "student" else apart > 1e-3
    for name, something in found[1].items():
        assert float(found[0][name].norm()) < 1e-5 * float(something.norm()), name


def test_a_term_of_layers_alone_moves_the_layers_below(toy: dict[str, str]) -> None:
    student, scorer, made = pair(toy, lb.HiddenStates({0: 1}))
    found = learnt(student, scorer, [written()], made)
    assert all(".layers.0." in name or "embed_tokens" in name or name.startswith("joined.") for name in found)
    assert all(bool(gradient.any()) for gradient in found.values())


def test_a_writer_is_counted_alone(toy: dict[str, str]) -> None:
    student, scorer, made = pair(toy, lb.HiddenStates().on("student"))
    batch = written()
    nats_N = student.learn(batch, scorer.about(batch), made, 1.0)["HiddenStates@student"].clone()
    wanted = gradients(student)
    changed = batch.select(range(len(batch)))
    said = scorer.about(changed)
    assert isinstance(said, Dense) and said.features is not None
    others_N = (batch.writers_N != 2)[:, None]
    said = replace(said, features=Features({n: h + 5.0 * others_N for n, h in said.features.states.items()}, {}))
    student.live.module.zero_grad()
    student._joined.zero_grad()
    other_N = student.learn(changed, said, made, 1.0)["HiddenStates@student"]
    assert torch.equal(nats_N[batch.writers_N == 2], other_N[batch.writers_N == 2]) and not torch.equal(nats_N, other_N)
    for name, gradient in gradients(student).items():
        assert torch.equal(gradient, wanted[name]), name


def test_activation_checkpoints_change_no_gradient(toy: dict[str, str]) -> None:
    found = []
    for checkpoints in (False, True):
        student, scorer, made = pair(toy, ALL, gradient_checkpointing=checkpoints)
        found.append(learnt(student, scorer, [written()], made))
    for name, gradient in found[0].items():
        assert error(found[1][name], gradient) < 1e-6, name


def test_adapters_learn_from_the_layers_below_them(toy: dict[str, str]) -> None:
    student = lb.Student(toy["student"], dtype="float32", lora=lb.LoRA(rank=2)).load(4)
    itself = lb.Local("@student").load(student)
    made = between(Objective([lb.HiddenStates(), lb.Attentions()]), student, itself, 0)
    batch = written()
    with torch.no_grad():
        for name, weight in student.live.module.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    nats = student.learn(batch, itself.about(batch), made, 1.0)
    assert all(float(each.mean()) > 1e-4 for each in nats.values())
    found = gradients(student)
    assert found and all("lora" in name for name in found)


def test_a_hint_is_learnt_from_states_too(toy: dict[str, str]) -> None:
    student = lb.Student(toy["student"], dtype="float32").load(4)
    teacher = lb.Privileged(lb.Local(toy["wide"], dtype="float32"), "red green").load(student)
    made = between(Objective([lb.HiddenStates("last")]), student, teacher, 0)
    vocabulary = student.live.vocabulary
    batch = Batch.of([text for row in toys.rows(4) for text in vocabulary.texts(row, lb.Data("x"), 99)], "corpus")
    said, plain = teacher.about(batch), lb.Local(toy["wide"], dtype="float32").load(student)
    plain.lay_open(made.opens[1])
    states = [each.features.states[2] for each in (said, plain.about(batch)) if each.features is not None]
    assert len(states) == 2 and states[0].shape == states[1].shape and not torch.allclose(*states, atol=1e-2)


def test_scores_that_came_with_the_text_are_said_again_where_layers_are_asked_for(toy: dict[str, str]) -> None:
    _, scorer, _ = pair(toy, lb.ForwardKL())
    batch = written()
    known = replace(batch, said=scorer.about(batch))
    assert scorer.about(known) is known.said
    scorer.lay_open(Layers(frozenset({1})))
    assert (features := scorer.about(known).features) is not None and list(features.states) == [1]


def test_narrow_arithmetic_finds_the_same_to_its_rounding(toy: dict[str, str]) -> None:
    found = list[dict[str, Tensor]]()
    for dtype in ("float32", "bfloat16"):
        student = lb.Student(toy["student"], dtype=dtype).load(4)
        scorer = lb.Local(toy["wide"], dtype=dtype).load(student)
        made = between(ALL, student, scorer, 0)
        found.append(student.learn(written(), scorer.about(written()), made, 1e-2))
        assert all(bool(torch.isfinite(each).all()) for each in gradients(student).values()) and student.live.proven == {0, 1}
    for name, wanted in found[0].items():
        assert float((found[1][name] - wanted).abs().mean()) < 0.1 * float(wanted.mean()), name


# Runs


def recipe(toy: dict[str, str], objective: Any = ALL, teacher: str = "wide", **numbers: Any) -> lb.Recipe:
    student = lb.Student(toy["student"], lb.AdamW(3e-3), dtype="float32")
    source = lb.Corpus(toy["data"], sequences=8)
    return lb.Recipe(student, source, lb.Local(toy[teacher], dtype="float32"), objective, **{"steps": 4, "tokens_per_pass": 256, **numbers})


def failing_at(step: int) -> Callable[..., None]:
    real = Run.log_step

    def log_step(self: Run, at: int, moved: dict[str, float]) -> None:
        real(self, at, moved)
        if at == step:
            raise KeyboardInterrupt

    return log_step


def test_a_run_with_projections_goes_on_to_the_same_bits_and_saves_none(toy: dict[str, str], tmp_path: Path) -> None:
    made = recipe(toy, save_every=3)
    lb.distill(made, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_step", failing_at(3))
        with pytest.raises(KeyboardInterrupt):
            lb.distill(made, tmp_path / "broken")
    kept = load_file(tmp_path / "broken" / "checkpoints" / "step-00000003" / toys.CHECKPOINT)
    assert [name for name in kept if name.startswith("weight.joined")] == [
        "weight.joined.HiddenStates.0.weight",
        "weight.joined.HiddenStates.1.weight",
    ]
    assert "moment.joined.HiddenStates.1.weight.exp_avg" in kept
    lb.distill(made, tmp_path / "broken")
    whole, broken = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "broken"))
    assert whole == broken
    a, b = (load_file(tmp_path / run / "student" / "model.safetensors") for run in ("whole", "broken"))
    assert a.keys() == load_file(Path(toy["student"]) / "model.safetensors").keys() and all(torch.equal(a[name], b[name]) for name in a)
    row = json.loads(whole.splitlines()[0])
    assert row["loss_nats"] == pytest.approx(row["nats/ForwardKL"] + 0.5 * row["mse/HiddenStates"] + 2 * row["nats/Attentions"])


def test_projections_are_the_seeds(toy: dict[str, str]) -> None:
    drawn = [pair(toy, lb.HiddenStates(), seed=seed)[2].projections.state_dict() for seed in (0, 0, 1)]
    for name, weight in drawn[0].items():
        assert torch.equal(weight, drawn[1][name]) and not torch.equal(weight, drawn[2][name])
    both = drawn[0]["HiddenStates.0.weight"], drawn[0]["HiddenStates.1.weight"]
    assert not torch.equal(*both) and float(both[0].std()) == pytest.approx(32**-0.5, rel=0.1)


@pytest.mark.parametrize(
    "term", [lb.HiddenStates(), lb.HiddenStates("last", "cosine"), lb.Attentions(), lb.Attentions("middle", distance="mse")], ids=repr
)
def test_ten_steps_bring_the_layers_nearer_on_heldout_text(term: Any, toy: dict[str, str], tmp_path: Path) -> None:
    student, scorer, made = pair(toy, term)
    rows = [text for data in [lb.Data(toy["heldout"])] for row in data.rows() for text in student.live.vocabulary.texts(row, data, 99)]
    learn, test = Batch.of(rows[:8], "corpus"), Batch.of(rows[8:], "corpus")
    apart = lambda: float(student.measure(test, scorer.about(test), made)[term.name].mean())  # noqa: E731
    before, student.optimizer.learning_rate = apart(), 1e-2
    for step in range(10):
        student.learn(learn, scorer.about(learn), made, 1 / len(learn.places_N))
        student.step(step)
    assert apart() < 0.9 * before


# What is refused


def told(toy: dict[str, str], objective: Any, **more: Any) -> str:
    with pytest.raises(LimbeckError) as caught:
        recipe(toy, objective, **more).open_all()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layers_that_are_not_there_are_refused(toy: dict[str, str]) -> None:
    assert f'HiddenStates maps layer 2 of the student, and {toy["student"]} has 2, 0 to 1; name those, or give map="even"' == told(
        toy, lb.HiddenStates({2: 2})
    )
    assert f"Attentions@corpus maps layer 3 of the teacher, and {toy['wide']} has 3, 0 to 2" in told(toy, lb.Attentions({1: 3}).on("corpus"))
    with pytest.raises(RecipeError, match=r"HiddenStates.map must name layers from 0 on, found \{\}"):
        lb.HiddenStates({})
    with pytest.raises(RecipeError, match=r"Attentions.map must name layers from 0 on, found \{0: -1\}"):
        lb.Attentions({0: -1})
    with pytest.raises(RecipeError, match=r"HiddenStates.map"):
        lb.HiddenStates("odd")


def test_a_check_finds_layers_that_are_not_there(toy: dict[str, str], tmp_path: Path) -> None:
    lines = check(recipe(toy, lb.ForwardKL() + lb.HiddenStates({5: 0})), tmp_path / "run")
    assert [line.what for line in lines if line.verdict == "problem"] == ["self-test"] and "maps layer 5 of the student" in lines[-1].found
    assert check(recipe(toy), tmp_path / "run")[-1].verdict == "ok"


def test_attention_that_cannot_be_taken_is_refused(toy: dict[str, str]) -> None:
    assert "gptj attends in a way of its own (GPTJAttention), and its rows cannot be taken; give HiddenStates" in told(
        {**toy, "student": toy["gptj"]}, lb.Attentions()
    )
    lb.Local(toy["gptj"], "float32").writing().opened.forward(written(), Layers(frozenset({1})))  # its states can
    near, far = Build("s", 8, (None, 4)), Build("t", 8, (4, None))
    with pytest.raises(
        RecipeError, match=r'layer 1 of the teacher looks back over all tokens and layer 1 of the student over 4, so that Attentions .*"mse"'
    ):
        lb.Attentions({0: 0, 1: 1}).load(near, far, 0)
    lb.Attentions({0: 0}).load(near, far, 0)
    lb.Attentions({1: 1}, "mse").load(near, far, 0)


def test_layers_that_are_not_found_are_refused(toy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    student, scorer, _ = pair(toy, lb.ForwardKL())
    monkeypatch.setattr(student.live.causal, "get_decoder", lambda: torch.nn.Linear(1, 1))
    with pytest.raises(ModelError, match=r"keeps its layers where they are not found \(Linear\)"):
        between(Objective([lb.HiddenStates()]), student, scorer, 0)


@pytest.mark.parametrize("teacher", ["Endpoint('http://localhost/v1', 'm')", "Mixture({'a': Local('t'), 'b': Local('u')})", "Guided('t', 2)"])
def test_a_teacher_without_layers_is_refused_when_the_recipe_is_made(teacher: str) -> None:
    with pytest.raises(RecipeError, match=r"HiddenStates needs a teacher that says states; .* Local\(model\)$"):
        lb.Recipe.of({"student": "s", "source": "Corpus('a')", "teacher": teacher, "objective": "ForwardKL() + HiddenStates()"})


def test_the_student_as_its_own_teacher_is_refused(toy: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="is the student itself and says the same"):
        recipe(toy, lb.HiddenStates(), teacher="student")


# The self-test


def test_the_self_test_knows_layers(toy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.self_test(*pair(toy, ALL)).to_itself_nats < 1e-5
    alone = pair(toy, lb.Attentions())
    assert selftest.self_test(*alone).gradient is None
    with pytest.raises(RecipeError, match="HiddenStates is at most 0: the student's layers hold what the teacher's do"):
        selftest.self_test(*pair(toy, lb.HiddenStates(), "student"))
    real = lb.Attentions._block
    monkeypatch.setattr(lb.Attentions, "_block", lambda self, *given: real(self, *given) + 1e-3)
    with pytest.raises(LimbeckError, match=r"Attentions of the student to itself is 0\.001, and should be 0"):
        selftest.self_test(*alone)
