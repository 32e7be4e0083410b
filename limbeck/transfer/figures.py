"""The figures of a table of tokens, each with its 95 % interval over sequences, and by how much one model's are above another's.

Axes: B sequences, N completion tokens. Lower is better of all that are in nats, bits and perplexity; higher of agreement and acceptance.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from limbeck.evaluate.statistics import Array, interval, paired
from limbeck.transfer.tokens import Tokens

Figure = dict[str, Any]
"""`value`, `interval` and, where it is a difference, nothing else; a difference is mine less theirs."""


def _bits(tokens: Tokens) -> Array:
    return tokens.student.nats_N / np.log(2)


def _right(tokens: Tokens) -> Array:
    return tokens.student.top_N == tokens.token_N


def _agreed(tokens: Tokens) -> Array:
    return tokens.student.top_N == tokens.of("teacher").top_N


def _apart(name: str) -> Callable[[Tokens], Array]:
    return lambda tokens: getattr(tokens.apart, name)


OF_STUDENT: dict[str, Callable[[Tokens], Array]] = {
    "ce_nats": lambda tokens: tokens.student.nats_N,
    "bits_per_byte": _bits,
    "accuracy": _right,
    "entropy_nats": lambda tokens: tokens.student.entropy_N,
}
BESIDE_TEACHER: dict[str, Callable[[Tokens], Array]] = {
    "kl_nats": _apart("kl_N"),
    "reverse_kl_nats": _apart("reverse_kl_N"),
    "agreement": _agreed,
    "acceptance": _apart("accepted_N"),
    "teacher_entropy_nats": lambda tokens: tokens.of("teacher").entropy_N,
}
PER_BYTE = ("bits_per_byte",)
"""Divided by bytes of text; all others by tokens."""


def values(tokens: Tokens) -> dict[str, Array]:
    """Every figure's value at each token [N]; none of bytes where there is no text."""
    known = OF_STUDENT | (BESIDE_TEACHER if tokens.apart is not None else {})
    return {name: np.asarray(of(tokens), float) for name, of in known.items() if counts(tokens, name).sum()}


def counts(tokens: Tokens, name: str) -> Array:
    """What a figure's sums are divided by [B]."""
    return tokens.bytes_B.astype(float) if name in PER_BYTE else tokens.counts_B


def figures(tokens: Tokens) -> dict[str, Figure]:
    """Means over tokens (or bytes), and perplexity."""
    found = dict[str, Figure]()
    for name, values_N in values(tokens).items():
        sums_B, counts_B = tokens.sums(values_N), counts(tokens, name)
        found[name] = {"value": float(sums_B.sum() / counts_B.sum()), "interval": interval(sums_B, counts_B)}
    nats = found["ce_nats"]
    return {"perplexity": {"value": float(np.exp(nats["value"])), "interval": [float(np.exp(each)) for each in nats["interval"]]}, **found}


def differences(mine: Tokens, theirs: Tokens) -> dict[str, Figure]:
    """Of each figure, mine less theirs on the same sequences; texts may differ (each its own), prompts may not."""
    own, other = values(mine), values(theirs)
    return {
        name: paired(mine.sums(own[name]), theirs.sums(other[name]), counts(mine, name), counts(theirs, name)) for name in own if name in other
    }  # fmt: skip


def as_teacher(tokens: Tokens) -> Tokens:
    """The same table with the teacher in the student's place: how it reads the text itself."""
    return Tokens(tokens.sequence_N, tokens.position_N, tokens.token_N, tokens.bytes_B, tokens.of("teacher"))


def by_position(tokens: Tokens) -> list[dict[str, Any]]:
    """Figures beside the teacher by the token's place in its completion, in stretches that double: 0, 1, 2 to 3, 4 to 7 and on."""
    found, known = list[dict[str, Any]](), values(tokens)
    place_N = np.where(tokens.position_N > 0, np.floor(np.log2(np.maximum(tokens.position_N, 1))) + 1, 0).astype(int)
    for place in np.unique(place_N):
        here_N = place_N == place
        counts_B = tokens.sums(here_N.astype(float))
        there = counts_B > 0
        row: dict[str, Any] = {"first": int(2 ** (place - 1)) if place else 0, "last": int(2**place - 1) if place else 0, "tokens": int(here_N.sum())}
        for name in BESIDE_TEACHER if tokens.apart is not None else ("ce_nats",):
            sums_B = tokens.sums(np.where(here_N, known[name], 0.0))[there]
            row[name] = {"value": float(sums_B.sum() / counts_B.sum()), "interval": interval(sums_B, counts_B[there])}
        found.append(row)
    return found


def flat(found: Mapping[str, Figure]) -> dict[str, float]:
    """The values alone."""
    return {name: each["value"] for name, each in found.items()}
