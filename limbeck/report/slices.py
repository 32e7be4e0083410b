"""Where it did not transfer: slices of the data, edits of prompts, tasks; and what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report.blocks import Block, better, cell, column, finite, number, ordered, row, shade, table
from limbeck.report.blocks import figures as side_by_side
from limbeck.report.plots import figure_of
from limbeck.report.reading import Evaluation
from limbeck.report.transfer import by_who, distilled, headed, is_figure, nested, paired, students
from limbeck.report.transfer import side_by_side as completions

LOOKED_AT = ("recovered", "kl_nats", "right", "ce_nats")
"""Figures of a slice that its map shows, as far as they are there."""
SPECIAL = ("kept", "adversarial")


def advice(evaluation: Evaluation) -> list[Block]:
    """What to do next, and because of what."""
    items = [
        {"says": str(each["says"]), "because": str(each.get("because") or "")} if isinstance(each, Mapping) else {"says": str(each), "because": ""}
        for each in evaluation.part("advice")
    ]  # fmt: skip
    return [{"kind": "advice", "title": "What to do next", "items": items}] if items else []


def gaps(evaluation: Evaluation) -> list[Block]:
    """A map of slices and students for each kind of slice, the darkest the worst, and completions of those that have any."""
    slices = [each for each in evaluation.part("gaps") if isinstance(each, Mapping)]
    made, teaching = list[Block](), distilled(students(evaluation))
    whose = teaching[0] if len(teaching) == 1 else "student"
    for kind in dict.fromkeys(str(each.get("kind", "slice")) for each in slices):
        here = [each for each in slices if str(each.get("kind", "slice")) == kind]
        made += _map(f"Gaps by {kind.replace('_', ' ')}", kind, here, whose)
    if made:
        made[-1]["note"] = ("The stronger the colour the worse, of one figure over all slices and students. Recovered: the share of the gap between the student before "
                            "and its teacher that was closed.")  # fmt: skip
    return made + [block for each in slices for block in completions(f"Completions: {each.get('name', '')}", each.get("samples") or [])]


def _map(title: str, kind: str, slices: Sequence[Mapping[str, Any]], whose: str) -> list[Block]:
    known = [_by_figure(each, whose) for each in slices]
    every = [key for each in known for key in each]
    keys = [key for key in LOOKED_AT if key in every] or ordered(every)[:2]
    names = {key: list(dict.fromkeys(who for each in known for who in each.get(key, {}))) for key in keys}
    pairs = [(key, who) for key in keys for who in names[key]]
    columns = [column(who, better(key), headed(key)) for key, who in pairs]
    rows = [
        row(str(each.get("name", kind)), [cell(found.get(key, {}).get(who)) for key, who in pairs], _about(each))
        for each, found in zip(slices, known, strict=True)
    ]  # fmt: skip
    for key in keys:
        shade(rows, len(pairs), [better(key) if each == key else 0 for each, _ in pairs])
    return table(title, kind.replace("_", " "), columns, rows)


def _by_figure(found: Mapping[str, Any], whose: str) -> dict[str, dict[str, Any]]:
    """Figures of a slice by figure, then by who. One text stands for a student that has several: its own first."""
    made = dict[str, dict[str, Any]]()
    for who, each in (found.get("figures") or {}).items():
        inner = each if any(map(is_figure, each.values())) else next((each[text] for text in ("own", "given", "teacher") if text in each), {})
        for key, value in inner.items():
            if is_figure(value):
                made.setdefault(key, {})[who] = value
    told = found.get("recovered")
    if is_figure(told) or (isinstance(told, Mapping) and "why" in told):
        made["recovered"] = {whose: told}
    elif isinstance(told, Mapping):
        made["recovered"] = {who: each for who, each in told.items() if is_figure(each)}
    return made


def _about(found: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{number(found[each])} {each}" for each in ("sequences", "tokens") if finite(found.get(each)))
    worse = found.get("surely_worse")
    who = ", ".join(map(str, worse if not isinstance(worse, Mapping) else [each for each, is_so in worse.items() if is_so])) if isinstance(
        worse, Mapping | list) else ""  # fmt: skip
    return [*([counts] if counts else []), *(["surely worse than the rest" + (f": {who}" if who else "")] if worse is True or who else [])]


def tasks(evaluation: Evaluation) -> list[Block]:
    """Verified accuracy by task: a table and a figure each, differences, and what was written."""
    made, drawn = list[Block](), list[Block]()
    for name, found in evaluation.part("tasks").items():
        if not isinstance(found, Mapping):
            continue
        figures = {who: each for who, each in (found.get("figures") or {}).items() if isinstance(each, Mapping)}
        told = [str(found[key]) for key in ("shape", "verifier") if isinstance(found.get(key), str)]
        told += [f"{number(found['prompts'])} prompts"] if finite(found.get("prompts")) else []
        made += by_who(f"Task: {name}", figures, note=" · ".join(told))
        made += paired(found.get("differences") or [], distilled(students(evaluation)), f"Differences: {name}")
        made += completions(f"Completions: {name}", found.get("samples") or [])
        for key in ordered([key for each in figures.values() for key, value in each.items() if is_figure(value) and better(key)])[:1]:
            cells = {who: cell(each[key]) for who, each in figures.items() if is_figure(each.get(key)) and finite(cell(each[key])["value"])}
            drawn += figure_of(f"{name}: {headed(key).lower()}", "", list(figures), {"given": cells})
    return [*side_by_side(drawn, title="Verified accuracy"), *made]


def robustness(evaluation: Evaluation) -> list[Block]:
    """The same figures under edits of the prompt, what of the teacher's robustness the student kept, and adversarial suffixes."""
    found = evaluation.part("robustness")
    edits = {edit: each for edit, each in found.items() if edit not in SPECIAL}
    made = nested("Robustness: under edits of the prompt", edits, "The stronger the colour the worse, of one figure.", first="edit")
    made += nested("What was kept of the teacher's robustness", found.get("kept"), first="edit")
    return made + nested("Adversarial suffixes", found.get("adversarial"), first="who")
