"""Licences in training: what a student learns from is asked before anything is opened, and its card carries the answer on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys

import limbeck as lb
from limbeck import cli, licences, quickstart
from limbeck.annotate import Annotation, annotate
from limbeck.cache import Manifest
from limbeck.endpoint import Endpoint
from limbeck.errors import RecipeError
from limbeck.files import read_json
from limbeck.judges import Judge, RewardModel
from limbeck.licences import gate, of_data, of_model
from limbeck.mixture import Mixture
from limbeck.run import licences_of
from limbeck.sources import CustomSource
from limbeck.teacher_samples import TeacherSamples

WRITES = lb.Sampling(max_tokens=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Models and files, each in a folder with a licence of its own: open to all, forbidden, or nothing."""
    home = tmp_path_factory.mktemp("made")
    for seed, (name, licence) in enumerate({"free": "mit", "pupil": "mit", "llama": "llama3", "bare": ""}.items()):
        (home / name).mkdir()
        if name == "bare":
            (home / name / "README.md").write_text("# Nothing is said of licences here\n")
        toys.licensed(home / name, licence)
        toys.jsonl(home / name / "rows.jsonl", toys.rows(8))
        toys.folder(home / name, seed=seed)
    (home / "free" / "own_rows.py").write_text("def rows(step, seed):\n    return [{'text': 'red'}]\n")
    return home


@pytest.fixture(autouse=True)
def at_home(made, monkeypatch) -> None:
    monkeypatch.chdir(made)


def recipe(teacher: Any = None, source: Any = None, **more: Any) -> lb.Recipe:
    student = lb.Student(more.pop("student", "pupil"), dtype="float32")
    objective = more.pop("objective", lb.ForwardKL() if teacher else lb.CrossEntropy())
    made = lb.Recipe(student, source or lb.Corpus("free/rows.jsonl", sequences=2), teacher or lb.Silent(), objective, steps=1)
    return replace(made, **more)


def judged(verifier: Any) -> lb.Recipe:
    return recipe(lb.Local("free"), lb.OnPolicy("free/rows.jsonl", reward=verifier, group=2, sampling=WRITES), objective=lb.PolicyGradient())


OPENAI = Endpoint("https://api.openai.com/v1", "gpt", tokenizer="free")
ELSEWHERE = Endpoint("https://example.org/v1", "free", tokenizer="free")

STOPPED: dict[str, tuple[Callable[[], lb.Recipe], str, str]] = {
    "teacher": (lambda: recipe(lb.Local("llama", dtype="float32")), "model llama", "llama3"),
    "a teacher without a card": (lambda: recipe(lb.Local("bare", dtype="float32")), "model bare", "unknown licence of bare"),
    "mixture": (lambda: recipe(Mixture({"one": lb.Local("free"), "two": lb.Local("llama")})), "model llama", "llama3"),
    "provider": (lambda: recipe(OPENAI, objective=lb.ForwardKL()), "provider api.openai.com", "terms of OpenAI"),
    "an unknown host": (lambda: recipe(ELSEWHERE, objective=lb.ForwardKL()), "provider example.org", "unknown terms of example.org"),
    "data": (lambda: recipe(source=lb.Corpus("llama/rows.jsonl")), "data llama/rows.jsonl", "llama3"),
    "data of several": (
        lambda: recipe(source=lb.Corpus(["free/rows.jsonl", "bare/rows.jsonl"])), "data bare/rows.jsonl", "unknown licence of bare/rows.jsonl"
    ),
    "prompts": (
        lambda: recipe(lb.Local("free"), lb.OnPolicy("llama/rows.jsonl"), objective=lb.ReverseKL()), "data llama/rows.jsonl", "llama3"
    ),
    "mix": (
        lambda: recipe(lb.Local("free"), lb.Mix(0.5, lb.OnPolicy("free/rows.jsonl"), lb.Corpus("llama/rows.jsonl")), objective=lb.JSD(0.5)),
        "data llama/rows.jsonl", "llama3",
    ),
    "writer": (lambda: recipe(source=TeacherSamples("free/rows.jsonl", lb.Local("llama"))), "model llama", "llama3"),
    "a writer's prompts": (lambda: recipe(source=TeacherSamples("llama/rows.jsonl", lb.Local("free"))), "data llama/rows.jsonl", "llama3"),
    "a writer's judge": (
        lambda: recipe(source=TeacherSamples("free/rows.jsonl", lb.Local("free"), keep="best:1", verifier=Judge(lb.Local("llama")))),
        "model llama", "llama3",
    ),
    "judge": (lambda: judged(Judge(lb.Local("llama"))), "model llama", "llama3"),
    "reward model": (lambda: judged(RewardModel("bare")), "model bare", "unknown licence of bare"),
    "a judge of OpenAI's": (lambda: judged(Judge(OPENAI)), "provider api.openai.com", "terms of OpenAI"),
    "a source of one's own": (lambda: recipe(source=CustomSource("json:loads")), "data json:loads", "unknown licence of json:loads"),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPPED)
def test_what_may_not_be_learnt_from_stops_in_one_line_before_anything_is_made(case: str, tmp_path, monkeypatch) -> None:
    make, of, name = STOPPED[case]
    monkeypatch.setattr(lb.Recipe, "open_pair", lambda self: pytest.fail("a model was opened"))
    with pytest.raises(RecipeError) as stop:
        lb.distill(make(), tmp_path / "run")
    assert str(stop.value).startswith(f"training on {of} was asked for, and ") and "\n" not in str(stop.value)
    assert f'set accept_license: "{name}" in the recipe (--accept-license "{name}")' in str(stop.value)
    assert not (tmp_path / "run").exists()
    accepted = replace(make(), accept_license=[name])
    assert name in {each.name for found in licences_of(tmp_path / "run", accepted).values() for each in found}
    assert lb.Recipe.of(lb.config.plain(accepted)) == accepted


FREE: dict[str, Callable[[], lb.Recipe]] = {
    "all permit": lambda: recipe(lb.Local("free")),
    "a base that forbids": lambda: recipe(lb.Local("free"), student="llama"),
    "a base that says nothing": lambda: recipe(student="bare"),
    "the student without adapters": lambda: replace(
        recipe(lb.Local("@student")), student=lb.Student("llama", dtype="float32", lora=lb.LoRA(2)), objective=lb.ForwardKL()
    ),
    "a source of one's own": lambda: recipe(source=CustomSource("free.own_rows:rows")),
    "held-out text": lambda: recipe(evaluations=[lb.Likelihood("llama/rows.jsonl")]),
    "a rule": lambda: judged(lb.verifiers.Number()),
}


@pytest.mark.parametrize("case", FREE)
def test_what_stops_nothing(case: str, tmp_path) -> None:
    found = licences_of(tmp_path, FREE[case]())
    assert {each.name for role in ("teacher", "source") for each in found[role]} <= {"mit"}


def test_one_name_or_several_in_every_spelling(tmp_path) -> None:
    assert recipe(accept_license="llama3") == recipe(accept_license=["llama3"])
    planned = cli._planned("sft", ["accept_license=llama3"], ["terms of OpenAI", "llama3"], student="free", data="free/rows.jsonl")
    assert planned.accept_license == ["llama3", "terms of OpenAI"]
    (tmp_path / "recipe.yaml").write_text(recipe().yaml.replace("accept_license: []", "accept_license: llama3"))
    assert cli._planned(str(tmp_path / "recipe.yaml"), None, ["mit"]).accept_license == ["llama3", "mit"]
    with pytest.raises(RecipeError, match="accept_license"):
        recipe(accept_license=3)


def test_provenance_and_card_say_them_and_a_student_of_the_student_still_does(tmp_path) -> None:
    first = recipe(lb.Local("llama", dtype="float32"), lb.Corpus("bare/rows.jsonl", sequences=2), accept_license=["llama3"])
    with pytest.raises(RecipeError, match=r"no licence of it was found: no README.md .* put a README.md there .* set accept_license: "):
        lb.distill(first, tmp_path / "run")
    first = replace(first, accept_license=["llama3", "unknown licence of bare/rows.jsonl"])
    lb.distill(first, tmp_path / "run")
    told = read_json(tmp_path / "run" / "provenance.json")["licences"]
    assert {role: [each["name"] for each in found] for role, found in told.items()} == {
        "student": ["mit"], "teacher": ["llama3"], "source": ["unknown licence of bare/rows.jsonl"],
    }  # fmt: skip
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "license: mit\n" in card.split("---")[1] and "## Licences" in card and "| model llama | [llama3](https://" in card
    student = str(tmp_path / "run" / "student")
    assert [each.name for each in of_model(student)] == ["mit", "llama3", "unknown licence of bare/rows.jsonl"]

    second = recipe(lb.Local(student, dtype="float32"), student="bare")
    with pytest.raises(RecipeError, match="training on model llama was asked for, and it is under llama3"):
        lb.distill(second, tmp_path / "second")
    lb.distill(replace(second, accept_license=first.accept_license), tmp_path / "second")
    assert [each.name for each in of_model(str(tmp_path / "second" / "student"))] == [
        "unknown licence of bare", "mit", *first.accept_license, "mit",
    ]  # fmt: skip
    third = lb.distill(recipe(student=str(tmp_path / "second" / "student")), tmp_path / "third")  # on top of it: nothing stops, all is carried on
    assert third and "llama3" in {each.name for each in of_model(str(tmp_path / "third" / "student"))}


def test_a_run_that_goes_on_asks_nobody_again(tmp_path, monkeypatch) -> None:
    made = recipe(lb.Local("free", dtype="float32"), student="llama")
    lb.distill(replace(made, steps=1), tmp_path / "run")
    monkeypatch.setattr(lb.Recipe, "licences", property(lambda self: pytest.fail("they were looked up again")))
    lb.distill(made, tmp_path / "run")


def test_a_home_folder_is_accepted_in_either_spelling(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    toys.jsonl(tmp_path / "rows.jsonl", toys.rows(2))
    (tmp_path / "README.md").unlink()
    for path in ("~/rows.jsonl", str(tmp_path / "rows.jsonl")):
        for name in ("~/rows.jsonl", str(tmp_path / "rows.jsonl")):
            gate(of_data(path), f"unknown licence of {name}")


def test_a_cache_carries_its_teachers_licences(tmp_path) -> None:
    shutil.copytree("llama", tmp_path / "teacher")
    annotate(Annotation(lb.Local(str(tmp_path / "teacher"), dtype="float32"), lb.Data("free/rows.jsonl")), tmp_path / "scores")
    shutil.rmtree(tmp_path / "teacher")
    scored = recipe(lb.Cached(str(tmp_path / "scores")))
    assert [each.name for each in scored.teacher.licences] == ["llama3"]
    with pytest.raises(RecipeError, match="it is under llama3"):
        lb.distill(scored, tmp_path / "run")
    lb.distill(replace(scored, accept_license="llama3"), tmp_path / "run")


def test_a_cache_of_a_teacher_without_a_card_takes_one_that_came_later(tmp_path) -> None:
    shutil.copytree("bare", tmp_path / "teacher")
    teacher = lb.Local(str(tmp_path / "teacher"), dtype="float32")
    annotate(Annotation(teacher, lb.Data("free/rows.jsonl")), tmp_path / "scores")
    manifest = Manifest.read(tmp_path / "scores")
    assert [each["permits"] for each in manifest.licences] == ["unknown"]
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert [each.name for each in lb.Cached(str(tmp_path / "scores")).licences] == ["mit"]
    annotate(Annotation(teacher, lb.Data("free/rows.jsonl")), tmp_path / "scores")
    assert [each["name"] for each in Manifest.read(tmp_path / "scores").licences] == ["mit"]
    assert replace(manifest, licences=[]).identity == manifest.identity  # rows annotated before are found
    replace(manifest, licences=[]).write(tmp_path / "scores")
    shutil.rmtree(tmp_path / "teacher")
    (found,) = lb.Cached(str(tmp_path / "scores")).licences
    assert (found.permits, found.name) == ("unknown", f"unknown licence of {tmp_path / 'teacher'}")


def test_the_command_line(made, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["limbeck", "check", "kd", "--student", "free", "--teacher", "llama", "--data", "free/rows.jsonl", "--quick"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("limbeck: training on model llama was asked for, and it is under llama3 (README.md)")


def test_the_quickstart_asks_first_and_is_under_what_its_teacher_is_under(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree("llama", tmp_path / "teacher")
    with pytest.raises(RecipeError, match="it is under llama3"):
        quickstart.quickstart(tmp_path / "run", str(tmp_path / "teacher"), layers=1, minutes=1, steps=2, prompts=4)
    assert not (tmp_path / "cache").exists()
    assert [each.name for each in of_data(str(tmp_path / "run" / "prompts.jsonl"))] == ["apache-2.0"]
    gguf = quickstart.packaged_teacher()
    assert [each.name for each in of_model(str(gguf))] == ["apache-2.0"]


def test_the_table_names_what_a_base_without_adaptations_obliges_to() -> None:
    table = json.loads((licences.ASSETS / "terms.json").read_text())
    for name in ("cc-by-nd-4.0", "cc-by-nc-nd-4.0"):
        entry = next(each for each in table["licences"] if name in each["ids"])
        assert "are not given to others" in entry["obliges"]
