"""Masked language models, BERT's kind: what is said of a hidden token stands at its own place.

Axes: B sequences, S padded length, N hidden tokens of a batch, D hidden width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from limbeck.batch import Batch
from limbeck.hooks import recording
from limbeck.insides import CLOSED, Layers
from limbeck.loss import Outputs
from limbeck.machine import Opening, Precision, device, precision
from limbeck.masking import READ, MaskedVocabulary
from limbeck.models import module_of, ready, see_files, tokenizer_of
from limbeck.opened import HeadedModel, OpenModel


@dataclass
class MaskedModel(HeadedModel):
    """A model that tells hidden tokens by what stands on both sides of them."""

    kind = "a masked language model"
    tags: ClassVar[dict[str, str]] = {"library_name": "transformers", "pipeline_tag": "fill-mask"}
    needs_rows = True

    @property
    def context(self) -> int:
        """The longest sequence that model and tokenizer were made for."""
        return min(super().context, int(getattr(self.vocabulary.tokenizer, "model_max_length", 10**9)))

    def forward(self, batch: Batch, opened: Layers = CLOSED) -> Outputs:
        """Hidden states [N, D] at the places of hidden tokens, which the model reads as the mask or as the column `read_ids` says."""
        ids_BS, mask_BS, at_N = (each.to(device()) for each in self._padded(batch))
        with self.arithmetic(), recording(self.causal, opened, self.name) as record:
            hidden_BSD = self.before_head(input_ids=ids_BS, attention_mask=mask_BS)
        features = record.features(at_N, self.proven, self.name) if opened else None
        return Outputs(hidden_BSD.flatten(0, 1)[at_N].to(self.compute), self.head, features)

    def _padded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What is read [B, S], where there is something to read, and where in it, flattened, the hidden tokens stand [N]."""
        if not len(batch):
            return torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        read_T = batch.tokens_T.clone()
        read_T[batch.places_N] = torch.tensor(self._read(batch), dtype=torch.int64)
        texts = cast(tuple[Tensor, ...], read_T.split(cast(list[int], batch.lengths_B.tolist())))
        ids_BS = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=self.causal.config.get_text_config().pad_token_id or 0)
        mask_BS = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        sequence_N = batch.sequence_N
        return ids_BS, mask_BS, sequence_N * ids_BS.shape[1] + batch.places_N - batch.starts_B[sequence_N]

    def _read(self, batch: Batch) -> list[int]:
        """What is read in the place of each hidden token [N]."""
        counts = cast(list[int], torch.bincount(batch.sequence_N, minlength=len(batch)).tolist())
        mask = cast(MaskedVocabulary, self.vocabulary).mask_id
        return [read for columns, count in zip(batch.columns_B, counts, strict=True) for read in columns.get(READ, [mask] * count)]


def open_masked(name: str, opening: Opening, compute: Precision | None) -> OpenModel:
    """Open a transformers masked model. Raises ModelError where its head is not one linear map over the vocabulary."""
    see_files(name)
    tokenizer, module = tokenizer_of(name, opening), module_of(name, opening, AutoModelForMaskedLM)
    dtype = precision(compute) if compute else next(module.parameters()).dtype
    made = MaskedModel(ready(module, opening), MaskedVocabulary(tokenizer), name, dtype)
    ids_1S = torch.arange(min(8, made.vocabulary.size), device=made.causal.device)[None]
    inputs: dict[str, Any] = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}
    made.prove_head(**inputs)
    return made
