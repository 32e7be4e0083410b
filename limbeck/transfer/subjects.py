"""Who is measured: the student of a run before and after, baselines of the same budget, and the teacher by whom they are judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.config import plain
from limbeck.errors import CheckpointError, RecipeError
from limbeck.student import Student
from limbeck.teachers import Silent, Teacher
from limbeck.transfer.baselines import BASELINES, baseline

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

BEFORE, AFTER, STUDENT, TEACHER = "before", "after", "student", "teacher"


@dataclass
class Subjects:
    """Students by name, in the order in which they are shown, their teacher, and what could not be had, in words."""

    students: dict[str, Student]
    teacher: Teacher
    missing: list[str] = field(default_factory=list[str])


def asked_for(runs: Sequence[Path], student: str | None, teacher: str | None, baselines: bool) -> Subjects:
    """What a command line asks for: runs, or a student. Raises RecipeError where it is neither or both."""
    from limbeck.methods import scorer

    judge = scorer(teacher) if teacher else None
    if bool(runs) == bool(student):
        found = "both" if student else "neither"
        raise RecipeError(f"run folders or --student say who is measured; found {found}; give one of them")
    if student is None:
        return of_runs(runs, judge, baselines)
    if baselines:
        raise RecipeError("baselines learn what a run learnt from, and --student names none; give its run folder")
    return Subjects({STUDENT: Student(student)}, judge or Silent())


def of_runs(runs: Sequence[Path], teacher: Teacher | None, baselines: bool) -> Subjects:
    """The students of run folders. With one run they are "before" and "after"; with several each is named after its folder.

    teacher: judges all of them; by default the runs' own, which must then be one. baselines: train, below each run, the same student
    from the same start and from nothing on the run's text alone. Raises CheckpointError for folders that are no runs.
    """
    recipes = {run: read_run(run) for run in runs}
    names = _names(runs)
    found = Subjects({}, teacher or _judge(recipes))
    for run, recipe in recipes.items():
        before, after = (BEFORE, AFTER) if len(runs) == 1 else (f"{names[run]}: before", names[run])
        if not any(each.model == recipe.student.model for each in found.students.values()):
            found.students[before] = recipe.student
        if (run / "student").is_dir():
            found.students[after] = replace(recipe.student, model=str(run / "student"), lora=None)
        else:
            found.missing.append(f"{run} has no student yet: it is still going on, or was stopped; the command that made it goes on")
        if baselines:
            _add_baselines(found, run, recipe, "" if len(runs) == 1 else f"{names[run]}: ")
    if not baselines:
        found.missing.append("no baselines: ask for them with --baselines, which trains the same student on the run's text alone")
    return found


def _add_baselines(found: Subjects, run: Path, recipe: "Recipe", prefix: str) -> None:
    from limbeck.train import distill

    for name in BASELINES:
        asked = baseline(name, recipe, run.resolve() / "baselines")
        if isinstance(asked, str):
            found.missing.append(f"{prefix}{name}: {asked}")
            continue
        distill(asked, run / "baselines" / name)
        found.students[f"{prefix}{name}"] = replace(recipe.student, model=str(run / "baselines" / name / "student"), lora=None)


def read_run(run: Path) -> "Recipe":
    """The recipe of a run folder. Raises CheckpointError for a folder that is none."""
    from limbeck.recipe import Recipe

    if (run / "recipe.yaml").is_file():
        return Recipe.read(run / "recipe.yaml")
    if (run / "pipeline.yaml").is_file():
        stages = sorted(each.parent.name for each in run.glob("*/recipe.yaml"))
        raise CheckpointError(f"{run} is a pipeline of stages; give those that are to be measured: {', '.join(str(run / each) for each in stages)}")
    found = "a folder without recipe.yaml" if run.is_dir() else "a file" if run.exists() else "nothing"
    raise CheckpointError(f"{run} is no run folder: found {found}; give the --out of a distillation")


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """The folder's own name, or the whole path where two are called the same."""
    short = [run.resolve().name for run in runs]
    return {run: name if short.count(name) == 1 else str(run) for run, name in zip(runs, short, strict=True)}


def _judge(recipes: "dict[Path, Recipe]") -> Teacher:
    """The one teacher of all runs that have one. Raises RecipeError where they have several."""
    teachers = {run: recipe.teacher for run, recipe in recipes.items() if not isinstance(recipe.teacher, Silent)}
    if len({str(plain(each)) for each in teachers.values()}) > 1:
        named = ", ".join(f"{run}: {each.name}" for run, each in teachers.items())
        raise RecipeError(f"the runs have teachers of their own ({named}), and figures beside different teachers do not compare; give one: --teacher")
    return next(iter(teachers.values()), Silent())
