"""Making a student of a teacher by width: the heads, feed-forward and hidden channels that real text uses most (Minitron, arXiv 2407.14679).

Axes: L layers, D hidden channels, F feed-forward channels, H heads, K heads of keys and values, G = H / K, N tokens looked at.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from limbeck.batch import Batch
from limbeck.errors import RecipeError
from limbeck.machine import device
from limbeck.models import Model, padded

AXES: dict[str, tuple[str | None, ...]] = {
    "q_proj": ("heads", "hidden"), "k_proj": ("shared", "hidden"), "v_proj": ("shared", "hidden"), "o_proj": ("hidden", "heads"),
    "gate_proj": ("feed-forward", "hidden"), "up_proj": ("feed-forward", "hidden"), "down_proj": ("hidden", "feed-forward"),
    "embed_tokens": (None, "hidden"), "lm_head": (None, "hidden"), "norm": ("hidden",), "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",), "pre_feedforward_layernorm": ("hidden",), "post_feedforward_layernorm": ("hidden",),
    "q_norm": (None,), "k_norm": (None,),
}  # fmt: skip
"""What the rows and columns of a module's weight are, by its name; a bias goes with the rows. None: all stay."""
NORMS = tuple(name for name in AXES if name.endswith("norm") and name not in ("q_norm", "k_norm"))


@dataclass(frozen=True)
class Use:
    """How much text uses each channel: mean absolute activations of hidden [D] and feed-forward channels [L, F], mean norms of heads [L, H]."""

    hidden_D: Tensor
    feed_forward_LF: Tensor
    heads_LH: Tensor


def check(model: Model) -> None:
    """See that every weight is one that pruning by width knows. Raises RecipeError."""
    for name, weight in model.causal.named_parameters():
        axes = AXES.get(name.split(".")[-2])
        if axes is None or weight.ndim > len(axes):
            raise RecipeError(f"{model.name} has {name}, which pruning by width does not know; prune it by depth, or give a student that is small")


@torch.no_grad()
def use(model: Model, batches: Sequence[Batch]) -> Use:
    """Look at real text: means over its completion tokens; of hidden channels, summed over what all norms give."""
    check(model)
    config, sums = model.causal.config.get_text_config(), dict[str, Tensor]()
    heads, count = config.num_attention_heads, sum(len(batch.places_N) for batch in batches)
    watched = [(name, module) for name, module in model.causal.named_modules() if name.split(".")[-1] in ("down_proj", "o_proj", *NORMS)]
    for batch in batches:
        before_N = padded(batch)[1].to(device())

        def add(name: str, value: Tensor, before_N: Tensor = before_N) -> None:
            rows_NX = value.flatten(0, 1)[before_N].double()
            rows_NX = rows_NX.unflatten(1, (heads, -1)).norm(dim=-1) if name.endswith("o_proj") else rows_NX.abs()
            sums[name] = sums.get(name, 0) + rows_NX.sum(0)

        _watching(watched, add, lambda batch=batch: model.forward(batch))
    means = {name: value / count for name, value in sums.items()}
    of: Callable[[str], list[Tensor]] = lambda kind: [value for name, value in means.items() if name.split(".")[-1] == kind]  # noqa: E731
    return Use(torch.stack([value for kind in NORMS for value in of(kind)]).sum(0), torch.stack(of("down_proj")), torch.stack(of("o_proj")))


def _watching(modules: Sequence[tuple[str, Any]], add: Callable[[str, Tensor], None], work: Callable[[], Any]) -> None:
    """Do some work, and take what enters the projections and what leaves the norms."""
    hooks = [
        module.register_forward_hook(lambda _, given, out, name=name: add(name, given[0] if name.endswith("_proj") else out))
        for name, module in modules
    ]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()


def most_used(use_X: Tensor, keep: int, of: str) -> Tensor:
    """Places of the most used channels, ascending. Raises RecipeError for more than there are."""
    if not 1 <= keep <= len(use_X):
        raise RecipeError(f"cannot keep {keep} of {len(use_X)} {of}; give a number from 1 to {len(use_X)}")
    return use_X.topk(keep).indices.sort().values


def by_width(model: Model, found: Use, hidden: int | None = None, heads: int | None = None, feed_forward: int | None = None) -> None:
    """Leave only so many channels in the model, in place, and say so in its configuration. Heads go with those that share their keys.

    Departs from the paper: 1) norms are scaled so that channels which were silent can go without a change to the others (but where a
    family multiplies its embeddings by the root of their width, as Gemma does, there they change by that).
    """
    check(model)
    config = copy.deepcopy(model.causal.config)
    text: Any = config.get_text_config()
    layers, shared = text.num_hidden_layers, text.num_key_value_heads
    width, group = _head_width(model), text.num_attention_heads // shared
    if heads is not None and heads % group:
        raise RecipeError(f"cannot keep {heads} heads: {group} share their keys; give a multiple of {group}")
    if (hidden or text.hidden_size) % (heads or text.num_attention_heads):  # transformers refuses such a configuration
        left = f"{hidden or text.hidden_size} hidden channels are no multiple of {heads or text.num_attention_heads} heads"
        raise RecipeError(f"{left}; give numbers of which one divides the other")
    groups = [most_used(each.unflatten(0, (shared, group)).sum(1), heads // group if heads else shared, "groups of heads") for each in found.heads_LH]
    kept: dict[str, list[Tensor]] = {
        "hidden": [most_used(found.hidden_D, hidden or len(found.hidden_D), "hidden channels")] * layers,
        "feed-forward": [most_used(each, feed_forward or len(each), "feed-forward channels") for each in found.feed_forward_LF],
        "shared": [_spread(each, width) for each in groups], "heads": [_spread(each, width * group) for each in groups],
    }  # fmt: skip
    text.hidden_size, text.intermediate_size = hidden or text.hidden_size, feed_forward or text.intermediate_size
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = len(groups[0]) * group, len(groups[0]), width
    made = cast(Any, AutoModelForCausalLM.from_config(config)).to(next(model.causal.parameters()))
    norms = {f"{name}.weight": module for name, module in model.causal.named_modules() if name.split(".")[-1] in NORMS}
    scale = (len(found.hidden_D) / len(kept["hidden"][0])) ** 0.5
    scaled = {name: _louder(norms[name], weight, scale) if name in norms else weight for name, weight in model.causal.state_dict().items()}
    made.load_state_dict({name: _cut(name, weight, kept) for name, weight in scaled.items()})
    made.generation_config = model.causal.generation_config
    model.module = made.eval()


def _head_width(model: Model) -> int:
    """Channels of a head, as the weights have them."""
    config = model.causal.config.get_text_config()
    rows = next(weight.shape[0] for name, weight in model.causal.named_parameters() if name.endswith("q_proj.weight"))
    return rows // config.num_attention_heads


@torch.no_grad()
def _louder(norm: Any, weight_D: Tensor, scale: float) -> Tensor:
    """The weight with which a norm says everything `scale` times as loud: some families multiply by it, some by one more."""
    if scale == 1:
        return weight_D
    sign_D = 1 - 2 * (torch.arange(len(weight_D), device=weight_D.device) % 2).to(weight_D)  # of mean 0 and root mean square 1
    factor_D = norm(sign_D) * sign_D
    return weight_D + (scale - 1) * factor_D


def _spread(places: Tensor, width: int) -> Tensor:
    """The channels of these blocks, each `width` wide."""
    return (places[:, None] * width + torch.arange(width, device=places.device)).flatten()


def _cut(name: str, weight: Tensor, kept: dict[str, list[Tensor]]) -> Tensor:
    """What stays of a weight."""
    *above, kind, _ = name.split(".")
    layer = next((int(each) for each in above if each.isdigit()), 0)
    for dimension, axis in enumerate(AXES[kind][: weight.ndim]):
        if axis is not None:
            weight = weight.index_select(dimension, kept[axis][layer])
    return weight.clone()
