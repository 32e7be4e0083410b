"""A tokenizer of bytes and two-layer transformers, made here: no network, no files but those asked for."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)  # fmt: skip

from limbeck.machine import Opening
from limbeck.models import Model, open_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>"]
CHECKPOINT = "shard-00001-model-00001-of-00001.safetensors"
"""What the file of a small checkpoint is called, where one process wrote it."""


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Every byte a token, and two that open and close a turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: n for n, byte in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template)


def config(kind: str = "llama", layers: int = 2, width: int = 32, rows: int = 272, **more: object):
    """A small configuration. `rows` of the head are more than the 258 tokens, as real heads are padded."""
    sizes = {"vocab_size": rows, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 257}  # fmt: skip
    match kind:
        case "llama":
            return LlamaConfig(**{**sizes, **more})
        case "llama-tied":
            return LlamaConfig(**{**sizes, "tie_word_embeddings": True, **more})
        case "gemma2":  # soft-capped
            return Gemma2Config(**{**sizes, "head_dim": 8, "final_logit_softcapping": 3.0, **more})
        case "cohere":  # scaled up or down
            return CohereConfig(**{**sizes, "logit_scale": 0.25, **more})
        case "granite":
            return GraniteConfig(**{**sizes, "logits_scaling": 4.0, **more})
        case "gptj":  # a head with a bias
            return GPTJConfig(
                vocab_size=rows, n_embd=width, n_layer=layers, n_head=4, n_positions=256, rotary_dim=4, eos_token_id=257, bos_token_id=256
            )
        case "gpt2":
            return GPT2Config(vocab_size=rows, n_embd=width, n_layer=layers, n_head=4, n_positions=256, eos_token_id=257, bos_token_id=256)
    raise AssertionError(kind)


KINDS = ("llama", "llama-tied", "gemma2", "cohere", "granite", "gptj", "gpt2")


def network(kind: str = "llama", seed: int = 0, sharp: float = 4.0, **more: object) -> PreTrainedModel:
    """A random model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(kind, **more)).float().eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                weight.mul_(sharp)
        layer = made.get_output_embeddings()
        if getattr(layer, "bias", None) is not None:
            layer.bias.normal_()
    return made


def folder(path: Path, kind: str = "llama", seed: int = 0, template: str | None = CHATML, **more: object) -> str:
    """The same as a folder that can be named in a recipe."""
    network(kind, seed, **more).save_pretrained(path)
    tokenizer(template).save_pretrained(path)
    licensed(path)
    return str(path)


def licensed(path: Path, name: str = "apache-2.0") -> None:
    """A card that says under what licence a folder and the files in it are, unless it has one: nobody learns from what has none."""
    if not (path / "README.md").exists():
        (path / "README.md").write_text(f"---\nlicense: {name}\n---\n")


def opened(path: Path, kind: str = "llama", seed: int = 0, dtype: str = "float32", **more: object) -> Model:
    """An open model."""
    return open_model(folder(path, kind, seed, **more), Opening(dtype))


WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "sun")


def rows(count: int, seed: int = 0) -> list[dict]:
    """Short questions and answers, of uneven lengths."""
    draw = torch.Generator().manual_seed(seed)
    pick = lambda: WORDS[int(torch.randint(len(WORDS), (1,), generator=draw))]  # noqa: E731
    some = lambda: " ".join(pick() for _ in range(1 + int(torch.randint(4, (1,), generator=draw))))  # noqa: E731
    return [{"prompt": some(), "completion": some(), "category": pick()} for _ in range(count)]


def jsonl(path: Path, items: list[dict]) -> str:
    """Rows as a file, in a folder with a licence."""
    licensed(path.parent)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)
