"""How well a draft serves its target: acceptance on either's prefixes, costs, and what speculation gains by formula and by the clock.

Axes: B sequences, N completion tokens, V vocabulary. p, q: target's and draft's distributions after the transforms in service.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from limbeck.batch import Batch, Text
from limbeck.decoding import Sampling, Written, weights, write
from limbeck.errors import RecipeError
from limbeck.evaluate.statistics import interval
from limbeck.lazy import torch
from limbeck.models import Model
from limbeck.progress import Progress
from limbeck.speculative import Lossless, Pace, Speculative, best_length, expected_tokens, normed, speedup

CHUNK = 64
"""Rows of distributions that are in memory at once."""
TIMED_TOKENS = 48
ROUNDS = 5


@dataclass(frozen=True)
class Costs:
    """Seconds of one step: the target's for one place a row, the draft's, and how much longer the target takes for each more place.

    rows: sequences written side by side, which all of them depend on.
    """

    rows: int
    target_seconds: float
    draft_seconds: float
    place_seconds: float

    @property
    def cost(self) -> float:
        """Of a proposed token, in the target's steps."""
        return self.draft_seconds / self.target_seconds

    @property
    def row_cost(self) -> float:
        """Of each verified place but the first, in the target's steps."""
        return max(0.0, self.place_seconds / self.target_seconds)


@dataclass(frozen=True)
class Speed:
    """What speculation gains with `gamma` proposed tokens. measured: the median of ratios within rounds; None where it was not tried."""

    gamma: int
    predicted: float
    measured: float | None = None
    tokens_per_verification: float | None = None
    expected_tokens: float | None = None


@dataclass
class Acceptance:
    """Figures of a pair. Acceptance is the mean over tokens of sum min(p, q), with a 95 % bootstrap interval over sequences."""

    sampling: Sampling
    on_target_text: float
    on_target_text_interval: list[float]
    on_draft_text: float
    on_draft_text_interval: list[float]
    tokens: int
    costs: list[Costs] = field(default_factory=list[Costs])
    best_gamma: dict[int, int] = field(default_factory=dict[int, int])
    speeds: dict[int, list[Speed]] = field(default_factory=dict[int, list[Speed]])

    def plain(self) -> dict[str, Any]:
        """For a file."""
        found = asdict(self)
        return {**found, "costs": [{**asdict(each), "cost": each.cost, "row_cost": each.row_cost} for each in self.costs]}


def written_by(model: Model, prompts: Sequence[list[int]], sampling: Sampling, seed: int = 0) -> list[Text]:
    """Texts of a model's own, to measure on."""
    texts = write(model, list(prompts), sampling, seed, 0, range(len(prompts)))
    return [Text.answered(prompt, new.tokens, {}, new.logp) for prompt, new in zip(prompts, texts, strict=True) if new.tokens]


@torch.no_grad()
def overlap(target: Model, draft: Model, texts: Sequence[Text], sampling: Sampling, tokens_per_pass: int = 2048) -> list[list[float]]:
    """Sum min(p, q) at each token of each text: the chance that a proposal there is accepted. Greedy: whether both would say the same."""
    batch = Batch.of(list(texts), "corpus")
    found = list[list[float]]([[] for _ in texts])
    for cut in batch.cuts(tokens_per_pass):
        part = batch.select(cut)
        outputs = [model.forward(part) for model in (target, draft)]
        heads = [each.head.prepared(each.hidden_ND.dtype) for each in outputs]
        shared = list[float]()
        for start in range(0, len(part.places_N), CHUNK):
            p_CV, q_CV = (
                normed(weights(head.logits(each.hidden_ND[start : start + CHUNK]), sampling)) for head, each in zip(heads, outputs, strict=True)
            )
            shared += torch.minimum(p_CV, q_CV).sum(-1).tolist()
        for sequence, value in zip(part.sequence_N.tolist(), shared, strict=True):
            found[cut[sequence]].append(value)
    return found


def mean(by_text: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """Over tokens, and its interval over sequences."""
    sums, counts = [sum(each) for each in by_text], [float(len(each)) for each in by_text]
    return sum(sums) / sum(counts), interval(sums, counts)


def costs(target: Model, draft: Model, prompts: Sequence[list[int]], rows: int, places: int = 4) -> Costs:
    """Medians of steps, taken in turn, after the same prompts."""
    some = [prompts[n % len(prompts)] for n in range(rows)]
    texts = {"target": target.begin(some), "draft": draft.begin(some), "places": target.begin(some)}
    taken: dict[str, list[float]] = {name: [] for name in texts}
    for step in range(2 + 4 * ROUNDS):
        for name, text in texts.items():
            ids = torch.full((rows, 1 + places if name == "places" else 1), 5, device=text.mask_BS.device)
            model = target if name != "draft" else draft
            head = model.head.prepared(model.compute)
            began = time.perf_counter()
            with torch.no_grad():
                text.feed(ids)
                normed(weights(head.logits(text.hidden_BQD.flatten(0, 1)), Sampling())).sum().item()
            taken[name] += [time.perf_counter() - began] if step >= 2 else []
            text.forget(torch.zeros(rows, dtype=torch.int64, device=ids.device), ids.shape[1])
    middle = {name: statistics.median(each) for name, each in taken.items()}
    return Costs(rows, middle["target"], middle["draft"], (middle["places"] - middle["target"]) / places)


def speculate(
    target: Model, draft: Model, prompts: Sequence[list[int]], sampling: Sampling, gamma: int | Pace, seed: int, at_once: int
) -> list[Written]:
    """Lossless text of the target's, drafts by the other."""
    decoder = Speculative(target, draft, sampling, Lossless(), gamma)
    return write(target, list(prompts), sampling, seed, 0, range(len(prompts)), at_once, decoder=decoder)


def timed(
    target: Model, draft: Model, prompts: Sequence[list[int]], sampling: Sampling, gammas: Sequence[int], rows: int
) -> dict[int, tuple[float, float]]:
    """For each gamma how many times as fast as plain decoding, tokens a second, and tokens of a round; in turn, medians within rounds."""
    rates: dict[int, list[float]] = {gamma: [] for gamma in (0, *gammas)}
    rounds: dict[int, list[float]] = {gamma: [] for gamma in gammas}
    for seed in range(ROUNDS):
        for gamma, found in rates.items():
            began = time.perf_counter()
            texts = speculate(target, draft, prompts, sampling, gamma, seed, rows) if gamma else write(
                target, list(prompts), sampling, seed, 0, range(len(prompts)), at_once=rows)  # fmt: skip
            found.append(sum(len(each.tokens) for each in texts) / (time.perf_counter() - began))
            if gamma:
                whole = [each for text in texts for each in text.rounds[:-1] if len(each.proposed) == gamma]  # the last is cut by the end
                rounds[gamma].append(sum(each.took for each in whole) / max(1, len(whole)))
    return {gamma: (statistics.median(mine / plain for mine, plain in zip(rates[gamma], rates[0], strict=True)), float(np.mean(rounds[gamma])))
            for gamma in gammas}  # fmt: skip


def acceptance(
    target: Model, draft: Model, prompts: Sequence[list[int]], sampling: Sampling, rows: Sequence[int] = (1, 8), most: int = 8,
    measure: Literal["best", "no"] = "best",
) -> Acceptance:  # fmt: skip
    """All of it. rows: batch sizes whose costs are measured. measure: the clock of the best length of each, and of one more and less.

    Raises RecipeError for a pair that cannot speculate, VocabularyError where they do not mean the same by a token.
    """
    if not prompts:
        raise RecipeError("acceptance is measured on prompts, and there are none; give --data with rows")
    Speculative(target, draft, sampling, Lossless(), 1).read([list(prompts[0])])  # refused before anything is measured
    with Progress("acceptance", 2 + len(rows) * 2).showing() as progress:
        by_text = list[list[list[float]]]()
        for writer in (target, draft):
            by_text.append(overlap(target, draft, written_by(writer, prompts, sampling), sampling))
            progress.advance(1)
        (on_target, its), (on_draft, others) = map(mean, by_text)
        found = Acceptance(sampling, on_target, its, on_draft, others, sum(map(len, by_text[0])))
        short = Sampling(min(sampling.max_tokens, TIMED_TOKENS), sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        for count in rows:
            cost = costs(target, draft, prompts, count)
            found.costs.append(cost)
            progress.advance(1)
            _speeds(found, cost, most, (target, draft, prompts, short) if measure == "best" else None)
            progress.advance(1)
    return found


def _speeds(found: Acceptance, cost: Costs, most: int, measured: "tuple[Model, Model, Sequence[list[int]], Sampling] | None") -> None:
    """What the formula says of each length, and the clock of those about the best."""
    best = best_length(found.on_target_text, cost.cost, cost.row_cost, most)
    found.best_gamma[cost.rows] = best
    tried = sorted({max(1, best - 1), max(1, best), min(most, best + 1)})
    clock = dict[int, tuple[float, float]]()
    if measured:
        target, draft, prompts, short = measured
        clock = timed(target, draft, [prompts[n % len(prompts)] for n in range(max(4, cost.rows))], short, tried, cost.rows)
    found.speeds[cost.rows] = [
        Speed(gamma, speedup(found.on_target_text, gamma, cost.cost, cost.row_cost), *clock.get(gamma, (None, None)),
              expected_tokens(found.on_target_text, gamma))
        for gamma in range(1, most + 1)
    ]  # fmt: skip
