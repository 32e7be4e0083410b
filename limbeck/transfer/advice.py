"""What to do next, from the numbers: a table of rules, each of which speaks where intervals do, or is silent.

A rule takes what was found of one student and returns sentences with the numbers that led to them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.evaluate.statistics import interval, paired
from limbeck.transfer.figures import told
from limbeck.transfer.gaps import ALL, FEWEST, Slice, gap_N, is_of_rows, worst
from limbeck.transfer.measure import GIVEN, OWN
from limbeck.transfer.slices import OF_ROWS
from limbeck.transfer.subjects import TEACHER
from limbeck.transfer.tokens import Tokens

LITTLE = 0.5
"""Share of a gap that is little to have closed."""
WORTH = 0.1
"""Share of the gap elsewhere by which a slice must surely be above it to be spoken of."""
MOST = 3
"""Slices that one rule speaks of."""
WARM = 1.0


@dataclass(frozen=True)
class Evidence:
    """What was found of one student: all tables by student and text, its slices, its calibration. baseline: by whom it is measured."""

    who: str
    baseline: str | None
    tables: Mapping[str, Mapping[str, Tokens]]
    slices: Sequence[Slice] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def table(self, text: str, who: str | None = None) -> Tokens | None:
        """What was said on a text; None where that was not measured."""
        return self.tables.get(who or self.who, {}).get(text)

    def worst_rows(self) -> list[Slice]:
        """Categories or topics that are surely worse, by so much that it is worth a thought, on the text on which most is known."""
        for text in (GIVEN, TEACHER, OWN):
            if found := [each for each in self.slices if each["text"] == text]:
                return [each for each in worst(found, self.who, OF_ROWS) if self._counts(each["students"][self.who])][:MOST]
        return []

    def _counts(self, mine: Mapping[str, Any]) -> bool:
        rest_nats = mine["kl_nats"]["value"] - mine["above_rest"]["value"]
        return bool(mine["above_rest"]["at_least"] > WORTH * rest_nats)


Said = Iterator[tuple[str, str]]
"""What to do, and why."""


def more_data(found: Evidence) -> Said:
    """More of what the student lacks."""
    for each in found.worst_rows():
        mine = each["students"][found.who]
        rest = mine["above_rest"]
        yield (
            f"more prompts of {_of(each)}, or Curriculum(by=\"student_gap\"), which draws them as the gap asks",
            f"KL to the teacher is {mine['kl_nats']['value']:.3g} nats a token there, {rest['value']:.3g} above all others, "
            f"surely at least {rest['at_least']:.3g} ({rest['compared']} slices compared; {each['sequences']} sequences)",
        )  # fmt: skip


def better_teacher(found: Evidence) -> Said:
    """Where the student lacks most, and the teacher foretells the text badly itself, more of the same teacher is not the way."""
    for each in found.worst_rows():
        theirs = each.get("teacher", {})
        if theirs.get("surely_worse"):
            yield (
                f"a better teacher for {_of(each)}, or right answers to learn from by cross-entropy",
                f"the teacher itself pays {theirs['ce_nats']['value']:.3g} nats a token for the data's text there, "
                f"{theirs['above_rest']['value']:.3g} more than elsewhere, surely at least {theirs['above_rest']['at_least']:.3g}",
            )  # fmt: skip


def on_policy(found: Evidence) -> Said:
    """Late in its own text the student is farther from the teacher than in the teacher's: prefixes that nobody taught it."""
    own, theirs = found.table(OWN), found.table(TEACHER)
    if own is None or theirs is None or len(own.bytes_B) != len(theirs.bytes_B):
        return
    late = max(1, int(min(own.position_N.max(), theirs.position_N.max()) + 1) // 2)
    sums, counts = zip(*(_late(each, late) for each in (own, theirs)), strict=True)
    if min((each > 0).sum() for each in counts) < FEWEST:
        return
    apart = paired(sums[0], sums[1], counts[0], counts[1])
    if apart["interval"][0] > 0:
        yield (
            "learn on the student's own text (OnPolicy, or Mix with it): it meets prefixes there that nobody taught it (exposure bias)",
            f"from token {late} on, KL to the teacher is {sums[0].sum() / counts[0].sum():.3g} nats a token on its own text and "
            f"{sums[1].sum() / counts[1].sum():.3g} on the teacher's: {told(apart)} more",
        )


def _late(tokens: Tokens, first: int) -> tuple[Any, Any]:
    there_N = tokens.position_N >= first
    return tokens.sums(np.where(there_N, gap_N(tokens), 0.0)), tokens.sums(there_N.astype(float))


def fine_tuning(found: Evidence) -> Said:
    """Text alone taught more than the teacher did."""
    name = _fine_tuned(found)
    mine, theirs = found.table(GIVEN), found.table(GIVEN, name)
    if mine is None or theirs is None or len(mine.bytes_B) < FEWEST:
        return
    apart = paired(mine.sums(mine.student.nats_N), theirs.sums(theirs.student.nats_N), mine.counts_B)
    if apart["interval"][0] > 0:
        yield (
            f'fine-tuning on the text alone is enough here, or another objective (+ CrossEntropy(), another divergence): "{name}" is better',
            f"the student pays {told(apart)} nats a token more for the data's text than \"{name}\" does",
        )  # fmt: skip


def _fine_tuned(found: Evidence) -> str:
    return found.baseline if found.baseline and found.baseline.endswith("fine-tuned") else "fine-tuned"


def go_on(found: Evidence) -> Said:
    """Little was closed, and no kind of row stands out: it is not the data."""
    compared = [each for each in found.slices if is_of_rows(each) and "few" not in each]
    whole = next((each for each in found.slices if each["kind"] == ALL and each["text"] in (GIVEN, TEACHER)), None)
    closed = whole["students"][found.who].get("recovered", {}) if whole else {}
    if found.worst_rows() or not whole or not (closed.get("kl_nats") or {}).get("interval") or closed["kl_nats"]["interval"][1] >= LITTLE:
        return
    apart = "no category is surely worse than the others" if len(compared) > 1 else "nothing tells rows apart"
    yield (
        "train longer, or give the student more layers or width, or compare layers too (HiddenStates)",
        f'of the KL to the teacher that "{closed["against"]}" had, {percent(closed["kl_nats"])} was closed, and {apart}',
    )


def temperature(found: Evidence) -> Said:
    """It is surer than it is right, more than chance makes it look, and one temperature mends most of it."""
    raw, scaled = found.calibration.get("raw"), found.calibration.get("scaled")
    tokens = found.table(str(found.calibration.get("text", "")))
    if raw is None or scaled is None or tokens is None or len(tokens.bytes_B) < FEWEST:
        return
    over_N = tokens.student.confidence_N - (tokens.student.top_N == tokens.token_N)
    low, high = interval(tokens.sums(over_N), tokens.counts_B)
    warm = min(scaled["temperatures"])
    if low > 0 and raw["interval"][0] > raw["if_calibrated"]["below"] and scaled["error"] < raw["interval"][0] and warm > WARM:
        yield (
            f"temperature scaling: divide its logits by {float(np.mean(scaled['temperatures'])):.2g}; it is surer than it is right",
            f"its confidence is {100 * float(over_N.mean()):.1f} points above its accuracy ({100 * low:.1f} to {100 * high:.1f}); "
            f"the calibration error falls from {100 * raw['error']:.1f} to {100 * scaled['error']:.1f} %",
        )


RULES: tuple[Callable[[Evidence], Said], ...] = (more_data, better_teacher, on_policy, fine_tuning, go_on, temperature)
"""In the order in which they are told."""


def advised(found: Evidence) -> list[dict[str, str]]:
    """What every rule says of a student."""
    return [{"of": found.who, "says": says, "because": because} for rule in RULES for says, because in rule(found)]


def _of(each: Slice) -> str:
    return f'{each["kind"]} "{each["name"]}"'


def percent(figure: Mapping[str, Any]) -> str:
    """A share with its interval."""
    low, high = figure["interval"]
    return f"{100 * figure['value']:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
