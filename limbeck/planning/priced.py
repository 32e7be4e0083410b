"""What the parts of a recipe ask of a machine, each by its kind: a source draws and writes, a teacher scores, an evaluation looks.

A new part tells its own work: `drawn.register`, `scored.register` and `looked.register` take the function of a class; what is not
registered is refused by name. A step is the mean of the first few draws, in the very order in which the run will take them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import singledispatch
from types import SimpleNamespace
from typing import Any, cast

from limbeck import room
from limbeck.aligned import Aligned
from limbeck.average import Average
from limbeck.batch import Batch
from limbeck.curriculum import Curriculum
from limbeck.data import Pool
from limbeck.divergence import ForwardKL, ReverseKL
from limbeck.endpoint import Endpoint
from limbeck.errors import RecipeError
from limbeck.estimate import disk_bytes
from limbeck.evaluate import Evaluation, Likelihood
from limbeck.features import LayerTerm, pairs
from limbeck.guidance import Guided, Itself
from limbeck.hidden import Masked
from limbeck.interleaved import Interleaved
from limbeck.objective import CrossEntropy, Objective
from limbeck.planning.scene import DRAWS, Draw, Scene, answered, answers, copied, made_up, rounds, side_by_side, written
from limbeck.planning.work import Actor, Asking, Fetching, Heads, Inside, Learning, Moving, Piece, Reading, Stepping, Storing, Writing
from limbeck.prefetch import Prefetch
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus, CustomSource, Mix, RowSource, Source
from limbeck.student import Student
from limbeck.teacher_samples import TeacherSamples
from limbeck.teachers import Cached, Local, Silent, Teacher

CACHED_BYTES = 40.0
"""A token in a cache of 50 draws; measured between 24 and 55 (docs/caches.md)."""
KEPT = "terms on kept scores as fast as cross-entropy (found on a CPU: docs/caches.md)"
JUDGED = Objective([CrossEntropy(), ForwardKL(), ReverseKL()])
"""What an evaluation measures of each token."""


@singledispatch
def drawn(source: Source, scene: Scene) -> list[Draw]:
    """What a source draws. Raises RecipeError for one whose work nobody told."""
    raise RecipeError(f"what {type(source).__name__} takes is not known; tell it with limbeck.planning.priced.drawn.register, or plan another source")


@drawn.register
def _(source: Corpus | CustomSource, scene: Scene) -> list[Draw]:
    """Ready text, as the run itself will draw it."""
    alive, reader = source.load(scene.vocabulary, scene.share), cast(Student, SimpleNamespace(live=SimpleNamespace(context=scene.context)))
    return [Draw(1 / DRAWS, alive.draw(step, reader)) for step in range(DRAWS)]


@drawn.register
def _(source: Masked, scene: Scene) -> list[Draw]:
    """Ready text, a share of it hidden."""
    pool, found = Pool(source.data, scene.recipe.seed), list[Draw]()
    for step in range(DRAWS):
        rows = pool.take(step * source.sequences, source.sequences)
        mine = [rows[place] for place in scene.share.rows(source.sequences)]
        longest = min(source.max_tokens, scene.context)
        sizes = [len(text.tokens) for data, row in mine for text in scene.vocabulary.texts(row, data, longest)]
        texts = [made_up(size - hidden, hidden) for size in sizes if (hidden := max(1, round(source.share * size))) < size]
        found.append(Draw(1 / DRAWS, Batch.of(texts, "corpus")))
    return found


@drawn.register
def _(source: OnPolicy, scene: Scene) -> list[Draw]:
    """Prompts read once each, and answers written side by side."""
    pool, found = Pool(source.prompts, scene.recipe.seed), list[Draw]()
    turns = source.environment.turns if source.environment else 1
    for step in range(DRAWS):
        prompts = scene.prompts(pool, step * source.sequences, source.sequences, min(source.max_prompt, scene.context - 1))
        answer = scene.answer(source.sampling)
        texts = [answered(ids, answer, turns, scene.context) for ids in prompts for _ in range(source.group)]
        pieces = [*copied(scene), *written("write", scene.student, prompts, source.group, answer)] * turns
        found.append(Draw(1 / DRAWS, Batch.of(texts, "student"), tuple(pieces)))
    return found


@drawn.register
def _(source: Mix, scene: Scene) -> list[Draw]:
    """Both, as often as each is drawn from."""
    first = [replace(each, share=each.share * source.fraction) for each in drawn(source.first, scene)]
    return first + [replace(each, share=each.share * (1 - source.fraction)) for each in drawn(source.second, scene)]


@drawn.register
def _(source: Prefetch, scene: Scene) -> list[Draw]:
    """What is inside: on one machine writing and learning share its arithmetic."""
    scene.assumed["what is written ahead takes as long as otherwise"] = None
    return drawn(source.source, scene)


@drawn.register
def _(source: Curriculum, scene: Scene) -> list[Draw]:
    """What is inside, in the usual order."""
    scene.assumed["rows in the usual order, and no measuring of gaps"] = None
    return drawn(source.inner, scene)


@drawn.register
def _(source: Interleaved, scene: Scene) -> list[Draw]:
    """Rounds of `gamma` proposals and one verification of each, which scores them, until the last row has ended."""
    by = scene.recipe.teacher if isinstance(source.verifier, str) else source.verifier
    if not isinstance(by, Local):
        raise RecipeError(f"Interleaved is verified token by token as it is written, which {type(by).__name__} cannot; give a Local(model)")
    verifier, pool, found = scene.actor(by), Pool(source.prompts, scene.recipe.seed), list[Draw]()
    answer, more = scene.answer(source.sampling), int(source.accept.lossless)
    scene.assumed[f"{scene.accepted:.0%} of the student's proposals stand"] = None
    for step in range(DRAWS):
        prompts = scene.prompts(pool, step * source.sequences, source.sequences, min(source.max_prompt, scene.context - 1))
        pieces = copied(scene)
        for some in side_by_side(prompts):
            calls, rows = rounds(len(some), answer, source.gamma, scene.accepted, bool(more))
            width, past = max(map(len, some)), sum(map(len, some)) / len(some) + answer / 2
            pieces += [Reading("write", who, len(some), width) for who in (scene.student, verifier)]
            pieces.append(Writing("write", scene.student, rows, source.gamma * calls, past))
            pieces.append(Writing("write", verifier, rows, calls, past, source.gamma + more))
        texts = [answered(ids, answer, 1, scene.context) for ids in prompts]
        found.append(Draw(1 / DRAWS, Batch.of(texts, "student"), tuple(pieces), said=isinstance(source.verifier, str)))
    return found


@drawn.register
def _(source: TeacherSamples, scene: Scene) -> list[Draw]:
    """What the teacher answers; all of it is learnt from where nobody chooses."""
    pool, found, answer = Pool(source.prompts, scene.recipe.seed), list[Draw](), scene.answer(source.sampling)
    for step in range(DRAWS):
        prompts = scene.prompts(pool, step * source.sequences, source.sequences, scene.context - 1)
        texts = [answered(ids, answer, 1, min(source.max_tokens, scene.context)) for ids in prompts for _ in range(source.samples)]
        pieces = answers(source.writer, scene, prompts, source.samples, answer, "write")
        found.append(Draw(1 / DRAWS, Batch.of(texts, "teacher"), tuple(pieces)))
    return found


Scored = tuple[list[Piece], Actor | None]
"""What scoring some passes takes, and whose whole distributions the heads make beside the student's."""


@singledispatch
def scored(teacher: Teacher, passes: Sequence[Batch], scene: Scene) -> Scored:
    """What a teacher does about some passes: by default, what the teachers inside it do."""
    inner = [each for each in _inside(teacher) if isinstance(each, Teacher)]
    if not inner:
        raise RecipeError(
            f"what {type(teacher).__name__} takes is not known; tell it with limbeck.planning.priced.scored.register, or plan another teacher"
        )
    found = [scored(each, passes, scene) for each in inner]
    return [piece for pieces, _ in found for piece in pieces], next((who for _, who in found if who), None)


def _inside(teacher: Teacher) -> Iterable[Any]:
    for value in vars(teacher).values():
        yield from cast(dict[str, Any], value).values() if isinstance(value, dict) else [value]


@scored.register
def _(teacher: Silent, passes: Sequence[Batch], scene: Scene) -> Scored:
    """Nothing."""
    return [], None


def _read(actor: Actor, passes: Sequence[Batch]) -> Scored:
    return [Reading("score", actor, len(each), int(each.lengths_B.max())) for each in passes if len(each)], actor


@scored.register
def _(teacher: Local, passes: Sequence[Batch], scene: Scene) -> Scored:
    """A pass of its own about each."""
    return _read(scene.student if teacher.model == "@student" else scene.actor(teacher), passes)


@scored.register
def _(teacher: Itself | Average, passes: Sequence[Batch], scene: Scene) -> Scored:
    """A pass of the student's, or of its average's, which follows each step."""
    pieces, actor = _read(scene.student, passes)
    follows = [Moving("step", 12.0 * scene.student.moving)] if isinstance(teacher, Average) else []
    return pieces + follows, actor


@scored.register
def _(teacher: Guided, passes: Sequence[Batch], scene: Scene) -> Scored:
    """Two passes, with the prompt and without."""
    pieces, actor = scored.dispatch(Teacher)(teacher, passes, scene)
    return pieces * 2, actor


@scored.register
def _(teacher: Aligned, passes: Sequence[Batch], scene: Scene) -> Scored:
    """The teacher's, in its own tokens, taken to be as many."""
    scene.assumed["as many tokens in the teacher's vocabulary, and terms across vocabularies as fast as ForwardKL"] = None
    return scored(teacher.teacher, passes, scene)


@scored.register
def _(teacher: Cached, passes: Sequence[Batch], scene: Scene) -> Scored:
    """Bytes from the disk."""
    scene.assumed[KEPT] = None
    return kept(passes), None


def kept(passes: Sequence[Batch]) -> list[Piece]:
    """What a cache holds about some passes, fetched."""
    return [Fetching("score", CACHED_BYTES * sum(len(each.places_N) for each in passes))]


@scored.register
def _(teacher: Endpoint, passes: Sequence[Batch], scene: Scene) -> Scored:
    """The whole text sent for each sequence, one token written."""
    tokens = sum(int(each.lengths_B.sum()) for each in passes)
    calls = sum(map(len, passes))
    return [Asking("score", tokens, calls, teacher.usd_in, teacher.usd_out, teacher.concurrency, teacher.parameters)], None


@singledispatch
def looked(evaluation: Evaluation, scene: Scene) -> list[Piece]:
    """What an evaluation takes once; one that nobody told of is left out, and said to be."""
    scene.assumed[f"without the evaluation {evaluation.name} ({type(evaluation).__name__})"] = None
    return []


@looked.register
def _(evaluation: Likelihood, scene: Scene) -> list[Piece]:
    """Both models read the text, which the student writes first where it is its own."""
    pool, pieces = Pool(evaluation.data, 0, shuffle=False), list[Piece]()
    rows = pool.take(0, evaluation.rows if pool.streamed else min(evaluation.rows, len(pool)))[scene.share.rank :: scene.ranks]
    if evaluation.own_text:
        answer = scene.answer(evaluation.sampling)
        prompts = [scene.vocabulary.prompt(row, data) for data, row in rows]
        pieces += copied(scene) + written("evaluate", scene.student, prompts, 1, answer)
        texts = [answered(ids, answer, 1, scene.context) for ids in prompts]
    else:
        longest = min(evaluation.max_tokens, scene.context)
        texts = [text for data, row in rows for text in scene.vocabulary.texts(row, data, longest)]
    parts = Batch.of(texts, "corpus").split(evaluation.tokens_per_pass)
    scoring, scorer = scored(scene.recipe.teacher, parts, scene)
    reading = [Reading("evaluate", scene.student, len(each), int(each.lengths_B.max())) for each in parts]
    heads = [Heads("evaluate", scene.student, JUDGED, len(each.places_N), scorer, gradient=False) for each in parts]
    return [*pieces, *(replace(each, stage="evaluate") for each in scoring), *reading, *heads]


def of_step(recipe: Recipe, scene: Scene, draws: Sequence[Draw] | None = None) -> list[Piece]:
    """The pieces of a mean step, `times` saying how much of each."""
    found = list[Piece]()
    for draw in drawn(recipe.source, scene) if draws is None else draws:
        passes = [each for each in draw.batch.split(recipe.tokens_per_pass) if len(each)]
        scoring, scorer = scored(recipe.teacher, passes, scene)
        pieces = [*draw.pieces, *([] if draw.said else scoring)]
        for each in passes:
            pieces.append(Learning("learn", scene.student, len(each), int(each.lengths_B.max())))
            pieces.append(Heads("learn", scene.student, recipe.objective, len(each.places_N), scorer))
            pieces += inside(recipe.objective, each, scene)
        found += [replace(piece, times=piece.times * draw.share) for piece in pieces]
    return [*found, Stepping("step", scene.student)]


def inside(objective: Objective, batch: Batch, scene: Scene) -> list[Piece]:
    """Terms of what stands inside, of every pair of layers."""
    if not objective.feature_terms:
        return []
    layers = scene.student.anatomy.layers
    theirs = max([layers, *(scene.actor(each).anatomy.layers for each in locals_of(scene.recipe.teacher))])
    count = max([1, *(len(pairs(term.map, layers, theirs)) for term in objective.feature_terms if isinstance(term, LayerTerm))])
    return [Inside("learn", scene.student, objective, len(batch), float(batch.lengths_B.max()), len(batch.places_N), count)]


def around(recipe: Recipe, scene: Scene) -> list[Piece]:
    """What a run does beside its steps: opening models, looking, saving, the finished student."""
    student, teachers = scene.student, [scene.actor(each) for each in locals_of(recipe.teacher)]
    looks = 1 + (recipe.steps // recipe.evaluate_every if recipe.evaluate_every else 1)
    saves = max(1, -(-recipe.steps // recipe.save_every)) if recipe.save_every else 1
    disk = disk_bytes(recipe, student.anatomy)
    seen = [replace(piece, times=piece.times * looks) for each in recipe.evaluations for piece in looked(each, scene)]
    moments = 2 if recipe.student.optimizer.eight_bit else 8
    return [
        Fetching("begin", 4.0 * student.parameters), *(Fetching("begin", float(who.width * who.parameters)) for who in teachers), *seen,
        Storing("save", (4 + moments) * student.moving, float(sum(disk.values())) - disk["student"], times=saves),
        Storing("save", float(disk["student"]), float(disk["student"])),
    ]  # fmt: skip


def locals_of(teacher: Teacher) -> list[Local]:
    """The models on this machine that a teacher is made of, the student's own left out."""
    return [each for each in room.locals_of(teacher) if each.model != "@student"]


def row_sources(source: Source) -> list[RowSource]:
    """The sources below one that draw rows of data."""
    inner = [found for value in vars(source).values() if isinstance(value, Source) for found in row_sources(value)]
    return [source, *inner] if isinstance(source, RowSource) else inner
