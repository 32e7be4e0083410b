"""The student: the weights that move. It learns, writes, steps and saves; what it is taught is not its choice."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from limbeck.adapters import LoRA, add_lora, save_folded
from limbeck.batch import Batch
from limbeck.config import Part, live, part
from limbeck.decoding import Sampling, Written, write
from limbeck.distributed import Passes, agree, ended_together, is_sharded, ranks, room_like, whole_tensor
from limbeck.errors import LimbeckError, RecipeError
from limbeck.insides import CLOSED, Layers
from limbeck.lazy import Tensor, torch
from limbeck.machine import Opening, Precision, device
from limbeck.objective import Objective
from limbeck.optimizer import AdamW
from limbeck.targets import Targets
from limbeck.vocabulary import Vocabulary

T = TypeVar("T")

if TYPE_CHECKING:
    from limbeck.checkpoint import Saved
    from limbeck.loss import Outputs
    from limbeck.models import Model
    from limbeck.opened import OpenModel
    from limbeck.pen import Pen
    from limbeck.shadow import Shadow


@part
class Student(Part):
    """A model that learns: a causal language model, a classifier, a masked or a sequence-to-sequence model.

    model: hub name or folder, or `module:function` that gives a torch module. dtype: of its arithmetic ("auto": bfloat16 where the processor
    gains by it); its masters
    are float32. lora: train adapters instead of the weights. quantization: of the frozen weights below adapters.
    chat_template: "own", or "teacher" to render by the teacher's; a student without one always takes the teacher's.
    Dropout is off: a divergence is measured against what the student says, not against noise.
    """

    model: str
    optimizer: AdamW = field(default_factory=AdamW)
    dtype: Precision = "auto"
    attention: str | None = None
    lora: LoRA | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    gradient_checkpointing: bool = False
    chat_template: Literal["own", "teacher"] = "own"
    trust_remote_code: bool = False

    _open: Any = live()
    _optimizer: Any = live()
    _steps: Any = live()
    _passes: Any = live()
    _pen: Any = live()
    _joined: Any = live()
    _shadows: Any = live()

    @classmethod
    def adopt(cls, value: object) -> object:
        """A name or a folder alone may stand for the whole."""
        return cls(model=str(value)) if isinstance(value, str | Path) else value

    def __post_init__(self) -> None:
        if self.quantization and not self.lora:
            raise RecipeError(f"{self.quantization} weights cannot be trained; put adapters on them: lora: {{rank: 16}}")

    def load(self, steps: int) -> Self:
        """The student alive: weights open, ready for `steps` steps."""
        from limbeck.kinds import open_kind

        training = self.gradient_checkpointing or self.quantization is not None
        opening = Opening("float32", self.attention, self.quantization, self.trust_remote_code, training, cut=is_sharded())
        return self.holding(open_kind(self.model, opening, self.dtype), steps)

    def holding(self, model: "OpenModel", steps: int) -> Self:
        """The same with a model that is open already, its weights as they are to be learnt."""
        from limbeck.pen import Pen

        made = self.fresh()
        made._open, made._steps = model, steps
        made._open.see_learnable(self.lora is not None, self.gradient_checkpointing)
        if self.quantization and is_sharded():
            raise RecipeError(f"a student of {self.quantization} weights cannot be sharded; launch without --use_fsdp, or leave out quantization")
        if self.lora:
            made._open.module = add_lora(made._open.module, self.lora, bool(self.quantization))
        if self.gradient_checkpointing:
            causal: Any = made._open.causal  # transformers before 5.20 has another name for it
            getattr(causal, "activation_checkpointing_enable", causal.gradient_checkpointing_enable)({"use_reentrant": False})
        made._passes, made._pen, made._shadows = Passes(made._open, learns=True), Pen(), dict[float, "Shadow"]()
        made._optimizer = self.optimizer.build(w for w in made._open.module.parameters() if w.requires_grad)
        return made

    @property
    def live(self) -> "OpenModel":
        """The open model."""
        assert self._open is not None, "this student is only its settings; load() it"
        return self._open

    @property
    def steps(self) -> int:
        """How many steps it was made ready for."""
        return self._steps

    def join(self, modules: "torch.nn.ModuleDict") -> None:
        """Have modules learn with the student: optimised, checkpointed, and left out of what `save` writes. Before the first pass."""
        if not list(modules.parameters()):
            return
        self._joined = modules.to(device())
        self._passes.join(self._joined)
        for group in self.optimizer.groups(self._joined.parameters()):
            self._optimizer.add_param_group(group)

    @property
    def _moving(self) -> "dict[str, torch.nn.Parameter]":
        """The weights that move, by name, those that joined among them."""
        own = dict(self.live.module.named_parameters())
        joined = {f"joined.{name}": weight for name, weight in self._joined.named_parameters()} if self._joined else {}
        return {name: weight for name, weight in (own | joined).items() if weight.requires_grad}

    def aside(self, pen: "Pen") -> Self:
        """One that writes with the weights as they are now, copied into a pen of its own, whatever is learnt meanwhile. It cannot learn."""
        made = self.fresh()
        made._open, made._pen, made._steps = pen.of(self.live.writer), pen, self._steps
        made._passes = Passes(made._open, learns=False)
        return made

    def shadow(self, decay: float) -> "Shadow":
        """The moving average of its weights at this decay, from now on: it follows each step, and is saved with them."""
        from limbeck.shadow import Shadow

        if decay not in self._shadows:
            self._shadows[decay] = Shadow(self.live, decay)
        return self._shadows[decay]

    def take_template(self, template: str | None, end_ids: frozenset[int]) -> Vocabulary:
        """The vocabulary, dialogues rendered by the teacher's template where this student has none or was told to take it."""
        mine = self.live.vocabulary
        if self.chat_template == "teacher" or not mine.has_template:
            mine = self.live.vocabulary = mine.with_template(template, end_ids)
        return mine

    def share_vocabulary(self, theirs: Vocabulary) -> None:
        """Prove that student and teacher mean the same by a token, the template taken first."""
        if self.live.vocabulary is not theirs:
            self.take_template(theirs.template, theirs.end_ids).prove_equal(theirs)

    def learn(self, batch: Batch, said: Targets, objective: Objective, scale: float, last: bool = True) -> dict[str, Tensor]:
        """Forward, objective and backward of one pass: adds `scale * sum` to the gradient; returns nats [N] by term.

        last: whether it is the last pass of a step, after which ranks have the same gradient.
        """
        from limbeck.loss import pass_loss

        def work(model: "OpenModel") -> tuple[Tensor, dict[str, Tensor]]:
            outputs = model.forward(batch, objective.opens[0])
            loss, nats = pass_loss(outputs, said, batch, objective, scale)
            if ranks() > 1 and not objective.row_terms:
                loss = loss + outputs.touched()  # every weight is waited for by the other ranks
            if not torch.isfinite(loss):
                raise LimbeckError(f"the loss is {float(loss.detach())} {_where(nats, batch)}; lower the learning rate, or look at these rows")
            return loss, nats

        return self._passes.learn(work, last)

    def forget(self) -> None:
        """Drop the gradient gathered since the last step."""
        self._optimizer.zero_grad(set_to_none=True)

    def run(self, work: "Callable[[OpenModel], T]") -> T:
        """Something done with the model in a pass of it, and nothing learnt; every rank must do it."""
        with torch.no_grad():
            return self._passes.run(work)

    def forward(self, batch: Batch, opened: Layers = CLOSED) -> "Outputs":
        """Hidden states and head for each completion token, layers `opened` beside them, and nothing learnt."""
        return self.run(lambda model: model.forward(batch, opened).apart() if is_sharded() else model.forward(batch, opened))

    def measure(self, batch: Batch, said: Targets, objective: Objective) -> dict[str, Tensor]:
        """The same nats [N] by term, and nothing learnt."""
        from limbeck.loss import measure

        agree()
        return self.run(lambda model: measure(model.forward(batch, objective.opens[0]), said, batch, objective))

    def write(self, prompts: Sequence[list[int]], sampling: Sampling, seed: int, step: int, rows: Sequence[int],
              told: Callable[[int], None] = lambda tokens: None) -> list[Written]:  # fmt: skip
        """Complete prompts with the weights as they are."""
        return self.lend(lambda model: write(model, prompts, sampling, seed, step, rows, told=told))

    def lend(self, work: "Callable[[Model], T]") -> T:
        """Something done with all weights as they are now, rounded where its arithmetic is narrower: writing. Every rank must do it."""
        writer = self.live.writer
        return ended_together(self._passes.run_whole if is_sharded() else lambda each: each(self._pen.of(writer)), work)

    def step(self, step: int) -> dict[str, float]:
        """Move the weights by the gradient gathered since the last step; says the norm it had and the rate it was given."""
        weights = [w for w in self._moving.values() if w.grad is not None]
        clipped = torch.nn.utils.clip_grad_norm_(weights, self.optimizer.clip or float("inf"), foreach=True)
        norm = float(whole_tensor(clipped))
        if not norm < float("inf"):
            raise LimbeckError(f"the gradient's norm is {norm}; nothing was changed; lower the learning rate")
        rate = self.optimizer.rate(step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        for shadow in self._shadows.values():
            shadow.follow()
        self.forget()
        return {"gradient_norm": norm, "learning_rate": rate}

    def unadapted(self) -> AbstractContextManager[None]:
        """The student as it was before its adapters, for as long as the block lasts."""
        return _without_adapters(self.live)

    def save(self, folder: Path | None) -> None:
        """Write the student as a folder that transformers loads, adapters folded in (beside 4- and 8-bit weights: the adapters alone).

        Every rank must call; those that only bring their share give no folder.
        """
        module = self.live.module
        if self.lora and not self.quantization:
            self._passes.run_whole(lambda model: save_folded(module, folder) if folder else None)
            if folder:
                self.live.vocabulary.tokenizer.save_pretrained(folder)
            return
        whole = {name: whole_tensor(weight.detach()) for name, weight in module.named_parameters()} if is_sharded() else None
        if folder:
            self.live.save(folder, whole)

    def hand_over(self, folder: Path | None) -> None:
        """Write the weights as its arithmetic rounds them, for whoever writes in its place; a head that is the embedding becomes one of its own.

        Every rank must call; those that only bring their share give no folder.
        """
        if self.lora:
            return self.save(folder)
        if folder is not None:
            self.live.save_untied(folder, dict(self.handed()))
        elif is_sharded():
            for _ in self.handed():
                pass

    def handed(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that `hand_over` writes, one after the other and whole. Every rank must go through them."""
        for name, weight in self.handed_shares().items():
            yield name, whole_tensor(weight.detach()).to(self.live.compute)

    def handed_shares(self) -> dict[str, Tensor]:
        """The same as this rank has them."""
        weights, tied = dict[str, Tensor](self.live.module.named_parameters()), self.live.tied
        return {**weights, tied[0]: weights[tied[1]]} if tied else weights

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name: the moving weights, their averages and the optimizer's moments."""
        moving = self._moving
        moments = {
            f"moment.{name}.{kind}": torch.as_tensor(value)  # bitsandbytes counts its steps in plain numbers
            for name, weight in moving.items()
            for kind, value in self._optimizer.state.get(weight, {}).items()
        }
        averages = {name: weight for shadow in self._shadows.values() for name, weight in shadow.state().items()}
        return {f"weight.{name}": weight.detach() for name, weight in moving.items()} | moments | averages

    def restore(self, saved: "Saved") -> None:
        """Take back what `state` gave: each rank reads what it holds, moments laid out as their weights are."""
        moving = self._moving
        averages = {name: weight for shadow in self._shadows.values() for name, weight in shadow.state().items()}
        moments = {key: room_like(known, moving.get(_moment(key)[0])) for key, known in saved.known.items() if key.startswith("moment.")}
        saved.fill({f"weight.{name}": weight.detach() for name, weight in moving.items()} | averages | moments)
        kept = dict[str, dict[str, Any]]()
        for key, value in moments.items():
            name, kind = _moment(key)
            kept.setdefault(name, {})[kind] = value if value.is_floating_point() or value.ndim else int(value)
        for name, weight in moving.items():
            self._optimizer.state[weight] = kept.get(name, {})


def _moment(key: str) -> tuple[str, str]:
    """Of which weight a moment is, and which of its moments."""
    name, _, kind = key.removeprefix("moment.").rpartition(".")
    return name, kind


def _where(nats: dict[str, Tensor], batch: Batch) -> str:
    bad = sorted({int(b) for values in nats.values() for b in batch.sequence_N[~torch.isfinite(values)]})
    return f"in sequences {bad[:8]} of a pass" if bad else "though every row is finite"


@contextmanager
def _without_adapters(model: "OpenModel") -> Any:
    with model.module.disable_adapter():
        yield
