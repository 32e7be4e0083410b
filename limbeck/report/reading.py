"""The files of run folders, of pipelines and of evaluations, whichever there are; what is not there, or cannot be read, is named."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from limbeck.config import read_yaml
from limbeck.errors import CheckpointError
from limbeck.files import read_json, read_jsonl
from limbeck.report import blocks

Figures = dict[str, Any]
FILES = {
    "recipe.yaml": "what the run was told",
    "provenance.json": "what it is made of",
    "metrics.jsonl": "how training went",
    "timings.jsonl": "how fast it was",
    "evaluations.json": "the figures before and after",
    "samples.jsonl": "what the student writes",
}
EVALUATION, PIPELINE = "evaluation.json", "pipeline.yaml"
LISTS = ("missing", "differences", "gaps", "samples", "advice")
"""Parts of an evaluation that are lists; the others are mappings."""


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
    pipeline: str = ""  # whose stage it is
    baselines: "list[Folder]" = field(default_factory=list)

    @property
    def objective(self) -> str:
        """The kind of its objective."""
        return _kind(self.settings.get("objective"))

    @property
    def steps(self) -> list[Figures]:
        """The lines of metrics that are of training."""
        return [row for row in self.metrics if "loss_nats" in row]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(row["seconds"] for row in self.timings if blocks.finite(row.get("seconds")))

    @property
    def described(self) -> str:
        """The method and how far it is, in one line."""
        parts = [self.objective, _kind(self.settings.get("source")), _kind(self.settings.get("teacher"))]
        done, asked = self.steps[-1].get("step", 0) if self.steps else 0, self.settings.get("steps")
        steps = f"{blocks.number(done)} steps" if asked in (None, done) else f"{blocks.number(done)} of {blocks.number(asked)} steps"
        took = f" in {timedelta(seconds=round(self.seconds))}" if self.timings else ""
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
        return blocks.better(key)


@dataclass
class Evaluation:
    """What one evaluation.json says. missing: what the evaluation, or this reader of it, did without."""

    name: str
    found: dict[str, Any]
    missing: list[str]

    def part(self, key: str) -> Any:
        """A part of it; empty where it is not there, or is neither the list nor the mapping that it should be."""
        kind = list if key in LISTS else dict
        found = self.found.get(key)
        return found if isinstance(found, kind) else kind()


@dataclass
class Opened:
    """All that the page is about. missing: what belongs to no run, with the name of what lacks it."""

    folders: list[Folder] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def opened(paths: Sequence[Path]) -> Opened:
    """Read run folders, pipelines' folders (their stages) and evaluations' folders. Raises CheckpointError for a folder that is none."""
    whole = {path.resolve(): path for path in paths}  # a run shows the evaluation in it, and each is shown once
    kept = [path for real, path in whole.items() if not (real.name == "evaluation" and real.parent in whole)]
    found, short = Opened(), [(real.parent if (real := path.resolve()).name == "evaluation" else real).name for path in kept]
    for path, name in zip(kept, short, strict=True):
        named = name if short.count(name) == 1 else str(path)
        if (path / PIPELINE).is_file():
            _stages(path, named, found)
        elif (path / EVALUATION).is_file() and not _is_run(path):
            found.evaluations.append(evaluation(path, named))
        else:
            _run(path, named, found)
    return found


def _is_run(path: Path) -> bool:
    return any((path / file).is_file() for file in FILES)


def _run(path: Path, name: str, found: Opened, pipeline: str = "") -> None:
    """A run, its baselines and its evaluation."""
    folder = read(path, name, len(found.folders))
    folder.pipeline = pipeline
    found.folders.append(folder)
    below = sorted(each for each in path.glob("baselines/*") if _is_run(each))
    folder.baselines = [read(each, f"{name}: {each.name}") for each in below]
    _evaluated(path, name, found)


def _evaluated(path: Path, name: str, found: Opened) -> None:
    if (path / "evaluation" / EVALUATION).is_file():
        found.evaluations.append(evaluation(path / "evaluation", name))
    elif (path / "evaluation" / "settings.json").is_file():
        found.missing.append(f"{name}: the evaluation is still going on, or was stopped; the same limbeck evaluate goes on with it")


def _stages(path: Path, name: str, found: Opened) -> None:
    """The stages that have begun, in their order; the others are named."""
    try:
        asked = list(read_yaml(path / PIPELINE).get("stages") or {})
    except ValueError:
        asked = []
        found.missing.append(f"{name}: {PIPELINE} cannot be read (the order of its stages)")
    others = sorted(each.name for each in path.iterdir() if each.is_dir() and each.name not in asked and _is_run(each))
    begun = [stage for stage in [*asked, *others] if _is_run(path / stage)]
    for stage in begun:
        _run(path / stage, f"{name}/{stage}", found, name)
    found.missing += [f"{name}: stage {stage} has not begun" for stage in asked if stage not in begun]
    _evaluated(path, name, found)


def evaluation(path: Path, name: str) -> Evaluation:
    """What an evaluation found; a file that cannot be read is an evaluation that lacks everything."""
    try:
        found = read_json(path / EVALUATION)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return Evaluation(name, {}, [f"{EVALUATION} cannot be read: give the same limbeck evaluate again, which writes it anew"])
    made = Evaluation(name, found, [])
    made.missing += [str(each) for each in made.part("missing")]
    return made


def read(path: Path, name: str, number: int = 0) -> Folder:
    """Read the files of a run, whichever there are. Raises CheckpointError for a folder that holds none of them."""
    if not _is_run(path):
        found = "a folder without any of them" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise CheckpointError(
            f"{path} is no run folder (one with {', '.join(FILES)}): found {found}; give the --out of a distillation or of an evaluation"
        )
    missing: list[str] = []
    asked = dict(_contents(path, missing))
    evaluations = {int(step): named for step, named in asked["evaluations.json"].items() if step.isdecimal() and isinstance(named, dict)}
    recipe = (path / "recipe.yaml").read_text(encoding="utf-8") if asked["recipe.yaml"] else ""
    settings, provenance, finished = asked["recipe.yaml"], asked["provenance.json"], (path / "student").is_dir()
    metrics, timings, samples = (asked[f"{log}.jsonl"] for log in ("metrics", "timings", "samples"))
    return Folder(name, number, recipe, settings, provenance, metrics, timings, samples, evaluations, finished, missing)


READERS: dict[str, tuple[Callable[[Path], Any], type[Any]]] = {
    ".yaml": (read_yaml, dict),
    ".json": (read_json, dict),
    ".jsonl": (read_jsonl, list),
}


def _contents(path: Path, missing: list[str]) -> Iterator[tuple[str, Any]]:
    """Each file of a run with what it holds, or with nothing and a line about what is missing."""
    for file, about in FILES.items():
        reader, kind = READERS[Path(file).suffix]
        problem, found = "is not there", kind()
        if (path / file).is_file():
            try:
                found, problem = reader(path / file), "is empty"
            except ValueError:
                problem = "cannot be read"
        if not isinstance(found, kind) or (kind is list and not all(isinstance(row, dict) for row in found)):
            found, problem = kind(), problem if found is None else "cannot be read"
        if not found:
            missing.append(f"{file} {problem} ({about})")
        yield file, found


def _kind(part: Any) -> str:
    """The name of a part of a recipe; of a sum, those of its terms."""
    if not isinstance(part, dict):
        return str(part or "")
    return " + ".join(map(_kind, part["terms"])) if "terms" in part else str(part.get("type", ""))
