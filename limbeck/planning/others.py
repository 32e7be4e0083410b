"""Runs that others published, foretold by the same roofline: how far off it is where somebody measured."""

import json
from dataclasses import dataclass
from typing import Any

from limbeck.anatomy import Anatomy
from limbeck.objective import CrossEntropy, Objective
from limbeck.planning.exchange import exchanged
from limbeck.planning.roofline import MACHINES, published
from limbeck.planning.work import Actor, Heads, Learning, Piece, Stepping
from limbeck.student import Student


@dataclass(frozen=True)
class Run:
    """A published run: tokens a second of one GPU, as it was, and as it is foretold with activation checkpoints of all layers and of none."""

    name: str
    source: str
    gpus: int
    published: float
    least: float
    most: float

    @property
    def foretold(self) -> float:
        """Half of the layers' operations made again, as its authors chose: the mean of the two times."""
        return 2 / (1 / self.least + 1 / self.most)

    @property
    def error(self) -> float:
        """Of the foretold, as a share of what was published."""
        return self.foretold / self.published - 1

    def __str__(self) -> str:
        return (f"published: {self.name}: {self.published:,.0f} tokens a second and GPU ({self.source}); foretold {self.foretold:,.0f} "
                f"({self.error:+.0%}), {self.least:,.0f} to {self.most:,.0f} by how much is made again")  # fmt: skip


def beside() -> list[Run]:
    """The published runs of `assets/machines.json`."""
    known: dict[str, Any] = json.loads(MACHINES.read_text(encoding="utf-8"))
    return [_run(each, known["models"][each["model"]]) for each in known["published"]]


def _run(each: dict[str, Any], config: dict[str, Any]) -> Run:
    least, most = (_tokens_per_second(each, Anatomy(each["model"], config, shapes(config)), again) for again in (True, False))
    return Run(each["name"], each["source"], each["gpus"], each["tokens_per_second"], least, most)


def _tokens_per_second(each: dict[str, Any], model: Anatomy, again: bool) -> float:
    """Of one GPU, in steps of one pass under cross-entropy."""
    machine = published(each["gpu"], each["gpus"], sharded=True)
    actor = Actor(model, 2, model.parameters_total, Student(each["model"], gradient_checkpointing=again))
    rows, tokens = each["sequences"], each["tokens"]
    learning = [Learning("learn", actor, rows, tokens), Heads("learn", actor, Objective([CrossEntropy()]), rows * tokens)]
    pieces: list[Piece] = [*learning, Stepping("step", actor)]
    arithmetic = sum(map(machine.seconds, learning))
    waited = sum(one.waited_seconds for one in exchanged(pieces, actor, machine, {"learn": arithmetic}).values())
    return rows * tokens / (arithmetic + waited + machine.seconds(pieces[-1]))


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a Llama by its configuration."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, pairs = config["num_attention_heads"], config["num_key_value_heads"]
    narrow = width // heads * pairs
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width), "lm_head.weight": (rows, width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        attention = {"q_proj": width, "k_proj": narrow, "v_proj": narrow, "o_proj": width}
        found |= {f"{at}self_attn.{name}.weight": (size, width) for name, size in attention.items()}
        found |= {f"{at}mlp.{name}.weight": (inner, width) for name in ("gate_proj", "up_proj")} | {f"{at}mlp.down_proj.weight": (width, inner)}
        found |= {f"{at}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    return found
