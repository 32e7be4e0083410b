"""What it cost, by run and by stage of a pipeline; where it comes from, and under which licences."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import Any

from limbeck.report.blocks import Block, axis, cell, colour, column, figure, figures, finite, row, section, table
from limbeck.report.plots import names_axis
from limbeck.report.reading import Evaluation, Folder

FIRST_FACTS = ("teacher", "student", "seed", "command")


def costs(folders: Sequence[Folder]) -> list[Block]:
    """Time, tokens and arithmetic of each run, its baselines and the sum of each pipeline."""
    every = [each for folder in folders for each in (folder, *folder.baselines) if each.steps or each.timings]
    rows = [row(each.name, _cells([each]), run=None if each.name not in [one.name for one in folders] else each.number) for each in every]
    for name in dict.fromkeys(each.pipeline for each in folders if each.pipeline):
        stages = [each for each in folders if each.pipeline == name]
        rows += [row(f"{name}, all stages", _cells(stages))] if len(stages) > 1 else []
    names = ("Steps", "Seconds of steps", "Completion tokens", "Tokens a second", "FLOPs, at least", "US dollars")
    kept = [place for place in range(len(names)) if any(each["cells"][place]["value"] is not None for each in rows)]
    shown = [{**each, "cells": [each["cells"][place] for place in kept]} for each in rows]
    note = ("Steps alone: evaluations, checkpoints and what was written beforehand are not in it. FLOPs: 6 for each parameter of the student and "
            "2 for each of a teacher that was run, a completion token; prompts, attention and writing come on top.")  # fmt: skip
    made = table("", "run", [column(names[place]) for place in kept], shown, note)
    return section("What it cost", [*_bars(every), *made])


def _cells(folders: Sequence[Folder]) -> list[Block]:
    steps, seconds = sum(len(each.steps) for each in folders), sum(each.seconds for each in folders)
    tokens = sum(one["tokens"] for each in folders for one in each.steps if finite(one.get("tokens")))
    spent = [one["spent_usd"] for each in folders for one in each.steps if finite(one.get("spent_usd"))]
    flops = [_flops(each) for each in folders]
    known = None if None in flops else sum(each for each in flops if each is not None)
    rate = tokens / seconds if seconds and tokens else None
    return [cell(each) for each in (steps, round(seconds, 3) or None, tokens or None, rate, known, sum(spent) if spent else None)]


def _flops(folder: Folder) -> float | None:
    """Forward and backward of the student, forward of a teacher that was run here; None where a size is not known."""
    mine, theirs = (_parameters(folder.provenance.get(who)) for who in ("student", "teacher"))
    tokens = sum(one["tokens"] for one in folder.steps if finite(one.get("tokens")))
    return float(tokens * (6 * mine + 2 * (theirs or 0))) if mine and tokens else None


def _parameters(found: Any) -> float | None:
    told = found.get("parameters") if isinstance(found, Mapping) else None
    return float(told) if isinstance(told, int | float) else None


def _bars(folders: Sequence[Folder]) -> list[Block]:
    """Time by run, where there are several."""
    timed = [each for each in folders if each.seconds]
    if len(timed) < 2:
        return []
    told = [escape(f"{each.name}: {timedelta(seconds=round(each.seconds))}") for each in timed]
    places = list(range(len(timed)))
    bar = {"type": "bar", "orientation": "h", "x": [each.seconds for each in timed], "y": places, "text": told, "textposition": "none",
           "hovertemplate": "%{text}<extra></extra>", "marker": {"color": colour(0)}, "showlegend": False, "width": 0.6}  # fmt: skip
    y = names_axis([each.name for each in timed], 22)
    return figures(figure("Time of steps", [bar], axis("seconds"), y, height=76 + 34 * len(timed), hovermode="closest"))


def sources(folders: Sequence[Folder], evaluations: Sequence[Evaluation]) -> list[Block]:
    """Recipes, provenance, what evaluations were asked, licences."""
    facts = [block for folder in folders for block in _of_run(folder)] + [block for each in evaluations for block in _of_evaluation(each)]
    return section("Where it comes from", [*([{"kind": "facts", "items": facts}] if facts else []), *licences(folders)])


def _of_run(folder: Folder) -> list[Block]:
    found = folder.provenance
    told = {key: found[key] for key in (*FIRST_FACTS, *found) if key in found and key != "licences"}
    return [{"title": folder.name, "run": folder.number, "facts": _flat(told), "recipe": folder.recipe, "empty": "No provenance.json."}]


def _of_evaluation(evaluation: Evaluation) -> list[Block]:
    settings = evaluation.part("settings")
    told = {"teacher": settings.get("teacher"), **(settings.get("students") or {}), **(settings.get("asked") or {})}
    return [{"title": f"Evaluation of {evaluation.name}", "run": None, "facts": _flat(told), "recipe": "", "empty": "No settings are in it."}]


def _flat(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each fact in parts that may stand on lines of their own."""
    return {
        str(key): [f"{name} {part}" for name, part in value.items()] if isinstance(value, Mapping) else [str(value)]
        for key, value in found.items() if value is not None
    }  # fmt: skip


def licences(folders: Sequence[Folder]) -> list[Block]:
    """Of all that runs were made of: each licence of each thing once, with the roles that it had."""
    found = dict[tuple[str, str], dict[str, Any]]()
    for folder in folders:
        told = folder.provenance.get("licences")
        for role, several in told.items() if isinstance(told, Mapping) else ():
            for each in several if isinstance(several, list) else ():
                if isinstance(each, Mapping):
                    known = found.setdefault((str(each.get("of")), str(each.get("name"))), {**each, "roles": {}})
                    known["roles"][role] = None
    rows = [
        row(of, [cell(name), cell(", ".join(each["roles"])), cell(each.get("permits")), cell(each.get("obliges") or "—"), cell(each.get("source"))])
        for (of, name), each in found.items()
    ]  # fmt: skip
    columns = [column(name, text=True) for name in ("Licence", "As", "Permits to learn from it", "Asks", "Said by")]
    return table("Licences", "of", columns, rows, "What was found, and no legal advice.")
