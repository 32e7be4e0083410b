"""What teacher and students do when they are put to the test: tasks with verified answers, and the same prompts edited."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from limbeck.report.blocks import (
    Block,
    axis,
    better,
    card,
    cell,
    column,
    finite,
    key_of,
    label,
    notice,
    number,
    ordered,
    row,
    samples,
    shade,
    table,
    words,
)
from limbeck.report.blocks import figures as side_by_side
from limbeck.report.plots import figure_of
from limbeck.report.reading import Evaluation
from limbeck.report.transfer import TEACHER, by_who, distilled, is_figure, nested, paired, students, text_of

Found = Mapping[str, Any]


def tasks(evaluation: Evaluation) -> list[Block]:
    """Verified accuracy by task: a figure and a table each, what was recovered, differences, and what was answered."""
    made, drawn = list[Block](), list[Block]()
    for name, found in evaluation.part("tasks").items():
        if not isinstance(found, Mapping):
            continue
        figures = {who: _with_errors(each) for who, each in (found.get("figures") or {}).items() if isinstance(each, Mapping)}
        made += by_who(f"Task: {name}", figures, note=_about(found)) + _recovered(name, found.get("recovered") or [])
        made += paired(found.get("differences") or [], distilled(students(evaluation)), f"Differences: {name}") + _answers(name, found)
        for key in ordered([key for each in figures.values() for key, value in each.items() if is_figure(value) and better(key)])[:1]:
            cells = {who: cell(each[key]) for who, each in figures.items() if is_figure(each.get(key)) and finite(cell(each[key])["value"])}
            drawn += figure_of(f"{name}: {label(key).lower()}", _shares(cells), list(figures), {key: cells})
    return [*side_by_side(drawn, title="Verified accuracy", note="Whiskers: 95 % intervals over prompts."), *made]


def _shares(cells: Mapping[str, Block]) -> Block:
    """An axis that shows all that a share can be."""
    return axis(range=[-0.03, 1.03]) if all(0 <= each["value"] <= 1 for each in cells.values()) else axis()


def _with_errors(found: Found) -> dict[str, Any]:
    """Figures, of calibrations their error."""
    return {
        str(key).replace("calibration", "calibration_error"): {"value": each["error"], "interval": each.get("interval")}
        if isinstance(each, Mapping) and "error" in each else each for key, each in found.items()
    }  # fmt: skip


def _about(found: Found) -> str:
    told = [str(found[key]) for key in ("shape", "verifier") if isinstance(found.get(key), str)]
    return " · ".join([*told, *([f"{number(found['prompts'])} prompts"] if finite(found.get("prompts")) else [])])


def _recovered(name: str, found: Sequence[Found]) -> list[Block]:
    """The share of each baseline's gap to the teacher that a student closed."""
    keys = list(dict.fromkeys(key for each in found for key in each["figures"]))
    rows = [row(f"{each['of']}, of {each['beside']}", [cell(each["figures"].get(key)) for key in keys]) for each in found]
    return table(f"Recovered: {name}", "student, of whose gap", [column(label(key), 1) for key in keys], rows)


def _answers(name: str, found: Found) -> list[Block]:
    told = [each for each in found.get("samples") or [] if isinstance(each, Mapping)]
    prompts = [
        {"prompt": str(each.get("prompt", "")), "about": f"Wanted: {each['wanted']}" if each.get("wanted") is not None else "",
         "cards": [card([(str(who), None)], text_of(said)) for who, said in (each.get("answers") or {}).items()]} for each in told
    ]  # fmt: skip
    return samples(f"Answers: {name}", prompts, len(prompts))


def robustness(evaluation: Evaluation) -> list[Block]:
    """What edits of the prompt take from teacher and students, what of the teacher's robustness was kept, and suffixes found by search."""
    found = evaluation.part("robustness")
    if not isinstance(found.get("figures"), Mapping):
        return nested("Robustness", found, first="edit")
    told = notice("Robustness: what is missing", [str(each) for each in found.get("missing") or []])
    return [*told, *_drawn(found), *_under_edits(found), *_edits(found.get("edits") or {}), *_suffixes(found.get("adversarial") or {})]


Reader = Callable[[str, str], Any]
"""Gives the figure of an edit and of a model."""


def _readers(found: Found) -> dict[str, tuple[int, Reader]]:
    """Columns of the map by their titles: which way they get better, and where their figures are."""
    figures, kept = found["figures"], found.get("kept") or {}
    below = lambda edit, who: figures.get(edit, {}).get(who, {})  # noqa: E731
    return {
        "Kept of the teacher's robustness": (1, lambda edit, who: kept.get(who, {}).get(edit)),
        "Loses by the edit, nats": (-1, lambda edit, who: below(edit, who).get("lost", {}).get("ce_nats")),
        "KL(teacher ‖ student), nats": (-1, lambda edit, who: below(edit, who).get("kl_nats")),
        "Likeliest token as before": (1, lambda edit, who: below(edit, who).get("steady")),
    }


def _models(found: Found) -> tuple[list[str], list[str]]:
    """Edits, all of them together last; and who was measured, the teacher last."""
    kept = found.get("kept") or {}
    edits = list(dict.fromkeys([*found["figures"], *(edit for each in kept.values() for edit in each)]))
    names = list(dict.fromkeys(who for each in found["figures"].values() for who in each))
    return edits, sorted(names, key=lambda who: who == TEACHER)


def _under_edits(found: Found) -> list[Block]:
    edits, names = _models(found)
    readers, known = _readers(found), found.get("edits") or {}
    shown = [(title, who) for title, (_, read) in readers.items() for who in names if any(finite(cell(read(edit, who))["value"]) for edit in edits)]
    columns = [column(who, readers[title][0], title) for title, who in shown]
    rows = list[Block]()
    for edit in edits:
        about = known.get(edit) or {}
        details = [str(about["what"])] if about.get("what") else []
        details += [f"{number(about['prompts'])} prompts"] if finite(about.get("prompts")) else []
        rows.append(row("all edits" if edit == "all" else edit, [cell(readers[title][1](edit, who)) for title, who in shown], details))
    for title in readers:
        shade(rows, len(columns), [each["better"] if each["group"] == title else 0 for each in columns])
    note = ("Kept: 1 less what the edit takes of the prompt's worth from the student, above what it takes from the teacher; 1 loses as the teacher "
            "does. The stronger the colour the worse, of one figure. “another” is the prompt of another row.")  # fmt: skip
    return [*table("Robustness: under edits of the prompt", "edit", columns, rows, note), *words(_nothing_kept(found))]


def _nothing_kept(found: Found) -> str:
    """Why it is not said of anybody what was kept; empty where it is said."""
    every = [(who, cell(each)) for who, by_edit in (found.get("kept") or {}).items() for each in by_edit.values()]
    if not every or any(finite(each["value"]) for _, each in every):
        return ""
    why = {who: f"{who}: {each['why']}" for who, each in every}
    return f"Of the teacher's robustness nothing is said to be kept. {'; '.join(why.values())}."


def _drawn(found: Found) -> list[Block]:
    """What was kept, and what is lost, by edit; a colour for each model."""
    edits, names = _models(found)
    made = list[Block]()
    for title, (_, read) in list(_readers(found).items())[:2]:
        cells = {who: {edit: cell(read(edit, who)) for edit in edits} for who in names}
        drawn = {who: {edit: each for edit, each in by_edit.items() if finite(each["value"])} for who, by_edit in cells.items()}
        made += figure_of(title, axis(), edits, drawn)
    return side_by_side(made, key_of(names), "Robustness", "The same answers, read after edited prompts. Whiskers: 95 % intervals over answers.")


def _edits(found: Found) -> list[Block]:
    rows = [
        row(str(name), [cell(each.get("kind")), cell(each.get("what")), cell(each.get("example"))])
        for name, each in found.items() if isinstance(each, Mapping)
    ]  # fmt: skip
    return table("The edits, with an example of each", "edit", [column(name, text=True) for name in ("kind", "what", "example")], rows, folded=True)


def _suffixes(found: Found) -> list[Block]:
    keys = {"clean": "none", "random": "random suffixes", "found": "found", "above_random": "found less random", "steps": "steps of search"}
    told = {who: each for who, each in found.items() if isinstance(each, Mapping)}
    rows = [row(str(who), [*(cell(each.get(key)) for key in keys), cell(each.get("text"))]) for who, each in told.items()]
    columns = [*(column(title) for title in keys.values()), column("suffix", text=True)]
    aims = ", ".join(dict.fromkeys(label(str(each["aim"])) for each in told.values() if isinstance(each.get("aim"), str)))
    note = f"{aims or 'The aim'} on prompts that were not searched on, nats a token. A small search that finds nothing proves nothing."
    return table("Suffixes found by a search", "student", columns, rows, note)
