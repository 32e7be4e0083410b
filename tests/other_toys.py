"""Tiny models of other kinds than causal ones, and what they read; torch modules by name too."""

from pathlib import Path
from typing import Any

import torch
import toys
from tokenizers import processors
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

ROWS = 272
NAMES = {0: "bad", 1: "fair", 2: "good"}
PAD = 257


def tokenizer(template: str = "<cls> $A <sep>") -> Any:
    """Bytes, the tokens that stand around a text, and a mask."""
    made = toys.tokenizer(None)
    made.add_special_tokens({"mask_token": "<mask>", "cls_token": "<cls>", "sep_token": "<sep>"})
    ids = [(name, made.convert_tokens_to_ids(name)) for name in ("<cls>", "<sep>")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return made


def _bert(layers: int, width: int, **more: Any) -> dict[str, Any]:
    return {"vocab_size": ROWS, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 2 * width,
            "max_position_embeddings": 64, "pad_token_id": PAD, **more}  # fmt: skip


def _distil(layers: int, width: int, **more: Any) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=ROWS, dim=width, n_layers=layers, n_heads=4, hidden_dim=2 * width, max_position_embeddings=64, pad_token_id=PAD, **more
    )


def _t5(layers: int, width: int, tied: bool) -> T5Config:
    return T5Config(vocab_size=ROWS, d_model=width, d_kv=8, d_ff=2 * width, num_layers=layers, num_heads=4, tie_word_embeddings=tied,
                    decoder_start_token_id=PAD, eos_token_id=PAD, pad_token_id=PAD)  # fmt: skip


def network(kind: str, seed: int = 0, layers: int = 2, width: int = 32, labels: dict[int, str] | None = None) -> Any:
    """A random model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    names = labels or NAMES
    classes = {"num_labels": len(names), "id2label": names}
    match kind:
        case "bert":
            made: Any = BertForMaskedLM(BertConfig(**_bert(layers, width)))
        case "roberta":
            made = RobertaForMaskedLM(RobertaConfig(**_bert(layers, width, pad_token_id=1)))
        case "distilbert":
            made = DistilBertForMaskedLM(_distil(layers, width))
        case "bert-classes":
            made = BertForSequenceClassification(BertConfig(**_bert(layers, width, **classes)))
        case "distilbert-classes":
            made = DistilBertForSequenceClassification(_distil(layers, width, **classes))
        case "llama-classes":
            config = toys.config("llama", layers, width)
            config.num_labels, config.id2label = len(names), names
            made = LlamaForSequenceClassification(config)
        case "t5" | "t5-untied":
            made = T5ForConditionalGeneration(_t5(layers, width, kind == "t5"))
        case "bart":
            sizes = {f"{who}_{what}": count for who in ("encoder", "decoder")
                     for what, count in (("layers", layers), ("attention_heads", 4), ("ffn_dim", 2 * width))}  # fmt: skip
            made = BartForConditionalGeneration(BartConfig(vocab_size=ROWS, d_model=width, **sizes, max_position_embeddings=64,
                                                           decoder_start_token_id=PAD, eos_token_id=PAD, pad_token_id=PAD))  # fmt: skip
            made.final_logits_bias.normal_()
        case _:
            raise AssertionError(kind)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4.0 if weight.ndim == 2 else 1.0)
    return made.eval()


def folder(path: Path, kind: str, seed: int = 0, **more: Any) -> str:
    """The same as a folder that can be named in a recipe."""
    network(kind, seed, **more).save_pretrained(path)
    tokenizer("$A" if kind == "llama-classes" else "$A <sep>" if kind in ("t5", "t5-untied", "bart") else "<cls> $A <sep>").save_pretrained(path)
    toys.licensed(path)
    return str(path)


MASKED, PAIRS, TEXTS = ("bert", "roberta", "distilbert"), ("t5", "t5-untied", "bart"), ("bert-classes", "distilbert-classes", "llama-classes")


def rows(kind: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that a kind reads, of uneven lengths."""
    made = toys.rows(count, seed)
    if kind in PAIRS:
        return [{name: row[name] for name in ("prompt", "completion")} for row in made]
    names = list(NAMES.values())
    if kind in TEXTS:
        return [{"text": row["prompt"], "label": names[len(row["prompt"]) % 3]} for row in made]
    if kind in MASKED:
        return [{"text": f"{row['prompt']}, {row['completion']}"} for row in made]
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw).tolist()
    return [{"features": (torch.randn(6, generator=draw) + 2 * nn.functional.one_hot(torch.tensor(n), 6)).tolist(), "label": n, "by": f"t{n % 2}"}
            for n in labels]  # fmt: skip


# By name


def small(width: int = 8, classes: int = 3, seed: int = 0) -> nn.Module:
    """A student of six numbers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, classes))


def named(labels: Any = ("bad", "fair", "good")) -> nn.Module:
    """One whose classes have names."""
    made = small()
    made.labels = labels  # type: ignore[assignment]
    return made


def picture() -> nn.Module:
    """One that reads another column."""
    made = nn.Sequential(nn.Flatten(), small())
    made.column = "image"  # type: ignore[assignment]
    return made


def neighbours() -> nn.Module:
    """One whose rows depend on each other."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def headless() -> nn.Module:
    """One that does not say how many classes it tells apart."""
    return nn.Sequential(nn.Conv1d(1, 1, 1))


def wrong() -> nn.Module:
    """One that gives a number for each row."""
    return nn.Sequential(small(), nn.Flatten(0))


def weightless() -> nn.Module:
    """One without anything to learn."""
    return nn.Identity()


def failing() -> nn.Module:
    """One that is not made."""
    raise KeyError("size")
