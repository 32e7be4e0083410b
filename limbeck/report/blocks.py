"""What a page is made of, as plain data: tables, figures, lists, completions. The page and `--json` are two ways to write the same blocks."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Block = dict[str, Any]
Points = Sequence[tuple[float, float]]
LABELS = {
    "kl_nats": "KL(teacher ‖ student)", "ce_nats": "Cross-entropy", "reverse_kl_nats": "KL(student ‖ teacher)", "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte", "agreement": "Top-1 agreement", "acceptance": "Acceptance as a draft", "accuracy": "Next token right",
    "entropy_nats": "Entropy", "teacher_entropy_nats": "Teacher's entropy", "self_bleu": "Self-BLEU", "distinct_1": "Distinct 1-grams",
    "distinct_2": "Distinct 2-grams", "distinct_3": "Distinct 3-grams", "tokens_per_second": "Tokens a second", "side_by_side": "Side by side",
    "weights_bytes": "Bytes of weights", "right": "Right", "recovered": "Recovered", "cut": "Cut off",
}  # fmt: skip
ORDER = ("kl_nats", "reverse_kl_nats", "agreement", "acceptance", "ce_nats", "perplexity", "bits_per_byte", "accuracy")
"""Which figures come first; the rest as they come."""
UNITS = {"nats": "nats a token", "bits": "bits a byte"}
LOWER = {"nats", "perplexity", "error", "loss", "gap", "bits"}  # words of a figure's name that tell which way is better
HIGHER = {"accuracy", "acceptance", "agreement", "rate", "score", "reward", "right", "recovered", "pass", "steady"}
NEITHER = {"entropy", "temperature"}
COLOURS, DASHES, SYMBOLS = 6, ("solid", "dash", "dot", "dashdot"), ("circle", "square", "diamond", "triangle-up", "cross", "x")


def better(key: str) -> int:
    """Which way a figure gets better: -1 down, 1 up, 0 where neither is."""
    words = {*key.replace("@", "_").split("_")}
    return 0 if NEITHER & words else -1 if LOWER & words else 1 if HIGHER & words else 0


def label(key: str) -> str:
    """A figure's name for people."""
    return LABELS.get(key, key.removesuffix("_nats").replace("_", " ")[:1].upper() + key.removesuffix("_nats").replace("_", " ")[1:])


def unit(key: str) -> str:
    """What a figure is in; empty where it has no unit."""
    return next((says for word, says in UNITS.items() if word in key.split("_")), "")


def number(value: Any) -> str:
    """Four digits that count; whole numbers whole; text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "—" if value is None else str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    value += 0.0  # no negative zero
    if abs(value) >= 1e9:
        return f"{value:.3e}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value) or 1)))}f}" if abs(value) >= 1e-4 or not value else f"{value:.2e}"


def between(found: Block) -> str:
    """The interval of a cell, with as many decimals as its value has; empty where there is none."""
    if not found["interval"]:
        return ""
    decimals = number(found["value"]).partition(".")[2] if finite(found["value"]) and abs(found["value"]) >= 1e-4 else ""
    low, high = (
        f"{round(each, len(decimals)) + 0.0:,.{len(decimals)}f}" if decimals and finite(each) else number(each) for each in found["interval"]
    )
    return f"{low} to {high}" if found["interval"][0] < 0 else f"{low}–{high}"


def finite(value: Any) -> bool:
    """Whether it can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """The same as JSON holds it: what is no number is its name, keys are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)


# Tables


def ordered(keys: Sequence[str]) -> list[str]:
    """Figures in the order in which a table shows them."""
    return sorted(dict.fromkeys(keys), key=lambda key: ORDER.index(key) if key in ORDER else len(ORDER))


def column(name: str, way: int = 0, group: str = "", text: bool = False) -> Block:
    """A column. way: which way its figure gets better. group: what stands above several columns. text: it holds words, and no figures."""
    return {"label": name, "better": way, "group": group, "text": text}


def cell(found: Any, **more: Any) -> Block:
    """A value with its interval, of a figure (`value`, `interval`, `why` there is none) or of a bare value.

    more: `best` (bold), `sure` (whether the interval of a difference leaves 0 out; bold too), `shade` (0 to 1, how dark).
    """
    told = found if isinstance(found, Mapping) else {"value": found}
    bounds = told.get("interval")
    pair = list(bounds) if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(is_number, bounds)) else None
    return {"value": told.get("value"), "interval": pair, "why": str(told.get("why") or ""), "best": False, "sure": False, "shade": None, **more}


def is_number(value: Any) -> bool:
    """Whether it is one, if only infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def row(head: str, cells: Sequence[Block], details: Sequence[str] = (), run: int | None = None) -> Block:
    """A row. head: what it is of. run: whose line and colour are shown beside it."""
    return {"head": head, "details": list(details), "run": run, "cells": list(cells)}


def table(title: str, first: str, columns: Sequence[Block], rows: Sequence[Block], note: str = "", folded: bool = False) -> list[Block]:
    """A table of those rows, if there are any. first: what rows are. folded: shown when it is asked for."""
    groups = _groups(columns)
    told = [
        {**each, "first": bool(groups) and (place == 0 or each["group"] != columns[place - 1]["group"]), "shared": _shared(each, columns),
         "text": each["text"] or any(isinstance(one["cells"][place]["value"], str) and len(one["cells"][place]["value"]) > 32 for one in rows)}
        for place, each in enumerate(columns)
    ]  # fmt: skip
    made = {"kind": "table", "title": title, "first": first, "groups": groups, "columns": told, "rows": list(rows), "note": note, "folded": folded}
    return [made] if rows and columns else []


def _groups(columns: Sequence[Block]) -> list[Block]:
    """What stands above several columns, if anything does: its name, how many they are, which way all of them get better."""
    found = list[Block]()
    for each in columns:
        if not found or found[-1]["label"] != each["group"]:
            found.append({"label": each["group"], "span": 0, "better": each["better"] if _shared(each, columns) else 0})
        found[-1]["span"] += 1
    return found if any(each["label"] for each in found) else []


def _shared(one: Block, columns: Sequence[Block]) -> bool:
    """Whether all columns of its group get better the same way."""
    return bool(one["group"]) and all(each["better"] == one["better"] for each in columns if each["group"] == one["group"])


def mark_best(rows: Sequence[Block], columns: Sequence[Block], among: Sequence[int] | None = None) -> None:
    """Mark the best cell of each column whose figure has a better and a worse, among some rows."""
    chosen = [each for place, each in enumerate(rows) if among is None or place in among]
    for place, each in enumerate(columns):
        scored = [each["better"] * one["cells"][place]["value"] for one in chosen if finite(one["cells"][place]["value"])]
        if each["better"] and len(scored) > 1:
            for one in chosen:
                value = one["cells"][place]["value"]
                one["cells"][place]["best"] = finite(value) and each["better"] * value == max(scored)


def shade(rows: Sequence[Block], column_count: int, ways: Sequence[int]) -> None:
    """Darken cells column by column group: the worst of all that share a way darkest. ways: of each column, 0 for none."""
    for way in {*ways} - {0}:
        here = [one["cells"][place] for one in rows for place in range(column_count) if ways[place] == way]
        values = [way * each["value"] for each in here if finite(each["value"])]
        if values and max(values) > min(values):
            for each in here:
                if finite(each["value"]):
                    each["shade"] = round((max(values) - way * each["value"]) / (max(values) - min(values)), 3)


# Figures


def colour(number: int) -> str:
    """A CSS colour that the page defines for light and for dark."""
    return f"var(--run-{number % COLOURS})"


def dash(number: int) -> str:
    """Tells apart the lines of one colour, where there are more lines than colours."""
    return DASHES[number // COLOURS % len(DASHES)]


def key_of(names: Sequence[str]) -> list[Block]:
    """What the lines of some figures mean."""
    return [{"label": name, "run": place} for place, name in enumerate(names)]


def trace(name: str, number: int, points: Points, width: float = 2.25, **more: Any) -> Block:
    """A line of plotly's; names are escaped because plotly reads markup in them."""
    line = {"color": colour(number), "dash": dash(number), "width": width}
    x, y = [x for x, _ in points], [y for _, y in points]
    return {"type": "scatter", "mode": "lines", "name": escape(name), "x": x, "y": y, "line": line, "showlegend": False, **more}


def marker(number: int, size: Any = 7, **more: Any) -> Block:
    """A point of the colour and the shape of its number."""
    return {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": size, "color": colour(number), **more}


def band(name: str, number: int, rows: Sequence[tuple[float, float, float]]) -> Block:
    """Between low and high, shaded. rows: x, low, high."""
    outline = [(x, high) for x, _, high in rows] + [(x, low) for x, low, _ in reversed(rows)]
    return trace(name, number, outline, 0, fill="toself", fillcolor=colour(number), opacity=0.16, hoverinfo="skip")


def figure(title: str, traces: Sequence[Block], x: Block, y: Block, **more: Any) -> list[Block]:
    """A figure of plotly's, if there is anything to draw; the page adds its own font and colours, by day and by night.

    more: `height` in pixels, and what else plotly's layout holds.
    """
    height = more.pop("height", 272)
    layout = {"xaxis": x, "yaxis": y, **more}
    return [{"title": title, "height": height, "plot": {"data": list(traces), "layout": layout}}] if traces else []


def axis(title: str = "", **more: Any) -> Block:
    """An axis with its title."""
    return {"title": {"text": escape(title)}, **more}


def figures(made: Sequence[Block], key: Sequence[Block] = (), title: str = "", note: str = "") -> list[Block]:
    """Figures side by side, with one key for all, if there are any."""
    return [{"kind": "figures", "title": title, "figures": list(made), "key": list(key), "note": note}] if made else []


# Words and texts


def words(text: str) -> list[Block]:
    """A line of small print, if there is any."""
    return [{"kind": "words", "text": text}] if text else []


def notice(title: str, items: Sequence[str]) -> list[Block]:
    """A box that says what is missing, if anything is."""
    return [{"kind": "notice", "title": title, "items": list(items)}] if items else []


def samples(title: str, prompts: Sequence[Block], count: int) -> list[Block]:
    """Prompts with what was written to them side by side: `prompt`, `cards` and maybe `about`. count: of all prompts."""
    writers = list(dict.fromkeys(who["label"] for prompt in prompts for each in prompt["cards"] for who in each["who"]))
    told = [{"about": "", **each} for each in prompts]
    return [{"kind": "samples", "title": title, "prompts": told, "count": count, "writers": writers}] if prompts else []


def card(who: Sequence[tuple[str, int | None]], text: str, note: str = "") -> Block:
    """One text, and by whom."""
    return {"who": [{"label": name, "run": run} for name, run in who], "text": text, "note": note}


def section(title: str, blocks: Sequence[Block], lead: str = "") -> list[Block]:
    """A section of the page, if there is anything in it."""
    return [{"title": title, "lead": lead, "blocks": list(blocks)}] if blocks else []
