"""Text that people wrote and every installation of Python has: the docstrings of its standard library, for models that learn on one core.

Modules (whole packages, by a digest of their names) are for learning, for development, on which every setting was chosen, or for the
test, for what is published. A docstring that stands in several places counts once. Tokens are a byte-pair code's of 1,024 entries,
trained on the learning modules' docstrings. Text is cut into windows of 128 tokens: docstring after docstring, an end token after each.
Beside them stands other text of the same library: its source code without docstrings. Licence: PSF-2.0.
"""

import ast
import math
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from json import dumps
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import limbeck as lb
from limbeck.decoding import write
from limbeck.files import new_folder, write_text
from limbeck.models import Model

LICENCE = "psf-2.0"
WINDOW, ENTRIES, END = 128, 1024, "<end>"
GROUPS = {0: "test", 7: "development"}
"""What the modules of a group of ten are for; the others are for learning."""
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip", "__pycache__"}
SHORTEST = 20
"""Characters of a docstring that counts."""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Figures = dict[str, Any]


def part_of(name: str) -> str:
    """What the modules of a package are for."""
    return GROUPS.get(crc32(name.encode()) % 10, "learning")


def modules() -> Iterator[tuple[str, str]]:
    """The package of every module of the standard library, and the module's source."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        names = path.relative_to(root).parts
        if not LEFT_OUT & set(names) and not names[0].startswith("config-"):
            yield names[0].removesuffix(".py"), path.read_text(encoding="utf-8")


@cache
def docstrings() -> dict[str, list[str]]:
    """By what they are for, each once."""
    found = dict[str, str]()
    for package, source in modules():
        for node in ast.walk(ast.parse(source)):
            text = ast.get_docstring(node) if isinstance(node, Documented) else None
            if text and len(text) >= SHORTEST:
                found.setdefault(text, part_of(package))
    return {part: [text for text, theirs in found.items() if theirs == part] for part in ("learning", *GROUPS.values())}


def code() -> list[str]:
    """Source of the learning modules, docstrings and empty lines left out."""
    return [_without_docstrings(source) for package, source in modules() if part_of(package) == "learning"]


def _without_docstrings(source: str) -> str:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and ast.get_docstring(node):
            first = node.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1 if first.end_lineno else 1)
    return "\n".join(line for line in lines if line.strip())


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs of the learning modules' docstrings."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ENTRIES, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(docstrings()["learning"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)


def end_id() -> int:
    """Of the token after each document, which also begins each window."""
    return int(tokenizer().convert_tokens_to_ids(END))


def windows(texts: Iterable[str]) -> torch.Tensor:
    """Texts one after the other, an end after each, in windows of tokens; what fills none is left out."""
    return packed([*tokenizer().encode(text, add_special_tokens=False), end_id()] for text in texts)


def packed(documents: Iterable[Sequence[int]]) -> torch.Tensor:
    """Token ids in windows [W, WINDOW]."""
    ids = torch.tensor([token for each in documents for token in each])
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


@cache
def human(part: str) -> torch.Tensor:
    """The windows of docstrings, in an order drawn once, so that any of them stand for all."""
    texts = docstrings()[part]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return windows(texts[n] for n in order)


def write_rows(path: Path, some: torch.Tensor) -> str:
    """Windows as rows to learn from, under the licence of the text; the path, as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    license_in(path.parent)
    rows = [{"prompt_ids": [end_id()], "completion_ids": window} for window in some.tolist()]
    write_text(path, "".join(dumps(row) + "\n" for row in rows))
    return str(path)


def license_in(folder: Path) -> None:
    """Say under which licence it lies there: Python's own."""
    write_text(folder / "README.md", f"---\nlicense: {LICENCE}\n---\n")


@dataclass(frozen=True)
class Size:
    """How large a model is, and the deviation of its random weights."""

    layers: int
    width: int
    heads: int = 4
    spread: float = 0.02

    def folder(self, path: Path, seed: int) -> str:
        """A random model with the text's tokenizer."""
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=ENTRIES, hidden_size=self.width, intermediate_size=8 * self.width // 3, num_hidden_layers=self.layers,
                             num_attention_heads=self.heads, num_key_value_heads=self.heads, max_position_embeddings=2 * WINDOW,
                             tie_word_embeddings=True, initializer_range=self.spread, bos_token_id=None,
                             eos_token_id=end_id(), pad_token_id=end_id())  # fmt: skip
        with new_folder(path) as made:
            LlamaForCausalLM(config).save_pretrained(made)
            tokenizer().save_pretrained(made)
            license_in(made)
        return str(path)


def looked_at(model: Model, part: str, most: int | None = None) -> Figures:
    """What a model makes of windows of docstrings, by transformers' own forward pass and sums in float64.

    perplexity: of a token. bits_per_byte: of the text, ends not counted as bytes. entropy_nats: mean over places of the model's own
    distribution. top: mean chance of its likeliest token.
    """
    ids_WS = human(part)[:most]
    ends_W1 = torch.full((len(ids_WS), 1), end_id())
    nats, entropy, top = 0.0, 0.0, 0.0
    with torch.no_grad():
        for some_WS, end_W1 in zip(ids_WS.split(32), ends_W1.split(32), strict=True):
            logits_WSV = model.causal(input_ids=torch.cat([end_W1, some_WS[:, :-1]], 1)).logits
            log_q_WSV = logits_WSV.float().log_softmax(-1)
            nats -= float(log_q_WSV.gather(-1, some_WS[..., None]).double().sum())
            entropy -= float((log_q_WSV.exp() * log_q_WSV).sum(-1).double().sum())
            top += float(log_q_WSV.amax(-1).exp().double().sum())
    tokens = ids_WS.numel()
    return {"perplexity": round(math.exp(nats / tokens), 4), "bits_per_byte": round(nats / math.log(2) / _bytes(ids_WS), 5),
            "entropy_nats": round(entropy / tokens, 4), "top": round(top / tokens, 4)}  # fmt: skip


def _bytes(ids_WS: torch.Tensor) -> int:
    """Of the text of these tokens: a byte-level code writes each byte as one letter."""
    return sum(len(token) for token in tokenizer().convert_ids_to_tokens(ids_WS.flatten().tolist()) if token != END)


def written(model: Model, count: int, seed: int) -> torch.Tensor:
    """Windows of a model's own text, drawn at temperature 1: each document begins after an end, and goes on to the next or as far as the context."""
    sampling, found, step = lb.Sampling(max_tokens=2 * WINDOW - 1), list[list[int]](), 0
    while sum(map(len, found)) < count * WINDOW:
        rows = range(256)
        found += [new.tokens for new in write(model, [[end_id()]] * len(rows), sampling, seed, step, rows, at_once=256)]
        step += 1
    return packed(found)[:count]
