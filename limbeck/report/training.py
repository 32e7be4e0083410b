"""How training went, by a run's own files: figures before and after, learning curves, what the student wrote on the way."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from limbeck.report.blocks import (
    Block,
    Points,
    axis,
    band,
    card,
    cell,
    column,
    figure,
    figures,
    finite,
    key_of,
    label,
    mark_best,
    marker,
    number,
    ordered,
    row,
    samples,
    section,
    table,
    trace,
    unit,
    words,
)
from limbeck.report.reading import Folder

SHOWN_PROMPTS = 12  # of each evaluation


def summary(folders: Sequence[Folder]) -> list[dict[str, Any]]:
    """Of each evaluation of the runs: its name, the runs that have it, and its figures."""
    found = list[dict[str, Any]]()
    for name in dict.fromkeys(name for folder in folders for each in folder.evaluations.values() for name in each):
        rows = [row for folder in folders if (row := folder.before_and_after(name))]
        keys = [key for row in rows for key, value in {**row["before"], **row["after"]}.items() if isinstance(value, float)]  # counts are whole
        found.append({"name": name, "rows": rows, "keys": ordered(keys)})
    return found


def before_and_after(found: Sequence[dict[str, Any]]) -> list[Block]:
    """A table for each evaluation."""
    made = [block for each in found for block in _table(each)]
    note = ("Small type: 95 % intervals. Bold: the best of its figure, before or after; where intervals overlap, it may be so by chance. "
            "Divergences and cross-entropy are in nats a token.")  # fmt: skip
    return section("Before and after", [*made, *(words(note) if made else [])])


def _table(found: dict[str, Any]) -> list[Block]:
    columns = [column(when, _way(found, key), label(key)) for key in found["keys"] for when in ("before", "after")]
    rows = list[Block]()
    for each in found["rows"]:
        cells = [_cell(each[when], key) for key in found["keys"] for when in ("before", "after")]
        rows.append(row(each["folder"].name, cells, _measured(each), each["folder"].number))
    for place in range(0, len(columns), 2):  # before and after are one figure
        pairs = [{"cells": [one["cells"][place + side]]} for one in rows for side in (0, 1)]
        mark_best(pairs, columns[place : place + 1])
    return table(found["name"], "run", columns, rows)


def _way(found: dict[str, Any], key: str) -> int:
    ways = {each["folder"].better(key, found["name"]) for each in found["rows"]}
    return ways.pop() if len(ways) == 1 else 0


def _cell(figures: dict[str, Any], key: str) -> Block:
    return cell({"value": figures.get(key), "interval": figures.get(f"{key}_interval")})


def _measured(found: dict[str, Any]) -> list[str]:
    figures = found["after"] or found["before"]
    steps = f"step {number(found['first'])}" + (f" → {number(found['last'])}" if found["after"] else "")
    counts = ", ".join(f"{number(figures[size])} {size}" for size in ("sequences", "tokens") if size in figures)
    return [steps, *([counts] if counts else [])]


def lead(found: Sequence[dict[str, Any]]) -> str:
    """What came out, in one sentence, by the first figure that some run has before and after."""
    for each in found:
        for key in each["keys"]:
            rows = [row for row in each["rows"] if finite(row["before"].get(key)) and finite(row["after"].get(key))]
            if rows and _way(each, key):
                best = max(rows, key=lambda row: _way(each, key) * row["after"][key])
                who = f" ({best['folder'].name}, the best of {len(rows)} runs)" if len(rows) > 1 else ""
                said = f"{label(key)} on {each['name']} {moved(best['before'][key], best['after'][key])}"
                return f"{said}{' ' * bool(unit(key))}{unit(key)} in {best['last']:,} steps{who}."
    return "No evaluation has a before and an after yet."


def moved(before: float, after: float) -> str:
    """From one value to another, in words."""
    if number(before) == number(after):
        return f"stayed at {number(after)}"
    return f"{'fell' if after < before else 'rose'} from {number(before)} to {number(after)}"


def curves(folders: Sequence[Folder], found: Sequence[dict[str, Any]]) -> list[Block]:
    """The loss in a figure for each kind of objective (nats of two kinds do not compare), speed, and the evaluations by step."""
    made, step = list[Block](), axis("step")
    for kind in dict.fromkeys(folder.objective for folder in folders):
        losses = [each for folder in folders if folder.objective == kind for each in _noisy(folder, folder.steps, "loss_nats")]
        made += figure(f"Training loss, {kind}".rstrip(", "), losses, step, axis("nats a token"))
    speed = [each for folder in folders for each in _noisy(folder, folder.timings, "tokens_per_second")]
    made += figure("Speed", speed, step, axis("tokens a second", rangemode="tozero"))
    for each in found:
        for key in each["keys"]:
            traces = [line for folder in folders for line in _banded(folder, each["name"], key)]
            made += figure(f"{label(key)}, {each['name']}", traces, step, axis(unit(key)))
    compare = "; losses of different objectives do not compare, evaluations do" if len(folders) > 1 else ""
    note = f"Training: thin lines are single steps, thick ones means of neighbours{compare}. Evaluations: bands are 95 % intervals."
    return section("Learning curves", figures(made, key_of([folder.name for folder in folders]) if len(folders) > 1 else [], note=note))


def _noisy(folder: Folder, rows: Sequence[dict[str, Any]], key: str) -> list[Block]:
    """Every step thin, means of neighbours thick."""
    points = [(row["step"], row[key]) for row in rows if finite(row.get(key)) and finite(row.get("step"))]
    fine, coarse = means(points, 1500), means(points, 40)
    thick = trace(folder.name, folder.number, coarse, mode="lines" if len(points) > 1 else "markers", hovertemplate="%{y:.4g}")
    thin = [trace(folder.name, folder.number, fine, 1, opacity=0.3, hoverinfo="skip")] if len(fine) > len(coarse) else []
    return [*thin, thick] if points else []


def means(points: Points, most: int) -> Points:
    """At most `most` points, each the mean of as many neighbours: long runs stay light, noisy ones readable."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _banded(folder: Folder, evaluation: str, key: str) -> list[Block]:
    """A line with its interval's band; nothing where the figure has no interval."""
    found = [(step, named[evaluation]) for step, named in sorted(folder.evaluations.items()) if evaluation in named]
    rows = [(step, figures[key], *figures[f"{key}_interval"]) for step, figures in found if key in figures and f"{key}_interval" in figures]
    rows = [row for row in rows if all(map(finite, row))]
    points = {"mode": "lines+markers", "marker": marker(folder.number), "hovertemplate": "%{y:.4g}"}
    middle = trace(folder.name, folder.number, [row[:2] for row in rows], **points)
    return [band(folder.name, folder.number, [(x, low, high) for x, _, low, high in rows]), middle] if rows else []


def differences(found: Sequence[dict[str, Any]]) -> list[Block]:
    """Where several runs ended, each less the first, with intervals as of independent samples."""
    made = list[Block]()
    for each in found:
        ends = [row for row in each["rows"] if row["after"]]
        keys = [key for key in each["keys"] if all(f"{key}_interval" in row["after"] and key in row["after"] for row in ends)]
        if len(ends) < 2:
            continue
        first, rows = ends[0], list[Block]()
        for other in ends[1:]:
            cells = [apart(_cell(other["after"], key), _cell(first["after"], key)) for key in keys]
            rows.append(row(f"{other['folder'].name} less {first['folder'].name}", cells, run=other["folder"].number))
        made += table(each["name"], "difference", [column(label(key), _way(each, key)) for key in keys], rows)
    return made


def apart(mine: Block, theirs: Block) -> Block:
    """Mine less theirs, with the interval of independent estimates from theirs (MOVER: Zou and Donner 2008, doi 10.1002/sim.3095, eq. 4).

    Where both were measured on the same sequences it is wider than need be.
    """
    numbers = [mine["value"], theirs["value"], *(mine["interval"] or ()), *(theirs["interval"] or ())]
    if len(numbers) < 6 or not all(map(finite, numbers)):
        return cell(None)
    here, there, low, high, their_low, their_high = numbers
    value = here - there
    bounds = [value - math.hypot(here - low, their_high - there), value + math.hypot(high - here, there - their_low)]
    return cell({"value": value, "interval": bounds}, sure=not bounds[0] <= 0 <= bounds[1])


def written(folders: Sequence[Folder]) -> list[Block]:
    """Each evaluation's prompts with what was first and last written to them; the same text of many runs is one card."""
    found: dict[str, dict[str, list[dict[int, str]]]] = defaultdict(lambda: defaultdict(lambda: [{} for _ in folders]))
    for folder in folders:
        for each in folder.samples:
            if {"evaluation", "prompt", "step", "completion"} <= each.keys():
                found[str(each["evaluation"])][str(each["prompt"])][folder.number].setdefault(each["step"], str(each["completion"]))
    made = list[Block]()
    for name, prompts in found.items():
        shown = [{"prompt": prompt, "cards": _cards(by_run, folders)} for prompt, by_run in list(prompts.items())[:SHOWN_PROMPTS]]
        made += samples(name, shown, len(prompts))
    return section("What the student writes", made)


def _cards(by_run: Sequence[dict[int, str]], folders: Sequence[Folder]) -> list[Block]:
    """The first and the last completion of each run, the earlier steps first."""
    cards: dict[tuple[int, str], list[tuple[str, int | None]]] = defaultdict(list)
    for folder, by_step in zip(folders, by_run, strict=True):
        for step in sorted({min(by_step), max(by_step)} if by_step else ()):
            cards[step, by_step[step]].append((folder.name, folder.number))
    found = sorted(cards.items(), key=lambda each: each[0][0])
    return [card(who, text, "before training" if step == 0 else f"step {number(step)}") for (step, text), who in found]
