"""One self-contained HTML page from one or many run folders: nothing is read but their files, nothing is fetched.

A run may still be going on: whatever is not there yet is named on the page, and the rest is shown.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from limbeck.config import read_yaml
from limbeck.errors import CheckpointError
from limbeck.files import read_json, read_jsonl, write_text

Figures = dict[str, Any]
Points = Sequence[tuple[float, float]]
FILES = {
    "recipe.yaml": "what the run was told",
    "provenance.json": "what it is made of",
    "metrics.jsonl": "how training went",
    "timings.jsonl": "how fast it was",
    "evaluations.json": "the figures before and after",
    "samples.jsonl": "what the student writes",
}
LABELS = {"kl_nats": "KL(teacher ‖ student)", "ce_nats": "Cross-entropy", "reverse_kl_nats": "KL(student ‖ teacher)", "perplexity": "Perplexity"}
LOWER = {"nats", "perplexity", "error", "loss", "gap"}  # words of a figure's name that tell which way is better
HIGHER = {"accuracy", "acceptance", "rate", "score", "reward"}
COLOURS, DASHES, SYMBOLS = 6, ("solid", "dash", "dot", "dashdot"), ("circle", "square", "diamond", "triangle-up", "cross", "x")
SHOWN_PROMPTS = 12  # of each evaluation


@dataclass
class Folder:
    """What the files of one run say; `number` is its place on the page, and so its colour and dash."""

    name: str
    number: int
    recipe: str  # as it is written; `settings` as it is read
    settings: dict[str, Any]
    provenance: dict[str, Any]
    metrics: list[Figures]
    timings: list[Figures]
    samples: list[Figures]
    evaluations: dict[int, dict[str, Figures]]  # by step, then by name
    finished: bool
    missing: list[str]

    @property
    def colour(self) -> str:
        """A CSS colour that the page defines for light and for dark."""
        return f"var(--run-{self.number % COLOURS})"

    @property
    def dash(self) -> str:
        """Tells apart the runs of one colour, where there are more runs than colours."""
        return DASHES[self.number // COLOURS % len(DASHES)]

    @property
    def objective(self) -> str:
        """The kind of its objective."""
        return _kind(self.settings.get("objective"))

    @property
    def steps(self) -> list[Figures]:
        """The lines of metrics that are of training."""
        return [row for row in self.metrics if "loss_nats" in row]

    @property
    def described(self) -> str:
        """The method and how far it is, in one line."""
        parts = [self.objective, _kind(self.settings.get("source")), _kind(self.settings.get("teacher"))]
        done, asked = self.steps[-1]["step"] if self.steps else 0, self.settings.get("steps")
        steps = f"{done:,} steps" if asked in (None, done) else f"{done:,} of {asked:,} steps"
        took = f" in {timedelta(seconds=round(sum(row['seconds'] for row in self.timings)))}" if self.timings else ""
        return " · ".join([*filter(None, parts), steps + took, "finished" if self.finished else "not finished"])

    def before_and_after(self, evaluation: str) -> dict[str, Any] | None:
        """The first and the last evaluation of this name with their steps; the last is empty while there is but one."""
        steps = sorted(step for step, found in self.evaluations.items() if evaluation in found)
        if not steps:
            return None
        after = self.evaluations[steps[-1]][evaluation] if len(steps) > 1 else {}
        return {"folder": self, "first": steps[0], "before": self.evaluations[steps[0]][evaluation], "last": steps[-1], "after": after}

    def better(self, key: str, evaluation: str) -> int:
        """Which way a figure gets better: -1 down, 1 up, 0 where neither is."""
        own = [entry["name"] for entry in self.settings.get("evaluations") or [] if isinstance(entry, dict) and entry.get("own_text")]
        if evaluation in own and key in ("ce_nats", "perplexity"):
            return 0  # how sure a student is of its own text says nothing about its quality
        return -1 if LOWER & {*key.split("_")} else 1 if HIGHER & {*key.split("_")} else 0


def report(runs: Sequence[Path], out: Path, table: dict[str, Any] | None = None, title: str = "Distillation report") -> Path:
    """Write a page about `runs` to the file `out`, or to report.html in the folder `out`, and return where it lies.

    table: a comparison of the caller's own that stands first: `columns`, `rows`, and maybe `samples` (each a `prompt` and
    `completions` by who wrote them) and a `note`. Raises CheckpointError for a folder that is no run.
    """
    if not runs and table is None:
        raise CheckpointError("a report of no runs was asked for; give at least one run folder, as distill wrote it")
    names = [Path(run).resolve().name for run in runs]
    folders = [read(Path(run), name if names.count(name) == 1 else str(run), n) for n, (run, name) in enumerate(zip(runs, names, strict=True))]
    page, target = _page(folders, table, title), Path(out) / "report.html" if Path(out).is_dir() else Path(out)
    write_text(target, page)
    return target


def read(path: Path, name: str, number: int = 0) -> Folder:
    """Read the files of a run, whichever there are. Raises CheckpointError for a folder that holds none of them."""
    if not any((path / file).is_file() for file in FILES):
        found = "a folder without any of them" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise CheckpointError(f"{path} is no run folder (one with {', '.join(FILES)}): found {found}; give the --out of a distillation")
    missing: list[str] = []

    def ask(file: str, reader: Callable[[Path], Any], otherwise: Any) -> Any:
        problem, found = "is not there", otherwise
        if (path / file).is_file():
            try:
                found, problem = reader(path / file), "is empty"
            except ValueError:
                problem = "cannot be read"
        if isinstance(found, list) and not all(isinstance(row, dict) for row in found):
            found, problem = [], "cannot be read"
        if found and isinstance(found, type(otherwise)):
            return found
        missing.append(f"{file} {problem} ({FILES[file]})")
        return otherwise

    settings, provenance = ask("recipe.yaml", read_yaml, {}), ask("provenance.json", read_json, {})
    metrics, timings, samples = (ask(f"{log}.jsonl", read_jsonl, []) for log in ("metrics", "timings", "samples"))
    evaluations = {int(step): named for step, named in ask("evaluations.json", read_json, {}).items() if step.isdecimal()}
    recipe = (path / "recipe.yaml").read_text(encoding="utf-8") if settings else ""
    return Folder(name, number, recipe, settings, provenance, metrics, timings, samples, evaluations, (path / "student").is_dir(), missing)


def _page(folders: list[Folder], table: dict[str, Any] | None, title: str) -> str:
    """Fill the template; everything is escaped but plotly's own script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    assets = FileSystemLoader(Path(__file__).parent / "assets")
    environment = Environment(loader=assets, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, label=_label)
    summary = _summary(folders)
    figures = _training(folders) + _evaluated(folders, summary)
    missing = {what: [folder.name for folder in folders if what in folder.missing] for one in folders for what in one.missing}
    return environment.get_template("report.html.j2").render(
        title=title, lead=_lead(summary) if folders else "", folders=folders, missing=missing, table=table, summary=summary,
        figures=figures, prompts=_prompts(folders), shown=SHOWN_PROMPTS, plotly=Markup(get_plotlyjs()),
    )  # fmt: skip


def _kind(part: Any) -> str:
    """The name of a part of a recipe; of a sum, those of its terms."""
    if not isinstance(part, dict):
        return str(part or "")
    return " + ".join(map(_kind, part["terms"])) if "terms" in part else str(part.get("type", ""))


def _number(value: Any) -> str:
    """Four digits that count; whole numbers whole; text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "—" if value is None else str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value) or 1)))}f}" if abs(value) >= 1e-4 or not value else f"{value:.2e}"


def _label(key: str) -> str:
    return LABELS.get(key, key.removesuffix("_nats").replace("_", " ").capitalize())


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _summary(folders: list[Folder]) -> list[dict[str, Any]]:
    """A table for each evaluation: its runs, its figures, and the best value of each."""
    tables = []
    for name in dict.fromkeys(name for folder in folders for found in folder.evaluations.values() for name in found):
        rows = [row for folder in folders if (row := folder.before_and_after(name))]
        keys = dict.fromkeys(key for row in rows for key, value in {**row["before"], **row["after"]}.items() if isinstance(value, float))
        keys = sorted(keys, key=lambda key: list(LABELS).index(key) if key in LABELS else len(LABELS))  # counts are whole, figures are not
        tables.append({"name": name, "rows": rows, "keys": keys, "best": {key: _best(rows, key, name) for key in keys}})
    return tables


def _best(rows: list[dict[str, Any]], key: str, evaluation: str) -> float | None:
    """The best value of a figure, where there is such a thing."""
    found = [(row["folder"].better(key, evaluation), row[when].get(key)) for row in rows for when in ("before", "after")]
    scored = [(way * value, value) for way, value in found if way and _finite(value)]
    return max(scored)[1] if len(scored) > 1 else None


def _lead(summary: list[dict[str, Any]]) -> str:
    """What came out, in one sentence, by the first figure that some run has before and after."""
    for table in summary:
        for key in table["keys"]:
            rows = [row for row in table["rows"] if _finite(row["before"].get(key)) and _finite(row["after"].get(key))]
            if rows and table["best"][key] is not None:
                row = max(rows, key=lambda row: row["folder"].better(key, table["name"]) * row["after"][key])
                who = f" ({row['folder'].name}, the best of {len(rows)} runs)" if len(rows) > 1 else ""
                unit = " nats a token" if key.endswith("_nats") else ""
                return f"{_label(key)} on {table['name']} {_moved(row['before'][key], row['after'][key])}{unit} in {row['last']:,} steps{who}."
    return "No evaluation has a before and an after yet."


def _moved(before: float, after: float) -> str:
    if _number(before) == _number(after):
        return f"stayed at {_number(after)}"
    return f"{'fell' if after < before else 'rose'} from {_number(before)} to {_number(after)}"


def _training(folders: list[Folder]) -> list[dict[str, Any]]:
    """Speed, and the loss in a figure for each kind of objective: nats of two kinds do not compare."""
    made: list[dict[str, Any]] = []
    for kind in dict.fromkeys(folder.objective for folder in folders):
        losses = [trace for folder in folders if folder.objective == kind for trace in _noisy(folder, folder.steps, "loss_nats")]
        made += _figure(f"Training loss, {kind}".rstrip(", "), "nats a token", losses)
    speed = [trace for folder in folders for trace in _noisy(folder, folder.timings, "tokens_per_second")]
    return made + _figure("Speed", "tokens a second", speed, rangemode="tozero")


def _evaluated(folders: list[Folder], summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each figure that has an interval, by step, with its band."""
    made: list[dict[str, Any]] = []
    for table in summary:
        for key in table["keys"]:
            traces = [trace for folder in folders for trace in _banded(folder, table["name"], key)]
            made += _figure(f"{_label(key)}, {table['name']}", "nats a token" if key.endswith("_nats") else "", traces)
    return made


def _noisy(folder: Folder, rows: list[Figures], key: str) -> list[dict[str, Any]]:
    """Every step thin, means of neighbours thick."""
    points = [(row["step"], row[key]) for row in rows if _finite(row.get(key))]
    fine, coarse = _means(points, 1500), _means(points, 40)
    thick = _trace(folder, coarse, mode="lines" if len(points) > 1 else "markers", hovertemplate="%{y:.4g}")
    return ([_trace(folder, fine, 1, opacity=0.3, hoverinfo="skip")] if len(fine) > len(coarse) else []) + ([thick] if points else [])


def _means(points: Points, most: int) -> Points:
    """At most `most` points, each the mean of as many neighbours: long runs stay light, noisy ones readable."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _banded(folder: Folder, evaluation: str, key: str) -> list[dict[str, Any]]:
    """A line with its interval's band; nothing where the figure has no interval."""
    found = [(step, named[evaluation]) for step, named in sorted(folder.evaluations.items()) if evaluation in named]
    rows = [(step, figures[key], *figures[f"{key}_interval"]) for step, figures in found if f"{key}_interval" in figures]
    rows = [row for row in rows if all(map(_finite, row))]
    outline = [(step, high) for step, _, _, high in rows] + [(step, low) for step, _, low, _ in reversed(rows)]
    band = _trace(folder, outline, 0, fill="toself", fillcolor=folder.colour, opacity=0.16, hoverinfo="skip")
    marker = {"symbol": SYMBOLS[folder.number % len(SYMBOLS)], "size": 7, "color": folder.colour}
    middle = _trace(folder, [row[:2] for row in rows], mode="lines+markers", marker=marker, hovertemplate="%{y:.4g}")
    return [band, middle] if rows else []


def _trace(folder: Folder, points: Points, width: float = 2.25, **more: Any) -> dict[str, Any]:
    """A line of plotly's; names are escaped because plotly reads markup in them."""
    line = {"color": folder.colour, "dash": folder.dash, "width": width}
    x, y = [x for x, _ in points], [y for _, y in points]
    return {"type": "scatter", "mode": "lines", "name": escape(folder.name), "x": x, "y": y, "line": line, "showlegend": False, **more}


def _figure(title: str, unit: str, traces: list[dict[str, Any]], **y: Any) -> list[dict[str, Any]]:
    """A figure of plotly's, if there is anything to draw; the page adds its own font and colours, by day and by night."""
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": unit}, **y}}
    return [{"title": title, "plot": {"data": traces, "layout": layout}}] if traces else []


def _prompts(folders: list[Folder]) -> list[dict[str, Any]]:
    """Each evaluation's prompts with what was first and last written to them; the same text of many runs is one card."""
    written: dict[str, dict[str, list[dict[int, str]]]] = defaultdict(lambda: defaultdict(lambda: [{} for _ in folders]))
    for folder in folders:
        for row in folder.samples:
            written[row["evaluation"]][row["prompt"]][folder.number].setdefault(row["step"], row["completion"])
    shown = {name: list(prompts.items())[:SHOWN_PROMPTS] for name, prompts in written.items()}
    return [{"name": name, "count": len(written[name]), "prompts": [(prompt, _cards(by_run, folders)) for prompt, by_run in prompts]}
            for name, prompts in shown.items()]  # fmt: skip


def _cards(by_run: list[dict[int, str]], folders: list[Folder]) -> list[tuple[int, str, list[Folder]]]:
    """The first and the last completion of each run, the earlier steps first."""
    cards: dict[tuple[int, str], list[Folder]] = defaultdict(list)
    for folder, by_step in zip(folders, by_run, strict=True):
        for step in sorted({min(by_step), max(by_step)} if by_step else ()):
            cards[step, by_step[step]].append(folder)
    return sorted(((step, text, who) for (step, text), who in cards.items()), key=lambda card: card[0])
