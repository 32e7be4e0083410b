"""Everything about stages that can be refused or foreseen before the first of them costs anything."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from limbeck.check import check
from limbeck.check_lines import Line
from limbeck.config import plain
from limbeck.errors import LimbeckError
from limbeck.pipeline import Pipeline, Plan, with_students
from limbeck.recipe import Recipe
from limbeck.stages import see_folder, see_licences


def check_plan(plan: Plan, out: Path, quick: bool = False) -> list[Line]:
    """Look at a recipe, or at every stage of a pipeline; opens models, and trains and writes nothing.

    Where a stage names a student that is not there yet, the model from which that one starts stands in its place.
    """
    if isinstance(plan, Recipe):
        return check(plan, out, quick)
    lines = _problem("stages", partial(see_folder, plan, out))
    for name in plan.stages:
        found = _problem("licences", partial(see_licences, plan, name, out)) + _stage(plan, name, out, quick)
        lines += [replace(line, what=f"{name}: {line.what}") for line in found]
    return lines


def _problem(what: str, look: Callable[[], None]) -> list[Line]:
    """A line where something is refused."""
    try:
        look()
    except LimbeckError as error:
        return [Line(what, str(error), "problem")]
    return []


def _stage(pipeline: Pipeline, name: str, out: Path, quick: bool) -> list[Line]:
    missing = [other for other in pipeline.asked(name) if not (out / other / "student").exists()]
    if not missing:
        return check(pipeline.recipe(name, out), out / name, quick)
    others = " and ".join(missing)
    if _start(pipeline, name) in [_start(pipeline, other) for other in pipeline.asked(name, "teacher") if other in missing]:
        return [Line("recipe", f"begins where {others} began, and is taught by what comes of it; looked at once that is there", "note")]
    recipe = Recipe.of(with_students(plain(pipeline.stages[name]), lambda other: _start(pipeline, other)))
    return [Line("students", f"as if {others} had learnt nothing yet", "note"), *check(recipe, out / name, quick)]


def _start(pipeline: Pipeline, name: str) -> str:
    """The model from which a stage's student starts, or the one from which that was made."""
    model = pipeline.stages[name].student.model
    return _start(pipeline, model[1:]) if model.startswith("@") else model
