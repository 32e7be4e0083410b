"""Making a student of a teacher: fewer of its layers, those that change the hidden states least left out.

Axes: L layers, N tokens looked at, D hidden width.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from limbeck.batch import Batch
from limbeck.errors import RecipeError
from limbeck.machine import device
from limbeck.models import Model, padded


def _layers(model: Model) -> torch.nn.ModuleList:
    layers = getattr(model.causal.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise RecipeError(f"{model.name} keeps its layers where pruning by depth does not find them; give a student that is small already")
    return layers


@torch.no_grad()
def influence(model: Model, batches: Sequence[Batch]) -> Tensor:
    """How much each layer changes what passes through it: 1 - mean cosine of its input and output over tokens [L].

    Block influence of ShortGPT (arXiv 2403.03853), over the completion tokens of real text.
    """
    total_L, count = torch.zeros(len(_layers(model)), dtype=torch.float64), 0
    for batch in batches:
        states = _hidden_states(model, batch)
        for place, (before_ND, after_ND) in enumerate(pairwise(states)):
            total_L[place] += (1 - torch.cosine_similarity(before_ND.float(), after_ND.float(), dim=-1)).double().sum().cpu()
        count += len(batch.places_N)
    return total_L / count


def _hidden_states(model: Model, batch: Batch) -> list[Tensor]:
    """What enters each layer and leaves the last, at completion tokens: L + 1 of [N, D], before any final norm."""
    found: list[Tensor] = []
    before_N = padded(batch)[1].to(device())

    def entering(layer: Any, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).flatten(0, 1)[before_N])

    def leaving(layer: Any, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).flatten(0, 1)[before_N])

    layers = _layers(model)
    hooks = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leaving))
    try:
        model.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def least_influential(influence_L: Tensor, keep: int) -> list[int]:
    """The layers that stay, ascending: all but the least influential ones, the first and the last among them."""
    if not 2 <= keep <= len(influence_L):
        raise RecipeError(f"cannot keep {keep} of {len(influence_L)} layers; give a number from 2 to {len(influence_L)}")
    ranked = influence_L.clone()
    ranked[0] = ranked[-1] = float("inf")
    return sorted(ranked.topk(keep).indices.tolist())


def evenly(layers: int, keep: int) -> list[int]:
    """The layers that stay, ascending: at even distances from the first to the last."""
    if not 2 <= keep <= layers:
        raise RecipeError(f"cannot keep {keep} of {layers} layers; give a number from 2 to {layers}")
    return [round(place * (layers - 1) / (keep - 1)) for place in range(keep)]


def by_depth(model: Model, kept: Sequence[int]) -> None:
    """Leave only these layers in the model, in place, and say so in its configuration."""
    layers, config = _layers(model), model.causal.config.get_text_config()
    if not kept or not set(kept) <= set(range(len(layers))) or list(kept) != sorted(set(kept)):
        raise RecipeError(f"layers {list(kept)} cannot be kept of {len(layers)}; give ascending numbers from 0 to {len(layers) - 1}")
    decoder: Any = model.causal.get_decoder()
    decoder.layers = torch.nn.ModuleList(layers[place] for place in kept)
    for place, layer in enumerate(decoder.layers):
        for module in cast(list[Any], list(layer.modules())):
            if hasattr(module, "layer_idx"):  # where a layer finds itself in the cache
                module.layer_idx = place
    config.num_hidden_layers = len(kept)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = [config.layer_types[place] for place in kept]


def save(model: Model, folder: Path) -> None:
    """Write it as a folder that transformers loads."""
    model.module.save_pretrained(folder)
    model.vocabulary.tokenizer.save_pretrained(folder)
