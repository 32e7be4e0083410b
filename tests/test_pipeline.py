"""Stages: what is refused when they are made, that "@name" is the earlier student, and that a pipeline goes on as a whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import limbeck as lb
from limbeck import check_stages, stages, train
from limbeck.config import plain
from limbeck.errors import CheckpointError, LimbeckError, RecipeError
from limbeck.files import read_json
from limbeck.mixture import Mixture
from limbeck.pipeline import accepting, plan_of, read_plan
from limbeck.run import Run


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    """Three models of one family and text."""
    home = tmp_path_factory.mktemp("toys")
    return {
        "large": toys.folder(home / "large", seed=2, layers=3, sharp=8.0),
        "middle": toys.folder(home / "middle", seed=3),
        "small": toys.folder(home / "small", seed=1, width=16),
        "data": toys.jsonl(home / "train.jsonl", toys.rows(24)),
        "heldout": toys.jsonl(home / "heldout.jsonl", toys.rows(8, seed=2)),
    }


def stage(student: str, teacher: str | None, toy: dict[str, str], **more: Any) -> lb.Recipe:
    """A short recipe in float32."""
    own = lb.Student(student, lb.AdamW(3e-3), dtype="float32")
    source = lb.Corpus(toy["data"], sequences=8)
    numbers: dict[str, Any] = {"steps": 4, "save_every": 2, "evaluations": [lb.Likelihood(toy["heldout"])], **more}
    return lb.Recipe(own, source, *([lb.Local(teacher, dtype="float32"), lb.ForwardKL()] if teacher else []), **numbers)


def assisted(toy: dict[str, str], **more: Any) -> lb.Pipeline:
    """Large teaches middle, middle teaches small."""
    return lb.Pipeline({"assistant": stage(toy["middle"], toy["large"], toy, **more), "pupil": stage(toy["small"], "@assistant", toy, **more)})


# Plain data


def test_a_pipeline_goes_through_yaml_and_back(toy, tmp_path) -> None:
    made = assisted(toy)
    (tmp_path / "pipeline.yaml").write_text(made.yaml)
    assert read_plan(tmp_path / "pipeline.yaml", []) == made
    assert read_plan(tmp_path / "pipeline.yaml", ["stages.pupil.steps=7"]) != made


def test_settings_beside_stages_hold_for_those_that_do_not_say_their_own() -> None:
    shared = {"source": "Corpus('train.jsonl')", "teacher": "Local('t')", "objective": "ForwardKL()", "steps": 5}
    made = lb.Pipeline.of({**shared, "stages": {"a": {"student": "s"}, "b": {"student": "@a", "steps": 6, "objective": "ReverseKL()"}}})
    assert [recipe.steps for recipe in made.stages.values()] == [5, 6]
    assert [recipe.objective.terms[0].name for recipe in made.stages.values()] == ["ForwardKL", "ReverseKL"]


def test_an_assignment_changes_every_stage_that_does_not_say_its_own(tmp_path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("""
source: Corpus("train.jsonl")
objective: ForwardKL()
teacher: Local("t")
stages: {a: {student: s}, b: {student: "@a", steps: 6, generations: 2}}
""")
    made = read_plan(file, ["steps=5", "objective.temperature=2", "stages.b.generations.count=3"])
    assert isinstance(made, lb.Pipeline)
    assert [recipe.steps for recipe in made.stages.values()] == [5, 6, 6, 6]
    assert {recipe.objective.terms[0].temperature for recipe in made.stages.values()} == {2}


def test_a_file_of_a_recipe_is_a_recipe(toy, tmp_path) -> None:
    made = stage(toy["small"], toy["large"], toy)
    (tmp_path / "recipe.yaml").write_text(made.yaml)
    assert read_plan(tmp_path / "recipe.yaml", []) == made
    assert plan_of(plain(made)) == made


WHOLE: dict[str, Any] = {"source": "Corpus('train.jsonl')", "teacher": "Local('t')", "objective": "ForwardKL()"}


def three(**models: Any) -> dict[str, Any]:
    """Stages a, b, c whose teachers and students may be named."""
    given = {name: {"student": "s", "teacher": f"Local('{models.get(name, 't')}')"} for name in "abc"}
    return {"source": WHOLE["source"], "objective": WHOLE["objective"], "stages": given}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({**WHOLE, "stages": {}}, "a pipeline needs at least one stage; give stages: {name: a recipe}"),
        ({**WHOLE, "stages": ["a"]}, "stages are recipes by name, found ['a']; write stages: {name: a recipe}"),
        ({**WHOLE, "stages": {"a": "s"}}, "stage \"a\" is to be a recipe, found 's'; write its settings as name: value"),
        (three(b="@A"), 'stage "b" asks for "@A", and there is no such stage; did you mean "a"?'),
        (three(b="@nobody"), 'stage "b" asks for "@nobody", and there is no such stage; known: a, c'),
        (three(b="@b"), 'stage "b" asks for its own student "@b", which is not there before it; name an earlier stage, or a model'),
        (three(b="@c"), 'stage "b" asks for "@c", which comes after it; put "c" first'),
        (three(a="@c", c="@b", b="@a"), "the stages a -> c -> b -> a ask for each other in a circle; begin one of them with a model of its own"),
        ({**WHOLE, "stages": {"student": {"student": "s"}}}, 'no stage may be called "student": "@student" is the student itself; name it otherwise'),
        ({**WHOLE, "stages": {"a/b": {"student": "s"}}}, "the name of a stage is made of letters, digits, - and _, found 'a/b'"),
        ({**WHOLE, "stages": {"a": {"student": "s", "stepps": 1}}}, 'stage "a": Recipe has no setting "stepps"; did you mean "steps"?'),
        ({**WHOLE, "stepps": 1, "stages": {"a": {"student": "s"}}}, 'Recipe has no setting "stepps"; did you mean "steps"?'),
        ({**WHOLE, "steps": 1, "stages": {"a": {"student": "s", "steps": 2}}},
         "steps beside stages changes nothing, as each says its own; leave it out"),
        ({**WHOLE, "generations": 2, "stages": {"a": {"student": "s"}}},
         "generations belong to one stage, and stand beside stages; put them into it"),
        ({**WHOLE, "student": "s", "generations": 0}, 'stage "generation": generations must be at least 1, found 0'),
        ({**WHOLE, "student": "s", "generations": {"count": 2, "ensemble": 3}},
         'stage "generation": an ensemble is of 2 or more of the 2 generations, found 3; leave it out for none'),
        ({**WHOLE, "student": "s", "objective": "CrossEntropy()", "generations": 2},
         'stage "generation": generations teach each other, and CrossEntropy asks no teacher; give ForwardKL(), or one generation'),
        ({**WHOLE, "student": "s", "teacher": "Aligned('t')", "objective": "Gold()", "generations": 2},
         'stage "generation": generations teach each other in one vocabulary, and Gold is for a teacher of another; make that a stage of its own, '
         "and give generations to one after it: teacher: Local('@stage'), objective: ForwardKL()"),
        ({**WHOLE, "stages": {"a": {"student": "s", "generations": 2}, "a-1": {"student": "s"}}},
         'there are two stages "a-1", one of them a generation; name them apart'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        plan_of(settings)
    assert str(refused.value) == message


def test_a_refusal_names_the_line(tmp_path) -> None:
    (tmp_path / "p.yaml").write_text(
        'source: Corpus("train.jsonl")\nstages:\n  a:\n    student: s\n  b:\n    student: "@a"\n    teacher: Local("t")\n    objctive: ForwardKL()\n'
    )
    with pytest.raises(RecipeError, match=r'p.yaml, line 8: stage "b": Recipe has no setting "objctive"; did you mean "objective"\?'):
        read_plan(tmp_path / "p.yaml", [])


def test_an_assignment_to_no_stage_is_refused(tmp_path) -> None:
    (tmp_path / "p.yaml").write_text("source: Corpus('a.jsonl')\nstages: {first: {student: s, steps: 1}}\n")
    with pytest.raises(RecipeError, match=r'there is no stage "frist"; did you mean "first"\?'):
        read_plan(tmp_path / "p.yaml", ["stages.frist.steps=2"])
    with pytest.raises(RecipeError, match=r"steps is said by each stage itself; set stages\.first\.steps"):
        read_plan(tmp_path / "p.yaml", ["steps=2"])


def test_a_name_is_found_wherever_it_stands_and_servers_keep_theirs() -> None:
    teachers = [
        "Local('@a')",
        "Privileged('@a', 'think')",
        "Guided(Local('@a'), 2)",
        "Mixture({x: Local('@a'), y: Local('t')})".replace("x:", "'x':").replace("y:", "'y':"),
    ]
    for teacher in teachers:
        made = lb.Pipeline.of({**WHOLE, "stages": {"a": {"student": "s"}, "b": {"student": "s", "teacher": teacher}}})
        assert made.asked("b") == ["a"] and made.asked("b", "student") == []
        assert "'out/a/student'" in repr(made.recipe("b", "out").teacher) and "@a" not in repr(made.recipe("b", "out"))
    for own in ("Endpoint('http://localhost/v1', '@a')", "Privileged('@student', 'think')"):
        made = lb.Pipeline.of({**WHOLE, "objective": "SampledReverseKL()", "source": "OnPolicy('p.jsonl')",
                               "stages": {"a": {"student": "s"}, "b": {"student": "s", "teacher": own}}})  # fmt: skip
        assert made.asked("b") == [] and made.recipe("b", "out") == made.stages["b"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_pipeline_is_made_exactly_where_each_stage_asks_for_earlier_ones(asked: list[int]) -> None:
    """Stage n is taught by stage asked[n]."""
    settings = {**WHOLE, "stages": {f"s{n}": {"student": "model", "teacher": f"Local('@s{other}')"} for n, other in enumerate(asked) if n}}
    settings["stages"] = {"s0": {"student": "model"}, **settings["stages"]}
    if all(other < n for n, other in enumerate(asked) if n):
        assert list(lb.Pipeline.of(settings).stages) == [f"s{n}" for n in range(len(asked))]
    else:
        with pytest.raises(RecipeError, match=r"asks for|ask for each other"):
            lb.Pipeline.of(settings)


# Generations


def test_generations_unfold() -> None:
    settings = {**WHOLE, "student": {"model": "s", "dtype": "float32"}, "seed": 5, "generations": {"count": 3, "ensemble": 2}}
    made = plan_of(settings)
    assert isinstance(made, lb.Pipeline)
    assert list(made.stages) == ["generation-1", "generation-2", "generation-3", "generation-ensemble"]
    first, second, third, last = made.stages.values()
    assert first.teacher == lb.Local("t") and {recipe.student.model for recipe in made.stages.values()} == {"s"}
    assert second == replace(first, teacher=lb.Local("@generation-1", dtype="float32"), seed=6)
    assert third == replace(first, teacher=lb.Local("@generation-2", dtype="float32"), seed=7)
    assert isinstance(last.teacher, Mixture) and {name: each.model for name, each in last.teacher.teachers.items()} == {
        "generation-2": "@generation-2",
        "generation-3": "@generation-3",
    }
    assert plan_of(plain(made)) == made
    assert lb.Pipeline(lb.Generations(3, ensemble=2).stages(first)) == made


def test_generations_of_a_stage_bear_its_name_and_are_named_by_later_ones() -> None:
    given = {"born": {"student": "s", "generations": 2}, "last": {"student": "tiny", "teacher": "Local('@born-2')"}}
    assert list(lb.Pipeline.of({**WHOLE, "stages": given}).stages) == ["born-1", "born-2", "last"]


# Runs


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_a_stage_is_taught_by_the_student_of_the_one_before(toy, tmp_path, monkeypatch) -> None:
    """Its weights are looked at as the second stage opens them, and so is what it begins with."""
    opened = dict[str, dict[str, torch.Tensor]]()
    real = lb.Recipe.open_pair

    def open_pair(self):
        student, teacher = real(self)
        if teacher.opened is not None:
            name = Path(self.teacher.model).parent.name
            opened[name] = {key: value.clone() for key, value in teacher.opened.causal.state_dict().items()}
        return student, teacher

    monkeypatch.setattr(lb.Recipe, "open_pair", open_pair)
    made = assisted(toy)
    tuned = lb.Pipeline({**made.stages, "tuned": stage("@pupil", None, toy, steps=1)})
    student = lb.distill_stages(tuned, tmp_path / "run")
    assistant = weights(tmp_path / "run" / "assistant" / "student")
    assert all(torch.equal(opened["assistant"][name], value) for name, value in assistant.items())
    assert any(not torch.equal(value, weights(toy["middle"])[name]) for name, value in assistant.items())
    assert student.live.name == str(tmp_path / "run" / "pupil" / "student")
    summary = read_json(tmp_path / "run" / "summary.json")["stages"]
    assert [each["steps"] for each in summary.values()] == [4, 4, 1]
    evaluations = read_json(tmp_path / "run" / "pupil" / "evaluations.json")
    assert summary["pupil"]["evaluations"] == evaluations["4"] and summary["pupil"]["student"] == "pupil/student"


def test_a_summary_is_of_the_weights_that_were_kept(toy, tmp_path) -> None:
    wild = stage(toy["small"], toy["large"], toy, steps=2, evaluate_every=1, keep="best")
    wild = replace(wild, student=replace(wild.student, optimizer=lb.AdamW(0.3, "constant", warmup=0.0)))
    lb.distill_stages(lb.Pipeline({"a": wild}), tmp_path / "run")
    evaluations = {int(step): each["heldout"]["kl_nats"] for step, each in read_json(tmp_path / "run" / "a" / "evaluations.json").items()}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert best != max(evaluations), "the last is the best here: the test could not fail"
    assert stages.ended(tmp_path / "run" / "a")["evaluations"]["heldout"]["kl_nats"] == evaluations[best]


def test_a_pipeline_killed_in_its_second_stage_goes_on_to_the_same_bits(toy, tmp_path, monkeypatch) -> None:
    made = assisted(toy)
    lb.distill_stages(made, tmp_path / "whole")
    log_step = Run.log_step

    def failing(self, at, moved):
        log_step(self, at, moved)
        if self.out.name == "pupil" and at == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_step", failing)
        with pytest.raises(KeyboardInterrupt):
            lb.distill_stages(made, tmp_path / "broken")
    assert not (tmp_path / "broken" / "summary.json").exists()
    begun = list[str]()
    distill = train.distill
    monkeypatch.setattr(train, "distill", lambda recipe, out: begun.append(Path(out).name) or distill(recipe, out))
    lb.distill_stages(made, tmp_path / "broken")
    assert begun == ["pupil"], "the finished stage is not opened again"
    for name in made.stages:
        one, two = (tmp_path / run / name for run in ("whole", "broken"))
        assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
        assert all(torch.equal(value, weights(two / "student")[key]) for key, value in weights(one / "student").items())
    assert read_json(tmp_path / "whole" / "summary.json") == read_json(tmp_path / "broken" / "summary.json")


def test_another_pipeline_in_the_same_folder_is_refused(toy, tmp_path) -> None:
    lb.distill_stages(assisted(toy, steps=1), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds a run of another recipe \(stages.assistant.steps is 1 there, 2 here\)"):
        lb.distill_stages(assisted(toy, steps=2), tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds the run of one recipe, and stages need a folder of their own"):
        lb.distill_stages(assisted(toy, steps=1), tmp_path / "run" / "pupil")


# Licences


def test_what_a_later_stage_may_not_learn_from_stops_the_first(toy, tmp_path, monkeypatch) -> None:
    """The assistant's base is under terms that stop nothing while it learns, and stop whoever learns from it."""
    base, large = toys.folder(tmp_path / "base", seed=3), toys.folder(tmp_path / "strict", seed=2, layers=3)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n")
    made = lb.Pipeline({"assistant": stage(base, large, toy, steps=1), "pupil": stage(toy["small"], "@assistant", toy, steps=1)})
    with monkeypatch.context() as patch:
        patch.setattr(train, "distill", lambda *_: pytest.fail("a stage began"))
        with pytest.raises(RecipeError, match=r'stage "pupil": training on model .*base was asked for.*--accept-license "cc-by-nc-nd-4\.0"'):
            lb.distill_stages(made, tmp_path / "run")
    accepted = accepting(made, ["cc-by-nc-nd-4.0"])
    assert isinstance(accepted, lb.Pipeline)
    foreseen = accepted.licences("pupil")
    lb.distill_stages(accepted, tmp_path / "run")
    found = read_json(tmp_path / "run" / "pupil" / "provenance.json")["licences"]
    assert {each["name"] for each in found["teacher"]} == {each.name for each in foreseen["teacher"]} == {"cc-by-nc-nd-4.0", "apache-2.0"}


# check


def test_check_looks_at_every_stage_before_any_has_run(toy, tmp_path) -> None:
    born = plan_of({"stages": {**plain(assisted(toy))["stages"], "born": {**plain(stage(toy["small"], "@pupil", toy)), "generations": 2}}})
    lines = check_stages.check_plan(born, tmp_path / "run", quick=True)
    assert [line for line in lines if line.verdict == "problem"] == []
    notes = {line.what: line.found for line in lines if line.verdict == "note"}
    assert notes["pupil: students"] == "as if assistant had learnt nothing yet"
    assert notes["born-2: recipe"].startswith("begins where born-1 began, and is taught by what comes of it")
    assert not (tmp_path / "run").exists()


def test_check_tells_what_stands_in_the_way_of_a_later_stage(toy, tmp_path) -> None:
    made = assisted({**toy, "small": str(tmp_path / "nowhere")})
    lines = check_stages.check_plan(made, tmp_path / "run", quick=True)
    assert [line.what for line in lines if line.verdict == "problem"] == ["pupil: licences", "pupil: student"] or any(
        line.what == "pupil: student" for line in lines if line.verdict == "problem"
    )


def test_check_looks_at_what_is_there_once_a_stage_is_finished(toy, tmp_path) -> None:
    made = assisted(toy, steps=1)
    lb.distill(made.recipe("assistant", tmp_path / "run"), tmp_path / "run" / "assistant")
    lines = {line.what: line.found for line in check_stages.check_plan(made, tmp_path / "run")}
    assert str(tmp_path / "run" / "assistant" / "student") in lines["pupil: teacher"] and "pupil: students" not in lines
    assert "gradient" in lines["pupil: self-test"]


def test_a_wrong_pipeline_is_one_line_on_the_command_line(tmp_path, monkeypatch, capsys) -> None:
    from test_cli import said

    (tmp_path / "p.yaml").write_text(json.dumps(three(b="@a2")))
    code, _, complaint = said("distill p.yaml --out run", tmp_path, monkeypatch, capsys)
    assert code == 2 and complaint.count("\n") == 1 and 'did you mean "a"?' in complaint
    assert isinstance(LimbeckError(""), ValueError) and not (tmp_path / "run").exists()
