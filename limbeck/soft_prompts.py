"""Text made small by soft embeddings: prompts that are no words, learnt so that the model's gradient on them is that of the whole corpus.

Axes: B sequences, S padded length, N completion tokens, V vocabulary, D width of the embeddings, P prompt tokens of all chosen rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from limbeck.batch import Batch, Text
from limbeck.config import live, part
from limbeck.data import Data
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.files import write_bytes, write_jsonl
from limbeck.herding import row_texts, rows_fingerprint
from limbeck.licences import Licence, of_model
from limbeck.machine import Opening, device
from limbeck.matching import Condenser, Product, gradient_distance
from limbeck.models import Model, open_model, padded
from limbeck.networks import drawn
from limbeck.optimizer import AdamW
from limbeck.progress import Progress


@dataclass(frozen=True)
class Taught:
    """A model as a function of embeddings: what its weights would learn from text that is given as vectors."""

    model: Model

    @property
    def weights(self) -> list[Tensor]:
        """All matrices but the table of embeddings; where head and table are one, as a head."""
        table = self.model.causal.get_input_embeddings().weight
        head: Any = self.model.causal.get_output_embeddings()
        tied = head.weight is table
        return [weight for weight in self.model.module.parameters() if weight.ndim >= 2 and (tied or weight is not table)]

    def table(self) -> Tensor:
        """The embedding of each token of the vocabulary [V, D]."""
        layer: Any = self.model.causal.get_input_embeddings()
        return layer.weight.detach()[: self.model.vocabulary.size]

    def embedded(self, batch: Batch) -> Tensor:
        """The embeddings of its tokens, padded [B, S, D]."""
        ids_BS, _ = padded(batch)
        layer: Any = self.model.causal.get_input_embeddings()
        return layer(ids_BS.to(device())).detach()

    def gradients(self, batch: Batch, embedded_BSD: Tensor, total: int, create_graph: bool) -> Sequence[Tensor]:
        """The gradient of the sum of its tokens' cross-entropies over `total`, its tokens given as these vectors."""
        _, before_N = padded(batch)
        hidden_BSD = self.model.causal.get_decoder()(inputs_embeds=embedded_BSD, use_cache=False).last_hidden_state
        hidden_ND = hidden_BSD.flatten(0, 1)[before_N.to(device())]
        layer: Any = self.model.causal.get_output_embeddings()
        head = self.model.head
        bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary]
        logits_NV = torch.nn.functional.linear(hidden_ND, layer.weight[: head.vocabulary], bias_V) * head.scale
        if head.cap is not None:
            logits_NV = torch.tanh(logits_NV / head.cap) * head.cap
        loss = torch.nn.functional.cross_entropy(logits_NV, batch.tokens_N.to(device()), reduction="sum") / total
        return torch.autograd.grad(loss, self.weights, create_graph=create_graph)


@part
class SoftPrompts(Condenser):
    """Soft embeddings: the prompts of `rows` rows become free vectors, moved so that the model's gradient on them is the whole corpus'.

    Gradient matching (arXiv 2006.05929) on text: what an image is there, a prompt's embeddings are here; the completion, which is
    what is learnt, stays, as a label does. The distance is the paper's, over all matrices of the model but the table of embeddings.
    Departs: 1) the model is the given one alone, where the paper draws many. The product is `embeddings.safetensors`, and
    `corpus.jsonl` with the nearest tokens in their place; the card says the distance of the rows as they were, of the soft ones, and
    what of it is left in the nearest tokens.
    """

    model: str
    rows: int
    steps: int = 100
    optimizer: AdamW = field(default_factory=lambda: AdamW(learning_rate=0.01, schedule="constant", warmup=0.0, clip=None))
    max_tokens: int = 256
    tokens_per_pass: int = 2048

    _taught: Any = live()
    _batch: Any = live()
    _corpus: Any = live()
    _learnt: Any = live()
    _where: Any = live()
    _moments: Any = live()
    _fingerprint: Any = live()

    def __post_init__(self) -> None:
        if min(self.rows, self.steps, self.max_tokens, self.tokens_per_pass) < 1:
            raise RecipeError("SoftPrompts: rows, steps, max_tokens and tokens_per_pass must be at least 1")
        if self.optimizer.eight_bit or self.optimizer.clip is not None:
            raise RecipeError("SoftPrompts.optimizer moves a few vectors: give clip=null, and leave eight_bit out")

    @property
    def total_steps(self) -> int:
        """As many as were asked for."""
        return self.steps

    @property
    def licences(self) -> list[Licence]:
        """The model's."""
        return of_model(self.model)

    @property
    def fingerprint(self) -> str:
        """Of all rows."""
        return self._fingerprint

    def load(self, data: Data, seed: int, out: Path) -> Self:
        """Rows drawn by the seed, and the gradient of the whole corpus."""
        made, rows = self.fresh(), data.rows()
        made._fingerprint = rows_fingerprint(rows)
        made._taught = Taught(open_model(self.model, Opening("float32", attention="eager")))
        texts = [text for _, text in row_texts(rows, data, made._taught.model, self.max_tokens)]
        if any(len(text.spans) != 1 or text.spans[0].start < 2 for text in texts):
            raise DataError(f"{data.path}: soft embeddings stand for a prompt of some tokens before one completion, and not every row has both; "
                            "choose rows with Herding")  # fmt: skip
        if len(texts) < self.rows:
            raise DataError(f"{data.path}: {self.rows} rows were asked for, and {len(texts)} have a completion within max_tokens={self.max_tokens}")
        made._corpus = made._gradient_of(texts)
        order = torch.randperm(len(texts), generator=drawn(seed))[: self.rows]
        made._batch = Batch.of([texts[int(place)] for place in order], "corpus")
        made._where = _prompt_places(made._batch)
        made._learnt = made._taught.embedded(made._batch)[made._where].clone().requires_grad_()
        made._moments = made.optimizer.build([made._learnt])
        return made

    def _gradient_of(self, texts: list[Text]) -> list[Tensor]:
        """Of the mean over all completion tokens: summed pass by pass, divided once."""
        batch = Batch.of(texts, "corpus")
        total, parts = len(batch.places_N), batch.split(self.tokens_per_pass)
        sums = [torch.zeros_like(weight) for weight in self._taught.weights]
        with Progress("reading", len(parts)).showing() as progress:
            for passed in parts:
                for each, more in zip(sums, self._taught.gradients(passed, self._taught.embedded(passed), total, False), strict=True):
                    each += more
                progress.advance(1, len(passed.tokens_T))
        return sums

    def _distance(self, prompts_PD: Tensor, create_graph: bool) -> Tensor:
        embedded_BSD = self._taught.embedded(self._batch).index_put(self._where, prompts_PD)
        mine = self._taught.gradients(self._batch, embedded_BSD, len(self._batch.places_N), create_graph)
        return gradient_distance(self._corpus, mine)

    def step(self, step: int) -> dict[str, float]:
        """Move the prompts once. Raises LimbeckError where the distance is not finite."""
        distance = self._distance(self._learnt, True)
        if not bool(torch.isfinite(distance)):
            raise LimbeckError(f"step {step + 1}: the distance is {float(distance.detach())}; lower optimizer.learning_rate")
        (self._learnt.grad,) = torch.autograd.grad(distance, self._learnt)
        for group in self._moments.param_groups:
            group["lr"] = self.optimizer.rate(step, self.steps)
        self._moments.step()
        return {"distance": float(distance.detach())}

    def state(self) -> dict[str, Tensor]:
        """The prompts and their moments."""
        moments = self._moments.state.get(self._learnt, {})
        return {"value": self._learnt.detach(), **{f"moment.{name}": torch.as_tensor(value) for name, value in moments.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put them where they were."""
        self._learnt.data.copy_(state["value"])
        moments = {name.removeprefix("moment."): value.clone() for name, value in state.items() if name.startswith("moment.")}
        if moments:
            self._moments.state[self._learnt] = moments

    def nearest(self) -> list[list[int]]:
        """For each row the tokens whose embeddings are nearest to its prompt's."""
        ids_P = torch.cdist(self._learnt.detach(), self._taught.table()).argmin(1)
        rows_P = self._where[0]
        return [ids_P[rows_P == row].tolist() for row in range(len(self._batch))]

    def write(self, out: Path) -> Product:
        """`embeddings.safetensors` (`embeddings` [P, D], `row` [P]), and `corpus.jsonl` of nearest tokens with the completions."""
        from safetensors.torch import save

        write_bytes(out / "embeddings.safetensors", save({"embeddings": self._learnt.detach().cpu().contiguous(), "row": self._where[0].cpu()}))
        hard = self._batch.with_prompts(self.nearest())
        completions = [tokens[len(prompt) :].tolist() for tokens, prompt in zip(hard.sequences(), hard.prompts(), strict=True)]
        rows = [{"prompt_ids": prompt, "completion_ids": answer} for prompt, answer in zip(hard.prompts(), completions, strict=True)]
        file = out / "corpus.jsonl"
        write_jsonl(file, rows)
        real, near = (self._taught.embedded(batch)[self._where] for batch in (self._batch, hard))
        found = [float(self._distance(prompts, False)) for prompts in (real, self._learnt.detach(), near)]
        names = ("distance_of_the_rows_as_they_were", "distance", "distance_of_nearest_tokens")
        return Product(file, len(rows), {"embeddings": "embeddings.safetensors", **dict(zip(names, found, strict=True))})


def _prompt_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Row and column, in padded sequences, of every token before its row's first completion token."""
    pairs = [(row, column) for row, before in enumerate(batch.before_B.tolist()) for column in range(before)]
    return torch.tensor([row for row, _ in pairs]), torch.tensor([column for _, column in pairs])
