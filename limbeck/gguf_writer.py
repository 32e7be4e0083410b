"""Write a model as a GGUF file, for llama.cpp and all that is built on it.

Each of the architectures here was seen to say the same in llama.cpp, to the last digits of float32; others are refused by name. Numbers
are rounded by the `gguf` library; mixtures of K-quants are left to llama.cpp itself (`llamacpp.py`).
The format's specification is at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import ModelError
from limbeck.gguf_words import CONVERT, write_words
from limbeck.lazy import Tensor, torch
from limbeck.vocabulary import Vocabulary

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""llama.cpp's names, by transformers' own."""
ROUNDED = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q5_1": "MOSTLY_Q5_1",
           "q5_0": "MOSTLY_Q5_0", "q4_1": "MOSTLY_Q4_1", "q4_0": "MOSTLY_Q4_0"}  # fmt: skip
"""What is rounded here, and how GGUF names a file of it. Below 8 bits, embedding and head keep 8."""
BLOCK = 32
"""Quantised numbers come in blocks of so many; rows that are no multiple of it stay float16."""
LARGEST = 65504.0
"""Of float16."""
ROWS = ("token_embd.weight", "output.weight")
"""Those that have a row for each token."""


@dataclass(frozen=True)
class About:
    """What a file says of the model in it, for people. licences: names, all that it comes under."""

    name: str
    licences: Sequence[str] = ()


def see_writable(module: Any, name: str) -> str:
    """llama.cpp's name of an architecture. Raises ModelError where what is written would not say what the model says."""
    config, kind = module.config, type(module).__name__
    if kind not in ARCHITECTURES:
        raise ModelError(f"{name} is a {kind}, and GGUF is written here of {', '.join(ARCHITECTURES)}; {CONVERT}")
    rope = _rope(config)
    odd = {
        "hidden_act": config.hidden_act != "silu",
        "rope_type": rope["rope_type"] not in ("default", "llama3") or (rope["rope_type"] == "llama3" and kind != "LlamaForCausalLM"),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "use_sliding_window": bool(getattr(config, "use_sliding_window", False)),
    }
    if found := [key for key, wrong in odd.items() if wrong]:
        value = rope.get(found[0], getattr(config, found[0], None))
        raise ModelError(f"{name} has {found[0]} {value!r}, which was not proven for GGUF here; {CONVERT}")
    return ARCHITECTURES[kind]


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", **(config.rope_parameters or {})}


def write_gguf(module: Any, vocabulary: Vocabulary, file: Path, kind: str, about: About) -> None:
    """Write a model of transformers' into a new file. kind: one of ROUNDED.

    Rows of the head beyond the vocabulary, which are padding, are left out. Raises ModelError for what cannot be written.
    """
    import gguf

    arch = see_writable(module, about.name)
    out = gguf.GGUFWriter(file, arch)
    try:
        _settings(out, module.config, about, vocabulary)
        out.add_file_type(int(gguf.LlamaFileType[ROUNDED[kind]]))
        if kind.startswith("q"):
            out.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_words(out, vocabulary, about.name)
        tensors = [(name, weight, _rounding(name, weight, kind)) for name, weight in _named(module, arch, vocabulary.size, about.name)]
        for name, weight, rounding in tensors:
            _announce(out, name, weight, rounding)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_ti_data_to_file()
        for name, weight, rounding in tensors:
            out.write_tensor_data(_rounded(name, weight, rounding, about.name))
    finally:
        out.close()


def _settings(out: Any, config: Any, about: About, vocabulary: Vocabulary) -> None:
    """What the file says of the model's shape, and of whose it is."""
    heads, rope = config.num_attention_heads, _rope(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    out.add_name(about.name)
    if about.licences:
        out.add_license(",".join(dict.fromkeys(about.licences)))
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(width)
    out.add_value_length(width)
    out.add_rope_dimension_count(width)
    out.add_rope_freq_base(rope["rope_theta"])
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(vocabulary.size)


def _named(module: Any, arch: str, rows: int, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every weight under llama.cpp's name, laid out as it wants it; heads that are tied to the embedding are left out."""
    import gguf

    config = module.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    for key, weight in module.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        told = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if told is None:
            raise ModelError(f"{name} has a weight {key}, which {arch} has none of in llama.cpp; {CONVERT}")
        if arch == "llama" and (".q_proj." in key or ".k_proj." in key):
            weight = interleaved(weight, config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads)
        yield told, weight[:rows] if told in ROWS else weight
    if _rope(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", torch.tensor(_slowed(config))


def interleaved(weight_OI: Tensor, heads: int) -> Tensor:
    """Rows as llama.cpp turns them for `llama`: in neighbouring pairs, where transformers pairs each with the one half a head further."""
    return weight_OI.reshape(heads, 2, -1, *weight_OI.shape[1:]).swapaxes(1, 2).reshape(weight_OI.shape)


def _slowed(config: Any) -> list[float]:
    """By how much each pair turns more slowly than its frequency says (Llama 3.1): 1 for fast ones, `factor` for slow ones."""
    rope, width = _rope(config), getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high, before = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    found = list[float]()
    for pair in range(0, width, 2):
        turns = before / (2 * math.pi * rope["rope_theta"] ** (pair / width))  # of a whole text
        between = (turns - low) / (high - low)
        found.append(1.0 if turns > high else rope["factor"] if turns < low else 1 / ((1 - between) / rope["factor"] + between))
    return found


def _rounding(name: str, weight: Tensor, kind: str) -> str:
    """How one tensor is kept: norms and biases whole."""
    if weight.ndim == 1 or kind == "f32":
        return "F32"
    if kind.startswith("q") and weight.shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if kind.startswith(("q4", "q5")) and name in ROWS else kind.upper()


def _announce(out: Any, name: str, weight: Tensor, rounding: str) -> None:
    import gguf
    import numpy as np

    kind, shape = gguf.GGMLQuantizationType[rounding], tuple(weight.shape)
    if rounding == "F32":
        return out.add_tensor_info(name, shape, np.dtype(np.float32), 4 * weight.numel())
    if rounding == "F16":
        return out.add_tensor_info(name, shape, np.dtype(np.float16), 2 * weight.numel())
    stored = gguf.quant_shape_to_byte_shape(shape, kind)
    out.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), kind)


def _rounded(name: str, weight: Tensor, rounding: str, model: str) -> Any:
    """One tensor's numbers as they are stored. Raises ModelError for those that cannot be."""
    import gguf

    whole = weight.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(whole).all()):
        raise ModelError(f"the weights of {model} are not all finite ({name}); train it anew from an earlier checkpoint")
    if rounding == "F16" and float(whole.abs().max()) > LARGEST:
        raise ModelError(f"a weight of {model} is too large for float16 ({name}: {float(whole.abs().max()):.3g}); give --quantize bf16")
    return gguf.quantize(whole.numpy(), gguf.GGMLQuantizationType[rounding])
