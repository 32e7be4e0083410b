"""Where a student is still behind its teacher: the gap of every slice, how much of it was closed, and which slices are surely worse than the rest.

Axes: B sequences, N completion tokens. The gap is KL(teacher || student), nats a token, and on the data's own text also cross-entropy. What was
closed is (student - baseline) / (teacher - baseline), where the teacher's own KL is 0 and the baseline is the student fine-tuned on the same
text, or, where that was not measured, the student before. Slices are looked at one against all others, many at once: a slice is surely worse
where the lower bound of its gap less that of the other tokens is above 0, bounds of all slices of one table being right together in 95 %
(Bonferroni: each at 1 - 0.05 / slices, by Student's t of the ratios' linear parts over sequences).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.batch import Text
from limbeck.evaluate.statistics import Array, interval, lean, recovered, student_t
from limbeck.transfer.baselines import FINE_TUNED
from limbeck.transfer.figures import within
from limbeck.transfer.slices import OF_ROWS, Cut
from limbeck.transfer.subjects import BEFORE, TEACHER, beside, is_taught
from limbeck.transfer.tokens import Tokens

Slice = dict[str, Any]
FEWEST = 10
"""Sequences that a slice, and what is beside it, must have for anything to be said of it."""
MISTAKEN = 0.05
"""Chance that any slice of a table is called surely worse where none is worse."""
SHOWN = 3
"""Prompts that are shown of a slice."""
ALL = "all"


def judged(names: Sequence[str]) -> dict[str, str | None]:
    """The students that were taught by the teacher, each with its baseline; all of them, without any, where none was taught yet."""
    taught = [name for name in names if is_taught(name)]
    return {name: beside(name, names, FINE_TUNED) or beside(name, names, BEFORE) for name in taught} if taught else dict.fromkeys(names)


def gap_N(tokens: Tokens) -> Array:
    """The gap at each token: KL(teacher || student)."""
    assert tokens.apart is not None, "no teacher said whole distributions"
    return tokens.apart.kl_N


def slices_of(text: str, tables: Mapping[str, Tokens], cuts: Sequence[Cut], baselines: Mapping[str, str | None], given: bool) -> Iterator[Slice]:
    """Every slice of one text with the figures of all students on it, the whole first. tables: by student, of the same tokens.

    given: whether the text is the data's, so that foretelling it is worth something.
    """
    first = next(iter(tables.values()))
    parts = [(ALL, "all tokens", np.ones(len(first), bool)), *((cut.kind, name, here_N) for cut in cuts for name, here_N in cut.parts())]
    compared = sum(_enough(first, here_N) for kind, _, here_N in parts if kind != ALL)
    for kind, name, here_N in parts:
        count = int((first.sums(here_N) > 0).sum())
        found: Slice = {"text": text, "kind": kind, "name": name, "sequences": count, "tokens": int(here_N.sum())}
        if count < FEWEST:
            found["few"] = f"{count} sequences, and at least {FEWEST} are needed to say how sure it is"
        if given:
            found["teacher"] = {"ce_nats": figure(first, first.of("teacher").nats_N, here_N)}
            found["teacher"] |= above_rest(first, first.of("teacher").nats_N, here_N, compared) if kind != ALL else {}
        found["students"] = {who: _of_student(tokens, here_N, given, compared, kind != ALL) for who, tokens in tables.items()}
        for who, base in baselines.items():
            if who in tables:
                found["students"][who]["recovered"] = _recovered(tables, who, base, here_N, given)
        yield found


def _enough(tokens: Tokens, here_N: Array) -> bool:
    """Whether a slice and the other tokens have sequences enough to be compared."""
    return bool(min((tokens.sums(here_N) > 0).sum(), (tokens.sums(~here_N) > 0).sum()) >= FEWEST)


def _of_student(tokens: Tokens, here_N: Array, given: bool, compared: int, part: bool) -> dict[str, Any]:
    found = {"kl_nats": figure(tokens, gap_N(tokens), here_N)}
    found |= {"ce_nats": figure(tokens, tokens.student.nats_N, here_N)} if given else {}
    return {**found, **(above_rest(tokens, gap_N(tokens), here_N, compared) if part else {})}


def figure(tokens: Tokens, values_N: Array, here_N: Array) -> dict[str, Any]:
    """The mean of a slice's tokens, and its interval over sequences; None, where they are too few."""
    sums_B, counts_B = within(tokens, values_N, here_N)
    return {"value": float(sums_B.sum() / counts_B.sum()), "interval": interval(sums_B, counts_B) if len(counts_B) >= FEWEST else None}


def above_rest(tokens: Tokens, values_N: Array, here_N: Array, compared: int) -> dict[str, Any]:
    """By how much a slice's mean is above that of all other tokens, at least by how much, and whether that is surely worse.

    compared: how many slices are looked at together. at_least: None where the slice or the rest has too few sequences.
    """
    sums_B, counts_B = tokens.sums(np.where(here_N, values_N, 0.0)), tokens.sums(here_N.astype(float))
    others_B, their_counts_B = tokens.sums(values_N) - sums_B, tokens.counts_B - counts_B
    if not their_counts_B.sum():
        return {"above_rest": None, "surely_worse": False}
    mean, their_mean = sums_B.sum() / counts_B.sum(), others_B.sum() / their_counts_B.sum()
    found: dict[str, Any] = {"value": float(mean - their_mean), "at_least": None, "compared": compared}
    if _enough(tokens, here_N):
        fewest = int(min((counts_B > 0).sum(), (their_counts_B > 0).sum()))
        lean_B = lean(sums_B, counts_B) - lean(others_B, their_counts_B)
        wide = student_t(fewest - 1, 1 - MISTAKEN / compared) * (fewest / (fewest - 1)) ** 0.5
        found["at_least"] = float(mean - their_mean - wide * np.sqrt((lean_B**2).sum()))
    return {"above_rest": found, "surely_worse": found["at_least"] is not None and found["at_least"] > 0}


def _recovered(tables: Mapping[str, Tokens], who: str, base: str | None, here_N: Array, given: bool) -> dict[str, Any]:
    """What was closed of the gap, by figure, and against which baseline."""
    if base is None or base not in tables:
        return {"against": None, "why": "no baseline was measured: give a run folder, whose student before is one"}
    mine, before = tables[who], tables[base]
    kl_B, counts_B = within(mine, gap_N(mine), here_N)
    if len(counts_B) < FEWEST:
        return {"against": base, "why": f"{len(counts_B)} sequences, and at least {FEWEST} are needed"}
    found = {"kl_nats": recovered(kl_B, within(before, gap_N(before), here_N)[0], np.zeros(len(kl_B)), counts_B)}
    if given:
        own_B, base_B, their_B = (within(mine, said.nats_N, here_N)[0] for said in (mine.student, before.student, mine.of("teacher")))
        found["ce_nats"] = recovered(own_B, base_B, their_B, counts_B)
    return {"against": base, **found}


def worst(found: Iterable[Slice], who: str, kinds: Sequence[str] | None = None) -> list[Slice]:
    """The slices in which a student is surely worse than elsewhere, the greatest gap first."""
    there = [each for each in found if each["students"].get(who, {}).get("surely_worse") and (kinds is None or each["kind"] in kinds)]
    return sorted(there, key=lambda each: -each["students"][who]["kl_nats"]["value"])


def examples(each: Slice, who: str, tokens: Tokens, cut: Cut, texts: Sequence[Text], samples: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Prompts of a slice with the answers of the teacher and of a student, those on which they are farthest apart first."""
    here_N = cut.place_N == cut.names.index(each["name"])
    sums_B, counts_B = tokens.sums(np.where(here_N, gap_N(tokens), 0.0)), tokens.sums(here_N.astype(float))
    by_row = {sample["row"]: sample for sample in samples if {who, TEACHER} <= sample["completions"].keys()}
    order = sorted(np.flatnonzero(counts_B).tolist(), key=lambda b: -sums_B[b] / counts_B[b])
    rows = [row for b in order if (row := texts[b].columns["row"]) in by_row]
    return [
        {"row": row, "prompt": by_row[row]["prompt"], "completions": {name: by_row[row]["completions"][name] for name in (TEACHER, who)}}
        for row in list(dict.fromkeys(rows))[:SHOWN]
    ]


def is_of_rows(each: Mapping[str, Any]) -> bool:
    """Whether more data of a slice's kind can be had."""
    return each["kind"] in OF_ROWS
