"""What an evaluation found, as tables: figures of all by text, differences of pairs, how diverse and how fast they are, what they wrote."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.report.blocks import (
    Block,
    better,
    card,
    cell,
    column,
    finite,
    label,
    mark_best,
    number,
    ordered,
    row,
    samples,
    shade,
    table,
    unit,
)
from limbeck.report.reading import Evaluation
from limbeck.transfer.subjects import TEACHER, is_taught

TEXTS = {"given": "the data's text", "teacher": "the teacher's text", "own": "each one's own text"}
OWN = "own"
SAYS_NOTHING_OF_OWN = ("ce_nats", "perplexity", "bits_per_byte", "accuracy")
"""On one's own text these say how sure one is, and not how good."""


def is_figure(found: Any) -> bool:
    """Whether it is a value with an interval, or a bare number."""
    return finite(found) or (isinstance(found, Mapping) and "value" in found)


def distilled(names: Sequence[str]) -> list[str]:
    """Those whose teaching is looked at."""
    return [name for name in names if name != TEACHER and is_taught(name)]


def figures_of(evaluation: Evaluation) -> dict[str, dict[str, dict[str, Any]]]:
    """By who, text and figure, whatever has that shape."""
    known = {str(who): each for who, each in evaluation.part("figures").items() if isinstance(each, Mapping)}
    return {
        who: {str(text): {str(key): each for key, each in found.items() if is_figure(each)} for text, found in by_text.items()
              if isinstance(found, Mapping)} for who, by_text in known.items()
    }  # fmt: skip


def students(evaluation: Evaluation) -> list[str]:
    """All that were measured but the teacher."""
    return [who for who in figures_of(evaluation) if who != TEACHER]


def of_text(evaluation: Evaluation, text: str) -> dict[str, dict[str, Any]]:
    """Figures on one text, by who."""
    return {who: found[text] for who, found in figures_of(evaluation).items() if text in found}


def way(key: str, text: str = "") -> int:
    """Which way a figure on a text gets better."""
    return 0 if text == OWN and key in SAYS_NOTHING_OF_OWN else better(key)


def figures(evaluation: Evaluation) -> list[Block]:
    """A table for each text: a row for each model, a column for each figure."""
    texts = dict.fromkeys([*TEXTS, *(text for found in figures_of(evaluation).values() for text in found)])
    made = [block for text in texts for block in by_who(f"On {TEXTS.get(text, text)}", of_text(evaluation, text), text)]
    if made:
        arrows = "↓ lower is better, ↑ higher is better; no arrow: neither."
        made[-1]["note"] = f"Small type: 95 % intervals over sequences. Bold: the best of the students. {arrows}"
    return made


def by_who(title: str, found: Mapping[str, Any], text: str = "", note: str = "", best: bool = True) -> list[Block]:
    """A row for each model, a column for each of its figures."""
    known = {who: {key: value for key, value in each.items() if is_figure(value)} for who, each in found.items() if isinstance(each, Mapping)}
    keys = ordered([key for each in known.values() for key in each])
    columns = [column(headed(key), way(key, text)) for key in keys]
    rows = [row(who, [cell(each.get(key)) for key in keys]) for who, each in known.items() if each]
    if best:
        mark_best(rows, columns, [place for place, each in enumerate(rows) if each["head"] != TEACHER])
    return table(title, "who", columns, rows, note)


def headed(key: str) -> str:
    """A figure's name with its unit, but for a bare count."""
    return f"{label(key)}, nats" if unit(key).startswith("nats") else label(key)


def differences(evaluation: Evaluation) -> list[Block]:
    """Of pairs, on each text: first those of whoever was distilled, the others folded."""
    made = paired(evaluation.part("differences"), distilled(students(evaluation)))
    if made:
        note = "Paired: on the same sequences. Bold: the 95 % interval leaves 0 out. "
        made[0]["note"] = note + "Negative is better where the arrow points down."
    return made


def paired(found: Any, teaching: Sequence[str], title: str = "") -> list[Block]:
    """Tables of differences (`of`, `less`, `text`, `figures`), turned so that who was distilled stands first."""
    turned = [_turned(each, teaching) for each in found if _is_difference(each)]
    made = list[Block]()
    for text in dict.fromkeys(each.get("text", "") for each in turned):
        here = [each for each in turned if each.get("text", "") == text]
        where = f"{title or 'Differences'}, {TEXTS.get(text, text)}" if text else title or "Differences"
        first = [each for each in here if each["of"] in teaching]
        made += _pairs(where, first or here, text)
        made += _pairs(f"{where}: the other pairs", [each for each in here if each not in first] if first else [], text, folded=True)
    return sorted(made, key=lambda block: block["folded"])


def _is_difference(found: Any) -> bool:
    return isinstance(found, Mapping) and {"of", "less"} <= found.keys() and isinstance(found.get("figures"), Mapping)


def _turned(found: Mapping[str, Any], teaching: Sequence[str]) -> dict[str, Any]:
    if found["of"] in teaching or found["less"] not in teaching:
        return dict(found)
    figures = {key: _negated(each) for key, each in found["figures"].items() if is_figure(each)}
    return {**found, "of": found["less"], "less": found["of"], "figures": figures}


def _negated(found: Any) -> dict[str, Any]:
    value, bounds = cell(found)["value"], cell(found)["interval"]
    return {"value": None if value is None else -value, "interval": None if bounds is None else [-bounds[1], -bounds[0]]}


def _pairs(title: str, found: Sequence[Mapping[str, Any]], text: str, folded: bool = False) -> list[Block]:
    keys = ordered([key for each in found for key, value in each["figures"].items() if is_figure(value)])
    rows = [row(f"{each['of']} less {each['less']}", [difference(each["figures"].get(key)) for key in keys]) for each in found]
    return table(title, "difference", [column(headed(key), way(key, text)) for key in keys], rows, folded=folded)


def difference(found: Any) -> Block:
    """A cell that knows whether its interval leaves 0 out."""
    made = cell(found)
    bounds = made["interval"]
    return {**made, "sure": bool(bounds) and all(map(finite, bounds)) and not bounds[0] <= 0 <= bounds[1]}


def lead(evaluation: Evaluation) -> str:
    """How near the student came to its teacher, and whether without one it would have been as near; empty where nothing says so."""
    for text in (OWN, "teacher", "given"):
        found = of_text(evaluation, text)
        known = {who: each["kl_nats"]["value"] for who, each in found.items() if finite(cell(each.get("kl_nats"))["value"])}
        if after := min(distilled(list(known)), key=lambda who: known[who], default=None):
            prefix = after + ": " if f"{after}: before" in known else ""
            before = f" (before: {number(known[f'{prefix}before'])})" if f"{prefix}before" in known else ""
            named = "the student" if after == "after" else after
            said = f"On {'its own text' if text == OWN else TEXTS[text]} {named} is {number(known[after])} nats a token from its teacher{before}"
            return f"{said}{_beside(evaluation, after, f'{prefix}fine-tuned', text)}."
    return ""


def _beside(evaluation: Evaluation, after: str, other: str, text: str) -> str:
    """How a student stands to the fine-tuned one."""
    for each in evaluation.part("differences"):
        if _is_difference(each) and {each["of"], each["less"]} == {after, other} and each.get("text") == text:
            found = difference(_turned(each, [after])["figures"].get("kl_nats"))
            if not found["sure"]:
                return "; whether it is nearer than the one that was fine-tuned without a teacher cannot be told"
            low, high = sorted(map(abs, found["interval"]))
            way = "nearer" if found["value"] < 0 else "further away"
            return f", {number(abs(found['value']))} ({number(low)} to {number(high)}) {way} than the one that was fine-tuned without a teacher"
    return ""


def written(evaluation: Evaluation) -> list[Block]:
    """Prompts with the answers of all, side by side."""
    return side_by_side("Completions side by side", evaluation.part("samples"))


def side_by_side(title: str, found: Any) -> list[Block]:
    """Rows of `prompt` and `completions` by who."""
    shown = [
        {"prompt": str(each.get("prompt", "")), "cards": [card([(str(who), None)], text_of(text)) for who, text in each["completions"].items()]}
        for each in found if isinstance(each, Mapping) and isinstance(each.get("completions"), Mapping)
    ]  # fmt: skip
    return samples(title, shown, len(shown))


def text_of(found: Any) -> str:
    """A completion, and where it was judged the verdict."""
    if isinstance(found, Mapping):
        said = next((found[key] for key in ("text", "completion", "answer") if isinstance(found.get(key), str)), "")
        right = found.get("right")
        return said if right is None else f"{'✓' if right is True or right == 1 else '✗' if right is False or right == 0 else right} {said}"
    return "" if found is None else str(found)


# Whatever has figures for leaves


def nested(title: str, found: Any, note: str = "", first: str = "what", heat: bool = True) -> list[Block]:
    """Tables of anything that has figures for leaves, by depth: rows; rows and columns; rows, and columns below each figure."""
    leaves = list(_leaves(found, ()))
    made = list[Block]()
    for depth in sorted({len(path) for path, _ in leaves}):
        here = {path: each for path, each in leaves if len(path) == depth}
        if depth <= 3:
            made += _crossed(title if not made else f"{title}, more", first, here, heat)
        else:
            made += [
                block for outer in dict.fromkeys(path[0] for path in here)
                for block in nested(f"{title}: {outer}", _below(found, outer), first=first, heat=heat)
            ]  # fmt: skip
    if made:
        made[-1]["note"] = note
    return made


def _leaves(found: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if is_figure(found):
        yield path or ("",), found
    elif isinstance(found, Mapping):
        for key, each in found.items():
            yield from _leaves(each, (*path, str(key)))


def _below(found: Mapping[Any, Any], name: str) -> Any:
    return next(each for key, each in found.items() if str(key) == name)


def _crossed(title: str, first: str, leaves: Mapping[tuple[str, ...], Any], heat: bool) -> list[Block]:
    """Of paths (row), (row, column) or (row, column, figure)."""
    whole = {(path[0], "value" if len(path) == 1 else path[1], path[2] if len(path) == 3 else ""): each for path, each in leaves.items()}
    groups, names = ordered([group for _, _, group in whole]), list(dict.fromkeys(name for _, name, _ in whole))
    pairs = [(group, name) for group in groups for name in names if any(path[1:] == (name, group) for path in whole)]
    columns = [column(label(name) if not group else name, better(group or name), headed(group) if group else "") for group, name in pairs]
    rows = [row(head, [cell(whole.get((head, name, group))) for group, name in pairs]) for head in dict.fromkeys(path[0] for path in whole)]
    if heat and len(rows) > 1:
        for group in dict.fromkeys(group or name for group, name in pairs):
            shade(rows, len(pairs), [better(g or n) if (g or n) == group else 0 for g, n in pairs])
    return table(title, first, columns, rows)


def diversity(evaluation: Evaluation) -> list[Block]:
    """How different each one's texts are."""
    note = "Of answers to the same prompts. Distinct n-grams fall with the amount of text; self-BLEU is 1 where all texts are the same."
    return by_who("Diversity", evaluation.part("diversity"), note=note, best=False)


def speeds(evaluation: Evaluation) -> list[Block]:
    """How fast and how large they are."""
    return by_who("Speed and size", evaluation.part("speeds"), note="Several answers side by side, their prompts' reading counted in.", best=False)
