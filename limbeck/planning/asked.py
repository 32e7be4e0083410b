"""From what a command line asks to a plan, and from a plan to tables and files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.anatomy import short
from limbeck.endpoint import Endpoint
from limbeck.errors import RecipeError, did_you_mean
from limbeck.files import write_json, write_text
from limbeck.methods import METHODS
from limbeck.pipeline import Pipeline, read_plan
from limbeck.planning.advice import as_rows, traits
from limbeck.planning.candidates import Candidate, Wanted, candidates, of_recipe
from limbeck.planning.others import beside
from limbeck.planning.picture import picture
from limbeck.planning.plan import Assumed, Planned, Row, plan
from limbeck.planning.roofline import Machine, published
from limbeck.storage import here

API = "https://api.openai.com/v1"
"""Where a model is taken to be that has a price and lies nowhere here; it is never called."""


@dataclass(frozen=True)
class AskedMachine:
    """Which machine. gpu, gpus: another than this one; sharded: with a share of the models on each GPU; measure: this one again."""

    gpu: str | None = None
    gpus: int | None = None
    usd_hour: float | None = None
    measure: bool = False
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpu is None:
            raise RecipeError(f"--gpus {self.gpus} of which kind? give --gpu h100, or leave both out for this machine")
        if self.sharded and (self.gpus or 1) < 2:
            raise RecipeError(f"--fsdp shares the models out to several GPUs, found {self.gpus or 1}; give --gpus 2 or more, or leave it out")
        if self.usd_hour is not None and not 0 <= self.usd_hour < float("inf"):
            raise RecipeError(f"--usd-hour must be at least 0 and finite, found {self.usd_hour}")

    def found(self) -> Machine:
        """The machine."""
        if self.gpu is not None:
            return published(self.gpu, 1 if self.gpus is None else self.gpus, self.usd_hour, self.sharded)
        from limbeck.planning.calibrate import here

        return here(self.measure, self.usd_hour)


@dataclass(frozen=True)
class Asked:
    """All that a command line says. what: a recipe's file or a method's name; None: every way there is."""

    what: str | None = None
    teacher: str | None = None
    student: str | None = None
    data: str | None = None
    prompts: str | None = None
    reward: str | None = None
    settings: list[str] = field(default_factory=list[str])
    samples: int = 1
    model: str | None = None
    usd_in: float = 0.0
    usd_out: float = 0.0

    def candidates(self) -> list[Candidate]:
        """What is to be planned. Raises RecipeError where too little is said."""
        if self.what is not None and Path(self.what).suffix in (".yaml", ".yml"):
            return self._of_file(self.what)
        if self.what is not None and self.what not in METHODS:
            raise RecipeError(f'there is no method "{self.what}"{did_you_mean(self.what, METHODS)} A recipe is a YAML file')
        if self.student is None or (self.data or self.prompts) is None:
            raise RecipeError("a plan needs --student and --data (or --prompts), and --teacher for more than fine-tuning; or a recipe's file")
        found = candidates(Wanted(self.student, self._teacher(), self.data, self.prompts, self.reward, self.settings, self.samples))
        return [each for each in found if self.what in (None, each.name)]

    def _of_file(self, file: str) -> list[Candidate]:
        given = {name: getattr(self, name) for name in ("teacher", "student", "data", "prompts", "reward")}
        if asked := [name for name, value in given.items() if value is not None]:
            raise RecipeError(f"--{asked[0]} goes with no recipe's file; {file} says its own: use --set")
        found = read_plan(file, self.settings)
        if isinstance(found, Pipeline):
            raise RecipeError(
                f"{file} has {len(found.stages)} stages; plan each by itself, its models named, as later ones learn from what is not there yet"
            )
        return [of_recipe(found, Path(file).stem)]

    def _teacher(self) -> Any:
        """A model here, or one on a server: a URL, or a name with a price."""
        if self.teacher is None or (not self.teacher.startswith(("http://", "https://")) and not (self.usd_in or self.usd_out)):
            return self.teacher
        if self.teacher.startswith("http") and self.model is None:
            raise RecipeError(f"which model of {self.teacher}? give --model")
        url = self.teacher if self.teacher.startswith("http") else API
        return Endpoint(url, self.model or self.teacher, usd_in=self.usd_in, usd_out=self.usd_out)


def planned(asked: Asked, machine: AskedMachine, assumed: Assumed, runs: Sequence[Path] = ()) -> Planned:
    """The plan of all that is asked."""
    found = asked.candidates()
    return plan(found, machine.found(), assumed, [here(run) for run in runs])


COLUMNS = ["way", "GB", "disk", "PFLOP", "s a step", "all", "US $", "pays after", "T W"]
"""Memory and disk in GB; T: beside a live teacher, W: on text that the student writes in each step."""


def table(made: Planned) -> list[list[str]]:
    """A line for each candidate that can be run or costed."""
    return [_cells(row, made) for row in made.rows if row.costs]


def _cells(row: Row, made: Planned) -> list[str]:
    costs, paid = row.costs, made.paid(row)
    assert costs is not None and row.candidate.recipe is not None
    said = traits(row.candidate.recipe)
    after = (
        ""
        if paid is None
        else "never"
        if paid.tokens is None and paid.why.startswith("never")
        else "?"
        if paid.tokens is None
        else short(paid.tokens)
    )
    usd = "" if costs.usd is None and not costs.api_usd else f"{costs.api_usd if costs.usd is None else costs.usd:.3g}{' +' * (costs.usd is None)}"
    name = f"{row.candidate.name} (does not fit)" if row.misfit else row.candidate.name
    return [
        name, f"{sum(costs.memory_bytes.values()) / 1e9:.2f}", f"{costs.disk_bytes / 1e9:.2f}", f"{costs.flops / 1e15:.3g}",
        f"{sum(costs.step_seconds.values()):.3g}", _time(costs.total_seconds), usd, after,
        f"{'T' if said['live teacher'] else '-'} {'W' if said['student writes'] else '-'}",
    ]  # fmt: skip


def where(made: Planned) -> list[tuple[list[str], list[list[str]]]]:
    """Where a step's seconds and a rank's memory go, a line for each candidate."""
    rows = [(row.candidate.name, row.costs) for row in made.rows if row.costs]
    stages = dict.fromkeys(stage for _, costs in rows for stage in costs.step_seconds)
    parts = dict.fromkeys(part for _, costs in rows for part in costs.memory_bytes)
    seconds = [[name, *(f"{costs.step_seconds.get(stage, 0.0):.3g}" for stage in stages)] for name, costs in rows]
    memory = [[name, *(f"{costs.memory_bytes.get(part, 0) / 1e9:.2f}" for part in parts)] for name, costs in rows]
    return [(["s a step", *stages], seconds), ([f"GB{' of a GPU' * (made.machine.ranks > 1)}", *parts], memory)]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def words(made: Planned) -> list[str]:
    """What stands below the tables: what was assumed, what cannot be done and why, what others cost."""
    rows = [row for row in made.rows if row.costs]
    assumed = dict.fromkeys(each for row in rows if row.costs for each in row.costs.assumed)
    left_out = [f"not possible: {row.candidate.name}: {row.why_not}" for row in made.rows if row.why_not]
    misfits = [f"does not fit: {row.candidate.name}: {row.misfit}" for row in made.rows if row.misfit]
    prices = [f"{each.who}: {1000 * each.seconds:.3g} ms a served token" for each in made.prices if each.seconds is not None]
    quality = [f"{each['run']}: {each['figure']} {each['value']:.4g}, measured" for each in made.quality] or ["quality is not known: give --runs"]
    machine = f"machine: {made.machine.name}; {'; '.join(made.machine.notes)}"
    others = [str(each) for each in beside()] if made.machine.ranks > 1 else []
    return [machine, *others, *(f"assumed: {each}" for each in assumed), *prices, *misfits, *left_out, *quality]


def advised(made: Planned) -> list[list[str]]:
    """The advice, in its order."""
    return as_rows(made.advice)


def keep(made: Planned, out: Path) -> None:
    """Write `plan.json` and `plan.svg`."""
    out = here(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "plan.json", made.as_plain())
    write_text(out / "plan.svg", picture(made))
