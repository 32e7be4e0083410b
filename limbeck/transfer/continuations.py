"""How likely a model holds given continuations of given contexts: what multiple choice is scored by.

Axes: C completion tokens of a block. Nats, below 0.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from limbeck.batch import Batch, Text
from limbeck.lazy import torch
from limbeck.targets import Dense
from limbeck.transfer.tokens import BLOCK

if TYPE_CHECKING:
    from limbeck.models import Model

Pair = tuple[Sequence[int], Sequence[int]]
"""A context of one token at least, and what may follow it."""


def log_likelihoods(
    model: "Model", pairs: Sequence[Pair], tokens_per_pass: int = 2048, told: Callable[[int], None] = lambda tokens: None
) -> list[tuple[float, bool]]:
    """Of each continuation, the sum over its tokens, and whether greedy writing would have written it.

    What is longer than the model's context is cut at its beginning. told: called with the count of tokens just read.
    """
    whole = Batch.of([_within(pair, model.context) for pair in pairs], "corpus")
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for cut in whole.cuts(tokens_per_pass):
        part = whole.select(cut)
        logp_N, top_N = _said(model, part)
        sums_B = torch.zeros(len(part), dtype=torch.float64).index_add_(0, part.sequence_N, logp_N.double())
        missed_B = torch.zeros(len(part)).index_add_(0, part.sequence_N, (top_N != part.tokens_N).float())
        for place, total, missed in zip(cut, sums_B.tolist(), missed_B.tolist(), strict=True):
            found[place] = (total, not missed)
        told(len(part.tokens_T))
    return found


def _within(pair: Pair, context: int) -> Text:
    continuation = list(pair[1])[-(context - 1) :]
    return Text.answered(list(pair[0])[-(context - len(continuation)) :], continuation, {})


def _said(model: "Model", part: Batch) -> "tuple[torch.Tensor, torch.Tensor]":
    """The log-probability of each completion token, and the likeliest token in its place."""
    with torch.no_grad():
        outputs = model.forward(part)
        said, logp, top = Dense(outputs.hidden_ND, outputs.head, "read"), list[torch.Tensor](), list[torch.Tensor]()
        for start in range(0, len(part.tokens_N), size := max(1, BLOCK // outputs.head.vocabulary)):
            log_CV = said.rows(slice(start, start + size)).block(slice(None)).log_probs()
            token_C1 = part.tokens_N[start : start + size, None].to(log_CV.device)
            logp.append(log_CV.gather(1, token_C1)[:, 0].cpu())
            top.append(log_CV.argmax(-1).cpu())
    return torch.cat(logp), torch.cat(top)
