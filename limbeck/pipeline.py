"""Stages: recipes in a row, in each of which "@name" is the finished student of an earlier one. Plain data: YAML in, YAML out.

All that can be refused is refused when a pipeline is made, before the first stage costs anything.
"""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from limbeck import aligned
from limbeck.config import Part, build, override, part, plain, settings_of, to_yaml
from limbeck.errors import LimbeckError, RecipeError, did_you_mean
from limbeck.licences import Licence, of_model
from limbeck.mixture import Mixture
from limbeck.recipe import Recipe
from limbeck.settings_file import open_settings
from limbeck.sources import Source
from limbeck.teachers import Local, Teacher

ITSELF = "@student"
"""What names the student itself, and no stage."""
TAKEN = ("student", "teacher")
"""Names that mean something else after an "@"."""
GENERATION = "generation"
"""What the stages of a recipe with `generations` are called."""


@part
class Generations(Part):
    """Self-distillation: the stage again and again, each time a fresh copy taught by the one before (born-again networks, arXiv 1805.04770).

    count: how many; the first is taught by the recipe's own teacher. ensemble: the mean of so many of the last ones, as a
    `Mixture`, teaches one more. Each generation starts from the recipe's student and takes the text in an order of its own
    (its seed is one more than that of the one before). Departs: 1) the same start, where the paper draws new weights; name
    another student, or a random one, for that; 2) the paper averages what generations predict, and teaches nobody with it.
    """

    count: int
    ensemble: int = 0

    @classmethod
    def adopt(cls, value: object) -> object:
        """A number may stand for the whole."""
        return cls(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RecipeError(f"generations must be at least 1, found {self.count}")
        if self.ensemble != 0 and not 2 <= self.ensemble <= self.count:
            raise RecipeError(f"an ensemble is of 2 or more of the {self.count} generations, found {self.ensemble}; leave it out for none")

    def stages(self, recipe: Recipe, name: str = GENERATION) -> dict[str, Recipe]:
        """The stages, `name-1` and so on, and `name-ensemble`. Raises RecipeError where a generation cannot teach the next by the objective."""
        if self.count > 1 and not recipe.objective.needs:
            terms = " + ".join(term.name for term in recipe.objective.terms)
            raise RecipeError(f"generations teach each other, and {terms} asks no teacher; give ForwardKL(), or one generation")
        if self.count > 1 and (across := [term.name for term in recipe.objective.terms if term.needs & aligned.SAYS]):
            raise RecipeError(
                f"generations teach each other in one vocabulary, and {across[0]} is for a teacher of another; make that a stage of its own, and "
                "give generations to one after it: teacher: Local('@stage'), objective: ForwardKL()"
            )
        made = {f"{name}-1": recipe}
        for number in range(2, self.count + 1):
            made[f"{name}-{number}"] = replace(recipe, teacher=_taught_by(recipe, f"{name}-{number - 1}"), seed=recipe.seed + number - 1)
        if self.ensemble:
            last = list(made)[-self.ensemble :]
            mean = Mixture({other: _taught_by(recipe, other) for other in last})
            made[f"{name}-ensemble"] = replace(recipe, teacher=mean, seed=recipe.seed + self.count)
        return made


def _taught_by(recipe: Recipe, stage: str) -> Local:
    """The student of a stage as a teacher, opened as the student is."""
    of = recipe.student
    return Local(f"@{stage}", dtype=of.dtype, attention=of.attention, trust_remote_code=of.trust_remote_code)


@part
class Pipeline(Part):
    """Recipes by name, in the order in which they run; "@name" for the model of a student or a teacher is the finished student of that stage.

    In a file, settings beside `stages` hold for each stage that does not say its own, and `generations` in a stage unfolds it.
    """

    stages: dict[str, Recipe]

    def __post_init__(self) -> None:
        if not self.stages:
            raise RecipeError("a pipeline needs at least one stage; give stages: {name: a recipe}")
        for place, name in enumerate(self.stages):
            _check_name(name)
            for other in self.asked(name):
                if other not in list(self.stages)[:place]:
                    raise RecipeError(self._unmet(name, other)).within("stages", name)

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """The pipeline of nested plain data, `generations` unfolded. Raises RecipeError for whatever is wrong with it."""
        made = dict[str, Recipe]()
        for name, stage in _spread(settings).items():
            generations = stage.pop("generations", None)
            with _within(name):
                recipe = build(stage, Recipe)
                unfolded = {name: recipe} if generations is None else build(generations, Generations).stages(recipe, name)
            if twice := made.keys() & unfolded.keys():
                raise RecipeError(f'there are two stages "{min(twice)}", one of them a generation; name them apart')
            made |= unfolded
        return cls(made)

    @property
    def yaml(self) -> str:
        """The whole pipeline, every setting resolved, as YAML."""
        return to_yaml(self)

    def __plain__(self) -> dict[str, Any]:
        """Its stages, without the type that every pipeline has."""
        return {"stages": {name: plain(recipe) for name, recipe in self.stages.items()}}

    @property
    def last(self) -> str:
        """The stage whose student is the pipeline's."""
        return list(self.stages)[-1]

    def asked(self, name: str, *settings: str) -> list[str]:
        """The stages whose students a stage names, in all or in some of its settings."""
        found = dict[str, None]()
        told = plain(self.stages[name])
        with_students([told[each] for each in settings] if settings else told, lambda other: str(found.setdefault(other)))
        return list(found)

    def recipe(self, name: str, out: Path | str) -> Recipe:
        """A stage as it is run: "@other" is the folder of that student below `out`."""
        return Recipe.of(with_students(plain(self.stages[name]), lambda other: str(Path(out) / other / "student")))

    def licences(self, name: str) -> dict[str, list[Licence]]:
        """What a stage will be made of, by role, before anything is: who learns from a stage's student comes under all that this was made of."""
        recipe = self.stages[name]
        known = [] if self.asked(name, "student") else of_model(recipe.student.model)
        own = {"student": known, "teacher": _own(recipe.teacher, Teacher), "source": _own(recipe.source, Source)}
        return {role: list(dict.fromkeys(own[role] + self._inherited(name, role))) for role in own}

    def _inherited(self, name: str, role: str) -> list[Licence]:
        return [each for other in self.asked(name, role) for several in self.licences(other).values() for each in several]

    def _unmet(self, name: str, other: str) -> str:
        """Why a stage cannot have another's student, and what to do."""
        if other not in self.stages:
            others = [each for each in self.stages if each != name]
            return f'stage "{name}" asks for "@{other}", and there is no such stage{did_you_mean(other, others)}'
        if other == name:
            return f'stage "{name}" asks for its own student "@{name}", which is not there before it; name an earlier stage, or a model'
        if circle := self._way(other, name, ()):
            return f"the stages {' -> '.join([name, *circle])} ask for each other in a circle; begin one of them with a model of its own"
        return f'stage "{name}" asks for "@{other}", which comes after it; put "{other}" first'

    def _way(self, start: str, end: str, past: tuple[str, ...]) -> list[str]:
        """From one stage to another along what they ask for; empty where there is no way."""
        if start == end:
            return [end]
        asked = [other for other in self.asked(start) if other in self.stages and other not in past]
        return next(([start, *way] for other in asked if (way := self._way(other, end, (*past, start)))), [])


def _check_name(name: str) -> None:
    """Refuse what can be no stage's name: it is a folder's too."""
    if name in TAKEN:
        meant = "the student itself" if name == "student" else "the recipe's own teacher"
        raise RecipeError(f'no stage may be called "{name}": "@{name}" is {meant}; name it otherwise').within("stages", name)
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise RecipeError(f"the name of a stage is made of letters, digits, - and _, found {name!r}").within("stages", name)


def _own(value: Teacher | Source, base: type[Any]) -> list[Licence]:
    """The licences of a part without the students of stages in it: a student's own words need none."""
    return build(with_students(plain(value), lambda other: ITSELF), base).licences


def with_students(settings: Any, put: Callable[[str], str]) -> Any:
    """Plain data of parts, what `put` gives in the place of each "@name" that stands for a model. A model on a server keeps its name."""
    if isinstance(settings, list):
        return [with_students(each, put) for each in cast(list[Any], settings)]
    if not isinstance(settings, dict):
        return settings
    told, found = cast(dict[str, Any], settings), dict[str, Any]()
    for key, value in told.items():
        named = key == "model" and isinstance(value, str) and value.startswith("@") and value != ITSELF and told.get("type") != "Endpoint"
        found[key] = put(value[1:]) if named else with_students(value, put)
    return found


@contextmanager
def _within(name: str) -> Generator[None]:
    """Name the stage in what is refused inside the block."""
    try:
        yield
    except LimbeckError as error:
        raise error.told_at(f'stage "{name}"').within("stages", name) from None


def _spread(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage with the settings that it shares with others; a recipe with `generations` alone is one stage."""
    shared = {key: value for key, value in settings.items() if key not in ("stages", "type")}
    given = settings.get("stages", {GENERATION: {}})
    if not isinstance(given, dict):
        found = " ".join(repr(given).split())[:80]
        raise RecipeError(f"stages are recipes by name, found {found}; write stages: {{name: a recipe}}").within("stages")
    stages = {str(name): _plain_stage(str(name), own) for name, own in cast(dict[Any, Any], given).items()}
    for key in shared if "stages" in settings else ():
        if key == "generations":
            raise RecipeError("generations belong to one stage, and stand beside stages; put them into it").within(key)
        if key not in settings_of(Recipe):
            raise RecipeError(f'Recipe has no setting "{key}"{did_you_mean(key, settings_of(Recipe))}').within(key)
        if stages and all(key in own for own in stages.values()):
            raise RecipeError(f"{key} beside stages changes nothing, as each says its own; leave it out").within(key)
    return {name: {**shared, **own} for name, own in stages.items()}


def _plain_stage(name: str, own: Any) -> dict[str, Any]:
    if own is not None and not isinstance(own, dict | Recipe):
        raise RecipeError(f'stage "{name}" is to be a recipe, found {own!r}; write its settings as name: value').within("stages", name)
    return dict(plain(own or {}))


# What a file asks for: one recipe, or stages

Plan = Recipe | Pipeline


def has_stages(settings: dict[str, Any]) -> bool:
    """Whether the settings of a file are those of a pipeline."""
    return "stages" in settings or "generations" in settings


def plan_of(settings: dict[str, Any]) -> Plan:
    """The recipe or the pipeline of nested plain data."""
    return Pipeline.of(settings) if has_stages(settings) else Recipe.of(settings)


def read_plan(path: Path | str, assignments: list[str]) -> Plan:
    """What a file asks for, with some settings changed. Raises LimbeckError for whatever is wrong with the file, and names the line.

    assignments: `KEY=VALUE`; those of stages are `stages.NAME.KEY`, and KEY alone changes every stage that does not say its own.
    """
    file = open_settings(Path(path))
    try:
        plan = plan_of(file.settings)
    except LimbeckError as error:
        raise error.told_at(file.place(error.path)) from None
    return plan_of(override(_resolved(file.settings), _dealt_out(file.settings, assignments))) if assignments else plan


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file, every one spelled out; stages are not unfolded yet, so that what changes one of them changes its generations."""

    def whole(stage: dict[str, Any]) -> dict[str, Any]:
        also = {"generations": plain(build(stage.pop("generations"), Generations))} if "generations" in stage else {}
        return {**plain(Recipe.of(stage)), **also}

    if "stages" in settings:
        return {"stages": {name: whole(stage) for name, stage in _spread(settings).items()}}
    return whole(dict(settings))


def _dealt_out(settings: dict[str, Any], assignments: list[str]) -> list[str]:
    """Assignments with those of no stage given to each stage that they hold for."""
    if "stages" not in settings:
        return assignments
    found = list[str]()
    for each in assignments:
        key, name = [*re.split(r"[.=]", each, maxsplit=2), ""][:2]
        if key == "stages" and name not in settings["stages"]:
            raise RecipeError(f'cannot set {each}: there is no stage "{name}"{did_you_mean(name, settings["stages"])}')
        stages = [name for name, own in settings["stages"].items() if key not in (own or {})]
        if key != "stages" and not stages:
            raise RecipeError(f"{key} is said by each stage itself; set stages.{next(iter(settings['stages']))}.{key}")
        found += [each] if key == "stages" else [f"stages.{name}.{each}" for name in stages]
    return found


def accepting(plan: Plan, names: list[str]) -> Plan:
    """The same, each recipe accepting these licences too."""
    if isinstance(plan, Pipeline):
        return Pipeline({name: cast(Recipe, accepting(recipe, names)) for name, recipe in plan.stages.items()})
    return replace(plan, accept_license=list(dict.fromkeys([*plan.accept_license, *names])))
