"""A sweep: one recipe run with several values of some settings, a folder each, and what came of them in one table and plot.

OUT/KEY=VALUE/ (a run folder each) · OUT/sweep.json · OUT/sweep.html. The same command goes on where it stopped, and may add values.
"""

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product as combinations
from pathlib import Path
from typing import Any

from limbeck import distributed, nodes
from limbeck.errors import RecipeError
from limbeck.files import write_json, write_text
from limbeck.pipeline import Plan
from limbeck.stages import carry_out, ended, product

LONGEST = 120
"""Of a folder's name; longer ones are cut, and end in a digest."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep: the value of each key as it was written, the folder, and what is run."""

    values: dict[str, str]
    folder: str
    plan: Plan


def points(asked: Sequence[str], make: Callable[[list[str]], Plan]) -> list[Point]:
    """The runs of a sweep, every one of them made, so that what is refused is refused before the first begins.

    asked: `KEY=V1,V2,...`; several give each combination. make: the plan with some settings changed, each `KEY=VALUE`.
    """
    keys = dict[str, list[str]]()
    for each in asked:
        key, values = _values(each)
        if key in keys:
            raise RecipeError(f"--sweep {key} is given twice; write all its values after one {key}=")
        keys[key] = values
    found = [dict(zip(keys, chosen, strict=True)) for chosen in combinations(*keys.values())]
    made = [Point(values, _folder(values), make([f"{key}={value}" for key, value in values.items()])) for values in found]
    if len({each.folder for each in made}) < len(made):
        raise RecipeError("two runs of the sweep would have one folder; write their values in letters and digits that differ")
    return made


def _values(asked: str) -> tuple[str, list[str]]:
    """A key and its values; commas inside brackets and quotes part nothing."""
    key, equals, text = asked.partition("=")
    values = _parted(text)
    if not equals or not key or not all(values):
        raise RecipeError(f'cannot read the sweep "{asked}"; write it like objective.temperature=1,2,4')
    if len(set(values)) < len(values):
        raise RecipeError(f"--sweep {key} has a value twice, found {text}; give each once")
    return key, values


def _parted(text: str) -> list[str]:
    depth, quote, values = 0, "", [""]
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _folder(values: dict[str, str]) -> str:
    """A folder's name for these values."""
    name = re.sub(r"[^\w.,=+()-]+", "_", ",".join(f"{key}={value}" for key, value in values.items()))
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{sha256(str(values).encode()).hexdigest()[:8]}"


def sweep(asked: Sequence[Point], out: Path) -> dict[str, Any]:
    """Run one after the other, those that are finished not again; the table: `columns`, `rows`, and the `runs` that they are of."""
    out, runs = nodes.here(out), list[dict[str, Any]]()
    for each in asked:
        folder = product(each.plan, out / each.folder)
        carry_out(each.plan, out / each.folder)
        gc.collect()
        runs.append({"folder": each.folder, "values": each.values, **distributed.first_says(ended(folder) if distributed.rank() == 0 else {})})
        if distributed.rank() == 0:
            write_json(out / "sweep.json", {"runs": runs})
            write_text(out / "sweep.html", page(runs))
    return {**table(runs), "runs": runs}


def figures(run: dict[str, Any]) -> dict[str, tuple[float, list[float] | None]]:
    """What a run came to: each figure of each evaluation with its interval where it has one, and the loss."""
    alone = len(run["evaluations"]) == 1
    found = {
        key if alone else f"{name}: {key}": (value, each.get(f"{key}_interval"))
        for name, each in run["evaluations"].items() for key, value in each.items() if isinstance(value, float)
    }  # fmt: skip
    return {**found, "loss_nats": (run["loss_nats"], None)} if run["loss_nats"] is not None else found


def table(runs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The runs as rows: the values, the steps, each figure with the longer side of its interval."""
    names = list(dict.fromkeys(name for run in runs for name in figures(run)))
    rows = [[*run["values"].values(), str(run["steps"]), *(_cell(figures(run).get(name)) for name in names)] for run in runs]
    return {"columns": [*(key.replace(".", ".\n") for key in runs[0]["values"]), "steps", *names], "rows": rows}


def _cell(figure: tuple[float, list[float] | None] | None) -> str:
    if figure is None:
        return ""
    value, interval = figure
    return f"{value:.4g}" + (f" ± {max(interval[1] - value, value - interval[0]):.2g}" if interval else "")


def page(runs: Sequence[dict[str, Any]]) -> str:
    """A page that needs no other: a plot for each figure against the first key, a line for each value of the others."""
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(name for run in runs for name in figures(run)))
    key, *others = runs[0]["values"]
    plot = make_subplots(rows=len(names), cols=1, subplot_titles=names, shared_xaxes=False)
    lines = dict.fromkeys(_line(run, others) for run in runs)
    for place, name in enumerate(names, 1):
        for line in lines:
            some = [run for run in runs if _line(run, others) == line and name in figures(run)]
            plot.add_scatter(row=place, col=1, name=line or key, legendgroup=line, showlegend=bool(line) and place == 1, mode="lines+markers",
                             x=[_number(run["values"][key]) for run in some], **_heights([figures(run)[name] for run in some]))  # fmt: skip
        plot.update_xaxes(title_text=key, row=place, col=1)
    plot.update_layout(height=320 * len(names), title="Sweep: the end of each run, with 95 % intervals over held-out sequences where there are any")
    return str(plot.to_html(include_plotlyjs=True))


def _line(run: dict[str, Any], others: Sequence[str]) -> str:
    return ", ".join(f"{other}={run['values'][other]}" for other in others)


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _heights(found: Sequence[tuple[float, list[float] | None]]) -> dict[str, Any]:
    """Values and how far they may be up and down."""
    values = [value for value, _ in found]
    up = [interval[1] - value if interval else 0.0 for value, interval in found]
    down = [value - interval[0] if interval else 0.0 for value, interval in found]
    return {"y": values, **({"error_y": {"array": up, "arrayminus": down, "symmetric": False}} if any(up) or any(down) else {})}
