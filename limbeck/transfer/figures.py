"""The figures of a table of tokens, each with its 95 % interval over sequences, and by how much one model's are above another's.

Axes: B sequences, N completion tokens. Lower is better of all that are in nats, bits and perplexity; higher of agreement and acceptance.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from limbeck.evaluate.statistics import Array, mean, paired
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
        found[name] = mean(tokens.sums(values_N), counts(tokens, name))
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


def within(tokens: Tokens, values_N: Array, here_N: Array) -> tuple[Array, Array]:
    """Sums and counts over some of the tokens, of the sequences that have any."""
    sums_B, counts_B = tokens.sums(np.where(here_N, values_N, 0.0)), tokens.sums(here_N.astype(float))
    return sums_B[counts_B > 0], counts_B[counts_B > 0]


def stretches(position_N: Array) -> Array:
    """In which stretch of its completion each token stands; stretches double: 0, 1, 2 to 3, 4 to 7 and on."""
    return np.where(position_N > 0, np.floor(np.log2(np.maximum(position_N, 1))) + 1, 0).astype(int)


def ends(stretch: int) -> tuple[int, int]:
    """The first and the last place of a stretch."""
    return (2 ** (stretch - 1), 2**stretch - 1) if stretch else (0, 0)


def by_position(tokens: Tokens) -> list[dict[str, Any]]:
    """Figures beside the teacher by the token's place in its completion, in stretches."""
    found, known, place_N = list[dict[str, Any]](), values(tokens), stretches(tokens.position_N)
    for place in np.unique(place_N).tolist():
        here_N, (first, last) = place_N == place, ends(place)
        row: dict[str, Any] = {"first": first, "last": last, "tokens": int(here_N.sum())}
        for name in BESIDE_TEACHER if tokens.apart is not None else ("ce_nats",):
            row[name] = mean(*within(tokens, known[name], here_N))
        found.append(row)
    return found


def told(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A figure with its interval, for people to read; empty where there is none."""
    if figure is None or figure["value"] is None:
        return ""
    value = f"{figure['value']:.{digits}g}"
    if figure["interval"] is None:
        return value
    low, high = figure["interval"]
    return f"{value} ({low:.{digits}g} to {high:.{digits}g})"
