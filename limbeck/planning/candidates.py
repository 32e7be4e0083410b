"""What a teacher could be distilled into a student by: every named method, and two that are made ready beforehand (a cache, written text).

A candidate is a recipe, or the reason why there can be none: it is the recipe's own refusal, or what the pair lacks.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.aligned import Aligned
from limbeck.batch import Batch
from limbeck.config import override, plain
from limbeck.data import Data
from limbeck.endpoint import Endpoint
from limbeck.errors import LimbeckError, RecipeError
from limbeck.hidden import Masked
from limbeck.methods import METHODS, scorer
from limbeck.objective import Objective
from limbeck.places import locate
from limbeck.planning.priced import CACHED_BYTES, JUDGED, KEPT, Scored, kept, scored
from limbeck.planning.scene import Scene, answers, rows_of
from limbeck.planning.work import Heads, Piece, Storing
from limbeck.recipe import Recipe
from limbeck.sources import Corpus, Source
from limbeck.targets import Targets
from limbeck.teachers import Cached, Local, Teacher

CACHE, WRITTEN = "kd from a cache", "sft on written text"
SIMPLEST = (
    "sft",
    WRITTEN,
    CACHE,
    "kd",
    "fitnets",
    "tinybert",
    "on_policy",
    "gkd",
    "distillm",
    "skd",
    "distillspec",
    "gkd_rl",
    "alm",
    "uld",
    "gold",
    "distilbert",
)
"""From the simplest on: ready text, a teacher asked beforehand, one that is asked each step, text that the student writes, rewards."""


@dataclass
class Kept(Teacher):
    """A cache that is yet to be made: what `limbeck cache` will keep of a teacher, by default 50 draws of each token."""

    model: str

    @property
    def says(self) -> frozenset[str]:
        """Draws."""
        return frozenset({"sampled"})

    @property
    def hears(self) -> bool:
        """Only what it will have heard."""
        return False

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """Nothing yet."""
        raise AssertionError("a cache that is yet to be made")


@scored.register
def _(teacher: Kept, passes: Sequence[Batch], scene: Scene) -> Scored:
    """As from a cache that is there."""
    scene.assumed[KEPT] = None
    return kept(passes), None


@dataclass(frozen=True)
class Wanted:
    """What is asked for. data: rows to learn from, whose prompts are answered where `prompts` names no others."""

    student: str
    teacher: str | Teacher | None
    data: str | None
    prompts: str | None = None
    reward: str | None = None
    settings: list[str] = field(default_factory=list[str])
    samples: int = 1


@dataclass(frozen=True)
class Candidate:
    """A way from teacher to student. recipe: None where there is none, for the reason `why_not`. before: what is made first."""

    name: str
    about: str
    recipe: Recipe | None
    why_not: str | None = None
    before: Callable[[Scene], list[Piece]] = lambda scene: []
    made_by: Local | None = None
    """Whose memory what is made first takes."""
    server: Endpoint | None = None
    """Who writes beforehand, where a server does."""
    rewarded: bool = False
    """Whether a verifier was given for it."""


def candidates(wanted: Wanted) -> list[Candidate]:
    """Every named method and the two made ready beforehand, from the simplest on."""
    found = [*(_named(name, wanted) for name in METHODS), _cached(wanted), _written(wanted)]
    return sorted(found, key=lambda each: SIMPLEST.index(each.name) if each.name in SIMPLEST else len(SIMPLEST))


def of_recipe(recipe: Recipe, name: str) -> Candidate:
    """A recipe as it is."""
    return Candidate(name, "as the file has it", recipe)


def _teacher(wanted: Wanted) -> Teacher | None:
    return scorer(wanted.teacher) if wanted.teacher is not None else None


def _named(name: str, wanted: Wanted) -> Candidate:
    """A named method, given as much of what is there as it takes."""
    method = METHODS[name]
    about = (inspect.getdoc(method) or "").partition("\n")[0]
    takes = inspect.signature(method).parameters
    given: dict[str, Any] = {"student": wanted.student, "teacher": _teacher(wanted), "data": wanted.data, "prompts": wanted.prompts or wanted.data}
    given["reward"] = wanted.reward or "Number()"  # a verifier takes no time to speak of
    known = {key: value for key, value in given.items() if key in takes and value is not None}
    lacking = [
        f"--{key}" for key, taken in takes.items() if taken.default is taken.empty and taken.kind is not taken.VAR_KEYWORD and key not in known
    ]
    if lacking:
        return Candidate(name, about, None, f"needs {', '.join(lacking)}")
    return _made(name, about, lambda: method(**known), wanted, rewarded=bool(wanted.reward) and "reward" in takes)


def _made(name: str, about: str, make: Callable[[], Recipe], wanted: Wanted, **more: Any) -> Candidate:
    try:
        recipe = make()
        if wanted.settings:
            recipe = Recipe.of(override(plain(recipe), wanted.settings))
        if why_not := _kind_lacks(recipe):
            return Candidate(name, about, None, why_not)
        return Candidate(name, about, recipe, **more)
    except LimbeckError as error:
        return Candidate(name, about, None, str(error))


def _kind_lacks(recipe: Recipe) -> str | None:
    """Why a pair is not of the kind that a method is for, by the files of its models."""
    masked = _is_masked(recipe.student.model)
    if isinstance(recipe.source, Masked) and not masked:
        return "it hides tokens from a masked model, and the student is none; take kd"
    if not isinstance(recipe.source, Masked) and masked:
        return "the student is a masked model, which reads both ways; take distilbert"
    return None


def _is_masked(name: str) -> bool:
    from limbeck.anatomy import anatomy

    place = locate(name)
    if place is None or not place.is_dir():
        return False
    return any(str(each).endswith("ForMaskedLM") for each in anatomy(name, place).config.get("architectures") or [])


def _cached(wanted: Wanted) -> Candidate:
    """A teacher asked once, and a student that learns without it."""
    about, teacher = "limbeck cache first: the teacher is asked once about the text; then kd without it.", _teacher(wanted)
    if not isinstance(teacher, Local):
        is_one = isinstance(teacher, Cached)
        return Candidate(CACHE, about, None, "the teacher is a cache already; take kd" if is_one else "needs a --teacher whose weights are here")
    if wanted.data is None:
        return Candidate(CACHE, about, None, "needs --data")
    data = wanted.data
    return _made(CACHE, about, lambda: METHODS["kd"](wanted.student, Kept(teacher.model), data), wanted,
                 before=lambda scene: _annotation(scene, teacher), made_by=teacher)  # fmt: skip


def _annotation(scene: Scene, teacher: Local) -> list[Piece]:
    """One pass of the teacher over all rows, its heads, and what is kept of each token."""
    source = _corpus(scene.recipe.source)
    rows, total = rows_of(source.data)
    longest = min(source.max_tokens, scene.context)
    texts = [text for data, row in rows for text in scene.vocabulary.texts(row, data, longest)]
    parts = Batch.of(texts, "corpus").split(2048)
    times, tokens = total / len(rows), sum(len(part.places_N) for part in parts)
    actor, found = scene.actor(teacher), list[Piece]()
    for piece in scored(teacher, parts, scene)[0]:
        found.append(_beforehand(piece, times))
    heads = Heads("beforehand", actor, Objective(JUDGED.terms[:1]), tokens, None, gradient=False, times=times)
    size = CACHED_BYTES * tokens * times
    return [*found, heads, Storing("beforehand", size, size)]


def _beforehand(piece: Piece, times: float) -> Piece:
    return replace(piece, stage="beforehand", times=piece.times * times)


def _corpus(source: Source) -> Corpus:
    assert isinstance(source, Corpus), "what is made beforehand is made of ready text"
    return source


def _written(wanted: Wanted) -> Candidate:
    """A teacher that writes once, and a student that learns its words: text passes between any vocabularies, and from any server."""
    about, teacher = "limbeck write first: the teacher answers every prompt; then sft on its words (Kim & Rush 2016).", _teacher(wanted)
    prompts = wanted.prompts or wanted.data
    if teacher is None or isinstance(teacher, Cached):
        return Candidate(WRITTEN, about, None, "needs a --teacher that writes: a model or a server")
    if prompts is None:
        return Candidate(WRITTEN, about, None, "needs --prompts, or --data with prompts")
    inner = teacher.teacher if isinstance(teacher, Aligned) else teacher
    return _made(WRITTEN, about, lambda: METHODS["sft"](wanted.student, wanted.data or prompts), wanted,
                 before=lambda scene: _text(scene, inner, prompts, wanted.samples), made_by=inner if isinstance(inner, Local) else None,
                 server=inner if isinstance(inner, Endpoint) else None)  # fmt: skip


def _text(scene: Scene, teacher: Teacher, prompts: str, samples: int) -> list[Piece]:
    """Answers to all prompts. Of their lengths those of the rows' own completions are taken where nothing else is known."""
    rows, total = rows_of([Data(prompts)])
    asked = [scene.vocabulary.prompt(row, data) for data, row in rows]
    if not asked:
        raise RecipeError(f"{prompts} holds no prompts; give --prompts")
    known = [len(text.places) for data, row in rows for text in scene.vocabulary.texts(row, data, 10**9)] if "completion" in rows[0][1] else []
    answer = scene.answer_tokens or (round(sum(known) / len(known)) if known else WRITTEN_TOKENS)
    scene.assumed[f"the teacher's answers have {answer} tokens" + (", as those of the data" if known and not scene.answer_tokens else "")] = None
    return answers(teacher, scene, asked, samples, answer, "beforehand", total / len(asked))


WRITTEN_TOKENS = 512
"""Of an answer of `limbeck write`, its limit."""
