"""What every kind of open model has in common: weights, what its rows mean, and hidden states that meet a head.

A kind turns a Batch into rows, one for each completion token, and knows where in its own passes they stand. All that follows
(terms, chunks, the loop) sees rows alone. `kinds.py` finds the kind of a model by its files.

Axes: N completion tokens of a batch, D hidden width, V outcomes: tokens, or the classes that a classifier tells apart.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.errors import ModelError, RecipeError, VocabularyError
from limbeck.head import Head
from limbeck.hooks import build_of
from limbeck.insides import CLOSED, Build, Layers
from limbeck.loss import Outputs
from limbeck.machine import device
from limbeck.vocabulary import Vocabulary


@dataclass
class OpenModel(ABC):
    """A model that is open: weights, vocabulary and head.

    `compute` is the dtype of its arithmetic; where the weights are wider (a student's float32 masters), autocast narrows.
    """

    kind: ClassVar[str]
    """What it is, with its article, for people to read."""
    needs_rows: ClassVar[bool] = False
    """Whether it can be asked about rows of its own data alone, and not about any text."""
    tags: ClassVar[dict[str, str]] = {"library_name": "transformers"}
    """How the hub names what is saved of it."""

    module: Any
    vocabulary: Vocabulary
    name: str
    compute: torch.dtype

    @property
    def causal(self) -> PreTrainedModel:
        """The transformers model itself, without adapters' wrapping."""
        return self.module.get_base_model() if hasattr(self.module, "get_base_model") else self.module

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head with the weights as they are now."""

    @property
    def context(self) -> int:
        """The longest sequence it was made for."""
        return int(getattr(self.causal.config.get_text_config(), "max_position_embeddings", None) or 10**9)

    @property
    def parameters_total(self) -> int:
        """Weights, tied ones counted once."""
        return sum(weight.numel() for weight in self.module.parameters())

    @property
    def described(self) -> dict[str, Any]:
        """What it is, for the records."""
        dtype, vocabulary = str(self.compute).removeprefix("torch."), self.vocabulary.fingerprint
        found = {"model": self.name, "parameters": self.parameters_total, "arithmetic": dtype, "vocabulary": vocabulary}
        rows = len(self.head.weight_VD)  # those beyond the vocabulary are padding, and cut
        return found if rows == self.vocabulary.size else {**found, "head_rows": rows, "tokens": self.vocabulary.size}

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Run in the model's compute dtype."""
        weights = next(self.causal.parameters()).dtype
        narrower = weights == torch.float32 and self.compute != torch.float32
        return torch.autocast(device().type, self.compute) if narrower else nullcontext()

    @abstractmethod
    def forward(self, batch: Batch, opened: Layers = CLOSED) -> Outputs:
        """Hidden states [N, D] about each completion token, and the head they have yet to meet; layers `opened` beside them."""

    @property
    def build(self) -> Build:
        """How it is built, as far as its layers can be compared. Raises ModelError where they cannot."""
        return build_of(self.causal, self.name)

    @property
    def writer(self) -> Any:
        """The model as one that writes, a `Model`. Raises RecipeError for a kind that does not."""
        raise RecipeError(f"{self.name} is {self.kind} and does not write here; draw ready rows with Corpus(data), or give a causal language model")

    def see_cacheable(self) -> None:
        """Raise RecipeError where scores are not of a text's tokens alone, by which a cache finds them."""
        if self.needs_rows:
            raise RecipeError(f"{self.name} is {self.kind}, and a cache keeps scores of running text; let a live teacher score: Local(model)")

    def see_learnable(self, adapters: bool, checkpoints: bool) -> None:
        """Raise an error where it cannot learn as it is asked to."""
        if adapters:
            raise RecipeError(f"{self.name} is {self.kind}, and adapters are put on causal language models alone; leave out lora")

    def save(self, folder: Path, whole: dict[str, Tensor] | None) -> None:
        """Write a folder that can be opened again. whole: all weights by name, where this rank has a share of them."""
        self.module.save_pretrained(folder, state_dict=whole)
        self.vocabulary.tokenizer.save_pretrained(folder)

    @property
    def tied(self) -> tuple[str, str] | None:
        """The names of a head that is the embedding, and of the embedding."""
        causal: Any = self.causal
        head = causal.get_output_embeddings()
        if head is None or not getattr(causal.config, "tie_word_embeddings", False):
            return None
        mine, theirs = (next(name for name, each in causal.named_modules() if each is part) for part in (head, causal.get_input_embeddings()))
        return f"{mine}.weight", f"{theirs}.weight"

    def save_untied(self, folder: Path, whole: dict[str, Tensor]) -> None:
        """The same of all weights by name, among them a head of its own."""
        if not (tied := self.tied):
            return self.save(folder, whole)
        config: Any = self.causal.config
        config.tie_word_embeddings = False
        try:
            self.save(folder, {**whole, tied[0]: whole[tied[0]].clone()})
        finally:
            config.tie_word_embeddings = True


@dataclass
class HeadedModel(OpenModel):
    """Base of those of transformers' whose last linear map is found, with all that stands before it."""

    proven: set[int] = field(default_factory=set[int], repr=False)
    """Layers whose attention, as it is laid open, was seen to be what the model makes of it."""

    @property
    def head(self) -> Head:
        """The head with the weights as they are now."""
        layer: Any = self.causal.get_output_embeddings()
        own, more = getattr(layer, "bias", None), getattr(self.causal, "final_logits_bias", None)  # the latter is BART's, beside its head
        bias_V = more[0] if own is None and more is not None else own
        return Head(layer.weight, self.vocabulary.size, bias_V)

    def before_head(self, **inputs: Any) -> Tensor:
        """What the model gives its last linear map [B, S, D]; the map is asked for no row."""
        layer, kept = cast(Any, self.causal.get_output_embeddings()), list[Tensor]()

        def keep(layer: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept.append(given[0])
            return (given[0][:, :0], *given[1:])

        hook = layer.register_forward_pre_hook(keep)
        try:
            self.causal(**inputs)
        finally:
            hook.remove()
        return kept[0]

    @torch.no_grad()
    def prove_head(self, **inputs: Any) -> None:
        """See on a few tokens that the head makes the model's own logits. Raises ModelError or VocabularyError where it does not."""
        layer: Any = self.causal.get_output_embeddings()
        if not isinstance(getattr(layer, "weight", None), Tensor) or layer.weight.ndim != 2:
            raise ModelError(f"{self.name} has no linear head over its vocabulary; Limbeck distills {self.kind.partition(' ')[2]}s that have")
        if len(layer.weight) < self.vocabulary.size:
            raise VocabularyError(f"{self.name} scores {len(layer.weight):,} tokens and its tokenizer knows {self.vocabulary.size:,}; resize its "
                                  "embeddings")  # fmt: skip
        hidden_SD = self.before_head(**inputs)[0]
        wanted_SV = self.causal(**inputs).logits[0, :, : self.vocabulary.size].float()
        error = (self.head.prepared(hidden_SD.dtype).logits(hidden_SD) - wanted_SV).abs().max()
        if not error <= wanted_SV.abs().max() * (1e-4 if hidden_SD.dtype == torch.float32 else 4e-2):
            raise ModelError(f"{self.name} makes its logits in a way Limbeck does not know ({type(self.causal).__name__}); please open an issue")
