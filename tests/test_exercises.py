"""The textbook's exercises with real names: each file is read, says what it is to compare, and can be read back. No network."""

import re
from pathlib import Path

import pytest

from limbeck.config import plain
from limbeck.pipeline import Pipeline, plan_of, read_plan
from limbeck.settings_file import parsed_yaml
from limbeck.sweep import points

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "recipes").glob("exercise-*.yaml"))
STAGES = {
    "exercise-1": ["scratch", "fine-tuned", "distilled", "scratch-distilled"],
    "exercise-2": ["synthetic", "human", "half"],
    "exercise-3": [],
    "exercise-4": ["generation-0", "generation-1", "generation-2", "generation-3", "again", "longer"],
    "exercise-5": ["text", "text-twice", "one-step", "one-step-twice", "assistant", "by-assistant"],
}


def test_there_are_five() -> None:
    assert [path.stem for path in FILES] == list(STAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_read_with_its_stages_and_back(path: Path) -> None:
    plan = read_plan(path, [])
    assert (list(plan.stages) if isinstance(plan, Pipeline) else []) == STAGES[path.stem]
    assert plan_of(parsed_yaml(plan.yaml)) == plan


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_measures_held_out_text_and_says_its_command(path: Path) -> None:
    plan = read_plan(path, [])
    recipes = list(plan.stages.values()) if isinstance(plan, Pipeline) else [plan]
    assert all(recipe.evaluations for recipe in recipes)
    assert f"limbeck distill recipes/{path.name} " in path.read_text()


def test_students_of_one_comparison_take_the_same_text() -> None:
    for path in (ROOT / "recipes" / f"exercise-{number}.yaml" for number in (1, 4, 5)):
        plan = read_plan(path, [])
        assert isinstance(plan, Pipeline)
        assert len({repr(recipe.source) for recipe in plan.stages.values()}) == 1


def test_the_sweeps_in_the_comments_are_sweeps() -> None:
    path = ROOT / "recipes" / "exercise-3.yaml"
    commands = [line for line in path.read_text().splitlines() if "--sweep" in line]
    made = [points(re.findall(r"--sweep (\S+)", line), lambda assignments: read_plan(path, assignments)) for line in commands]
    assert [len(each) for each in made] == [5, 10]
    temperatures = [plain(each.plan)["objective"]["temperature"] for each in made[0]]
    assert temperatures == [1, 2, 4, 10, 20]
