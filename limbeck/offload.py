"""Models whose layers lie elsewhere, in main memory or on the disk, and come one by one when they are needed: by accelerate's hooks."""

import atexit
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Literal

from limbeck.errors import ModelError
from limbeck.lazy import torch
from limbeck.machine import Opening, device

Elsewhere = Literal["cpu", "disk"]


def laid_out(name: str, place: dict[str, str], auto: Any, opening: Opening) -> dict[str, Any]:
    """What `from_pretrained` is told so that the layers lie elsewhere; embedding, head and norms stay here. Empty where nothing is to be moved.

    Weights that lie on the disk are read from the model's own files, or from copies in the temporary folder where the dtype is another.
    Raises ModelError for a model that does not say which modules are its layers.
    """
    if not is_elsewhere(opening.offload):
        return {}
    outline = _outline(place, auto, opening.trust_remote_code)
    kinds = set[str](getattr(outline, "_no_split_modules", None) or [])
    layers = [path for path, each in outline.named_modules() if type(each).__name__ in kinds]
    if not layers:
        raise ModelError(f"{name} ({type(outline).__name__}) does not say which modules are its layers, and cannot be offloaded; leave out offload")
    tensors = [path for found in (outline.named_parameters(remove_duplicate=False), outline.named_buffers()) for path, _ in found]
    here = {path.rpartition(".")[0] for path in tensors if not any(path.startswith(f"{layer}.") for layer in layers)}
    own = "cpu" if device().type == "cpu" else torch.accelerator.current_device_index()
    places = dict[str, Any].fromkeys(layers, opening.offload) | dict.fromkeys(sorted(here), own)
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of what was asked for
    aside = tempfile.mkdtemp(prefix="limbeck-")
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    return {"device_map": places, "offload_folder": aside}


def _outline(place: dict[str, str], auto: Any, trust_remote_code: bool) -> Any:
    """A model by its configuration alone, without memory."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(**place, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def is_elsewhere(elsewhere: Elsewhere | None) -> bool:
    """Whether anything is to be moved: where the arithmetic is done in main memory, "cpu" is here."""
    return elsewhere == "disk" or (elsewhere == "cpu" and device().type != "cpu")


def resident(shapes: Mapping[str, Iterable[int]]) -> dict[str, Iterable[int]]:
    """Of a model's weights, by the names in its files, those that are here at one time: all but the layers, and the largest of these."""
    numbered = {name: found[0] for name in shapes if (found := re.match(r".*?\.\d+\.", name))}
    sizes = dict.fromkeys(numbered.values(), 0)
    for name, layer in numbered.items():
        sizes[layer] += prod(shapes[name])
    largest = max(sizes, key=lambda layer: sizes[layer], default="")
    return {name: shape for name, shape in shapes.items() if numbered.get(name, largest) == largest}
