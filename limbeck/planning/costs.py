"""What a recipe costs on a machine: seconds by stage, FLOPs, memory, disk and US dollars; and whether it fits, or what would."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.adapters import LoRA
from limbeck.anatomy import Anatomy, anatomy, anatomy_on_hub, short
from limbeck.config import override, plain
from limbeck.errors import LimbeckError
from limbeck.estimate import Load, memory_bytes, moving_parameters
from limbeck.loss import CHUNK_BYTES, CHUNK_ROWS, SAID_BYTES, SAID_ROWS
from limbeck.machine import Precision
from limbeck.places import locate
from limbeck.planning.exchange import Exchange, exchanged, shared
from limbeck.planning.priced import around, drawn, locals_of, of_step
from limbeck.planning.roofline import Machine
from limbeck.planning.scene import Draw, Scene
from limbeck.planning.work import Actor, Piece, Stage
from limbeck.recipe import Recipe
from limbeck.student import Student
from limbeck.teachers import Local
from limbeck.vocabulary import Vocabulary


@dataclass
class Models:
    """Models by name, as their files describe them, each looked at once; and how wide numbers are on the machine."""

    narrow: bool
    known: dict[str, Anatomy] = field(default_factory=dict[str, Anatomy])

    def width(self, precision: Precision) -> int:
        """Bytes of a number; "auto" is what the machine computes in."""
        return 2 if precision == "bfloat16" or (precision == "auto" and self.narrow) else 4

    def anatomy(self, name: str, trust_remote_code: bool = False) -> Anatomy:
        """By its files, or by its configuration on the hub."""
        if name not in self.known:
            place = locate(name)
            self.known[name] = anatomy(name, place) if place else anatomy_on_hub(name, trust_remote_code)
        return self.known[name]

    def student(self, part: Student) -> Actor:
        """The student at work."""
        found = self.anatomy(part.model, part.trust_remote_code)
        return Actor(found, self.width(part.dtype), moving_parameters(found, part), part, part.trust_remote_code)

    def teacher(self, part: Local) -> Actor:
        """A teacher at work."""
        return Actor(self.anatomy(part.model, part.trust_remote_code), self.width(part.dtype), trust_remote_code=part.trust_remote_code)


@dataclass(frozen=True)
class Work:
    """All that a run does: a mean step's pieces, those around the steps, those before the run; and the text that its steps were told by."""

    step: list[Piece]
    around: list[Piece]
    before: list[Piece]
    draws: list[Draw]

    @property
    def pieces(self) -> list[Piece]:
        """Every one, once."""
        return [*self.step, *self.around, *self.before]


def scene_of(
    recipe: Recipe, models: Models, vocabulary: Vocabulary, ranks: int = 1, answer_tokens: int | None = None, accepted: float = 0.8
) -> Scene:
    """What is known of a run before it begins."""
    return Scene(recipe, models.student(recipe.student), vocabulary, models.teacher, answer_tokens, accepted, ranks)


def work_of(scene: Scene, before: Sequence[Piece] = ()) -> Work:
    """The pieces of a run. Raises LimbeckError for parts whose work nobody told, and for data that cannot be read."""
    draws = drawn(scene.recipe.source, scene)
    return Work(of_step(scene.recipe, scene, draws), around(scene.recipe, scene), list(before), draws)


STAGES: tuple[Stage, ...] = ("beforehand", "begin", "write", "score", "learn", "exchange", "step", "evaluate", "save")


@dataclass(frozen=True)
class Costs:
    """What a run costs. step_seconds: of a mean step, by stage; seconds: of all, by stage; usd: None where the machine has no price.

    memory_bytes: by what for, of one rank, at its fullest; disk_bytes: at the fullest, what is made before the run too. exchanges: what
    ranks say to each other in a step, by the stage in which they do; of it "exchange" holds what no arithmetic hides.
    """

    step_seconds: dict[str, float]
    seconds: dict[str, float]
    step_flops: float
    flops: float
    memory_bytes: dict[str, int]
    disk_bytes: float
    api_usd: float
    usd: float | None
    steps: int
    tokens_a_step: float
    assumed: list[str]
    exchanges: dict[str, Exchange] = field(default_factory=dict[str, Exchange])

    @property
    def total_seconds(self) -> float:
        """From the first to the last."""
        return sum(self.seconds.values())

    def as_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        exchanges = {stage: vars(each) for stage, each in self.exchanges.items()}
        return {**vars(self), "exchanges": exchanges, "total_seconds": self.total_seconds, "total_memory_bytes": sum(self.memory_bytes.values())}


def costs_of(work: Work, scene: Scene, machine: Machine, models: Models, before_bytes: int = 0) -> Costs:
    """The costs of a run's work. before_bytes: memory of what is done before it."""
    recipe = scene.recipe
    step = _by_stage(work.step, machine)
    exchanges = exchanged(work.step, scene.student, machine, step)
    step |= {"exchange": sum(each.waited_seconds for each in exchanges.values())} if exchanges else {}
    rest = _by_stage([*work.before, *work.around], machine)
    seconds = {stage: rest.get(stage, 0.0) + recipe.steps * step.get(stage, 0.0) for stage in STAGES}
    api = recipe.steps * sum(piece.usd for piece in work.step) + sum(piece.usd for piece in [*work.around, *work.before])
    step_flops = scene.ranks * sum(piece.flops for piece in work.step)
    memory = costs_memory(work, scene, models, machine)
    if before_bytes > sum(memory.values()):
        memory = {"beforehand": before_bytes}
    hours = sum(seconds.values()) / 3600
    return Costs(
        step, {stage: value for stage, value in seconds.items() if value}, step_flops,
        recipe.steps * step_flops + scene.ranks * sum(piece.flops for piece in [*work.around, *work.before]), memory,
        sum(piece.bytes_kept for piece in work.pieces), api, None if machine.usd_hour is None else api + hours * machine.usd_hour, recipe.steps,
        scene.ranks * sum(draw.share * len(draw.batch.places_N) for draw in work.draws), list(scene.assumed),
        exchanges,
    )  # fmt: skip


def _by_stage(pieces: Sequence[Piece], machine: Machine) -> dict[str, float]:
    found = dict[str, float]()
    for piece in pieces:
        found[piece.stage] = found.get(piece.stage, 0.0) + machine.seconds(piece)
    return found


@dataclass(frozen=True)
class Loaded:
    """What passes hold: as `estimate` has it, and padded tokens of the largest one."""

    load: Load
    pass_tokens: int


def loaded(work: Work, scene: Scene) -> Loaded:
    """The longest sequence and prompt and the largest pass of the text that was drawn; logits that exist at once, of student and teacher, twice."""
    batches = [draw.batch for draw in work.draws if len(draw.batch)]
    longest = max((int(batch.lengths_B.max()) for batch in batches), default=0)
    passes = [part for batch in batches for part in batch.split(scene.recipe.tokens_per_pass)]
    vocabulary, width = scene.student.anatomy.head_rows, scene.student.width
    chunks = min(CHUNK_BYTES, CHUNK_ROWS * vocabulary * width) + min(SAID_BYTES, SAID_ROWS * vocabulary * width)
    prompt = max((int(batch.before_B.max()) for batch in batches), default=256)
    return Loaded(Load(longest, prompt, 2 * chunks), max((len(part) * int(part.lengths_B.max()) for part in passes), default=1))


def costs_memory(work: Work, scene: Scene, models: Models, machine: Machine | None = None) -> dict[str, int]:
    """What a rank of a run holds at its fullest, by what for."""
    return memory_of(scene.recipe, models, loaded(work, scene), machine.ranks if machine and machine.sharded else 1)


def memory_of(recipe: Recipe, models: Models, held: Loaded, shares: int = 1) -> dict[str, int]:
    """The same of a recipe on such text. shares: ranks of which each holds one of the models."""
    teachers, passes = [models.anatomy(each.model) for each in locals_of(recipe.teacher)], min(recipe.tokens_per_pass, held.pass_tokens)
    student = models.anatomy(recipe.student.model)
    found = memory_bytes(replace(recipe, tokens_per_pass=passes), student, teachers[0] if teachers else None, held.load, models.width)
    if len(teachers) > 1:
        found["other teachers"] = sum(models.width("auto") * each.parameters_total for each in teachers[1:])
    return shared(found, recipe, student, teachers, models.width, shares) if shares > 1 else found


# What would fit

Change = Callable[[Recipe], Recipe]


def _set(*assignments: str) -> Change:
    return lambda recipe: Recipe.of(override(plain(recipe), list(assignments)))


CHANGES: tuple[tuple[str, Change], ...] = (
    ("tokens_per_pass: 512", lambda recipe: replace(recipe, tokens_per_pass=min(512, recipe.tokens_per_pass))),
    ("student.gradient_checkpointing: true", lambda recipe: replace(recipe, student=replace(recipe.student, gradient_checkpointing=True))),
    ("student.optimizer.eight_bit: true", _set("student.optimizer.eight_bit=true")),
    ("teacher.quantization: 4bit", _set("teacher.quantization=4bit")),
    ("student.lora: {rank: 16}", lambda recipe: replace(recipe, student=replace(recipe.student, lora=LoRA()))),
)
"""What a recipe may be changed by to take less, each on top of those before it: the first change no number that is learnt."""


def would_fit(recipe: Recipe, models: Models, held: Loaded, room_bytes: float, machine: Machine | None = None) -> str:
    """The changes with which a recipe fits, in words; else the largest student that would."""
    taken, changed, shares = list[str](), recipe, machine.ranks if machine and machine.sharded else 1
    if machine and machine.ranks > shares and sum(memory_of(recipe, models, held, machine.ranks).values()) <= room_bytes:
        return "it fits with a share of the models on each GPU: --fsdp"
    for words, change in CHANGES:
        try:
            changed = change(changed)
        except LimbeckError:  # a teacher that has no such setting
            continue
        taken.append(words)
        if sum(memory_of(changed, models, held, shares).values()) <= room_bytes:
            return f"it fits with {', '.join(_needed(recipe, taken, models, held, room_bytes, shares))}"
    whole = memory_of(recipe, models, held, shares)
    free = room_bytes - whole.get("teacher", 0) - held.load.base_bytes
    if free <= 0:
        return (
            "the teacher alone fills it; let it speak elsewhere (`limbeck cache`, `limbeck write`) and learn here without it, or take a smaller one"
        )
    return f"a student of about {short(shares * free / 20)} parameters would fit, or a machine of {sum(whole.values()) / 1e9:.0f} GB"


def _needed(recipe: Recipe, taken: list[str], models: Models, held: Loaded, room_bytes: float, shares: int) -> list[str]:
    """Of changes that suffice, those that cannot be left out, the gentlest kept last."""
    kept = list(taken)
    for words in taken[:-1]:
        fewer, changed = [each for each in kept if each != words], recipe
        for each in fewer:
            changed = dict(CHANGES)[each](changed)
        if sum(memory_of(changed, models, held, shares).values()) <= room_bytes:
            kept = fewer
    return kept


def misfit(scene: Scene, costs: Costs, work: Work, machine: Machine, models: Models) -> str | None:
    """Why a run does not fit on a machine and what would, in one line; None where it does."""
    memory, room = sum(costs.memory_bytes.values()), machine.memory_bytes
    if memory > room:
        whose = "a GPU" if machine.ranks > 1 else "the machine"
        parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in costs.memory_bytes.items())
        what = would_fit(scene.recipe, models, loaded(work, scene), room, machine)
        return f"it takes {memory / 1e9:.1f} GB of memory ({parts}) and {whose} has {room / 1e9:.1f}; {what}"
    if machine.disk_bytes is not None and costs.disk_bytes > machine.disk_bytes:
        return f"it takes {costs.disk_bytes / 1e9:.1f} GB of disk and {machine.disk_bytes / 1e9:.1f} are free; lower keep_last, or free some"
    return None
