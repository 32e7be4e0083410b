"""What kind of model a name stands for, by its files alone; and opening it as that."""

import json
from collections.abc import Callable
from typing import Any, cast

from limbeck.classify import open_module, open_text_classifier
from limbeck.errors import ModelError
from limbeck.machine import Opening, Precision, hold_memory
from limbeck.masked import open_masked
from limbeck.models import open_model
from limbeck.opened import OpenModel
from limbeck.places import MODULE, is_call, locate
from limbeck.seq2seq import open_pair_model

KINDS: dict[str, Callable[[str, Opening, Precision | None], OpenModel]] = {
    "ForSequenceClassification": open_text_classifier,
    "ForMaskedLM": open_masked,
}
"""By how the name of a transformers class ends."""


def open_kind(name: str, opening: Opening, compute: Precision | None = None) -> OpenModel:
    """Open a model as what it is: by hub name, folder, GGUF file, or `module:function`.

    Raises ModelError for what cannot be found or read, VocabularyError where head and tokenizer do not fit.
    """
    hold_memory()
    if is_call(name):
        return open_module(name, opening, compute)
    config = _config(name)
    if MODULE in config:
        return open_module(name, opening, compute, config)
    named = str((config.get("architectures") or [""])[0])
    other = open_pair_model if config.get("is_encoder_decoder") is True else open_model
    open_as = next((each for end, each in KINDS.items() if named.endswith(end)), other)
    return open_as(name, opening, compute)


def _config(name: str) -> dict[str, Any]:
    """The configuration of a model; empty where it has none that can be read, which opening it as a language model will say."""
    try:
        place = locate(name)
        if place is None:
            return _asked_hub(name)
        found = json.loads((place / "config.json").read_text())
    except (ModelError, OSError, ValueError):
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _asked_hub(name: str) -> dict[str, Any]:
    from transformers import PretrainedConfig

    return cast(dict[str, Any], PretrainedConfig.get_config_dict(name)[0])
