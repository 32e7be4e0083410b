"""Writing text with a model, keeping the log-probability of every token. Token ids throughout, never text.

Axes: B rows being written, V vocabulary. Random numbers are counter-based: the one for a token depends only on the
seed, the step, the row's number over all ranks and the token's place, whichever batch the row is written in.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from limbeck.config import Part, part
from limbeck.errors import RecipeError
from limbeck.interrupt import in_force
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


def uniforms(seed: int, step: int, row: int, count: int, stream: int = 0) -> "np.ndarray[Any, Any]":
    """`count` numbers in [0, 1), one for each place of a row, a function of (seed, step, row, stream) alone."""
    return np.random.Generator(np.random.Philox(counter=[0, 0, 0, stream], key=[seed, (step << 32) + row])).random(count)


SHARE_THAT_STAYS = 0.75
"""Rows that have ended are written on with, unheard, until no more than this share of a batch is left."""

SHARE_THAT_JOINS = 8
"""Requests that wait begin when one in so many places is free: each time, what all rows remember is copied once."""

BLOCK = 256
"""Outcomes are summed in blocks first: one cheap pass finds the block, a second the outcome in it."""


def choose(log_q_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """Choose a token for each row by inverting the cumulative distribution at `uniform_B`.

    log_q_BV: log-probabilities (or logits) before temperature.
    """
    return log_q_BV.argmax(-1) if sampling.temperature == 0 else pick(weights(log_q_BV, sampling), uniform_B)


def weights(log_q_BV: Tensor, sampling: Sampling) -> Tensor:
    """What tokens are drawn in proportion to [B, V]: probabilities at the temperature, 0 for what the knobs leave out. Their sum may be below 1."""
    if sampling.temperature == 0:
        return torch.zeros_like(log_q_BV).scatter_(-1, log_q_BV.argmax(-1, keepdim=True), 1.0)
    return _narrowed((log_q_BV if sampling.temperature == 1 else log_q_BV / sampling.temperature).softmax(-1), sampling)


def pick(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw an outcome for each row in proportion to its weights. Sums over blocks and within one are in float64."""
    weights_BV = torch.nn.functional.pad(weights_BV, (0, -weights_BV.shape[1] % BLOCK))
    blocks_BG = weights_BV.view(len(weights_BV), -1, BLOCK).sum(-1, dtype=torch.float64)
    below_B1, block_B = _invert(blocks_BG, uniform_B.to(blocks_BG) * blocks_BG.sum(-1))
    inside_BK = weights_BV.view(len(weights_BV), -1, BLOCK)[torch.arange(len(weights_BV), device=weights_BV.device), block_B].double()
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


@dataclass(frozen=True)
class Round:
    """A proposal: its tokens, how many of them were accepted, and how many tokens the text grew by, cut at its end."""

    proposed: list[int]
    kept: int
    took: int


class Written:
    """One completion as it was written: its tokens and the nats of each under the model, before temperature and narrowing.

    read: tokens of its prompt that were read for it; a prompt that several completions share is read for the first of them.
    rounds: where another model proposed, what became of it.
    hidden: where a verifier scored, its hidden states [n, D] that predict each token, round by round.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logp: list[float] = []
        self.read = 0
        self.rounds: list[Round] = []
        self.hidden: list[Tensor] = []


@dataclass(frozen=True)
class Request:
    """A prompt to be completed. step, row: with the seed they decide its random numbers. tag: whatever the asker wants back."""

    prompt: list[int]
    step: int
    row: int
    tag: Any = None


Ended = tuple[Request, Written]
Told = Callable[[int], None]


@dataclass
class Row:
    """One completion being written. room: how many tokens it may have. going: whether it has not ended."""

    request: Request
    seed: int
    room: int
    written: Written = field(default_factory=Written)
    going: bool = True
    _draws: "dict[int, np.ndarray[Any, Any]]" = field(default_factory=dict)

    def uniform(self, ahead: int = 0, stream: int = 0) -> float:
        """The random number of a place, so far ahead of the next one; each stream has others."""
        if stream not in self._draws:
            self._draws[stream] = uniforms(self.seed, self.request.step, self.request.row, self.room, stream)
        place = len(self.written.tokens) + ahead
        return float(self._draws[stream][place]) if place < self.room else 0.5  # what is drawn beyond the room is dropped

    def tail(self, count: int) -> list[int]:
        """The last tokens of prompt and completion."""
        written = self.written.tokens[-count:]
        return [*self.request.prompt[len(self.request.prompt) - (count - len(written)) :], *written]

    def take(self, tokens: Sequence[int], logp: Sequence[float], ends: frozenset[int]) -> int:
        """Append tokens, up to an end token or the room's end; how many."""
        for count, (token, nats) in enumerate(zip(tokens, logp, strict=True), 1):
            self.written.tokens.append(token)
            self.written.logp.append(nats)
            self.going = token not in ends and len(self.written.tokens) < self.room
            if not self.going:
                return count
        return len(tokens)


class Decoder(ABC):
    """How texts go on: what stands between the rows of a desk and the models that write them.

    A state holds what models remember of rows, and all of a row's tokens but the last. It is theirs alone.
    """

    stays = 1.0
    """Rows that have ended leave a state when no more than this share of it is left."""

    @abstractmethod
    def read(self, prompts: Sequence[Sequence[int]]) -> Any:
        """The state after these prompts."""

    @abstractmethod
    def gather(self, parts: Sequence[tuple[Any, Sequence[int]]]) -> Any:
        """These rows of these states as one; a row may be taken more than once."""

    @abstractmethod
    def mixes(self, state: Any) -> bool:
        """Whether rows that were read apart can go on side by side."""

    @abstractmethod
    def write_on(self, state: Any, rows: Sequence[Row]) -> int:
        """Append tokens to each row that is going; how many in all."""


class Plain(Decoder):
    """One token at a time, of one model's."""

    stays = SHARE_THAT_STAYS

    def __init__(self, model: "Model", sampling: Sampling) -> None:
        self.model, self.sampling, self.head = model, sampling, model.head.prepared(model.compute)

    def read(self, prompts: Sequence[Sequence[int]]) -> "Writing":
        """All but the last token: it is read when the next is written."""
        return self.model.begin([prompt[:-1] for prompt in prompts])

    def gather(self, parts: "Sequence[tuple[Writing, Sequence[int]]]") -> "Writing":
        """By the model."""
        return self.model.gather(parts)

    def mixes(self, state: "Writing") -> bool:
        """By the model's memory."""
        return state.mixable

    def write_on(self, state: "Writing", rows: Sequence[Row]) -> int:
        """Read the last token, choose the next."""
        state.feed(torch.tensor([row.tail(1) for row in rows], device=state.mask_BS.device))
        log_q_BV = Logits(self.head.logits(state.hidden_BQD[:, -1])).log_probs()
        uniform_B = torch.tensor([row.uniform() if row.going else 0.5 for row in rows], dtype=torch.float64)
        tokens_B = choose(log_q_BV, uniform_B, self.sampling)
        logp_B = log_q_BV.gather(1, tokens_B[:, None])[:, 0]
        ends, count = self.model.vocabulary.end_ids, 0
        for row, token, logp in zip(rows, tokens_B.tolist(), logp_B.tolist(), strict=True):
            count += row.take([token], [logp], ends) if row.going else 0
        return count


def write(
    model: "Model", prompts: Sequence[list[int]], sampling: Sampling, seed: int, step: int, rows: Sequence[int],
    at_once: int = 64, told: Told = lambda tokens: None, decoder: Decoder | None = None,
) -> list[Written]:  # fmt: skip
    """Complete each prompt, up to and with its end token or `max_tokens`.

    rows: number of each prompt over all ranks, which with seed and step decides its random numbers. at_once: rows
    written together, prompts of like lengths. told: called with the count of tokens just written. decoder: see `compose`.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    asked = (Request(prompts[n], step, rows[n], tag=n) for n in order)
    with torch.no_grad(), model.arithmetic():  # entered once: wider weights are narrowed once for the whole text
        found = {request.tag: written for request, written in compose(model, asked, sampling, seed, at_once, told, decoder)}
    return [found[n] for n in range(len(prompts))]


def compose(
    model: "Model", asked: Iterable[Request | None], sampling: Sampling, seed: int = 0, at_once: int = 64,
    told: Told = lambda tokens: None, decoder: Decoder | None = None,
) -> Iterator[Ended]:  # fmt: skip
    """Complete requests as they come, `at_once` of them together, each given as it ends; no more are taken than are being written.

    Rows that have ended leave, and requests that wait take their place (continuous batching: Orca, OSDI 2022). None among the
    requests says that there is nothing now: they are asked again when a row has ended, or at once where none is being written.
    decoder: how texts go on, by default `Plain`; it is used up.
    """
    desk, waiting, more = _Desk(model, sampling, seed, told, decoder or Plain(model, sampling)), iter(asked), True
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


class _Desk:
    """Rows that are written side by side; those that have ended lie there until others come or too few are left."""

    def __init__(self, model: "Model", sampling: Sampling, seed: int, told: Told, decoder: Decoder) -> None:
        self.model, self.sampling, self.seed, self.told, self.decoder = model, sampling, seed, told, decoder
        self.rows, self.state = list[Row](), cast(Any, None)  # no state where there are no rows
        self.prompt, self.known = tuple[int, ...](), cast(Any, None)  # what was read last, for others that ask the same

    @property
    def going(self) -> int:
        """Rows that are being written."""
        return sum(row.going for row in self.rows)

    def welcomes(self, at_once: int) -> bool:
        """Whether others may join: where places enough are free that reading their prompts together pays."""
        if not self.going:
            return True
        return self.decoder.mixes(self.state) and at_once - self.going >= max(1, at_once // SHARE_THAT_JOINS)

    def join(self, requests: Sequence[Request]) -> list[Ended]:
        """Begin requests beside what is there. Returns those for which the context has no room."""
        context = self.model.context
        rooms = [min(self.sampling.max_tokens, context - len(request.prompt)) for request in requests]
        new = [Row(request, self.seed, room, going=room > 0) for request, room in zip(requests, rooms, strict=True)]
        if fitting := [row for row in new if row.going]:
            with torch.no_grad(), self.model.arithmetic():
                self._seat(fitting)
        return [(row.request, row.written) for row in new if not row.going]

    def _seat(self, new: list[Row]) -> None:
        """Read prompts, each once, and let the new rows go on from them, in the order of their prompts."""
        prompts = list(dict.fromkeys(tuple(row.request.prompt) for row in new))
        known, fresh = ([prompt for prompt in prompts if (prompt == self.prompt) == again] for again in (True, False))
        read = self.decoder.read(fresh) if fresh else None
        mine = {prompt: [row for row in new if tuple(row.request.prompt) == prompt] for prompt in [*known, *fresh]}
        for prompt in fresh:
            mine[prompt][0].written.read = len(prompt)
        places = [n for n, prompt in enumerate(fresh) for _ in mine[prompt]]
        staying = [n for n, row in enumerate(self.rows) if row.going]
        parts = [(self.state, staying), (self.known, [0] * len(mine[known[0]]) if known else []), (read, places)]
        self.state = self.decoder.gather([part for part in parts if part[1]])
        self.rows = [*(self.rows[n] for n in staying), *(row for rows in mine.values() for row in rows)]
        if read is not None and self.decoder.mixes(read):
            self.prompt, self.known = fresh[-1], self.decoder.gather([(read, [len(fresh) - 1])])

    def write_on(self) -> list[Ended]:
        """Write until a row ends, or several do; those."""
        ended = list[Row]()
        with torch.no_grad(), self.model.arithmetic():
            while not ended:
                in_force().hurry()
                self._part()
                writing = [row for row in self.rows if row.going]
                self.told(self.decoder.write_on(self.state, self.rows))
                ended = [row for row in writing if not row.going]
        return [(row.request, row.written) for row in ended]

    def _part(self) -> None:
        """Let rows go that have ended, where they are many."""
        staying = [n for n, row in enumerate(self.rows) if row.going]
        if len(staying) < len(self.rows) and len(staying) <= self.decoder.stays * len(self.rows):
            self.state, self.rows = self.decoder.gather([(self.state, staying)]), [self.rows[n] for n in staying]
