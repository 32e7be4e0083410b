"""Who is measured: the student of a run before and after, baselines of the same budget, and the teacher by whom they are judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from limbeck.config import plain
from limbeck.errors import CheckpointError, RecipeError
from limbeck.storage import here
from limbeck.student import Student
from limbeck.teachers import Local, Silent, Teacher
from limbeck.transfer.baselines import BASELINES, baseline

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

BEFORE, AFTER, STUDENT, TEACHER = "before", "after", "student", "teacher"
UNTAUGHT = (BEFORE, *BASELINES)
"""Students that nobody distilled; of many runs with the run's name and ": " before it."""
OF_STUDENT = ("Itself", "Average")
"""Teachers that are the student itself, as it was or is while it learns."""


@dataclass
class Subjects:
    """Students by name, in the order in which they are shown, their teacher, and what could not be had, in words."""

    students: dict[str, Student]
    teacher: Teacher
    missing: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Who:
    """Who is measured, as a command line says it: see `asked_for`."""

    runs: Sequence[Path]
    student: str | None
    teacher: str | None
    baselines: bool = False

    def subjects(self) -> Subjects:
        """Themselves; baselines are trained."""
        return asked_for(self.runs, self.student, self.teacher, self.baselines)


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
    runs = [here(run) for run in runs]
    recipes = {run: read_run(run) for run in runs}
    names = _names(runs)
    found = Subjects({}, teacher or Silent())
    if teacher is None:
        found.teacher, found.missing = _judge(recipes)
    for run, recipe in recipes.items():
        before, after = (BEFORE, AFTER) if len(runs) == 1 else (f"{names[run]}: before", names[run])
        if not any(each.model == recipe.student.model for name, each in found.students.items() if name.endswith(BEFORE)):
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


def _judge(recipes: "dict[Path, Recipe]") -> tuple[Teacher, list[str]]:
    """The one teacher of all runs that have one, and what is missing of it. Raises RecipeError where they have several."""
    teachers = {run: _apart(recipe) for run, recipe in recipes.items() if not isinstance(recipe.teacher, Silent)}
    if len({str(plain(each)) for each in teachers.values()}) > 1:
        named = ", ".join(f"{run}: {each.name}" for run, each in teachers.items())
        raise RecipeError(f"the runs have teachers of their own ({named}), and figures beside different teachers do not compare; give one: --teacher")
    judge = next(iter(teachers.values()), Silent())
    if not _is_of_student(plain(judge)):
        return judge, []
    return Silent(), [f"{judge.name} is the student itself while it learns, and would judge each student by itself; give a teacher with --teacher"]


def _apart(recipe: "Recipe") -> Teacher:
    """A run's teacher; the student without its adapters is a model by itself, which is the same beside every student."""
    teacher, student = recipe.teacher, recipe.student
    if not isinstance(teacher, Local) or teacher.model != "@student":
        return teacher
    return Local(student.model, student.dtype, student.attention, student.quantization, student.trust_remote_code)


def _is_of_student(settings: Any) -> bool:
    """Whether the plain data of a teacher names the student, wherever in it."""
    if isinstance(settings, dict):
        return settings.get("type") in OF_STUDENT or any(map(_is_of_student, settings.values()))
    return any(map(_is_of_student, settings)) if isinstance(settings, list) else settings == "@student"


def is_taught(who: str) -> bool:
    """Whether somebody distilled a student, by its name."""
    return who.rpartition(": ")[2] not in UNTAUGHT


def beside(who: str, names: Sequence[str], kind: str) -> str | None:
    """The student of a kind ("before", "fine-tuned") that one is measured beside: its own, or the one "before" that all runs share."""
    own = kind if kind in names else f"{who}: {kind}"
    if own in names:
        return own
    shared = [name for name in names if name.endswith(f": {kind}")] if kind == BEFORE else []
    return shared[0] if len(shared) == 1 else None


def file_name(who: str) -> str:
    """A name as files have it; no two are alike."""
    return quote(who, safe=" ()")
