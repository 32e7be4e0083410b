"""The page: one HTML file of the content, and nothing else."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import CheckpointError
from limbeck.files import write_text
from limbeck.report.blocks import between, colour, dash, number
from limbeck.report.content import content
from limbeck.report.reading import opened
from limbeck.storage import here

if TYPE_CHECKING:
    from jinja2 import Template

ASSETS = Path(__file__).parent.parent / "assets" / "report"


def report(
    runs: Sequence[Path], out: Path, table: dict[str, Any] | None = None, title: str = "Distillation report", data: Path | None = None
) -> Path:
    """Write a page about `runs` to the file `out`, or to report.html in the folder `out`, and return where it lies.

    runs: folders of runs (with the evaluation and the baselines in them), of pipelines, or of evaluations alone. table: a comparison of the
    caller's own that stands first: `columns`, `rows`, and maybe `samples` (each a `prompt` and `completions` by who wrote them) and a
    `note`. data: also write the page's content there, as JSON. Raises CheckpointError for a folder that is none of these.
    """
    if not runs and table is None:
        raise CheckpointError("a report of no runs was asked for; give at least one run folder, as distill wrote it")
    found = content(opened([here(run) for run in runs]), table, title)
    place = here(out)
    target = place / "report.html" if place.is_dir() else place
    page = html(found)
    if data is not None:
        write_text(here(data), json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(target, page)
    return target


def html(found: dict[str, Any]) -> str:
    """Fill the template; everything is escaped but plotly's own script, which stands in a page that draws."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    drawn = any(block["kind"] == "figures" for section in found["sections"] for block in section["blocks"])
    return _template().render(**found, plotly=Markup(get_plotlyjs()) if drawn else "")


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, between=between, colour=colour, dash=dash)
    return environment.get_template("page.html.j2")
