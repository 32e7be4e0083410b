"""Where it did not transfer: the map of slices of the data, completions of the worst; and what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report.blocks import Block, better, card, cell, column, finite, number, row, samples, shade, table
from limbeck.report.reading import Evaluation
from limbeck.report.transfer import TEXTS, headed, is_figure, text_of

Slice = Mapping[str, Any]
FIGURES = ("kl_nats", "ce_nats")
"""Of a slice, those of which a student's gap and what it closed are shown; the second on the data's own text alone."""


def advice(evaluation: Evaluation) -> list[Block]:
    """What to do next, and because of what; whose student, where there are several."""
    told = [each if isinstance(each, Mapping) else {"says": each} for each in evaluation.part("advice")]
    several = len({str(each.get("of")) for each in told}) > 1
    items = [
        {"says": (f"{each['of']}: " if several and each.get("of") else "") + str(each["says"]), "because": str(each.get("because") or "")}
        for each in told
    ]  # fmt: skip
    return [{"kind": "advice", "title": "What to do next", "items": items}] if items else []


def gaps(evaluation: Evaluation) -> list[Block]:
    """A map of slices and students for each text, the first open; and completions of slices in which somebody is surely worse."""
    slices = [each for each in evaluation.part("gaps") if isinstance(each, Mapping) and isinstance(each.get("students"), Mapping)]
    texts = list(dict.fromkeys(str(each.get("text", "")) for each in slices))
    made = [block for n, text in enumerate(texts) for block in _map(text, [each for each in slices if str(each.get("text", "")) == text], n > 0)]
    if made:
        made[0]["note"] = (
            "The stronger the colour the worse, of one figure over all slices and students. Recovered: the share of a baseline's gap to the teacher "
            "that was closed. Surely worse: than all other tokens, all slices of a table looked at together."
        )
    return [*made, *_completions(slices)]


def _map(text: str, slices: Sequence[Slice], folded: bool) -> list[Block]:
    merged = dict[tuple[str, str], dict[str, Any]]()  # slices of own text are of one student each
    for each in slices:
        known = merged.setdefault((str(each.get("kind", "")), str(each.get("name", ""))), {**each, "students": {}})
        known["students"].update(each["students"])
    names = list(dict.fromkeys(who for each in merged.values() for who in each["students"]))
    columns, paths = [column("slices of", text=True)], list[tuple[str, ...]]()
    for key, path in [(key, (key,)) for key in FIGURES] + [(key, ("recovered", key)) for key in FIGURES]:
        for who in names:
            if any(_at(each["students"].get(who), path) is not None for each in merged.values()):
                against = next((found for each in merged.values() if (found := _at(each["students"].get(who), ("recovered", "against")))), "")
                group = f"Recovered, {headed(key)}" if len(path) > 1 else headed(key)
                columns.append(column(f"{who}, of {against}" if len(path) > 1 and against else who, 1 if len(path) > 1 else better(key), group))
                paths.append((who, *path))
    rows = [row(name, [cell(kind), *(cell(_at(each["students"], path)) for path in paths)], _about(each)) for (kind, name), each in merged.items()]
    for group in dict.fromkeys(each["group"] for each in columns if each["group"]):
        shade(rows, len(columns), [each["better"] if each["group"] == group else 0 for each in columns])
    return table(f"Gaps, {TEXTS.get(text, text)}" if text else "Gaps", "slice", columns, rows, folded=folded)


def _at(found: Any, path: Sequence[str]) -> Any:
    """What stands at a path: a figure, or words; None where nothing does."""
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if is_figure(found) or isinstance(found, str) else None


def _about(found: Slice) -> list[str]:
    counts = ", ".join(f"{number(found[each])} {each}" for each in ("sequences", "tokens") if finite(found.get(each)))
    worse = [who for who, each in found["students"].items() if isinstance(each, Mapping) and each.get("surely_worse") is True]
    few = [str(found["few"])] if found.get("few") else []
    return [*(few or ([counts] if counts else [])), *([f"surely worse: {', '.join(worse)}"] if worse else [])]


def _completions(slices: Sequence[Slice]) -> list[Block]:
    """Each prompt of a slice that is surely worse once, with the slices that it stands for."""
    found = dict[str, dict[str, Any]]()
    for each in slices:
        examples = each.get("examples")
        for who, several in examples.items() if isinstance(examples, Mapping) else ():
            for one in several if isinstance(several, list) else ():
                known = found.setdefault(str(one["prompt"]), {"about": {}, "completions": {}})
                known["about"][f"{each.get('kind')} “{each.get('name')}” ({who})"] = None
                known["completions"].update(one["completions"])
    prompts = [
        {"prompt": prompt, "about": "Surely worse at: " + ", ".join(each["about"]),
         "cards": [card([(str(who), None)], text_of(said)) for who, said in each["completions"].items()]} for prompt, each in found.items()
    ]  # fmt: skip
    return samples("Completions where it is surely worse", prompts, len(prompts))
