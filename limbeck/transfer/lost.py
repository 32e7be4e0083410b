"""What a model loses when a prompt is edited, and how much of the teacher's robustness a student kept.

Axes: B sequences (an answer to one prompt), N tokens. An answer is the same under every edit, so that clean and edited differ in the
prompt alone and every loss is paired.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from limbeck.evaluate.statistics import Array, bounds, drawn, interval, lean, mean, paired, redrawn, unpaired
from limbeck.transfer.figures import Figure, as_teacher, counts, differences, figures, values
from limbeck.transfer.tokens import Apart, Said, Tokens

SHOWN = ("ce_nats", "kl_nats", "reverse_kl_nats", "agreement", "acceptance", "accuracy", "entropy_nats")
"""Of all figures, those that are kept under each edit."""


def only(tokens: Tokens, chosen: Sequence[int]) -> Tokens:
    """The table of these sequences alone (ascending), counted anew from 0."""
    kept = np.asarray(chosen, int)
    here_N = np.isin(tokens.sequence_N, kept)

    def part(of: Said | Apart | None) -> Any:
        return None if of is None else type(of)(**{each.name: getattr(of, each.name)[here_N] for each in fields(of)})

    return Tokens(np.searchsorted(kept, tokens.sequence_N[here_N]), tokens.position_N[here_N], tokens.token_N[here_N], tokens.bytes_B[kept],
                  part(tokens.student), part(tokens.teacher), part(tokens.apart))  # fmt: skip


def under(edited: Tokens, clean: Tokens) -> dict[str, Any]:
    """The figures of one model under an edit; by how much each is above the clean one (`lost`, paired); and how often it holds the same
    token likeliest as after the clean prompt (`steady`). Both tables are of the same answers."""
    sums_B, counts_B = edited.sums((edited.student.top_N == clean.student.top_N).astype(float)), edited.counts_B
    return {**alone(edited), "steady": mean(sums_B, counts_B), "lost": _shown(differences(edited, clean))}


def _shown(found: dict[str, Figure]) -> dict[str, Figure]:
    return {name: found[name] for name in SHOWN if name in found}


def alone(tokens: Tokens) -> dict[str, Any]:
    """The figures of one model, beside nothing."""
    return _shown(figures(tokens))


def beside(other: Tokens, clean: Tokens) -> dict[str, Any]:
    """The figures of one model on other text, and by how much each is above its own on the clean text: of two samples, not of pairs."""
    mine, theirs = values(other), values(clean)
    lost = {name: unpaired(other.sums(mine[name]), counts(other, name), clean.sums(theirs[name]), counts(clean, name))
            for name in SHOWN if name in mine and name in theirs}  # fmt: skip
    return {**alone(other), "lost": lost}


def kept(lost_B: Array, worth_B: Array, their_lost_B: Array, their_worth_B: Array) -> dict[str, Any]:
    """How much of the teacher's robustness a student kept: 1 - (lost / worth - lost of the teacher / worth to the teacher).

    lost_B: the nats by which an edit makes the answer to each prompt less likely. worth_B: those by which another row's prompt in its place
    does. lost / worth is the share of what the prompt is worth to a model that the edit takes away: 0 where it does not matter, 1
    where the prompt might as well have been another. 1 means that the student lost the share that the teacher lost; below 1 it is more
    brittle, above 1 less. All sums are taken first and divided once; the interval draws sequences again, both models' together.

    Why so: Hendrycks and Dietterich 2019 (arXiv 1903.12261, section 4.1) divide a model's loss under a corruption by a reference
    model's (relative corruption error). Departs: 1) the teacher is the reference, and shares are compared by their difference: a teacher
    that an edit hardly touches makes a ratio of two losses mean nothing, and this is the best case, not the worst; 2) each model's loss is counted
    in what the prompt is worth to that model: one that ignores its prompt loses nothing, and would look perfectly robust.

    value: None, and `why` in words, where the prompt is not surely worth something to both: then the difference in nats is all there is.
    """
    for who, worth in (("the student", worth_B), ("the teacher", their_worth_B)):
        low, high = interval(worth, np.ones(len(worth)))
        if not low > 0:
            return {"value": None, "interval": None, "why": f"the prompt may be worth nothing to {who}: {low:.3g} to {high:.3g} nats an answer"}
    chosen = drawn(len(lost_B))
    share, theirs = lost_B.sum() / worth_B.sum(), their_lost_B.sum() / their_worth_B.sum()
    resampled = 1 - (redrawn(lost_B, worth_B, chosen) - redrawn(their_lost_B, their_worth_B, chosen))
    lean_B = lean(their_lost_B, their_worth_B) - lean(lost_B, worth_B)
    value = 1 - (share - theirs)
    return {"value": float(value), "interval": bounds(value, resampled, lean_B), "share_lost": float(share), "teacher_share_lost": float(theirs)}


class Losses:
    """What one student and its teacher lose under each edit, by sequence: nats above the clean prompt's."""

    def __init__(self, clean: Tokens, another: tuple[Sequence[int], Tokens] | None) -> None:
        self.clean = clean
        self.count = len(clean.bytes_B)
        self.worth = self._above(*another) if another else None
        self.all = [np.zeros((2, self.count)), np.zeros((2, self.count))]

    def _above(self, chosen: Sequence[int], edited: Tokens) -> Array:
        """Nats of an edited table above the clean one's [2, B], the student's first; NaN where a sequence is not in it."""
        above = np.full((2, self.count), np.nan)
        for place, side in enumerate(("student", "teacher")):
            above[place, list(chosen)] = edited.sums(edited.of(side).nats_N) - self.clean.sums(self.clean.of(side).nats_N)[list(chosen)]
        return above

    def of(self, chosen: Sequence[int], edited: Tokens) -> dict[str, Any]:
        """What was kept under an edit, and by how many nats a token the student loses more than the teacher does."""
        above = self._above(chosen, edited)
        there = ~np.isnan(above[0])
        tokens_B = self.clean.counts_B[there]
        found = {"more_nats": paired(above[0, there], above[1, there], tokens_B)}
        if self.worth is None or not (both := there & ~np.isnan(self.worth[0])).any():
            return {"value": None, "interval": None, "why": "no other row's prompt could be asked, to say what a prompt is worth", **found}
        self.all[0] += np.where(both, above, 0)
        self.all[1] += np.where(both, self.worth, 0)
        return {**kept(above[0, both], self.worth[0, both], above[1, both], self.worth[1, both]), **found}

    def together(self) -> dict[str, Any]:
        """What was kept under all edits so far: their losses summed, each prompt's worth as often as it was edited."""
        (lost_B, their_lost_B), (worth_B, their_worth_B) = self.all
        there = (worth_B != 0) | (their_worth_B != 0)
        if not there.any():
            return {"value": None, "interval": None, "why": "no edit was measured beside what its prompt is worth"}
        return kept(lost_B[there], worth_B[there], their_lost_B[there], their_worth_B[there])


def sides(tokens: Tokens) -> dict[str, Tokens]:
    """The table as the student's and, where one says whole distributions, as the teacher's."""
    return {"student": tokens, **({"teacher": as_teacher(tokens)} if tokens.teacher is not None else {})}
