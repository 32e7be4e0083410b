"""What several ranks say to each other in a step, and what each of them holds: copies of the models (DDP), or shares of them (FSDP2).

n ranks, P weights of b bytes in a group. A rank hears (and sends) in a ring, in bytes:

    gathering shares      (n - 1) / n b P          forward, and once more on the way back; embedding and head (one group) once a pass
    scattering gradients  (n - 1) / n 4 P          each pass, summed in float32
    averaging copies      2 (n - 1) / n 4 M        of M weights that move, once a step

It goes on beside the arithmetic of its stage, so that a step waits for the longer of the two (a roofline); writing waits for all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.anatomy import Anatomy
from limbeck.machine import Precision
from limbeck.planning.flops import body_weights
from limbeck.planning.roofline import Machine
from limbeck.planning.work import Actor, Learning, Piece, Reading, Stage, Writing
from limbeck.recipe import Recipe
from limbeck.room import locals_of

GRADIENT_BYTES = 4
AT_HAND = 2
"""Layers that are whole at once: the one at work, and the next on its way."""


@dataclass(frozen=True)
class Exchange:
    """What a rank hears in one stage of a step. hidden_seconds: of the arithmetic beside which it goes on."""

    bytes: float
    seconds: float
    hidden_seconds: float

    @property
    def waited_seconds(self) -> float:
        """What a step waits for."""
        return max(0.0, self.seconds - self.hidden_seconds)


def exchanged(step: Sequence[Piece], student: Actor, machine: Machine, arithmetic: dict[str, float]) -> dict[str, Exchange]:
    """What ranks exchange in the stages of a step, whose seconds of arithmetic are known; nothing where there is one."""
    n = machine.ranks
    if n == 1:
        return {}
    heard = _shares(step, student) if machine.sharded else {"learn": 2.0 * GRADIENT_BYTES * student.moving}
    return {stage: _exchange((n - 1) / n * size, machine, 0.0 if stage == "write" else arithmetic.get(stage, 0.0)) for stage, size in heard.items()}


def _exchange(size: float, machine: Machine, hidden: float) -> Exchange:
    return Exchange(size, size / machine.link_bytes_per_second, hidden)


def _shares(step: Sequence[Piece], student: Actor) -> dict[Stage, float]:
    """Bytes of shares that are gathered and scattered; writing gathers all weights once."""
    found = dict[Stage, float]()
    for piece in step:
        if isinstance(piece, Reading) and piece.stage in ("learn", "score"):
            found[piece.stage] = found.get(piece.stage, 0.0) + piece.times * _of_pass(piece)
    if any(isinstance(piece, Writing) and piece.actor == student for piece in step):
        found["write"] = float(student.masters * student.parameters)
    return found


def _of_pass(piece: Reading) -> float:
    actor, layers, rest = piece.actor, body_weights(piece.actor.anatomy), _rest(piece.actor.anatomy)
    gathered = actor.width * layers + actor.masters * rest
    if not isinstance(piece, Learning):
        return gathered
    return gathered + actor.width * layers + GRADIENT_BYTES * (actor.moving if actor.adapters else layers + rest)


def _rest(model: Anatomy) -> float:
    """Weights of embedding, head and whatever stands in no block."""
    return max(0.0, model.parameters_total - body_weights(model))


def shared(
    whole: dict[str, int], recipe: Recipe, student: Anatomy, teachers: Sequence[Anatomy], width_of: Callable[[Precision], int], ranks: int
) -> dict[str, int]:
    """What a rank holds of what one alone would: shares of weights, gradients and moments, and what of the models is whole at once.

    Quantised and offloaded teachers cannot be cut, and stay whole. Autocast's copy of the weights is made of one layer after the other.
    """
    whole_teacher = any(each.uncut for each in locals_of(recipe.teacher))
    kept = {"teacher"} if whole_teacher else set[str]()
    cut = {"student", "gradients", "moments", "teacher", "other teachers"} - kept
    found = {name: size // ranks if name in cut else size for name, size in whole.items()}
    mine, theirs = width_of(recipe.student.dtype), width_of(getattr(recipe.teacher, "dtype", "auto"))
    found["student"] = (whole["student"] - (mine * student.parameters_total if mine < 4 and not recipe.student.quantization else 0)) // ranks
    models = [(student, mine, 8), *((each, theirs, theirs) for each in ([] if whole_teacher else teachers))]
    found["whole at once"] = int(sum(AT_HAND * width * body_weights(each) / max(1, each.layers) + rest * _rest(each) for each, width, rest in models))
    return found
