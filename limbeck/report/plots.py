"""What an evaluation found, as figures: values with intervals, reliability, divergence by position, what speculation would bring."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from math import ceil, sqrt
from typing import Any

from limbeck.report.blocks import (
    Block,
    axis,
    band,
    between,
    cell,
    column,
    figure,
    finite,
    key_of,
    label,
    marker,
    number,
    ordered,
    row,
    table,
    trace,
    unit,
)
from limbeck.report.blocks import figures as side_by_side
from limbeck.report.reading import Evaluation
from limbeck.report.training import apart
from limbeck.report.transfer import OWN, TEACHER, TEXTS, figures_of, of_text, students

PROPOSED = 12
"""Drafted tokens of a round, at the most."""
GREY = 5
UNDRAWN = ("perplexity", "teacher_entropy_nats")
"""The exponential of another figure, and what is the teacher's alone: both stand in the tables."""


def short(name: str, most: int = 16) -> str:
    """A name that leaves room for the figure beside it."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def names_axis(names: Sequence[str], most: int = 16) -> Block:
    """An axis of names, the first at the top."""
    places = list(range(len(names)))
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": [escape(short(name, most)) for name in names]}
    return axis(**ticks, range=[len(names) - 0.5, -0.5], showgrid=False)


def _whiskers(values: Sequence[Block], number: int) -> Block:
    """Plotly's error bars of cells that have intervals."""
    up = [each["interval"][1] - each["value"] if each["interval"] else 0 for each in values]
    down = [each["value"] - each["interval"][0] if each["interval"] else 0 for each in values]
    bar = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.75, "width": 0}
    return {**bar, "color": trace("", number, [])["line"]["color"]}


def _said(found: Block) -> str:
    return f"{number(found['value'])} ({between(found)})" if found["interval"] else number(found["value"])


def dots(evaluation: Evaluation) -> list[Block]:
    """Each figure by who, a point with its interval for each text."""
    found = figures_of(evaluation)
    texts, names = list(TEXTS), list(found)
    keys = ordered([key for each in found.values() for by_text in each.values() for key in by_text if key not in UNDRAWN])
    made = [block for key in keys for block in figure_of(label(key), axis(unit(key)), names, {text: column_of(found, text, key) for text in texts})]
    key = _texts_key({text for each in found.values() for text in each})
    return side_by_side(made, key, "Figures with their intervals", "Whiskers: 95 % intervals over sequences.")


def _texts_key(shown: Collection[str]) -> list[Block]:
    """What the colours of texts mean: the same in all figures, and only of those that are shown."""
    return [each for each, text in zip(key_of(list(TEXTS.values())), TEXTS, strict=True) if text in shown]


def column_of(found: Mapping[str, Any], text: str, key: str) -> dict[str, Block]:
    """One figure on one text, by who."""
    cells = {who: cell(each.get(text, {}).get(key)) for who, each in found.items()}
    return {who: each for who, each in cells.items() if finite(each["value"])}


def figure_of(title: str, x: Block, names: Sequence[str], by_text: Mapping[str, Mapping[str, Block]]) -> list[Block]:
    """Points by who, those of several texts one above the other."""
    traces, names = list[Block](), [who for who in names if any(who in each for each in by_text.values())]
    for place, (text, cells) in enumerate(by_text.items()):
        shift = min(0.22, 0.8 / len(by_text)) * (place - (len(by_text) - 1) / 2)
        points = [(cells[who]["value"], names.index(who) + shift) for who in names if who in cells]
        told = [escape(f"{who}, {TEXTS.get(text, text)}: {_said(cells[who])}") for who in names if who in cells]
        more = {"marker": marker(place), "error_x": _whiskers([cells[who] for who in names if who in cells], place), "text": told}
        if points:
            traces.append(trace(TEXTS.get(text, text), place, points, mode="markers", hovertemplate="%{text}<extra></extra>", **more))
    return figure(title, traces, x, names_axis(names), height=76 + 34 * len(names), hovermode="closest")


def positions(evaluation: Evaluation) -> list[Block]:
    """A figure for each student: how far it is from its teacher by the token's place, on each text."""
    made = list[Block]()
    found = {who: each for who, each in evaluation.part("positions").items() if isinstance(each, Mapping)}
    key = "kl_nats" if any("kl_nats" in one for each in found.values() for rows in each.values() for one in rows) else "ce_nats"
    for who, by_text in found.items():
        traces, ticks = list[Block](), dict[int, str]()
        for place, text in enumerate(TEXTS):
            rows = [(n, one, cell(one.get(key))) for n, one in enumerate(by_text.get(text) or [])]
            rows = [(n, one, each) for n, one, each in rows if finite(each["value"])]
            ticks |= {n: _stretch(one) for n, one, _ in rows}
            traces += _line(TEXTS[text], place, [(n, each) for n, _, each in rows])
        x = axis("place of the token in its completion", tickmode="array", tickvals=list(ticks), ticktext=list(ticks.values()), tickangle=0)
        made += figure(who, traces, x, axis(unit(key), rangemode="tozero"))
    note = ("Where the student is further from its teacher on its own text than on the teacher's, the more so the later the token, it meets prefixes "
            "that nobody taught it: exposure bias. Bands: 95 % intervals. Each student has a scale of its own.")  # fmt: skip
    key_entries = _texts_key({text for each in found.values() for text, rows in each.items() if rows})
    return [*side_by_side(made, key_entries, f"{label(key)} by position", note), *(_exposure(evaluation) if made else [])]


def _stretch(found: Mapping[str, Any]) -> str:
    first, last = found.get("first"), found.get("last")
    return f"{first}" if first == last else f"{first}–{last}"


def _line(name: str, place: int, rows: Sequence[tuple[float, Block]]) -> list[Block]:
    """A line of cells with the band of their intervals."""
    if not rows:
        return []
    told = [escape(f"{name}: {_said(each)}") for _, each in rows]
    bounded = [(x, *each["interval"]) for x, each in rows if each["interval"]]
    middle = trace(name, place, [(x, each["value"]) for x, each in rows], mode="lines+markers", marker=marker(place, 6), text=told)
    return [*([band(name, place, bounded)] if bounded else []), {**middle, "hovertemplate": "%{text}<extra></extra>"}]


def _exposure(evaluation: Evaluation) -> list[Block]:
    """By how much each is further away on its own text."""
    own, theirs = of_text(evaluation, OWN), of_text(evaluation, "teacher")
    shown = {who: (cell(own[who].get("kl_nats")), cell(theirs[who].get("kl_nats"))) for who in own if who in theirs}
    rows = [row(who, [mine, other, apart(mine, other)]) for who, (mine, other) in shown.items() if finite(mine["value"]) and finite(other["value"])]
    columns = [column(name, -1, "KL(teacher ‖ student), nats") for name in ("on its own text", "on the teacher's", "own less teacher's")]
    note = "Differences with intervals as of independent samples. Bold: the interval leaves 0 out."
    return table("Exposure bias", "who", columns, rows, note)


def calibration(evaluation: Evaluation) -> list[Block]:
    """Reliability diagrams, raw and scaled, with what chance does to a perfectly calibrated model; and their errors."""
    made = list[Block]()
    found = {who: each for who, each in evaluation.part("calibration").items() if isinstance(each, Mapping) and isinstance(each.get("raw"), Mapping)}
    every = [one for each in found.values() for kind in ("raw", "scaled") for one in (each.get(kind) or {}).get("bins") or []]
    top = min(1.0, ceil(10 * max([0.1, *(max(one["confidence"], one["accuracy"]) for one in every)]) + 0.5) / 10)
    share = {"range": [0, top]}
    for who, each in found.items():
        traces = [trace("perfect", GREY, [(0, 0), (1, 1)], 1.25, hoverinfo="skip"), *_chance(each["raw"].get("bins") or [])]
        for place, kind in enumerate(("raw", "scaled")):
            traces += _reliable(kind, place, (each.get(kind) or {}).get("bins") or [])
        made += figure(who, traces, axis("how sure", **share), axis("how often right", **share), height=300, hovermode="closest")
    note = ("Points: bins of next tokens by how sure the model is, larger where there are more. On the diagonal a model is as often right as it is "
            "sure. Grey: where 95 % of the points would be, bin by bin, were it so: within 1.96 sqrt(p (1 - p) / n) of the diagonal, tokens taken "
            "as independent.")  # fmt: skip
    key = [*key_of(["as it is", "after temperature scaling"]), {"label": "perfectly calibrated, and chance", "run": GREY}]
    return [*side_by_side(made, key, "Calibration", note), *_errors(found)]


def _chance(bins: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Where a perfectly calibrated model's points would be; a share is never below 0 or above 1."""
    spread = [(float(each["confidence"]), 1.96 * sqrt(each["confidence"] * (1 - each["confidence"]) / each["tokens"])) for each in bins]
    return [band("chance", GREY, [(p, max(0.0, p - wide), min(1.0, p + wide)) for p, wide in spread])] if spread else []


def _reliable(kind: str, place: int, bins: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not bins:
        return []
    most = max(each["tokens"] for each in bins)
    sizes = [round(4 + 8 * sqrt(each["tokens"] / most), 1) for each in bins]
    told = [f"{kind}: sure {number(each['confidence'])}, right {number(each['accuracy'])}, {number(each['tokens'])} tokens" for each in bins]
    points = [(each["confidence"], each["accuracy"]) for each in bins]
    more = {"mode": "lines+markers", "marker": marker(place, sizes), "text": told, "hovertemplate": "%{text}<extra></extra>"}
    return [trace(kind, place, points, 1.5, **more)]


def _errors(found: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    columns = [
        *(column(name, -1 * (name == "error"), "as it is") for name in ("error", "by chance", "95 % of chance below")),
        *(column(name, -1 * (name == "error"), "after temperature scaling") for name in ("error", "temperature")),
        *(column(name, 0, "next token") for name in ("how sure", "how often right")),
    ]
    rows = list[Block]()
    for who, each in found.items():
        raw, scaled, chance = each["raw"], each.get("scaled") or {}, each["raw"].get("if_calibrated") or {}
        error = cell({"value": raw.get("error"), "interval": raw.get("interval")})
        after = cell({"value": scaled.get("error"), "interval": scaled.get("interval")})
        heat = scaled.get("temperatures") or []
        warm = cell(sum(heat) / len(heat) if heat else None)
        cells = [error, cell(chance.get("mean")), cell(chance.get("below")), after, warm, cell(raw.get("confidence")), cell(raw.get("accuracy"))]
        rows.append(row(who, cells, [f"on {TEXTS.get(each.get('text', ''), each.get('text', ''))}"] if each.get("text") else []))
    note = ("Expected calibration error. Chance alone makes it greater than 0: beside it what a perfectly calibrated model, as sure, would show "
            "(its mean, and what 95 % stay below). Temperature: the mean of those that fit either half.")  # fmt: skip
    return table("Calibration error", "who", columns, rows, note)


def acceptance(evaluation: Evaluation) -> list[Block]:
    """What each student would bring as a draft of its teacher: tokens of a round, and where speeds are known times as fast."""
    from limbeck.speculative import best_length, expected_tokens, speedup

    text = next((text for text in ("teacher", "given", OWN) if any("acceptance" in each for each in of_text(evaluation, text).values())), None)
    if text is None:
        return []
    names = students(evaluation)
    found = {who: each for who, each in column_of(figures_of(evaluation), text, "acceptance").items() if who != TEACHER}
    costs = {who: cost for who in found if finite(cost := _cost(evaluation, who))}
    rounds, faster, rows, proposed = list[Block](), list[Block](), list[Block](), range(PROPOSED + 1)
    for who, each in found.items():
        place, (low, high) = names.index(who), each["interval"] or [each["value"]] * 2
        rounds.append(band(who, place, [(n, expected_tokens(low, n), expected_tokens(high, n)) for n in proposed]))
        rounds.append(_curve(who, place, [expected_tokens(each["value"], n) for n in proposed]))
        cells = [each, cell(costs.get(who)), cell(None), cell(None)]
        if who in costs:
            faster.append(band(who, place, [(n, speedup(low, n, costs[who]), speedup(high, n, costs[who])) for n in proposed]))
            faster.append(_curve(who, place, [speedup(each["value"], n, costs[who]) for n in proposed]))
            best = best_length(each["value"], costs[who], most=PROPOSED)
            cells[2:] = [cell(best), cell(speedup(each["value"], best, costs[who]))]
        rows.append(row(who, cells))
    x = axis("tokens that the draft proposes")
    made = figure("Tokens of a round of the teacher", rounds, x, axis("tokens", rangemode="tozero")) + figure("Times as fast", faster, x, axis("×"))
    columns = [column("Accepted", 1), column("Cost of a drafted token"), column("Best proposal, tokens"), column("Times as fast", 1)]
    return [*side_by_side(made, key_of(names), "As drafts of the teacher", _draft_note(text, bool(costs))), *table("", "draft", columns, rows)]


def _draft_note(text: str, timed: bool) -> str:
    cost = (" The cost of a drafted token is the teacher's speed over the student's, several answers side by side; verifying several places is "
            "taken to cost what one step does." if timed else " No speeds are known, and so no times as fast.")  # fmt: skip
    return (f"Foretold from the mean acceptance on {TEXTS[text]}, as if each token were accepted by itself (arXiv 2211.17192, eq. 1 and theorem "
            f"3.8).{cost} limbeck evaluate --acceptance measures it.")  # fmt: skip


def _curve(who: str, place: int, values: Sequence[float]) -> Block:
    told = [escape(f"{who}: {number(value)} with {n} proposed") for n, value in enumerate(values)]
    points = list(enumerate(values))
    return trace(who, place, points, mode="lines+markers", marker=marker(place, 5), text=told, hovertemplate="%{text}<extra></extra>")


def _cost(evaluation: Evaluation, who: str) -> Any:
    """Of a drafted token, in steps of the teacher; None where a speed is not known."""
    theirs, mine = (cell((evaluation.part("speeds").get(each) or {}).get("tokens_per_second"))["value"] for each in (TEACHER, who))
    return theirs / mine if finite(theirs) and finite(mine) and mine > 0 else None
