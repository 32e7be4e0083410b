"""What models are by their files alone: no weights are read, and no torch is needed.

Names and shapes of weights stand at the head of safetensors and GGUF files; the rest is in config.json.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from limbeck.errors import ModelError
from limbeck.places import NOT_HERE

EMBEDDINGS = ("embed", "lm_head", "wte", "wpe", "output.weight", "embed_out")
"""What is in the names of weights that are looked up or score the vocabulary: neither quantised nor adapted."""
HEADS = ("lm_head.weight", "output.weight", "embed_out.weight", "model.embed_tokens.weight", "transformer.wte.weight", "token_embd.weight")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Anatomy:
    """A model as its files describe it: the settings of its language model, its weights' shapes, its end tokens."""

    name: str
    config: dict[str, Any]
    shapes: Shapes
    end_ids: frozenset[int] = field(default_factory=frozenset)
    own_code: bool = False

    def __str__(self) -> str:
        context = f"{self.context:,} tokens" if self.context else "unknown"
        return f"{self.name}: {short(self.parameters_total)} parameters, {self.layers} layers, context {context}"

    def size(self, *names: str) -> int:
        """The first of these settings that the configuration has; 0 where it has none."""
        return next((int(self.config[name]) for name in names if self.config.get(name)), 0)

    @property
    def parameters_total(self) -> int:
        """Weights, tied ones counted once."""
        return sum(map(prod, self.shapes.values()))

    @property
    def context(self) -> int | None:
        """The longest sequence it was made for, in tokens."""
        return self.size("max_position_embeddings", "n_positions") or None

    @property
    def layers(self) -> int:
        """How many blocks it has."""
        return self.size("num_hidden_layers", "n_layer", "num_layers")

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return self.size("hidden_size", "n_embd", "d_model")

    @property
    def feed_forward(self) -> int:
        """Width inside its feed-forward layers, of those that see one token."""
        once = self.size("intermediate_size", "n_inner", "ffn_dim") or 4 * self.width
        return max(once, self.size("moe_intermediate_size") * self.size("num_experts_per_tok"))

    @property
    def keys_values(self) -> int:
        """Numbers that a layer remembers of one token."""
        each = self.size("head_dim") or self.width // self.heads
        return 2 * each * (self.size("num_key_value_heads") or self.heads)

    @property
    def heads(self) -> int:
        """By which a layer attends."""
        return self.size("num_attention_heads", "n_head") or 1

    @property
    def queries_keys(self) -> int:
        """Numbers that a layer attends by, of one token."""
        return (self.size("head_dim") * self.heads or self.width) + self.keys_values // 2

    @property
    def head_rows(self) -> int:
        """Outcomes that its head scores, padding among them."""
        return next((self.shapes[name][0] for name in HEADS if name in self.shapes), 0) or self.size("vocab_size")


def anatomy(name: str, place: Path) -> Anatomy:
    """A model's anatomy from its folder or GGUF file. Raises ModelError for what is missing, cut short or a pickle."""
    return _of_gguf(name, place) if place.is_file() else _of_folder(name, place)


def anatomy_on_hub(name: str, trust_remote_code: bool) -> Anatomy:
    """The same of a name on the hub, of which the configuration alone is fetched; needs torch, and no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"there is no folder {name}, and the hub did not give it: {' '.join(str(error).split())[:200]}; {NOT_HERE}") from None
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    return Anatomy(name, config.get_text_config().to_dict(), shapes)


def _of_folder(name: str, folder: Path) -> Anatomy:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name} has no config.json, so it holds no model; {NOT_HERE}")
    whole = _json(folder / "config.json")
    config = {**whole, **(whole.get("text_config") or {})}
    writes = _json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ends = writes.get("eos_token_id", config.get("eos_token_id"))
    own_code = "auto_map" in whole and not _known_to_transformers(str(whole.get("model_type")))
    shapes = {weight: shape for file in _weight_files(name, folder) for weight, shape in safetensors_shapes(file).items()}
    end_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
    return Anatomy(name, config, shapes, end_ids, own_code)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; fetch the model again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__} where settings were expected; fetch the model again")
    return found


def _known_to_transformers(model_type: str) -> bool:
    """Whether the library has this architecture itself, and so runs none of the folder's code; asked without importing it."""
    from importlib.util import find_spec

    found = find_spec("transformers")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "models" / model_type.replace("-", "_")).is_dir()


def _weight_files(name: str, folder: Path) -> list[Path]:
    """The files that hold the weights, each of them there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    else:
        files = [folder / file for file in sorted(set(_json(index).get("weight_map", {}).values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{name} lacks {missing[0]}, one of {len(files)} files of weights ({len(missing)} missing); fetch it again")
    if not files and (any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))):
        raise ModelError(f"{name} has no safetensors weights, and pickles are never read; convert it with save_pretrained")
    if not files:
        raise ModelError(f"{name} has no weights; fetch the model again, or give another")
    return files


def safetensors_shapes(file: Path) -> Shapes:
    """Names and shapes of the weights in a file. Raises ModelError for one whose length is not what its head says.

    The format: 8 bytes, little-endian, the length of the head; the head, JSON; then the weights at its offsets.
    """
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        (head_bytes,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if head_bytes > size_bytes - 8:
            raise ModelError(f"{file} is cut short: {size_bytes:,} bytes cannot hold its head of {head_bytes:,}; fetch it again")
        head = stream.read(head_bytes)
    try:
        entries: dict[str, Any] = {key: value for key, value in json.loads(head).items() if key != "__metadata__"}
        shapes = {key: tuple(map(int, value["shape"])) for key, value in entries.items()}
        expected_bytes = 8 + head_bytes + max((int(value["data_offsets"][1]) for value in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file} is damaged: its head is no list of weights; fetch it again") from None
    if size_bytes != expected_bytes:
        what = "cut short" if size_bytes < expected_bytes else "damaged"
        raise ModelError(f"{file} is {what}: {size_bytes:,} bytes of {expected_bytes:,}; fetch it again")
    return shapes


GGUF_SETTINGS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings", "vocab_size": "vocab_size",
}  # fmt: skip
"""What GGUF calls what config.json calls otherwise."""


def _of_gguf(name: str, file: Path) -> Anatomy:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(f"{file} is cut short or no GGUF file ({error}); fetch it again") from None
    try:
        said: Callable[[str], Any] = lambda key: reader.fields[key].contents() if key in reader.fields else None  # noqa: E731
        kind = said("general.architecture")
        config = {ours: said(f"{kind}.{theirs}") for theirs, ours in GGUF_SETTINGS.items()}
        shapes = {str(tensor.name): tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
        end = said("tokenizer.ggml.eos_token_id")
        return Anatomy(name, config, shapes, frozenset() if end is None else frozenset([int(end)]))
    finally:
        reader.data._mmap.close()  # pyright: ignore[reportAttributeAccessIssue]  # numpy tells nobody of it, and waits for the collector


def is_linear(name: str, shape: Iterable[int]) -> bool:
    """Whether a weight is that of a linear layer within the blocks."""
    return len(list(shape)) == 2 and not any(word in name for word in EMBEDDINGS)


def short(count: float) -> str:
    """A number of parameters as people say it: 135M, 1.7B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.2g}{unit}" if count < 9.95 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"
