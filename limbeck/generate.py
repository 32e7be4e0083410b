"""Writing text with a model, keeping the log-probability of every token. Token ids throughout, never text.

Axes: B rows being written, V vocabulary. Random numbers are counter-based: the one for a token depends only on the
seed, the step, the row's number over all ranks and the token's place, whichever batch the row is written in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.config import Part, part
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.targets import Logits

if TYPE_CHECKING:
    from limbeck.models import Model


@part
class Sampling(Part):
    """How tokens are chosen. temperature 0 is greedy; top_p, top_k and min_p narrow the choice (after temperature)."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RecipeError(f"max_tokens must be at least 1, found {self.max_tokens}")
        narrow = 0 < self.top_p <= 1 and 0 <= self.min_p <= 1 and (self.top_k is None or self.top_k >= 1)
        if not (narrow and 0 <= self.temperature < float("inf")):
            raise RecipeError(f"sampling needs a finite temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1 and top_k >= 1, found {self}")


def uniforms(seed: int, step: int, row: int, count: int) -> "np.ndarray[Any, Any]":
    """`count` numbers in [0, 1), one for each place of a row, a function of (seed, step, row) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, (step << 32) + row])).random(count)


BLOCK = 256
"""Outcomes are summed in blocks first: one cheap pass finds the block, a second the outcome in it."""


def choose(log_q_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """Choose a token for each row by inverting the cumulative distribution at `uniform_B`.

    log_q_BV: log-probabilities (or logits) before temperature. Sums over blocks and within one are in float64.
    """
    if sampling.temperature == 0:
        return log_q_BV.argmax(-1)
    p_BV = (log_q_BV if sampling.temperature == 1 else log_q_BV / sampling.temperature).softmax(-1)
    p_BV = torch.nn.functional.pad(_narrowed(p_BV, sampling), (0, -p_BV.shape[1] % BLOCK))
    blocks_BG = p_BV.view(len(p_BV), -1, BLOCK).sum(-1, dtype=torch.float64)
    below_B1, block_B = _invert(blocks_BG, uniform_B.to(blocks_BG) * blocks_BG.sum(-1))
    inside_BK = p_BV.view(len(p_BV), -1, BLOCK)[torch.arange(len(p_BV), device=p_BV.device), block_B].double()
    return block_B * BLOCK + _invert(inside_BK, below_B1)[1]


def _invert(mass_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The outcome in whose share of the line `target_B` falls, and how far into it. Outcomes without mass are never chosen."""
    line_BK = mass_BK.cumsum(-1)
    last_B = mass_BK.shape[1] - 1 - (mass_BK.flip(-1) > 0).int().argmax(-1)
    found_B = torch.minimum(torch.searchsorted(line_BK, target_B[:, None], right=True)[:, 0], last_B)
    start_B = (line_BK - mass_BK).gather(1, found_B[:, None])[:, 0]
    return (target_B - start_B).clamp(min=0), found_B  # sums are rounded


def _narrowed(p_BV: Tensor, sampling: Sampling) -> Tensor:
    """Zero the probability of what the knobs leave out; at least the likeliest token stays."""
    if sampling.min_p > 0:
        p_BV = p_BV.masked_fill(p_BV < sampling.min_p * p_BV.amax(-1, keepdim=True), 0.0)
    if sampling.top_k is not None and sampling.top_k < p_BV.shape[1]:
        p_BV = p_BV.masked_fill(p_BV < p_BV.topk(sampling.top_k, -1).values[:, -1:], 0.0)
    if sampling.top_p < 1:
        sorted_BV, order_BV = p_BV.sort(-1, descending=True)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        drop_BV = before_BV >= sampling.top_p * sorted_BV.sum(-1, keepdim=True)
        p_BV = p_BV.masked_fill(torch.zeros_like(drop_BV).scatter(-1, order_BV, drop_BV), 0.0)
    return p_BV


class Written:
    """One completion as it was written: its tokens and the nats of each under the model, before temperature and narrowing."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logp: list[float] = []


@dataclass(frozen=True)
class Request:
    """A prompt to be completed. step, row: with the seed they decide its random numbers. tag: whatever the asker wants back."""

    prompt: list[int]
    step: int
    row: int
    tag: Any = None


def compose(
    model: "Model", asked: Iterable[Request | None], sampling: Sampling, seed: int = 0, at_once: int = 64,
    told: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[Request, Written]]:  # fmt: skip
    """Complete requests as they come, `at_once` of them together; no more are taken than are being written.

    None among them says that there is nothing now: it is asked again when something has finished, and twice in a row with
    nothing under way it is the end.
    """
    waiting = iter(asked)
    while some := _next(waiting, at_once) or _next(waiting, at_once):
        written = [Written() for _ in some]
        draws = np.stack([uniforms(seed, each.step, each.row, sampling.max_tokens) for each in some])
        with torch.no_grad(), model.arithmetic():  # entered once: wider weights are narrowed once for the whole text
            _write_together(model, [each.prompt for each in some], sampling, draws, written, told)
        yield from zip(some, written, strict=True)


def _next(waiting: Iterator[Request | None], at_once: int) -> list[Request]:
    """The requests that are there now."""
    return [each for each in takewhile(lambda each: each is not None, islice(waiting, at_once)) if each is not None]


def write(
    model: "Model", prompts: Sequence[list[int]], sampling: Sampling, seed: int, step: int, rows: Sequence[int],
    at_once: int = 64, told: Callable[[int], None] = lambda tokens: None,
) -> list[Written]:  # fmt: skip
    """Complete each prompt, up to and with its end token or `max_tokens`.

    rows: number of each prompt over all ranks, which with seed and step decides its random numbers. at_once: rows
    written together, prompts of like lengths. told: called with the count of tokens just written.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    asked = (Request(prompts[n], step, rows[n], tag=n) for n in order)
    found = {request.tag: written for request, written in compose(model, asked, sampling, seed, at_once, told)}
    return [found[n] for n in range(len(prompts))]


def _write_together(
    model: "Model", prompts: list[list[int]], sampling: Sampling, draws: "np.ndarray[Any, Any]", written: list[Written], told: Callable[[int], None]
) -> None:
    """Write one batch until every row has ended; rows that have leave once a quarter of the batch is done, or at the context's end."""
    ends = torch.tensor(sorted(model.vocabulary.end_ids), dtype=torch.int64)
    going, text = torch.arange(len(prompts)), model.begin(prompts)  # rows of `written` that the batch still holds
    room_B = torch.tensor([model.context - len(prompt) for prompt in prompts])
    live_B = room_B > 0
    for place in range(min(sampling.max_tokens, int(room_B.max()))):
        log_q_BV = Logits(text.next_logits()).log_probs()
        tokens_B = choose(log_q_BV, torch.from_numpy(draws[going.numpy(), place]), sampling)
        logp_B = log_q_BV.gather(1, tokens_B[:, None])[:, 0].cpu()
        chosen_B = tokens_B.cpu()
        for b in live_B.nonzero().flatten().tolist():
            written[int(going[b])].tokens.append(int(chosen_B[b]))
            written[int(going[b])].logp.append(float(logp_B[b]))
        told(int(live_B.sum()))
        full_B = room_B[going] <= place + 1
        live_B = live_B & ~torch.isin(chosen_B, ends) & ~full_B
        if not live_B.any() or place + 1 == sampling.max_tokens:
            return
        if live_B.float().mean() <= 0.75 or full_B.any():
            kept = live_B.nonzero().flatten()
            text.keep(kept.to(tokens_B.device))
            going, live_B, tokens_B = going[kept], live_B[kept], tokens_B[kept.to(tokens_B.device)]
        text.feed(tokens_B)
