"""Finished runs of toys, ready to leave: models that other programs read, with tokenizers like those of real ones."""

import json
from pathlib import Path

import torch
import toys
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

import limbeck as lb
from limbeck.gguf_words import CUTS

AWKWARD = [
    "Ünïcode, naïve 東京 😀\n\tdef f(x): return x**2  # 3.14159 and 1,000,000",
    "I'VE it's  WE'LL\r\n\r\n  three   spaces ...!?  ",
    "<|im_start|>user\n12345 67<|im_end|>\n",
    "'''quotes''' -- 2nd 3/4 ½ ² ٣٤ Ⅷ a\u0301 \u200d👩‍👩‍👧 \u00a0x",
]
RULES = {name: rule for rule, name in CUTS.items()}


def cut_by(name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merges, under llama.cpp's name."""
    if name in RULES:
        split = pre_tokenizers.Split(Regex(RULES[name]), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return words if name == "gpt-2" else pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def tokenizer(name: str = "gpt-2", begins: bool = False) -> PreTrainedTokenizerFast:
    """Bytes and a few hundred merges."""
    made = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    made.pre_tokenizer, made.decoder = cut_by(name), decoders.ByteLevel()
    text = AWKWARD + [" ".join(row.values()) for row in toys.rows(40)]
    specials, alphabet = [*toys.SPECIALS, "<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(text * 3, trainer)
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>",
                                    unk_token="<|endoftext|>")  # fmt: skip
    found.chat_template = toys.CHATML
    return found


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
KINDS = {
    "llama": (LlamaConfig, {}, "gpt-2"),
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}, "smollm"),
    "llama-3": (LlamaConfig, {"rope_parameters": LLAMA3, "num_key_value_heads": 4}, "llama-bpe"),
    "qwen2": (Qwen2Config, {}, "qwen2"),
    "qwen3": (Qwen3Config, {"head_dim": 128}, "qwen2"),
}


def network(kind: str, seed: int = 0, width: int = 64):
    """A random model whose distributions are far from uniform; its head is padded."""
    config, more, _ = KINDS[kind]
    torch.manual_seed(seed)
    sizes = {"vocab_size": 416, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}  # fmt: skip
    made = AutoModelForCausalLM.from_config(config(**{**sizes, **more})).float().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4.0) if weight.ndim == 2 else weight.add_(0.2 * torch.randn(weight.shape))
    return made


def folder(path: Path, kind: str = "llama", seed: int = 0, begins: bool = False, width: int = 64) -> Path:
    """A student's folder."""
    network(kind, seed, width).save_pretrained(path)
    tokenizer(KINDS[kind][2], begins).save_pretrained(path)
    toys.licensed(path)
    return path


def run(home: Path, name: str = "run", student: lb.Student | None = None, licence: str = "apache-2.0", **more) -> Path:
    """A finished run of one step."""
    for role in ("start", "teacher"):
        if not (home / role).exists():
            folder(home / role, seed=len(role))
    toys.licensed(home, licence)
    data = toys.jsonl(home / "train.jsonl", toys.rows(12))
    held = lb.Likelihood([lb.Data(data)], name="held-out", rows=4)
    made = lb.kd(student or str(home / "start"), str(home / "teacher"), [lb.Data(data)], steps=1, evaluations=[held], **more)
    lb.distill(made, home / name)
    return home / name


def config_of(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())
