"""How long a piece of work takes on a machine: FLOPs at the rates it reaches, bytes at its bandwidth, and what each call costs besides.

    a pass       call + L layer + FLOPs / rate               its own line for reading and for learning
    heads        FLOPs / rate                                of the objective at hand
    writing      steps x (L layer + head), or where nobody measured it the longer of bytes / bandwidth and FLOPs / rate, and L layer
    a step       bytes / bandwidth

The rates of this machine are measured (`calibrate.py`), those of another are published peaks times a stated efficiency.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError, did_you_mean
from limbeck.planning.flops import learn_flops, read_flops, write_flops, written_bytes
from limbeck.planning.work import Actor, Asking, Fetching, Heads, Inside, Learning, Moving, Piece, Reading, Stepping, Storing, Writing

MACHINES = Path(__file__).parent.parent / "assets" / "machines.json"
SERVED_TOKENS_PER_SECOND = 50.0
"""Of one call of a server: assumed."""


@dataclass(frozen=True)
class Line:
    """Seconds of a pass: for the call, for each layer, and for its FLOPs."""

    call_seconds: float
    layer_seconds: float
    flops_per_second: float

    def seconds(self, layers: int, flops: float) -> float:
        """Of one pass."""
        return self.call_seconds + layers * self.layer_seconds + flops / self.flops_per_second


@dataclass
class Speeds:
    """What a machine does with models of one shape.

    heads: FLOPs a second, by `heads_key`. writing, by `writing_key`: seconds of a layer, of all else in a call, and tokens that rows
    remembered then; what more they remember is bytes on top.
    """

    read: Line
    learn: Line
    heads: dict[str, float] = field(default_factory=dict[str, float])
    writing: dict[str, tuple[float, float, float]] = field(default_factory=dict[str, tuple[float, float, float]])
    step_bytes_per_second: float = 1e9
    inside: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds of terms of what stands inside, of a sequence and a pair of layers, by `inside_key`."""

    def head_rate(self, key: str) -> float:
        """FLOPs a second of heads; of those that nobody measured the slowest that somebody did, or the pass's own."""
        return self.heads.get(key) or min(self.heads.values(), default=self.read.flops_per_second)


def heads_key(piece: Heads) -> str:
    """What of an objective decides how fast its rows go; scores that were kept are so few of a token that the text's own terms are as fast."""
    terms = "+".join(sorted(type(term).__name__ for term in piece.objective.row_terms))
    terms = TEXT if on_kept(piece) else terms
    return f"{terms}{' of a teacher' if piece.scorer else ''}{'' if piece.gradient else ', no gradient'}"


TEXT = "CrossEntropy"


def on_kept(piece: Heads) -> bool:
    """Whether the rows meet scores that are no whole distributions: those of a cache or a server."""
    return piece.scorer is None and any(term.needs for term in piece.objective.row_terms)


def inside_key(piece: Inside) -> str:
    """What is compared, and how long a sequence is, to the next power of 2."""
    return f"{'+'.join(sorted(type(term).__name__ for term in piece.objective.feature_terms))} of {2 ** math.ceil(math.log2(max(2.0, piece.tokens)))}"


def writing_key(piece: Writing) -> str:
    """Rows side by side, and tokens of each at once."""
    return f"{round(piece.rows)}x{round(piece.each)}"


@dataclass
class Machine:
    """What work is done on. memory_bytes, disk_bytes: of one rank, and free. usd_hour: all of it, where somebody asks a price; ranks: GPUs."""

    name: str
    speeds: Callable[[Actor], Speeds]
    bytes_per_second: float
    disk_bytes_per_second: float
    memory_bytes: float
    ranks: int = 1
    sharded: bool = False
    """Whether each rank holds a share of the models (FSDP2), and not a copy (DDP)."""
    link_bytes_per_second: float = math.inf
    """What a rank sends to its neighbours, and hears from them at the same time."""
    usd_hour: float | None = None
    disk_bytes: float | None = None
    narrow: bool = False
    """Whether "auto" is bfloat16 here."""
    notes: tuple[str, ...] = ()

    def prepare(self, pieces: Sequence[Piece]) -> None:
        """Make ready for these pieces: nothing has to be, where nothing is measured."""

    def seconds(self, piece: Piece) -> float:
        """Of a piece, all times together."""
        return piece.times * once(piece, self)


@singledispatch
def once(piece: Piece, machine: Machine) -> float:
    """Seconds of a piece done once."""
    raise AssertionError(f"{type(piece).__name__} is no work that a machine knows")


@once.register
def _(piece: Reading, machine: Machine) -> float:
    model = piece.actor.anatomy
    return machine.speeds(piece.actor).read.seconds(model.layers, read_flops(model, piece.sequences, piece.tokens))


@once.register
def _(piece: Learning, machine: Machine) -> float:
    model, adapters = piece.actor.anatomy, piece.actor.moving if piece.actor.adapters else 0
    flops = learn_flops(model, piece.sequences, piece.tokens, adapters, piece.actor.again)
    return machine.speeds(piece.actor).learn.seconds(model.layers, flops)


@once.register
def _(piece: Heads, machine: Machine) -> float:
    return piece.flops / piece.times / machine.speeds(piece.student).head_rate(heads_key(piece)) if piece.times else 0.0


@once.register
def _(piece: Inside, machine: Machine) -> float:
    known = machine.speeds(piece.student).inside.get(inside_key(piece))
    return piece.bytes / machine.bytes_per_second if known is None else known * piece.sequences * piece.pairs


@once.register
def _(piece: Writing, machine: Machine) -> float:
    speeds, model, width = machine.speeds(piece.actor), piece.actor.anatomy, piece.actor.width
    known = speeds.writing.get(writing_key(piece))
    if known is None:
        flops = write_flops(model, piece.rows, piece.each, piece.past)
        rate, moved = speeds.read.flops_per_second, written_bytes(model, piece.rows, piece.past, width)
        return piece.steps * (max(moved / machine.bytes_per_second, flops / rate) + model.layers * speeds.read.layer_seconds)
    more = 2 * width * piece.rows * (piece.past - known[2]) * model.keys_values / machine.bytes_per_second
    return piece.steps * (model.layers * max(0.0, known[0] + more) + known[1])


@once.register
def _(piece: Stepping, machine: Machine) -> float:
    return piece.bytes / (machine.ranks if machine.sharded else 1) / machine.speeds(piece.actor).step_bytes_per_second


@once.register
def _(piece: Moving, machine: Machine) -> float:
    return piece.bytes / machine.bytes_per_second


@once.register
def _(piece: Storing | Fetching, machine: Machine) -> float:
    return piece.bytes / machine.disk_bytes_per_second


@once.register
def _(piece: Asking, machine: Machine) -> float:
    return piece.tokens_out / (piece.at_once * SERVED_TOKENS_PER_SECOND)


def published(gpu: str, ranks: int, usd_hour: float | None = None, sharded: bool = False) -> Machine:
    """A machine of GPUs that is not here. Raises RecipeError for one whose numbers are not known."""
    known: dict[str, Any] = json.loads(MACHINES.read_text(encoding="utf-8"))
    if gpu.lower() not in known["gpus"]:
        raise RecipeError(f'no published numbers of the GPU "{gpu}"{did_you_mean(gpu.lower(), known["gpus"])}; known: {", ".join(known["gpus"])}')
    if ranks < 1:
        raise RecipeError(f"a machine has at least one GPU, found --gpus {ranks}")
    card, share = known["gpus"][gpu.lower()], known["efficiency"]
    peaks = {2: card["bfloat16_flops"], 4: card["float32_flops"]}

    def speeds(actor: Actor) -> Speeds:
        peak, call, layer = peaks[2 if actor.width == 2 else 4], share["call_seconds"], share["layer_seconds"]
        heads = {"of any objective": share["heads"] * peak}
        read, learn = (Line(times * call, times * layer, share[what] * peak) for times, what in ((1, "read"), (3, "learn")))
        return Speeds(read, learn, heads, {}, share["memory"] * card["bytes_per_second"])

    shares = ", ".join(f"{name} {share[name]:.0%}" for name in ("read", "learn", "heads", "memory", *(("link",) if ranks > 1 else ())))
    link = (
        card["link_bytes_per_second"] if ranks <= share["gpus_of_a_host"] else min(card["link_bytes_per_second"], share["network_bytes_per_second"])
    )
    return Machine(
        f"{ranks} x {card['name']}{', each a share of the models' if sharded else ''}", speeds, share["memory"] * card["bytes_per_second"],
        share["disk_bytes_per_second"], card["memory_bytes"], ranks, sharded, share["link"] * link, usd_hour, narrow=True,
        notes=(f"an estimate: published peaks ({card['source']}) times an assumed efficiency ({shares}); nothing was measured",),
    )  # fmt: skip
