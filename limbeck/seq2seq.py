"""Sequence-to-sequence models, T5's kind: the encoder reads the prompt, the decoder writes the completion.

Axes: B sequences, S padded length of prompts, Z padded length of completions, N completion tokens of a batch, D hidden width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from limbeck.batch import Batch, Text
from limbeck.data import Data, Row
from limbeck.errors import DataError, ModelError
from limbeck.hooks import recording
from limbeck.insides import CLOSED, Layers
from limbeck.loss import Outputs
from limbeck.machine import Opening, Precision, device, precision
from limbeck.models import module_of, ready, see_files, tokenizer_of
from limbeck.opened import HeadedModel, OpenModel
from limbeck.vocabulary import Vocabulary


class PairVocabulary(Vocabulary):
    """The vocabulary of a model that reads one text and writes another: a prompt keeps the token that ends it."""

    def texts(self, row: Row, data: Data, max_tokens: int) -> list[Text]:
        """The sequence of a row: its prompt, and the one completion. Raises DataError for text alone, and for several answers."""
        if not any(row.get(name) is not None for name in ("prompt", "prompt_ids", "messages", "conversations")):
            raise DataError(f"{data.path}: a sequence-to-sequence model reads prompt and completion, found columns {', '.join(row)}")
        texts = super().texts(row, data, max_tokens)
        if any(len(text.spans) > 1 for text in texts):
            raise DataError(f"{data.path}: a dialogue with several answers, and a sequence-to-sequence model writes one; give each a row of its own")
        return texts

    def _start(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text)["input_ids"])


@dataclass
class PairModel(HeadedModel):
    """A model whose encoder reads what stands before the completion, and whose decoder writes it."""

    kind = "a sequence-to-sequence model"
    tags: ClassVar[dict[str, str]] = {"library_name": "transformers"}

    @property
    def start_id(self) -> int:
        """What the decoder begins with."""
        return int(self.causal.config.decoder_start_token_id)

    def forward(self, batch: Batch, opened: Layers = CLOSED) -> Outputs:
        """Hidden states [N, D] of the decoder, one position before each completion token: the first stands at its start token."""
        prompts, answers = self._parted(batch)
        ids_BS, mask_BS = _padded(prompts, self.causal.config.pad_token_id or 0)
        begun_BZ, _ = _padded([torch.cat([answer.new_tensor([self.start_id]), answer[:-1]]) for answer in answers], 0)
        at_N = torch.cat([b * begun_BZ.shape[1] + torch.arange(len(answer)) for b, answer in enumerate(answers)])[: len(batch.places_N)].to(device())
        with self.arithmetic(), recording(self.causal, opened, self.name) as record:
            hidden_BZD = self.before_head(input_ids=ids_BS, attention_mask=mask_BS, decoder_input_ids=begun_BZ, use_cache=False)
        features = record.features(at_N, self.proven, self.name) if opened else None
        return Outputs(hidden_BZD.flatten(0, 1)[at_N].to(self.compute), self.head, features)

    def _parted(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Prompts and completions; of a pass without rows one of each, that nothing is asked of."""
        if not len(batch):
            one = [torch.zeros(1, dtype=torch.int64)]
            return one, one
        before_B = cast(list[int], batch.before_B.tolist())
        parts = [(tokens[:before], tokens[before:]) for tokens, before in zip(batch.sequences(), before_B, strict=True)]
        if sum(len(answer) for _, answer in parts) != len(batch.places_N):
            raise DataError(f"{self.name} writes one completion, at the end; a sequence of this pass has others, or goes on behind it; give one "
                            "answer to a prompt")  # fmt: skip
        return [prompt for prompt, _ in parts], [answer for _, answer in parts]


def _padded(texts: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows [B, S], filled up on the right, and where they hold something."""
    rows = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
    held = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return rows.to(device()), held.to(device())


def open_pair_model(name: str, opening: Opening, compute: Precision | None) -> OpenModel:
    """Open a transformers sequence-to-sequence model. Raises ModelError where its head is not one linear map over the vocabulary."""
    see_files(name)
    tokenizer, module = tokenizer_of(name, opening), module_of(name, opening, AutoModelForSeq2SeqLM)
    if getattr(module.config, "decoder_start_token_id", None) is None:
        raise ModelError(f"{name} does not say what its decoder begins with; set decoder_start_token_id in its config.json")
    ends = module.generation_config.eos_token_id if module.generation_config else None
    dtype = precision(compute) if compute else next(module.parameters()).dtype
    vocabulary = PairVocabulary(tokenizer, frozenset([ends] if isinstance(ends, int) else ends or []))
    made = PairModel(ready(module, opening), vocabulary, name, dtype)
    ids_1S = torch.arange(min(8, made.vocabulary.size), device=made.causal.device)[None]
    inputs: dict[str, Any] = {"input_ids": ids_1S, "decoder_input_ids": ids_1S}
    made.prove_head(**inputs)
    return made
