"""Plans: every named method without a weight read, prices against hand counts, refusals, what is measured and what is not known."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import toys
from plans import kd, made, scene, wanted

from limbeck import cli, kinds, models
from limbeck.anatomy import anatomy
from limbeck.errors import RecipeError
from limbeck.files import write_json, write_text
from limbeck.methods import METHODS
from limbeck.planning import roofline
from limbeck.planning.asked import Asked, AskedMachine, planned, table, words
from limbeck.planning.candidates import CACHE, WRITTEN, candidates
from limbeck.planning.costs import Costs, Models, misfit, work_of
from limbeck.planning.picture import picture
from limbeck.planning.plan import Assumed, Price, payback, plan, quality_of
from limbeck.planning.roofline import Machine, published
from limbeck.sources import Corpus
from limbeck.student import Student
from limbeck.teachers import Local


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("home"))


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may open a model."""

    def refuse(*given: Any, **more: Any) -> Any:
        raise AssertionError("a plan reads no weights")

    monkeypatch.setattr(models, "open_model", refuse)
    monkeypatch.setattr(kinds, "open_kind", refuse)


# Plans


@pytest.mark.parametrize("name", [*METHODS, CACHE, WRITTEN])
def test_every_method_is_planned_without_a_weight_read(name: str, home: Path, blind: None) -> None:
    found = [each for each in candidates(wanted(home)) if each.name == name]
    assert len(found) == 1
    if name == "distilbert":
        assert found[0].why_not == "it hides tokens from a masked model, and the student is none; take kd"
        return
    made = plan(found, published("h100", 2, usd_hour=6.0))
    costs = made.rows[0].costs
    assert costs is not None and made.rows[0].possible
    assert min(costs.flops, costs.total_seconds, costs.disk_bytes, sum(costs.memory_bytes.values())) > 0
    assert costs.usd == pytest.approx(6.0 * costs.total_seconds / 3600)
    assert ("beforehand" in costs.seconds) == (name in (CACHE, WRITTEN))
    assert json.loads(json.dumps(made.as_plain()))["candidates"][0]["name"] == name


def test_memory_is_that_of_check_with_the_text_that_is_drawn(home: Path, blind: None) -> None:
    found = [each for each in candidates(wanted(home)) if each.name == "kd"]
    row = plan(found, published("h100", 1)).rows[0]
    costs = row.costs
    assert costs is not None and row.work is not None
    passes = [part for draw in row.work.draws for part in draw.batch.split(2048)]
    largest = max(len(part) * int(part.lengths_B.max()) for part in passes)
    weights = anatomy("s", home / "student").parameters_total
    teacher = anatomy("t", home / "teacher").parameters_total
    layer = 24 * 32 + 2 * (10 * 32 + 4 * 64)
    chunks = 2 * (512 + 192) * 272 * 2
    assert costs.memory_bytes == {
        "student": (4 + 2) * weights, "gradients": 4 * weights, "moments": 8 * weights, "teacher": 2 * teacher,
        "a pass": largest * (2 + 1) * layer + 4 * 272 * 32 + chunks, "program": 600_000_000,
    }  # fmt: skip


def test_a_cache_leaves_the_teacher_out_of_the_run_and_takes_settings(home: Path, blind: None) -> None:
    found = [each for each in candidates(wanted(home, settings=["steps=3", "source.sequences=2"])) if each.name in (CACHE, "kd")]
    rows = {row.candidate.name: row for row in plan(found, published("h100", 1)).rows}
    kept, live = rows[CACHE].costs, rows["kd"].costs
    assert kept is not None and live is not None and kept.steps == live.steps == 3
    assert "score" in live.seconds and kept.seconds["score"] < live.seconds["score"] and kept.seconds["beforehand"] > 0
    assert "teacher" in live.memory_bytes and "teacher" not in kept.memory_bytes


def test_the_advice_begins_with_the_simple_and_names_a_price(home: Path, blind: None) -> None:
    made = plan(candidates(wanted(home)), published("h100", 1))
    assert [each["take"] for each in made.advice] == ["sft", made.advice[1]["take"], "on_policy"]
    assert made.advice[1]["take"] in ("kd", CACHE)
    assert "40 rows are few" in made.advice[2]["why"] and "times the time of kd" in made.advice[2]["why"]
    assert len(table(made)) == sum(row.costs is not None for row in made.rows) == len(METHODS) + 1
    said = "\n".join(words(made))
    assert "an estimate: published peaks" in said and "assumed: answers of 128 tokens, their limit" in said and "quality is not known" in said


def test_a_server_is_priced_by_its_tokens(home: Path, blind: None) -> None:
    asked = Asked(teacher="great", student=str(home / "student"), data=str(home / "train.jsonl"), usd_in=2.0, usd_out=8.0)
    made = planned(asked, AskedMachine("h100", 1, usd_hour=3.6), Assumed(answer_tokens=50))
    rows = {row.candidate.name: row for row in made.rows}
    costs = rows[WRITTEN].costs
    assert costs is not None
    prompts = sum(len(scene(kd(home)).vocabulary.prompt(row, Corpus(str(home / "train.jsonl")).data[0])) for row in toys.rows(40))
    assert costs.api_usd == pytest.approx((2 * prompts + 8 * 40 * 50) / 1e6)
    assert costs.usd == pytest.approx(costs.api_usd + costs.total_seconds * 0.001)
    assert made.prices[1] == Price("great", None, 8e-6)
    paid = made.paid(rows[WRITTEN])
    assert paid is not None and made.prices[0].usd is not None and paid.tokens == pytest.approx(costs.usd / (8e-6 - made.prices[0].usd))
    assert "needs a --teacher whose weights are here" in str(rows[CACHE].why_not)
    assert "ReverseKL needs a teacher that says distribution" in str(rows["on_policy"].why_not)


def costing(usd: float | None, seconds: float, api: float = 0.0) -> Costs:
    return Costs({}, {"learn": seconds}, 0, 0, {}, 0, api, usd, 1, 0, [])


def test_distilling_pays_for_itself_after_its_cost_over_what_a_token_is_cheaper() -> None:
    assert payback(costing(30.0, 1), Price("t", None, 4e-6), Price("s", 1.0, 1e-6)).tokens == pytest.approx(1e7)
    in_seconds = payback(costing(None, 600), Price("t", 0.05, None), Price("s", 0.02, None))
    assert in_seconds.tokens == pytest.approx(20_000) and "seconds of this machine" in str(in_seconds)
    never = payback(costing(30.0, 1), Price("t", None, 1e-6), Price("s", 1.0, 1e-6))
    assert never.tokens is None and str(never).startswith("never: ")
    unknown = payback(costing(None, 1, api=3.0), Price("t", None, 4e-6), Price("s", 1.0, None))
    assert unknown.tokens is None and "--usd-hour" in str(unknown)


# Refusals


def small(room: float) -> Machine:
    return replace(published("h100", 1), memory_bytes=room)


def test_what_does_not_fit_is_refused_in_one_line_with_what_would(home: Path, blind: None) -> None:
    found = [each for each in candidates(wanted(home)) if each.name == "kd"]
    whole = plan(found, published("h100", 1)).rows[0].costs
    assert whole is not None
    total = sum(whole.memory_bytes.values())
    with pytest.raises(RecipeError) as refused:
        plan(found, small(total - 2e6))
    assert str(refused.value).endswith("it fits with tokens_per_pass: 512") and "\n" not in str(refused.value)
    with pytest.raises(RecipeError, match=r"kd does not fit: it takes .* GB of memory .* the teacher alone fills it"):
        plan(found, small(5e8))
    recipe = kd(home)
    told = scene(recipe)
    work = work_of(told)
    full = replace(whole, disk_bytes=5e9)
    assert "disk" in str(misfit(told, full, work, replace(small(1e12), disk_bytes=1e9), Models(True)))
    assert misfit(told, full, work, small(1e12), Models(True)) is None


@pytest.mark.parametrize(
    "asked, says",
    [
        ({}, "a plan needs --student and --data"),
        ({"what": "kdd", "student": "s", "data": "d"}, 'there is no method "kdd"; did you mean "kd"'),
        ({"teacher": "https://host/v1", "student": "s", "data": "d"}, "which model of https://host/v1? give --model"),
        ({"what": "a.yaml", "student": "s"}, "--student goes with no recipe's file"),
    ],
)
def test_what_says_too_little_is_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says.replace("?", r"\?")):
        Asked(**asked).candidates()


def test_machines_that_nobody_knows_are_refused() -> None:
    with pytest.raises(RecipeError, match=r'no published numbers of the GPU "h101"; did you mean "h100"'):
        published("h101", 1)
    for wrong in ({"gpu": "h100", "gpus": 0}, {"gpus": 2}, {"usd_hour": -1.0}):
        with pytest.raises(RecipeError):
            AskedMachine(**wrong).found()
    with pytest.raises(RecipeError, match="a share, from 0 to 1"):
        Assumed(accepted=1.2)
    assert set(json.loads(roofline.MACHINES.read_text())["gpus"]) >= {"h100", "a100"}


def test_another_vocabulary_leaves_what_crosses_it(home: Path, tmp_path: Path, blind: None) -> None:
    toys.network("llama", 3).save_pretrained(tmp_path / "other")
    other = toys.tokenizer()
    other.add_tokens(["<another>"])
    other.save_pretrained(tmp_path / "other")
    made = plan(candidates(wanted(home, teacher=str(tmp_path / "other"))), published("l4", 1))
    rows = {row.candidate.name: row for row in made.rows}
    assert rows[CACHE].costs is None and rows["kd"].costs is None and "teach across vocabularies" in str(rows["kd"].why_not)
    assert rows[WRITTEN].possible and rows["alm"].possible and made.advice[1]["take"] == WRITTEN


# Quality, files, the command


def a_run(path: Path, value: float) -> Path:
    write_json(
        path / "evaluations.json",
        {"0": {"held": {"kl_nats": 9.0}}, "5": {"held": {"kl_nats": value, "kl_nats_interval": [value - 0.1, value + 0.1]}}},
    )
    write_text(path / "timings.jsonl", '{"step": 1, "seconds": 2.0}\n{"step": 2, "seconds": 3.5}\n')
    write_text(path / "recipe.yaml", "student: {model: s}\n")
    return path


def test_quality_is_measured_by_runs_or_not_known(home: Path, tmp_path: Path, blind: None) -> None:
    run = a_run(tmp_path / "kd-run", 0.5)
    found = quality_of(run)
    assert (found["figure"], found["value"], found["interval"], found["seconds"]) == ("kl_nats", 0.5, [0.4, 0.6], 5.5)
    (tmp_path / "none").mkdir()
    with pytest.raises(RecipeError, match="has no evaluations"):
        quality_of(tmp_path / "none")
    without = plan(candidates(wanted(home)), published("h100", 1))
    with_runs = plan(candidates(wanted(home)), published("h100", 1), runs=[run])
    texts = [[each.text for each in ElementTree.fromstring(picture(made)).iter() if each.text] for made in (without, with_runs)]
    assert "Price; quality is not known: give --runs" in texts[0] and "kd-run" not in texts[0]
    assert "kd-run" in texts[1] and "kl_nats" in texts[1] and "as planned, quality not known" in texts[1]


def test_the_command_prints_json_and_keeps_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, blind: None) -> None:
    monkeypatch.chdir(home)
    recipe = replace(kd(home), student=Student("student"), source=Corpus("train.jsonl", 4), teacher=Local("teacher"))
    write_text(tmp_path / "mine.yaml", recipe.yaml)
    monkeypatch.setattr(
        sys, "argv", ["limbeck", "plan", str(tmp_path / "mine.yaml"), "--gpu", "a100", "--set", "steps=7", "--json", "--out", str(tmp_path / "p")]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
        sys.exit(0)
    printed = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and printed["candidates"][0]["name"] == "mine" and printed["candidates"][0]["costs"]["steps"] == 7
    assert json.loads((tmp_path / "p" / "plan.json").read_text()) == printed and (tmp_path / "p" / "plan.svg").read_text().startswith("<svg")
