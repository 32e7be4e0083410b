"""Laying open what stands inside a transformers model: hidden states and attention of the layers asked for, and of no others.

Attention is taken where it is computed, whatever computes it (SDPA, flash, eager): the layer's own function is called as always, and
the queries and keys it was given are kept beside it. The rows are made of them when they are compared. That they are the rows the
model used is proven on the first pass: their weighted sum of the values must be what the layer's function gave.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# (transformers' modules are untyped here)

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface

from limbeck.errors import ModelError
from limbeck.insides import Attention, Build, Features, Layers, blocks, wide

LISTENING = "limbeck_listening"
"""By what name transformers knows the function that keeps queries and keys."""
PROVEN_BLOCKS = 8
"""Blocks of rows on which a layer's attention is proven."""


def layers_of(causal: Any, name: str) -> torch.nn.ModuleList:
    """The layers of a model's decoder. Raises ModelError where they are not found."""
    decoder = causal.get_decoder()
    inner = (getattr(decoder, kind, None) for kind in ("encoder", "transformer"))  # of masked models
    places = ((decoder, "layers"), (decoder, "h"), (decoder, "block"), *((each, "layer") for each in inner))
    found = next((each for each in (getattr(*place, None) for place in places) if isinstance(each, torch.nn.ModuleList)), None)
    if found is None:
        raise ModelError(f"{name} keeps its layers where they are not found ({type(decoder).__name__}); give an objective without layers")
    return found


def build_of(causal: Any, name: str) -> Build:
    """How a model is built, as far as its layers can be compared."""
    config, count = causal.config.get_text_config(), len(layers_of(causal, name))
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    windows = [window if kinds is None or kinds[n] == "sliding_attention" else None for n in range(count)]
    return Build(name, int(config.hidden_size), tuple(windows))


def see_attention(causal: Any, name: str, wanted: Layers) -> None:
    """Raise ModelError for a layer whose attention cannot be taken."""
    for number in sorted(wanted.attentions):
        _real(_attention(layers_of(causal, name)[number], name, number), name)


def _attention(layer: Any, name: str, number: int) -> Any:
    """The part of a layer that attends."""
    found = next((each for each in (getattr(layer, kind, None) for kind in ("self_attn", "attn", "attention")) if each is not None), None)
    if found is None or not hasattr(found, "config"):
        raise ModelError(f"layer {number} of {name} has no attention to compare ({type(layer).__name__}); leave it out of Attentions, or give "
                         "HiddenStates")  # fmt: skip
    return found


def _real(attention: Any, name: str) -> Callable[..., Any]:
    """The function that it attends by, as its own file looks it up."""
    known: dict[str, Any] = getattr(inspect.unwrap(type(attention).forward), "__globals__", {})
    if "ALL_ATTENTION_FUNCTIONS" not in known or "eager_attention_forward" not in known:
        raise ModelError(f"{name} attends in a way of its own ({type(attention).__name__}), and its rows cannot be taken; give HiddenStates")
    return known["ALL_ATTENTION_FUNCTIONS"].get_interface(attention.config._attn_implementation, known["eager_attention_forward"])


@dataclass
class _Attended:
    """What a layer's function was given, and what it gave, [B, S, H, d]."""

    query_BHSd: Tensor
    key_BGSd: Tensor
    value_BGSd: Tensor
    mask: Any
    options: dict[str, Any]
    output_BSHd: Tensor


@dataclass
class Record:
    """What is kept of one pass, as it came; nothing is computed before the pass is over."""

    states: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    attended: dict[int, _Attended] = field(default_factory=dict[int, _Attended])

    def features(self, before_N: Tensor, proven: set[int], name: str) -> Features:
        """The rows at these places of the flattened pass. proven: layers whose attention was proven before; it grows."""
        states = {number: hidden.flatten(0, 1)[before_N] for number, hidden in self.states.items()}
        attentions = {number: _rows_of(each, before_N, name) for number, each in self.attended.items()}
        for number, each in attentions.items():
            if number not in proven and each.blocks:
                _prove(each, self.attended[number], f"layer {number} of {name}")
                proven.add(number)
        return Features(states, attentions)


class _Listening:
    """A configuration in whose place it stands, but for the name of the attention function; and where that one puts what it hears."""

    _attn_implementation = LISTENING

    def __init__(self, config: Any, real: Callable[..., Any], number: int, record: Record) -> None:
        self.config, self.real, self.number, self.record = config, real, number, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """What the layer's own function gives; queries and keys are kept."""
    listening: _Listening = attention.config
    attention.config = listening.config  # the function may read it
    given = listening.real(attention, query, key, value, mask, **options)
    listening.record.attended[listening.number] = _Attended(query, key, value.detach(), mask, options, given[0].detach())
    return given


AttentionInterface.register(LISTENING, _attend)


@contextmanager
def recording(causal: Any, wanted: Layers, name: str) -> Generator[Record]:
    """Keep what these layers hold while the block lasts; where none is wanted, touch nothing."""
    record = Record()
    if not wanted:
        yield record
        return
    layers = layers_of(causal, name)
    heard = {number: _attention(layers[number], name, number) for number in sorted(wanted.attentions)}
    before = {number: attention.config for number, attention in heard.items()}
    hooks = [layers[number].register_forward_hook(_keeper(record, number)) for number in sorted(wanted.states)]
    try:
        for number, attention in heard.items():
            attention.config = _Listening(attention.config, _real(attention, name), number, record)
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        for number, attention in heard.items():
            attention.config = before[number]


def _keeper(record: Record, number: int) -> Callable[..., None]:
    def keep(layer: Any, args: Any, output: Any) -> None:
        record.states[number] = output[0] if isinstance(output, tuple) else output

    return keep


def _rows_of(heard: _Attended, before_N: Tensor, name: str) -> Attention:
    mask, options, length = heard.mask, heard.options, heard.query_BHSd.shape[2]
    if not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)):
        raise ModelError(f"{name} attends by a mask of another kind ({type(mask).__name__}); open it with attention: sdpa")
    scale = options.get("scaling")
    cuts = blocks(cast(list[int], (before_N // length).tolist()), cast(list[int], (before_N % length).tolist()))
    return Attention(
        heard.query_BHSd.unbind(0), heard.key_BGSd.unbind(0), before_N % length, cuts,
        heard.query_BHSd.shape[-1] ** -0.5 if scale is None else float(scale), mask, options.get("sliding_window"), options.get("softcap"),
    )  # fmt: skip


@torch.no_grad()
def _prove(attention: Attention, heard: _Attended, what: str) -> None:
    """See on a few rows that the weighted sum of the values is what the layer's function gave. Raises ModelError where it is not."""
    for block in attention.blocks[:PROVEN_BLOCKS]:
        log_p_HnK, seen_HnK = attention.rows(block)
        value_GKd = wide(heard.value_BGSd[block.sequence][:, : block.keys])
        value_HKd = value_GKd.repeat_interleave(len(log_p_HnK) // len(value_GKd), 0)
        found_Hnd = log_p_HnK.exp().masked_fill(~seen_HnK, 0.0) @ value_HKd
        wanted_Hnd = wide(heard.output_BSHd[block.sequence, attention.position_N[block.rows]]).transpose(0, 1)
        few = 1e-4 if heard.output_BSHd.dtype in (torch.float32, torch.float64) else 4e-2
        if not (found_Hnd - wanted_Hnd).abs().max() <= few * value_HKd.abs().max():
            raise ModelError(f"{what} attends in a way that is not known, and its rows cannot be taken; leave Attentions out, or give HiddenStates")
