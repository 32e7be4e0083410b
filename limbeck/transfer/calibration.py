"""Whether a model is as often right as it is sure: reliability by confidence, the calibration error with its bias, and what temperature mends.

Axes: N next tokens, M bins of confidence. Right is the token of the text; sure is how likely the likeliest token was.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.evaluate.statistics import Array, bounds, drawn
from limbeck.transfer.tokens import TEMPERATURES, Said, Tokens

BINS = 15
"""Of equal width, as the literature has them (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
DRAWS = 200
"""Of a perfectly calibrated model with the same confidences, to say what error chance alone makes."""


def reliability(confidence_N: Array, right_N: Array) -> list[dict[str, float]]:
    """Each bin that holds tokens: its bounds, how many they are, how sure the model was, how often it was right."""
    place_N = _bins(confidence_N)
    found = list[dict[str, float]]()
    for m in np.unique(place_N):
        here = place_N == m
        found.append({"low": m / BINS, "high": (m + 1) / BINS, "tokens": int(here.sum()), "confidence": float(confidence_N[here].mean()),
                      "accuracy": float(right_N[here].mean())})  # fmt: skip
    return found


def _bins(confidence_N: Array) -> Array:
    return np.minimum((confidence_N * BINS).astype(int), BINS - 1)


def error(confidence_N: Array, right_N: Array) -> float:
    """Expected calibration error: the mean over tokens of |how often right - how sure| of their bin."""
    return float(_errors(_by_bin(_bins(confidence_N), confidence_N - right_N)[None], len(right_N))[0])


def _by_bin(place_N: Array, over_N: Array) -> Array:
    return np.bincount(place_N, weights=over_N, minlength=BINS)


def _errors(over_RM: Array, tokens: Any) -> Array:
    return np.abs(over_RM).sum(1) / tokens


def calibrated_error(confidence_N: Array, seed: int = 0) -> dict[str, float]:
    """What the error would be of a model that is perfectly calibrated and as sure: its mean over draws, and what 95 % stay below.

    The error is a sum of absolute values, so that chance alone makes it greater than 0.
    """
    place_N, random = _bins(confidence_N), np.random.default_rng(seed)
    found = [error_of for _ in range(DRAWS) for error_of in _errors(
        _by_bin(place_N, confidence_N - (random.random(len(confidence_N)) < confidence_N))[None], len(confidence_N))]  # fmt: skip
    return {"mean": float(np.mean(found)), "below": float(np.quantile(found, 0.95))}


def calibration(confidence_N: Array, right_N: Array, sequence_N: Array, sequences: int) -> dict[str, Any]:
    """All of it, with an interval of the error over sequences."""
    place_N = _bins(confidence_N)
    over_BM = np.zeros((sequences, BINS))
    np.add.at(over_BM, (sequence_N, place_N), confidence_N - right_N)
    counts_B, chosen = np.bincount(sequence_N, minlength=sequences), drawn(sequences)
    resampled = np.array([np.abs(over_BM[some].sum(0)).sum() / counts_B[some].sum() for some in chosen])
    value = error(confidence_N, right_N)
    return {
        "error": value, "interval": bounds(value, resampled, np.zeros(sequences)), "if_calibrated": calibrated_error(confidence_N),
        "confidence": float(confidence_N.mean()), "accuracy": float(right_N.mean()), "bins": reliability(confidence_N, right_N),
    }  # fmt: skip


def calibrations(tokens: Tokens, side: str = "student") -> dict[str, Any]:
    """Of a model on a text: as it is, and after temperature scaling, each half of the sequences at the temperature that fits the other."""
    said, sequences = tokens.of(side), len(tokens.bytes_B)
    right_N = (said.top_N == tokens.token_N).astype(float)
    found: dict[str, Any] = {"raw": calibration(said.confidence_N.astype(float), right_N, tokens.sequence_N, sequences)}
    if sequences < 2:
        return found
    confidence_N, chosen = np.zeros(len(tokens)), list[float]()
    for half in (0, 1):
        own_N = tokens.sequence_N % 2 == half
        place = best_temperature(said, ~own_N)
        confidence_N[own_N] = said.tempered(place)[1][own_N]
        chosen.append(TEMPERATURES[place])
    return {**found, "scaled": {**calibration(confidence_N, right_N, tokens.sequence_N, sequences), "temperatures": chosen}}


def best_temperature(said: Said, rows_N: Sequence[bool] | Array) -> int:
    """The place in TEMPERATURES at which these tokens are likeliest."""
    return int(np.argmin([said.tempered(g)[0][rows_N].sum() for g in range(len(TEMPERATURES))]))
