"""What a run does, piece by piece: passes, heads, writing, steps, files, calls. Each piece knows its FLOPs; a machine knows its seconds.

A piece is the work of one rank. The parts of a recipe say which pieces they ask for (`priced.py`); `roofline.py` says how long they take.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from limbeck.anatomy import Anatomy
from limbeck.objective import Objective
from limbeck.planning.flops import head_flops, learn_flops, read_flops, write_flops
from limbeck.student import Student

Stage = Literal["begin", "write", "score", "learn", "exchange", "step", "evaluate", "save", "beforehand"]


@dataclass(frozen=True)
class Actor:
    """A model at work. width: bytes of a number of its arithmetic. moving: weights that a step changes. learner: its settings where it learns."""

    anatomy: Anatomy
    width: int = 4
    moving: int = 0
    learner: Student | None = None
    trust_remote_code: bool = False

    @property
    def parameters(self) -> int:
        """All its weights."""
        return self.anatomy.parameters_total

    @property
    def masters(self) -> int:
        """Bytes of a weight as it is held: a learner's are whole."""
        return 4 if self.learner else self.width

    @property
    def adapters(self) -> bool:
        """Whether adapters learn, and the weights stand still."""
        return self.learner is not None and self.learner.lora is not None

    @property
    def again(self) -> bool:
        """Whether activations are made again on the way back."""
        return self.learner is not None and self.learner.gradient_checkpointing


@dataclass(frozen=True)
class Piece:
    """Something that is done in a stage. times: how often."""

    stage: Stage
    times: float = field(default=1.0, kw_only=True)

    @property
    def flops(self) -> float:
        """Of all times together."""
        return 0.0

    @property
    def usd(self) -> float:
        """What others ask for it, in all."""
        return 0.0

    @property
    def bytes_kept(self) -> float:
        """What of it stays on the disk."""
        return 0.0


@dataclass(frozen=True)
class Reading(Piece):
    """A pass forward over sequences padded to `tokens`."""

    actor: Actor
    sequences: float
    tokens: float

    @property
    def flops(self) -> float:
        """Of the body."""
        return self.times * read_flops(self.actor.anatomy, self.sequences, self.tokens)


@dataclass(frozen=True)
class Learning(Reading):
    """A pass forward and back."""

    @property
    def flops(self) -> float:
        """Of the body."""
        adapters = self.actor.moving if self.actor.adapters else 0
        return self.times * learn_flops(self.actor.anatomy, self.sequences, self.tokens, adapters, self.actor.again)


@dataclass(frozen=True)
class Heads(Piece):
    """The rows of a pass meet the heads and the objective. scorer: whose whole distributions are made too. gradient: whether they learn."""

    student: Actor
    objective: Objective
    rows: float
    scorer: Actor | None = None
    gradient: bool = True

    @property
    def flops(self) -> float:
        """`2 N V (Ht + 3 Hs)`, or without a gradient `2 N V (Ht + Hs)`; arithmetic on rows is left out. None where no term asks for rows."""
        if not self.objective.row_terms:
            return 0.0
        learns = self.gradient and not self.student.adapters  # a head beside adapters stands still, and hands its gradient on
        mine = head_flops(self.student.anatomy, self.rows, learns) + (2 if self.gradient and not learns else 0) * self._product
        return self.times * (mine + (head_flops(self.scorer.anatomy, self.rows) if self.scorer else 0.0))

    @cached_property
    def _product(self) -> float:
        return self.rows * self.student.anatomy.head_rows * self.student.anatomy.width


@dataclass(frozen=True)
class Inside(Piece):
    """Terms of what stands inside both models, of one pass. pairs: of layers, each compared sequence by sequence."""

    student: Actor
    objective: Objective
    sequences: float
    tokens: float
    rows: float
    pairs: int

    @property
    def bytes(self) -> float:
        """Moved by states of each row, or by its attention to all keys, forward and back."""
        model = self.student.anatomy
        heads = model.size("num_attention_heads", "n_head") or 1
        numbers = sum(24 * heads * self.tokens if "attentions" in term.needs else 8 * model.width for term in self.objective.feature_terms)
        return 4.0 * self.pairs * self.rows * numbers


@dataclass(frozen=True)
class Writing(Piece):
    """Rows written side by side. steps: calls of the model; each: new tokens of a row in one; past: what a row remembers then."""

    actor: Actor
    rows: float
    steps: float
    past: float
    each: float = 1.0

    @property
    def flops(self) -> float:
        """Body and head."""
        return self.times * write_flops(self.actor.anatomy, self.rows, self.steps * self.each, self.past)


@dataclass(frozen=True)
class Moving(Piece):
    """Bytes that are read and written in memory, with little arithmetic: an optimizer's step, a copy of weights."""

    bytes: float


@dataclass(frozen=True)
class Stepping(Piece):
    """A step of the optimizer."""

    actor: Actor

    @property
    def flops(self) -> float:
        """About ten a weight."""
        return self.times * 10 * self.actor.moving

    @property
    def bytes(self) -> float:
        """Weights, gradients and two moments read, all but the gradients written; gradients once more, for their norm."""
        return 32.0 * self.actor.moving


@dataclass(frozen=True)
class Storing(Piece):
    """Bytes onto the disk. stays: those that are there at the end, or at the fullest."""

    bytes: float
    stays: float = 0.0

    @property
    def bytes_kept(self) -> float:
        """What stays."""
        return self.stays


@dataclass(frozen=True)
class Fetching(Piece):
    """Bytes from the disk."""

    bytes: float


@dataclass(frozen=True)
class Asking(Piece):
    """Calls of a server. tokens_in, tokens_out: in all; usd_in, usd_out: for a million; at_once: calls."""

    tokens_in: float
    tokens_out: float
    usd_in: float = 0.0
    usd_out: float = 0.0
    at_once: int = 8
    parameters: float = 0.0

    @property
    def flops(self) -> float:
        """Where the model's size is known."""
        return self.times * 2 * self.parameters * (self.tokens_in + self.tokens_out)

    @property
    def usd(self) -> float:
        """At the server's prices."""
        return self.times * (self.tokens_in * self.usd_in + self.tokens_out * self.usd_out) / 1e6
