"""What every way from a teacher to a student takes on a machine, which suits, and when it has paid for itself. No weights are read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.anatomy import Anatomy, short
from limbeck.data import Data
from limbeck.endpoint import Endpoint
from limbeck.errors import LimbeckError, RecipeError, VocabularyError
from limbeck.estimate import AT_ONCE
from limbeck.files import read_json, read_jsonl
from limbeck.machine import Opening
from limbeck.planning.advice import Facts, advice, traits
from limbeck.planning.candidates import Candidate
from limbeck.planning.costs import Costs, Models, Work, costs_of, misfit, scene_of, work_of
from limbeck.planning.priced import locals_of, row_sources
from limbeck.planning.roofline import Machine
from limbeck.planning.scene import Scene, rows_of
from limbeck.planning.work import Actor, Piece, Reading, Writing
from limbeck.recipe import Recipe
from limbeck.settings_file import read_yaml
from limbeck.sources import Corpus
from limbeck.teachers import Local, Teacher
from limbeck.vocabulary import Vocabulary

SERVED_AT_ONCE = 8
"""Rows written side by side where a model is served."""


@dataclass(frozen=True)
class Assumed:
    """What nobody can know before. answer_tokens: of an answer (None: its limit); accepted: share of a draft's tokens that stand."""

    answer_tokens: int | None = None
    accepted: float = 0.8

    def __post_init__(self) -> None:
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise RecipeError(f"an answer has at least one token, found --answer-tokens {self.answer_tokens}")
        if not 0 <= self.accepted <= 1:
            raise RecipeError(f"--accepted is a share, from 0 to 1, found {self.accepted}")


@dataclass
class Row:
    """A candidate with what it costs, or why it has no costs. misfit: why the machine cannot hold it."""

    candidate: Candidate
    scene: Scene | None = None
    work: Work | None = None
    costs: Costs | None = None
    why_not: str | None = None
    misfit: str | None = None

    @property
    def possible(self) -> bool:
        """Whether it can be run."""
        return self.costs is not None and self.misfit is None


@dataclass(frozen=True)
class Price:
    """What a token of service takes: seconds on the machine, or US dollars of a server; usd None where the machine has no price."""

    who: str
    seconds: float | None
    usd: float | None


@dataclass(frozen=True)
class Payback:
    """After how many served tokens distilling has paid for itself; None: never, or not known, for the reason `why`."""

    tokens: float | None
    why: str

    def __str__(self) -> str:
        return self.why if self.tokens is None else f"after {short(self.tokens)} served tokens: {self.why}"


def payback(costs: Costs, teacher: Price, student: Price) -> Payback:
    """`cost of distilling / (price of the teacher's token - price of the student's)`, in US dollars, or in seconds where both are on one machine."""
    if costs.usd is not None and teacher.usd is not None and student.usd is not None:
        return _paid(costs.usd, teacher.usd, student.usd, "US dollars", 1e6)
    if teacher.seconds is not None and student.seconds is not None and costs.api_usd == 0:
        return _paid(costs.total_seconds, teacher.seconds, student.seconds, "seconds of this machine", 1e6)
    return Payback(None, "not known: this machine has no price; give --usd-hour")


def _paid(cost: float, dear: float, cheap: float, unit: str, many: float) -> Payback:
    if dear <= cheap:
        return Payback(None, f"never: a token of the student's costs as much as one of the teacher's ({many * cheap:.3g} {unit} a million)")
    return Payback(cost / (dear - cheap), f"{cost:.3g} {unit} for {many * (dear - cheap):.3g} less a million tokens")


@dataclass
class Planned:
    """A whole plan."""

    machine: Machine
    rows: list[Row]
    prices: list[Price]
    advice: list[dict[str, str]]
    quality: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def paid(self, row: Row) -> Payback | None:
        """When a candidate has paid for itself, where there is a teacher to be spared."""
        return payback(row.costs, self.prices[1], self.prices[0]) if row.costs and len(self.prices) == 2 else None

    def as_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        machine = {name: getattr(self.machine, name) for name in ("name", "ranks", "sharded", "usd_hour", "memory_bytes", "disk_bytes", "notes")}
        return {
            "machine": machine, "advice": self.advice, "prices": [vars(each) for each in self.prices], "quality": self.quality,
            "candidates": [self._plain(row) for row in self.rows],
        }  # fmt: skip

    def _plain(self, row: Row) -> dict[str, Any]:
        paid = self.paid(row)
        return {
            "name": row.candidate.name, "about": row.candidate.about, "possible": row.possible, "why_not": row.why_not or row.misfit,
            "traits": traits(row.candidate.recipe) if row.candidate.recipe else None, "costs": row.costs.as_plain() if row.costs else None,
            "payback_tokens": paid.tokens if paid else None, "payback": str(paid) if paid else None,
        }  # fmt: skip


def plan(found: Sequence[Candidate], machine: Machine, assumed: Assumed | None = None, runs: Sequence[Path] = ()) -> Planned:
    """The costs of candidates on a machine. Raises RecipeError where none of them can be run there, with what would fit."""
    assumed, models, vocabularies = assumed or Assumed(), Models(machine.narrow), _Vocabularies()
    rows = [_row(each, models, vocabularies, machine, assumed) for each in found]
    alive = [row for row in rows if row.work is not None]
    if not alive:
        raise RecipeError(f"nothing can be planned: {rows[0].why_not}" if len(rows) == 1 else _nothing(rows))
    serving = [_served(who, alive, models) for who in _served_ones(alive)]
    machine.prepare([piece for row in alive for piece in (row.work.pieces if row.work else [])] + [piece for each in serving for piece in each[2]])
    for row in alive:
        assert row.work is not None and row.scene is not None and row.candidate.recipe is not None
        before = row.candidate.made_by
        row.costs = costs_of(row.work, row.scene, machine, models, _held(models.teacher(before), row) if before else 0)
        row.misfit = misfit(row.scene, row.costs, row.work, machine, models)
    if not any(row.possible for row in alive):
        raise RecipeError(f"{alive[0].candidate.name} does not fit: {alive[0].misfit}")
    prices = [_price(who, kind, pieces, machine) for who, kind, pieces in serving]
    return Planned(machine, rows, prices, advice(_facts(rows, models)), [quality_of(run) for run in runs])


def _nothing(rows: Sequence[Row]) -> str:
    reasons = list(dict.fromkeys(row.why_not for row in rows if row.why_not))
    return f"nothing can be planned: {'; '.join(reasons[:2])}"


class _Vocabularies:
    """Tokenizers of models, each opened once, and whether two are the same."""

    def __init__(self) -> None:
        self.known = dict[str, Vocabulary]()

    def of(self, name: str, model: Anatomy, trust_remote_code: bool) -> Vocabulary:
        """A model's own."""
        from limbeck.models import open_vocabulary

        if name not in self.known:
            bare = open_vocabulary(name, Opening(trust_remote_code=trust_remote_code))
            self.known[name] = Vocabulary(bare.tokenizer, model.end_ids)
        return self.known[name]

    def shared(self, recipe: Recipe, asked_before: Local | None, models: Models) -> Vocabulary:
        """The student's, as the run has it. Raises VocabularyError where a teacher's differs and has to be the same."""
        student, teachers = recipe.student, locals_of(recipe.teacher)
        teachers += [asked_before] if asked_before and recipe.teacher.says else []  # its scores are kept, and not its text alone
        mine = self.of(student.model, models.anatomy(student.model, student.trust_remote_code), student.trust_remote_code)
        for teacher in teachers if not recipe.teacher.says & {"spans", "pairs"} else ():
            theirs = self.of(teacher.model, models.anatomy(teacher.model, teacher.trust_remote_code), teacher.trust_remote_code)
            if student.chat_template == "teacher" or not mine.has_template:
                mine = mine.with_template(theirs.template, theirs.end_ids)
            mine.prove_equal(theirs)
        return mine


def _row(candidate: Candidate, models: Models, vocabularies: _Vocabularies, machine: Machine, assumed: Assumed) -> Row:
    """A candidate with its work, as far as it can be told."""
    recipe = candidate.recipe
    if recipe is None:
        return Row(candidate, why_not=candidate.why_not)
    try:
        vocabulary = vocabularies.shared(recipe, candidate.made_by, models)
        scene = scene_of(recipe, models, vocabulary, machine.ranks, assumed.answer_tokens, assumed.accepted)
        work = work_of(scene, candidate.before(scene))
        if not any(len(draw.batch.places_N) for draw in work.draws):
            return Row(candidate, why_not=f"its text holds nothing to learn from ({recipe.source.leaves_out})")
        return Row(candidate, scene, work)
    except VocabularyError as error:
        return Row(candidate, why_not=f"{error}; sft on written text, alm, uld and gold teach across vocabularies")
    except LimbeckError as error:
        return Row(candidate, why_not=str(error))


def _held(actor: Actor, row: Row) -> int:
    """Memory of a teacher that writes or scores beforehand: its weights, what its rows remember, and the program."""
    assert row.work is not None
    tokens = max((int(draw.batch.lengths_B.max()) for draw in row.work.draws if len(draw.batch)), default=0)
    remembered = 2 * AT_ONCE * tokens * actor.anatomy.layers * actor.anatomy.keys_values * actor.width
    return actor.width * actor.parameters + remembered + 16 * AT_ONCE * actor.anatomy.head_rows + 600_000_000


# Serving

Served = tuple[str, Actor | Endpoint, list[Piece]]


def _served_ones(rows: Sequence[Row]) -> list[Any]:
    """Whoever is to be served instead of whom: the student, and the teacher that is a model or a server."""
    scene = rows[0].scene
    assert scene is not None
    teachers = [each for row in rows for each in _teachers(row)]
    return [scene.student, *teachers[:1]]


def _teachers(row: Row) -> list[Teacher]:
    recipe, made_by = row.candidate.recipe, row.candidate.made_by
    if recipe is None:
        return []
    return [each for each in [made_by, *locals_of(recipe.teacher), recipe.teacher, row.candidate.server] if isinstance(each, Local | Endpoint)]


def _served(who: Any, rows: Sequence[Row], models: Models) -> Served:
    """The pieces of serving an answer for each of some rows side by side; none of a server's."""
    if isinstance(who, Endpoint):
        return who.name, who, []
    actor = models.teacher(who) if isinstance(who, Local) else who
    prompt, answer = _lengths(rows)
    plain = Actor(actor.anatomy, actor.width)
    pieces: list[Piece] = [Reading("write", plain, SERVED_AT_ONCE, prompt), Writing("write", plain, SERVED_AT_ONCE, answer, prompt + answer / 2)]
    return actor.anatomy.name, plain, pieces


def _lengths(rows: Sequence[Row]) -> tuple[int, int]:
    """Mean tokens of a prompt and of what follows it, in the text that was drawn."""
    batches = [draw.batch for row in rows if row.work for draw in row.work.draws if len(draw.batch)]
    count = sum(map(len, batches))
    prompt = sum(float(batch.before_B.sum()) for batch in batches) / count
    return max(1, round(prompt)), max(1, round(sum(len(batch.places_N) for batch in batches) / count))


def _price(who: str, kind: Actor | Endpoint, pieces: Sequence[Piece], machine: Machine) -> Price:
    if isinstance(kind, Endpoint):
        return Price(who, None, kind.usd_out / 1e6)
    answered = sum(piece.rows * piece.steps for piece in pieces if isinstance(piece, Writing))
    seconds = sum(map(machine.seconds, pieces)) / answered / machine.ranks
    return Price(who, seconds, None if machine.usd_hour is None else seconds * machine.usd_hour / 3600)


# What suits, and what was measured


def _facts(rows: Sequence[Row], models: Models) -> Facts:
    """What the choice hangs on."""
    alive = [row for row in rows if row.work is not None and row.scene is not None]
    first = alive[0].scene
    assert first is not None
    own = [row for row in alive if row.candidate.recipe and "student" in row.candidate.recipe.source.writers]
    lengths = _lengths(own or alive)
    teacher = next((models.anatomy(each.model) for row in alive for each in _teachers(row) if isinstance(each, Local)), None)
    ratio = teacher.parameters_total / first.student.parameters if teacher else 1.0
    return Facts(
        {row.candidate.name: row.costs.total_seconds for row in rows if row.possible and row.costs},
        {row.candidate.name: str(row.why_not or row.misfit) for row in rows if not row.possible},
        lengths[1], _count(alive), ratio, {row.candidate.name: _epochs(row) for row in alive if row.possible},
        any(row.candidate.rewarded for row in rows),
    )  # fmt: skip


def _count(rows: Sequence[Row]) -> int:
    """Rows of the data."""
    sources = [source for row in rows if row.candidate.recipe for source in row_sources(row.candidate.recipe.source)]
    data: list[Data] = getattr(sources[0], "data", None) or getattr(sources[0], "prompts", []) if sources else []
    return rows_of(data, 1)[1] if data and not any(each.streaming for each in data) else 0


def _epochs(row: Row) -> float:
    """How often a run reads each row of ready text."""
    recipe = row.candidate.recipe
    if recipe is None or not isinstance(recipe.source, Corpus):
        return 0.0
    return recipe.steps * recipe.source.sequences / max(1, rows_of(recipe.source.data, 1)[1])


def quality_of(run: Path) -> dict[str, Any]:
    """What a run's own evaluations say of its student, and what the run took. Raises RecipeError for a folder that has none."""
    file = run / "evaluations.json"
    if not file.is_file() or not (looks := read_json(file)):
        raise RecipeError(f"{run} has no evaluations, so its quality is not known; give runs whose recipe has evaluations")
    step = max(looks, key=int)
    name, figures = next(iter(looks[step].items()))
    value = next(((key, figures[key]) for key in ("kl_nats", "ce_nats", "accuracy", "reward") if isinstance(figures.get(key), float)), None)
    if value is None:
        raise RecipeError(f"{run}: its evaluation {name} says none of kl_nats, ce_nats, accuracy, reward")
    timings = read_jsonl(run / "timings.jsonl")
    interval = figures.get(f"{value[0]}_interval")
    recipe = read_yaml(run / "recipe.yaml")
    seconds = math.fsum(float(each["seconds"]) for each in timings)
    return {"run": run.name, "figure": value[0], "value": value[1], "interval": interval, "evaluation": name, "step": int(step),
            "seconds": seconds, "student": recipe.get("student", {}).get("model")}  # fmt: skip
