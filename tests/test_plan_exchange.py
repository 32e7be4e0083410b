"""Several GPUs: what they say to each other, what each holds, and runs that others published."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import toys
from plans import actor, by_hand, kd, made, scene, wanted

from limbeck.errors import RecipeError
from limbeck.planning.asked import Asked, AskedMachine, planned, where, words
from limbeck.planning.candidates import candidates
from limbeck.planning.costs import Models, costs_memory, misfit, work_of
from limbeck.planning.exchange import exchanged
from limbeck.planning.flops import body_weights
from limbeck.planning.others import beside
from limbeck.planning.plan import Assumed, plan
from limbeck.planning.roofline import published
from limbeck.planning.work import Learning, Reading, Stepping, Writing
from limbeck.student import Student


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("home"))


def test_bytes_by_hand(home: Path) -> None:
    """Copies average their gradients once; shares are gathered twice, embedding and head once, and gradients are scattered."""
    student, teacher = actor(home, Student("s")), replace(actor(home), width=2)
    layers, whole = body_weights(student.anatomy), student.anatomy.parameters_total
    step = [Reading("score", teacher, 2, 8), Learning("learn", student, 2, 8), Learning("learn", student, 2, 8), Writing("write", student, 2, 4, 8)]
    copies = exchanged(step, student, by_hand(ranks=4, link_bytes_per_second=1e6), {})
    assert {stage: each.bytes for stage, each in copies.items()} == {"learn": pytest.approx(3 / 4 * 8 * whole)}
    shares = exchanged(step, student, by_hand(ranks=4, sharded=True, link_bytes_per_second=1e6), {"learn": 0.5, "write": 9.0})
    rest = whole - layers
    assert shares["score"].bytes == pytest.approx(3 / 4 * 2 * whole)
    assert shares["learn"].bytes == pytest.approx(2 * 3 / 4 * (2 * 4 * layers + 4 * rest + 4 * whole))
    assert shares["write"].bytes == pytest.approx(3 / 4 * 4 * whole) and shares["write"].hidden_seconds == 0
    assert shares["learn"].waited_seconds == pytest.approx(max(0.0, shares["learn"].bytes / 1e6 - 0.5))
    assert exchanged(step, student, by_hand(), {}) == {}


def test_a_fast_link_is_waited_for_by_nobody(home: Path) -> None:
    found = [each for each in candidates(wanted(home)) if each.name == "kd"]
    slow, fast = (plan(found, replace(published("h100", 4, sharded=True), link_bytes_per_second=rate)).rows[0].costs for rate in (1e3, math.inf))
    assert slow is not None and fast is not None
    assert fast.step_seconds["exchange"] == 0 and slow.step_seconds["exchange"] > 1
    assert slow.step_seconds["learn"] == fast.step_seconds["learn"] and slow.total_seconds > fast.total_seconds


def test_shares_of_a_step_and_of_memory(home: Path) -> None:
    recipe, models = kd(home), Models(narrow=True)
    told = scene(recipe, ranks=4)
    work = work_of(told)
    copies, shares = (costs_memory(work, told, models, published("h100", 4, sharded=sharded)) for sharded in (False, True))
    for part in ("gradients", "moments", "teacher"):
        assert shares[part] == copies[part] // 4
    assert shares["student"] < copies["student"] / 4 and shares["whole at once"] > 0 and shares["a pass"] == copies["a pass"]
    alone, cut = by_hand(), by_hand(ranks=4, sharded=True)
    stepping = Stepping("step", actor(home, Student("s")))
    assert cut.seconds(stepping) == pytest.approx(alone.seconds(stepping) / 4)


def test_a_quantised_teacher_stays_whole(home: Path) -> None:
    recipe = kd(home)
    recipe = replace(recipe, teacher=replace(recipe.teacher, quantization="4bit"))
    told = scene(recipe, ranks=4)
    copies, shares = (costs_memory(work_of(told), told, Models(True), published("h100", 4, sharded=sharded)) for sharded in (False, True))
    assert shares["teacher"] == copies["teacher"]


def test_what_fits_in_shares_is_told(tmp_path: Path) -> None:
    """Models that are large beside the program itself."""
    home = made(tmp_path)
    for name, seed in (("student", 1), ("teacher", 2)):
        toys.folder(home / name, seed=seed, width=512, layers=8)
    told = scene(kd(home), ranks=8)
    work, models = work_of(told), Models(True)
    whole, shares = (sum(costs_memory(work, told, models, published("h100", 8, sharded=sharded)).values()) for sharded in (False, True))
    assert shares < 0.9 * whole
    machine = replace(published("h100", 8), memory_bytes=(shares + whole) / 2)
    (row,) = plan([each for each in candidates(wanted(home)) if each.name == "kd"], replace(machine, memory_bytes=1e12), Assumed()).rows
    assert row.costs is not None
    assert str(misfit(told, row.costs, work, machine, models)).endswith("it fits with a share of the models on each GPU: --fsdp")


def test_tables_and_words(home: Path) -> None:
    asked = Asked("on_policy", str(home / "teacher"), str(home / "student"), str(home / "train.jsonl"))
    found = planned(asked, AskedMachine("h100", 8, sharded=True), Assumed(answer_tokens=8))
    (seconds, lines), (memory, sizes) = where(found)
    assert {"write", "score", "learn", "exchange", "step"} <= set(seconds) and memory[0] == "GB of a GPU" and "whole at once" in memory
    assert len(lines[0]) == len(seconds) and len(sizes[0]) == len(memory)
    assert sum("published: torchtitan" in line for line in words(found)) == len(beside())
    assert "link 70%" in words(found)[0]
    for wrong in ({"gpu": "h100", "sharded": True}, {"gpu": "h100", "gpus": 1, "sharded": True}):
        with pytest.raises(RecipeError, match="--fsdp shares the models out to several GPUs, found 1; give --gpus 2 or more"):
            AskedMachine(**wrong)


def test_published_runs_lie_within_what_is_foretold() -> None:
    """Their authors made about half of the operations again."""
    for run in beside():
        assert run.least < run.published < run.most and abs(run.error) < 0.1
