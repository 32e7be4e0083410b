"""All that stands on a page, as plain data: what `--json` writes, and what the page is drawn from."""

from collections.abc import Callable, Sequence
from typing import Any

from limbeck.report import plots, slices, transfer, trials
from limbeck.report.blocks import Block, axis, card, cell, colour, column, dash, figures, notice, plain, row, samples, section, table, words
from limbeck.report.costs import costs, sources
from limbeck.report.reading import Evaluation, Folder, Opened
from limbeck.report.training import apart, before_and_after, curves, differences, lead, summary, written

Part = Callable[[Evaluation], list[Block]]
PARTS: dict[str, tuple[str, list[Part]]] = {
    "advice": ("advice", [slices.advice]),
    "figures": ("figures of anybody", [plots.dots, transfer.figures]),
    "differences": ("differences", [transfer.differences]),
    "gaps": ("gap analysis", [slices.gaps]),
    "positions": ("figures by position", [plots.positions]),
    "calibration": ("calibration", [plots.calibration]),
    "acceptance": ("", [plots.acceptance]),
    "tasks": ("tasks", [trials.tasks]),
    "robustness": ("robustness", [trials.robustness]),
    "diversity": ("diversity", [transfer.diversity]),
    "speeds": ("speeds", [transfer.speeds]),
    "samples": ("completions", [transfer.written]),
}
"""Keys of evaluation.json in the order of the page: what is missing where one is not there, and what shows it."""
KNOWN = (*PARTS, "settings", "missing")


def content(found: Opened, table: dict[str, Any] | None, title: str) -> dict[str, Any]:
    """A title, a lead, the runs, what is missing, and sections of blocks (limbeck/report/blocks.py).

    table: a comparison of the caller's own that stands first.
    """
    folders, summed = found.folders, summary(found.folders)
    evaluated = [block for each in found.evaluations for block in evaluation(each)]
    sections = [
        *glance(table), *evaluated, *beside_each_other(found.evaluations), *before_and_after(summed), *section("Runs compared", _compared(summed)),
        *curves(folders, summed), *costs(folders), *written(folders), *sources(folders, found.evaluations),
    ]  # fmt: skip
    return plain({
        "title": title, "lead": _lead(found, summed), "runs": [_run(folder) for folder in folders], "missing": _missing(found), "sections": sections,
    })  # fmt: skip


def _lead(found: Opened, summed: Sequence[dict[str, Any]]) -> str:
    told = transfer.lead(found.evaluations[0]) if len(found.evaluations) == 1 else ""
    if told and len(found.folders) > 1:
        told = f"{found.evaluations[0].name}: {told[0].lower()}{told[1:]}"
    return " ".join(filter(None, [lead(summed) if found.folders and (summed or not told) else "", told]))


def _run(folder: Folder) -> Block:
    return {"name": folder.name, "number": folder.number, "described": folder.described, "colour": colour(folder.number), "dash": dash(folder.number)}


def _missing(found: Opened) -> list[str]:
    """What runs lack, each line once, with whose it is where there are several."""
    every = dict.fromkeys(what for folder in found.folders for what in folder.missing)
    lines = list[str]()
    for what in every:
        names = [folder.name for folder in found.folders if what in folder.missing]
        whose = "all runs" if len(names) == len(found.folders) else ", ".join(names)
        lines.append(what + (f": {whose}" if len(found.folders) > 1 else ""))
    return lines + found.missing


def glance(table_: dict[str, Any] | None) -> list[Block]:
    """The caller's table: `columns`, `rows`, and maybe `samples` (each a `prompt` and `completions` by who wrote them) and a `note`."""
    if table_ is None:
        return []
    first, *others = table_["columns"]
    rows = [row(each[0], [cell(value) for value in each[1:]]) for each in table_["rows"]]
    told = [
        {"prompt": each["prompt"], "cards": [card([(who, None)], text) for who, text in each["completions"].items()]}
        for each in table_.get("samples") or []
    ]  # fmt: skip
    made = table("", first, [column(name) for name in others], rows, table_.get("note") or "")
    return section("At a glance", [*made, *samples("", told, len(told))])


def evaluation(found: Evaluation) -> list[Block]:
    """The section of one evaluation: what each part of it shows, and a note about each that is not there or has another shape."""
    made, missing, absent = list[Block](), list(found.missing), list[str]()
    for key, (what, parts) in PARTS.items():
        if what and not found.part(key):
            strange = bool(found.found.get(key))
            missing += [f"{key} has a shape that this page does not know"] if strange else []
            absent += [] if key in found.found else [what]  # an empty one has nothing to say
            continue
        for part in parts:
            try:
                made += part(found)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
                missing.append(f"{key} has a shape that this page does not know ({type(error).__name__}: {error})")
    missing += [f"not in it: {', '.join(absent)}"] if absent else []
    for key in found.found.keys() - {*KNOWN}:
        shown = transfer.nested(transfer.label(str(key)), found.found[key])
        made += shown
        missing += [] if shown or not found.found[key] else [f'"{key}" is in it, and this page does not know how to show it']
    advice = [block for block in made if block["kind"] == "advice"]
    told = notice("What is missing", list(dict.fromkeys(missing)))
    return section(f"What transferred: {found.name}", [*advice, *told, *(block for block in made if block not in advice)], transfer.lead(found))


def _compared(summed: Sequence[dict[str, Any]]) -> list[Block]:
    note = ("Where the runs ended, with intervals as of independent samples: wider than need be, as all read the same sequences. "
            "Bold: the interval leaves 0 out.")  # fmt: skip
    made = differences(summed)
    return [*made, *(words(note) if made else [])]


def beside_each_other(evaluations: Sequence[Evaluation]) -> list[Block]:
    """The distilled students of several evaluations, and each less the first: on one text a table and figures."""
    made, drawn = list[Block](), list[Block]()
    for text, says in transfer.TEXTS.items():
        found = {
            f"{each.name}: {who}": transfer.of_text(each, text)[who]
            for each in evaluations for who in transfer.distilled(list(transfer.of_text(each, text)))
        }  # fmt: skip
        if len(evaluations) > 1 and len(found) > 1:
            made += transfer.by_who(f"On {says}", found, text)
            made += _less_the_first(found, text)
            by_who = {who: {text: each} for who, each in found.items()}
            for key in ("kl_nats", "agreement"):
                cells = plots.column_of(by_who, text, key)
                drawn += plots.figure_of(f"{transfer.label(key)}, {says}", axis(transfer.unit(key)), list(found), {text: cells})
    note = ("Evaluations of their own: they compare where they read the same rows. Differences have intervals as of independent samples; "
            "limbeck evaluate RUN RUN measures several runs at once, and pairs them.")  # fmt: skip
    return section("Evaluations compared", [*figures(drawn), *made, *(words(note) if made else [])])


def _less_the_first(found: dict[str, dict[str, Any]], text: str) -> list[Block]:
    (first, theirs), *others = found.items()
    keys = transfer.ordered([key for key in theirs if all(key in each for _, each in others)])
    rows = [row(f"{who} less {first}", [apart(cell(mine[key]), cell(theirs[key])) for key in keys]) for who, mine in others]
    return table("", "difference", [column(transfer.headed(key), transfer.way(key, text)) for key in keys], rows)
