"""Writing text with a model, keeping the log-probability of every token. Token ids throughout, never text.

Axes: B rows being written, V vocabulary. Random numbers are counter-based: the one for a token depends only on the
seed, the step, the row's number over all ranks and the token's place, whichever batch the row is written in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from limbeck.config import Part, part
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.targets import Logits

if TYPE_CHECKING:
    from limbeck.models import Model, Writing


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


SHARE_THAT_STAYS = 0.75
"""Rows that have ended are written on with, unheard, until no more than this share of a batch is left."""

SHARE_THAT_JOINS = 8
"""Requests that wait begin when one in so many places is free: each time, what all rows remember is copied once."""

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
    """One completion as it was written: its tokens and the nats of each under the model, before temperature and narrowing.

    read: tokens of its prompt that were read for it; a prompt that several completions share is read for the first of them.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logp: list[float] = []
        self.read = 0


@dataclass(frozen=True)
class Request:
    """A prompt to be completed. step, row: with the seed they decide its random numbers. tag: whatever the asker wants back."""

    prompt: list[int]
    step: int
    row: int
    tag: Any = None


Ended = tuple[Request, Written]


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
    with torch.no_grad(), model.arithmetic():  # entered once: wider weights are narrowed once for the whole text
        found = {request.tag: written for request, written in compose(model, asked, sampling, seed, at_once, told)}
    return [found[n] for n in range(len(prompts))]


def compose(
    model: "Model", asked: Iterable[Request | None], sampling: Sampling, seed: int = 0, at_once: int = 64,
    told: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Ended]:  # fmt: skip
    """Complete requests as they come, `at_once` of them together, each given as it ends; no more are taken than are being written.

    Rows that have ended leave, and requests that wait take their place (continuous batching: Orca, OSDI 2022). None among the
    requests says that there is nothing now: they are asked again when a row has ended, or at once where none is being written.
    """
    desk, waiting, more = _Desk(model, sampling, seed, told), iter(asked), True
    while more or desk.going:
        if more and desk.welcomes(at_once):
            some, more = _taken(waiting, at_once - desk.going)
            yield from desk.join(some)
        if desk.going:
            yield from desk.write_on()


def _taken(waiting: Iterator[Request | None], most: int) -> tuple[list[Request], bool]:
    """Up to `most` requests, and whether there may be more of them."""
    some = list[Request]()
    while len(some) < most:
        try:
            request = next(waiting)
        except StopIteration:
            return some, False
        if request is None:
            break
        some.append(request)
    return some, True


@dataclass
class _Row:
    """One completion being written. draws: its random numbers. room: how many tokens it may have. going: whether it has not ended."""

    request: Request
    draws: "np.ndarray[Any, Any]"
    room: int
    written: Written
    going: bool

    def take(self, token: int, logp: float, ends: frozenset[int]) -> None:
        """Append a token; an end token is the last."""
        self.written.tokens.append(token)
        self.written.logp.append(logp)
        self.going = token not in ends and len(self.written.tokens) < self.room


class _Desk:
    """Rows that are written side by side; those that have ended lie there until others come or too few are left."""

    def __init__(self, model: "Model", sampling: Sampling, seed: int, told: Callable[[int], None]) -> None:
        self.model, self.sampling, self.seed, self.told = model, sampling, seed, told
        self.head = model.head.prepared(model.compute)
        self.rows, self.text = list[_Row](), cast("Writing", None)  # no text where there are no rows
        self.prompt, self.known = tuple[int, ...](), cast("Writing", None)  # what was read last, for others that ask the same

    @property
    def going(self) -> int:
        """Rows that are being written."""
        return sum(row.going for row in self.rows)

    def welcomes(self, at_once: int) -> bool:
        """Whether others may join: where places enough are free that reading their prompts together pays."""
        if not self.going:
            return True
        return self.text.mixable and at_once - self.going >= max(1, at_once // SHARE_THAT_JOINS)

    def join(self, requests: Sequence[Request]) -> list[Ended]:
        """Begin requests beside what is there. Returns those for which the context has no room."""
        new = [self._row(request) for request in requests]
        if fitting := [row for row in new if row.going]:
            with torch.no_grad(), self.model.arithmetic():
                self._seat(fitting)
        return [(row.request, row.written) for row in new if not row.going]

    def _row(self, request: Request) -> _Row:
        room = min(self.sampling.max_tokens, self.model.context - len(request.prompt))
        draws = uniforms(self.seed, request.step, request.row, self.sampling.max_tokens)
        return _Row(request, draws, room, Written(), room > 0)

    def _seat(self, new: list[_Row]) -> None:
        """Read prompts, each once, and let the new rows go on from them, in the order of their prompts."""
        prompts = list(dict.fromkeys(tuple(row.request.prompt) for row in new))
        known, fresh = ([prompt for prompt in prompts if (prompt == self.prompt) == again] for again in (True, False))
        read = self.model.begin(fresh) if fresh else None
        mine = {prompt: [row for row in new if tuple(row.request.prompt) == prompt] for prompt in [*known, *fresh]}
        for prompt in fresh:
            mine[prompt][0].written.read = len(prompt)
        places = [n for n, prompt in enumerate(fresh) for _ in mine[prompt]]
        staying = [n for n, row in enumerate(self.rows) if row.going]
        parts = [(self.text, staying), (self.known, [0] * len(mine[known[0]]) if known else []), (read, places)]
        self.text = self.model.gather([part for part in parts if part[1]])
        self.rows = [*(self.rows[n] for n in staying), *(row for rows in mine.values() for row in rows)]
        if read and read.mixable:
            self.prompt, self.known = fresh[-1], self.model.gather([(read, [len(fresh) - 1])])

    def write_on(self) -> list[Ended]:
        """Write until a row ends, or several do; those."""
        ended = list[_Row]()
        with torch.no_grad(), self.model.arithmetic():
            while not ended:
                ended = self._step()
        return [(row.request, row.written) for row in ended]

    def _step(self) -> list[_Row]:
        """Write one token in each row; the rows that end with it."""
        writing = [row for row in self.rows if row.going]
        log_q_BV = Logits(self.head.logits(self.text.hidden_BQD[:, -1])).log_probs()
        uniform_B = torch.tensor([row.draws[len(row.written.tokens)] if row.going else 0.0 for row in self.rows], dtype=torch.float64)
        tokens_B = choose(log_q_BV, uniform_B, self.sampling)
        logp_B = log_q_BV.gather(1, tokens_B[:, None])[:, 0]
        for row, token, logp in zip(self.rows, tokens_B.tolist(), logp_B.tolist(), strict=True):
            if row.going:
                row.take(token, logp, self.model.vocabulary.end_ids)
        self.told(len(writing))
        self._go_on(tokens_B)
        return [row for row in writing if not row.going]

    def _go_on(self, tokens_B: Tensor) -> None:
        """Feed each row what was chosen. Rows that have ended leave before, where they are many, or one fills the context."""
        staying = [n for n, row in enumerate(self.rows) if row.going]
        if not staying:
            self.rows, self.text = [], None
            return
        full = int(self.text.mask_BS.sum(1).max()) >= self.model.context
        if full or len(staying) <= SHARE_THAT_STAYS * len(self.rows):
            self.text, self.rows = self.model.gather([(self.text, staying)]), [self.rows[n] for n in staying]
            tokens_B = tokens_B[torch.tensor(staying, device=tokens_B.device)]
        self.text.feed(tokens_B[:, None])
