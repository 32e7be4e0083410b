"""Students made of teachers: fewer layers, narrower ones, or a small model of the same family that knows nothing yet."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.config import Part, part
from limbeck.errors import RecipeError
from limbeck.files import new_folder, write_json
from limbeck.licences import of_model, record
from limbeck.machine import Opening
from limbeck.sources import texts_of
from limbeck.storage import here

if TYPE_CHECKING:
    from limbeck.batch import Batch
    from limbeck.models import Model

LOOKED_AT, LONGEST, PASS = 64, 512, 2048
"""Rows of text that importance is measured on, tokens of each, and of a pass."""
PROMPT = "One, two, three, four, five, six, seven, eight"


@part
class Shape(Part):
    """What of a teacher stays. The vocabulary always does.

    layers: how many, or which ones. by: "influence" drops those that change the hidden states of real text least (ShortGPT, arXiv 2403.03853),
    "even" keeps every so-manieth with the first and the last. hidden, heads, feed_forward: channels of each layer, those that real text
    uses most (Minitron, arXiv 2407.14679). from_scratch: none of the weights, drawn at random from `seed`: a small model of the same family.
    """

    layers: int | list[int] | None = None
    by: Literal["influence", "even"] = "influence"
    hidden: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    from_scratch: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not any([self.layers, self.hidden, self.heads, self.feed_forward]):
            raise RecipeError("a student of the teacher's own shape was asked for; say what is to be smaller: layers, hidden, heads or feed_forward")
        if self.from_scratch and isinstance(self.layers, list):
            raise RecipeError(f"a fresh model has no layers to choose from, found layers={self.layers}; give their number")

    @property
    def narrower(self) -> dict[str, int]:
        """What is asked for of a layer's channels."""
        asked = {"hidden": self.hidden, "heads": self.heads, "feed_forward": self.feed_forward}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def needs_text(self) -> bool:
        """Whether it depends on what real text uses."""
        return not self.from_scratch and bool(self.narrower or (isinstance(self.layers, int) and self.by == "influence"))


@dataclass(frozen=True)
class Size:
    """How large and how fast a model is. bytes: of its weights in the dtype they are served in; seconds: of a written token, one text at a time."""

    name: str
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    parameters: int
    bytes: int
    seconds_per_token: float


def shrink(teacher: str, shape: Shape, out: Path | str, data: str | None = None) -> list[Size]:
    """Make a student and save it as a folder that transformers loads, under its teacher's licences; the sizes of teacher and student.

    data: real text with completions, on which influence and use are measured. Raises RecipeError for a shape that this teacher cannot have.
    """
    from limbeck.batch import Batch
    from limbeck.models import open_model

    out = here(out)
    if out.exists():
        raise RecipeError(f"{out} is there already; name another folder, or remove it")
    if shape.needs_text and data is None:
        raise RecipeError("what real text uses decides what stays, and there is none; give --data, or ask for --by even, or --from-scratch")
    model = open_model(teacher, Opening("float32"))
    texts = texts_of(data, model.vocabulary, LONGEST, LOOKED_AT) if data and shape.needs_text else []
    if shape.needs_text and not texts:
        raise RecipeError(f"{data} has no completions to look at; give text, or let the teacher answer first: limbeck write")
    made = _fresh(model, shape) if shape.from_scratch else _cut(model, shape, Batch.of(texts, "teacher").split(PASS) if texts else [])
    save(made, teacher, out)
    sizes = [size(open_model(name, Opening("auto"))) for name in (teacher, str(out))]
    write_json(out / "shape.json", {"shape": asdict(shape), "of": {"teacher": sizes[0].parameters, "student": sizes[1].parameters}})
    return sizes


def _cut(model: "Model", shape: Shape, batches: "list[Batch]") -> "Model":
    """Narrower first, while all layers are there to say what they use; then fewer layers of what is left."""
    from limbeck import narrow, prune

    if shape.narrower:
        narrow.by_width(model, narrow.use(model, batches), **shape.narrower)
    if shape.layers is not None:
        prune.by_depth(model, _layers(model, shape, batches))
    return model


def _layers(model: "Model", shape: Shape, batches: "list[Batch]") -> list[int]:
    """Which of them stay, ascending."""
    from limbeck import prune

    if isinstance(shape.layers, list):
        return sorted(shape.layers)
    assert shape.layers is not None
    if shape.by == "even":
        return prune.evenly(model.causal.config.get_text_config().num_hidden_layers, shape.layers)
    return prune.least_influential(prune.influence(model, batches), shape.layers)


def _fresh(model: "Model", shape: Shape) -> "Model":
    """The same family, drawn at random."""
    config = copy.deepcopy(model.causal.config)
    text: Any = config.get_text_config()
    asked = shape.narrower
    heads: int = asked.get("heads") or text.num_attention_heads
    hidden: int = asked.get("hidden") or text.hidden_size
    group = text.num_attention_heads // getattr(text, "num_key_value_heads", text.num_attention_heads)
    if heads % group or hidden % heads:
        raise RecipeError(f"{hidden} hidden channels and {heads} heads, {group} of which share their keys, do not divide; give multiples")
    if shape.layers is not None:
        text.num_hidden_layers = shape.layers
        if isinstance(getattr(text, "layer_types", None), list):
            text.layer_types = text.layer_types[: text.num_hidden_layers]
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = hidden, heads, heads // group
    text.intermediate_size = asked.get("feed_forward", text.intermediate_size)
    if getattr(text, "head_dim", None):
        text.head_dim = hidden // heads
    return drawn(model, config, shape.seed)


def drawn(model: "Model", config: Any, seed: int) -> "Model":
    """A model of this configuration, its weights drawn at random, that speaks as another does."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    made = copy.copy(model)
    made.module = AutoModelForCausalLM.from_config(config).float().eval()
    made.module.generation_config = model.causal.generation_config
    return made


def save(made: "Model", teacher: str, out: Path) -> None:
    """Write a student as a folder that transformers loads, under the licences of whom it was made of."""
    with new_folder(out) as work:
        made.module.save_pretrained(work)
        made.vocabulary.tokenizer.save_pretrained(work)
        record(work, of_model(teacher))


def size(model: "Model", steps: int = 16) -> Size:
    """How large a model is, and the median of its steps in writing one text."""
    import torch

    config, head = model.causal.config.get_text_config(), model.head.prepared(model.compute)
    text, taken = model.begin([model.vocabulary.ids(PROMPT)]), list[float]()
    for _ in range(steps):
        began = time.perf_counter()
        with torch.no_grad():
            text.feed(torch.full((1, 1), 5, device=text.mask_BS.device))
            head.logits(text.hidden_BQD[:, -1]).argmax().item()
        taken.append(time.perf_counter() - began)
    weight = next(model.causal.parameters()).element_size()
    return Size(model.name, config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size,
                model.parameters_total, model.parameters_total * weight, statistics.median(taken))  # fmt: skip


def told(sizes: list[Size]) -> list[list[str]]:
    """Sizes as rows of a table, a column for each model."""
    figures: dict[str, Callable[[Size], str]] = {
        "layers": lambda size: f"{size.layers}", "hidden channels": lambda size: f"{size.hidden:,}", "heads": lambda size: f"{size.heads}",
        "feed-forward channels": lambda size: f"{size.feed_forward:,}", "weights": lambda size: f"{size.parameters / 1e6:,.1f} million",
        "in memory": lambda size: f"{size.bytes / 2**20:,.0f} MiB", "tokens/s, one text": lambda size: f"{1 / size.seconds_per_token:,.0f}",
    }  # fmt: skip
    return [[name, *(figure(size) for size in sizes)] for name, figure in figures.items()]
