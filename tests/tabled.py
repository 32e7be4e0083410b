"""Tables of tokens made by hand, of which only some columns are looked at."""

from typing import Any

import numpy as np

from limbeck.transfer.slices import Cut, by_position, named
from limbeck.transfer.tokens import TEMPERATURES, Apart, Said, Tokens


def said(nats_N: Any, **more: Any) -> Said:
    """One model, of whom only nats are looked at."""
    nats_N = np.asarray(nats_N, float)
    zero_N = np.zeros(len(nats_N))
    kept: dict[str, Any] = {"entropy_N": zero_N, "top_N": zero_N, "confidence_N": zero_N, "missed_N": zero_N}
    return Said(**{"nats_N": nats_N, **kept, "log_sum_NG": np.zeros((len(nats_N), len(TEMPERATURES))), **more})


def tokens(lengths: Any, kl_N: Any, nats_N: Any = None, teacher_N: Any = None, **more: Any) -> Tokens:
    """A table of sequences of these lengths."""
    lengths, count = np.asarray(lengths), int(np.sum(lengths))
    sequence_N = np.repeat(np.arange(len(lengths)), lengths)
    position_N = np.concatenate([np.arange(n) for n in lengths])
    kl_N, zero_N = np.asarray(kl_N, float), np.zeros(count)
    student = said(kl_N if nats_N is None else nats_N, **more)
    return Tokens(sequence_N, position_N, np.zeros(count, int), np.zeros(len(lengths)), student, said(zero_N if teacher_N is None else teacher_N),
                  Apart(kl_N, zero_N, zero_N))  # fmt: skip


def noisy(seed: int, sequences: int = 60, length: int = 6, category: Any = None, above: float = 0.0) -> tuple[Tokens, list[str]]:
    """KL of lognormal sequences, tokens of one alike; one category above the others or not."""
    draw = np.random.default_rng(seed)
    labels = [f"c{n % 5}" for n in range(sequences)] if category is None else list(category)
    level_B = draw.lognormal(0, 0.6, sequences) + above * np.array([label == "c3" for label in labels])
    return tokens([length] * sequences, np.repeat(level_B, length) * draw.lognormal(0, 0.4, sequences * length)), labels


def cuts_of(table: Tokens, labels: list[str]) -> list[Cut]:
    return [named("category", labels, table), by_position(table)]
