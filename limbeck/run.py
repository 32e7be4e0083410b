"""A run is a folder: what it was told, what it is made of, how it went, where it stands.

recipe.yaml · provenance.json · metrics.jsonl (no clocks in it) · timings.jsonl · samples.jsonl · checkpoints/ · student/
· evaluations.json. The same recipe and seed write the same metrics on the same machine, also when resumed in between.
"""

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from limbeck import checkpoint, distributed
from limbeck.batch import Batch
from limbeck.config import plain, read_yaml, to_yaml
from limbeck.errors import CheckpointError
from limbeck.files import append_jsonl, new_folder, read_json, read_jsonl, write_json, write_jsonl, write_text
from limbeck.lazy import Tensor
from limbeck.objective import Objective, counted
from limbeck.progress import Progress
from limbeck.trackers import Trackers

LOGS = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")


class Tally:
    """Sums of nats and counts of rows, by term: summed first, divided once."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums = {term.name: 0.0 for term in objective.terms}
        self.rows = {term.name: 0.0 for term in objective.terms}
        self.tokens = 0.0

    def add(self, nats: dict[str, Tensor], batch: Batch) -> None:
        """Count one pass: nats [N] by term."""
        self.tokens += len(batch.places_N)
        for term in self.objective.terms:
            rows_N = counted(term, batch).double()
            self.sums[term.name] += float(nats[term.name].double() @ rows_N)
            self.rows[term.name] += float(rows_N.sum())

    def figures(self) -> dict[str, float]:
        """Mean nats by term, the objective's value and the count of tokens, over all ranks."""
        names = list(self.sums)
        totals = distributed.sum_over_ranks([self.tokens, *(self.sums[n] for n in names), *(self.rows[n] for n in names)])
        tokens, sums, rows = totals[0], totals[1 : 1 + len(names)], totals[1 + len(names) :]
        loss = sum(term.weight * total for term, total in zip(self.objective.terms, sums, strict=True)) / max(1.0, tokens)
        means = {f"nats/{name}": total / count for name, total, count in zip(names, sums, rows, strict=True) if count}
        return {"loss_nats": loss, **means, "tokens": int(tokens)}


class Run:
    """The folder of one run, and where in it we are."""

    def __init__(self, out: Path | str, recipe: Any) -> None:
        self.out, self.recipe = Path(out), recipe
        self.ranks, self.rank = distributed.ranks(), distributed.rank()
        self.first, self.best = 0, dict[str, float]()
        self.stopped: str | None = None
        self._tally, self._source = Tally(recipe.objective), None
        self._progress: Progress | None = None
        self._trackers = Trackers(recipe.trackers, self.out)
        self._claim()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Let others have the folder."""
        self._trackers.close()
        self._lock.close()

    def _claim(self) -> None:
        """Take the folder for ourselves, and see that it is this recipe's."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = (self.out / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise CheckpointError(f"{self.out} is in use by another process; wait for it, or give another --out") from None
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.out} ({error.strerror}); give another --out") from None
        known = self.out / "recipe.yaml"
        if known.exists() and (found := _difference(read_yaml(known), plain(self.recipe))):
            self._lock.close()
            raise CheckpointError(f"{self.out} holds a run of another recipe ({found}); give another --out, or remove it")
        write_text(known, to_yaml(self.recipe))

    def attach(self, student: Any, source: Any) -> None:
        """Put student and source where the newest checkpoint left them, and cut the logs back to it."""
        self._source = source
        places = checkpoint.steps(self.out / "checkpoints")
        if places:
            tensors, state = checkpoint.restore(checkpoint.place(self.out / "checkpoints", places[-1]))
            student.restore(tensors)
            source.restore(state["source"])
            self.first, self.best, self.stopped = state["step"], state["best"], state["stopped"]
        for name in LOGS:
            rows = [row for row in read_jsonl(self.out / name) if places and row["step"] <= self.first]
            write_jsonl(self.out / name, rows)
        if (known := self.out / "evaluations.json").exists():
            write_json(known, {step: found for step, found in read_json(known).items() if places and int(step) <= self.first})

    def provenance(self, student: dict[str, Any], teacher: dict[str, Any] | str) -> None:
        """Write what this run is made of, and say the main of it."""
        packages = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "peft")
        facts = {
            "limbeck": version("limbeck"),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "machine": {"system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(), "ranks": self.ranks},
            "seed": self.recipe.seed,
            "student": student,
            "teacher": teacher,
        }
        write_text(self.out / "provenance.json", json.dumps(facts, indent=2).replace(str(Path.home()), "~") + "\n")
        said = teacher if isinstance(teacher, str) else f"{teacher['model']} in {teacher['arithmetic']}"
        print(f"{self.out.name}: teacher {said}; student {student['model']} in {student['arithmetic']}", file=sys.stderr)

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to be done, shown as they are; ends early when the time is up or nothing gets better."""
        limit, began = self.recipe.time_limit_minutes, time.monotonic()
        start, self._progress = self.first, Progress(self.out.name, total, self.first)
        with self._progress.showing():
            for step in range(start, total):
                if limit is not None and step > start and time.monotonic() - began > 60 * limit:
                    self.stopped = f"the time limit of {limit} minutes, after {step} steps"
                if self.stopped:
                    return
                self._step_began = time.monotonic()
                yield step
                self.first = step + 1

    def sum(self, count: int) -> float:
        """A count over all ranks."""
        return distributed.sum_over_ranks([float(count)])[0]

    def add(self, nats: dict[str, Tensor], batch: Batch) -> None:
        """Count one pass of the step."""
        self._tally.add(nats, batch)

    def log_step(self, step: int, moved: dict[str, float]) -> None:
        """Write a line of metrics for the step just made, and one of timings."""
        figures = self._tally.figures()
        self._tally = Tally(self.recipe.objective)
        seconds = time.monotonic() - self._step_began
        append_jsonl(self.out / "metrics.jsonl", {"step": step + 1, **figures, **moved})
        self._trackers.log({**figures, **moved}, step + 1)
        append_jsonl(self.out / "timings.jsonl", {"step": step + 1, "seconds": seconds, "tokens_per_second": figures["tokens"] / seconds})
        if self._progress:
            self._progress.advance(1, int(figures["tokens"]), f"{figures['loss_nats']:.3f} nats")

    def log_evaluation(self, step: int, found: dict[str, dict[str, Any]]) -> None:
        """Write what an evaluation found after `step` steps: figures to metrics and evaluations.json, texts to samples."""
        for name, evaluation in found.items():
            samples = evaluation.get("samples", [])
            figures = {key: value for key, value in evaluation.items() if key != "samples"}
            append_jsonl(self.out / "metrics.jsonl", {"step": step, "evaluation": name, **figures})
            self._trackers.log({f"{name}/{key}": value for key, value in figures.items()}, step)
            for sample in samples:
                append_jsonl(self.out / "samples.jsonl", {"step": step, "evaluation": name, **sample})
        known = read_json(self.out / "evaluations.json") if (self.out / "evaluations.json").exists() else {}
        known[str(step)] = {n: {k: v for k, v in e.items() if k != "samples"} for n, e in found.items()}
        write_json(self.out / "evaluations.json", known)
        self._watch(step, found)

    def _watch(self, step: int, found: dict[str, dict[str, Any]]) -> None:
        """Remember the best evaluation; stop after `early_stop` that were no better."""
        value = next((float(e[key]) for e in found.values() for key in ("kl_nats", "ce_nats") if key in e), None)
        if value is None:
            return
        if not self.best or value < self.best["value"]:
            self.best = {"value": value, "step": step, "worse": 0}
        else:
            self.best["worse"] += 1
        if self.recipe.early_stop is not None and self.best["worse"] >= self.recipe.early_stop:
            self.stopped = f"{self.recipe.early_stop} evaluations without a better one, after {step} steps"

    def due(self, what: str, done: int) -> bool:
        """Whether it is time to evaluate or save after `done` steps; the end has its own."""
        if what == "save" and self.recipe.keep == "best" and self.best.get("step") == done:
            return True
        every = {"evaluate": self.recipe.evaluate_every, "save": self.recipe.save_every}[what]
        return every is not None and done % every == 0 and 0 < done < self.recipe.steps

    def save(self, done: int, student: Any) -> None:
        """Write a checkpoint after `done` steps and drop those no longer asked for."""
        state = {"step": done, "best": self.best, "stopped": self.stopped, "source": self._source.state() if self._source else {}}
        folder = self.out / "checkpoints"
        checkpoint.save(checkpoint.place(folder, done), student.state(), state)
        best = int(self.best["step"]) if self.best and self.recipe.keep == "best" else None
        checkpoint.prune(folder, self.recipe.keep_last, best)

    def evaluated(self, done: int) -> bool:
        """Whether there are figures after `done` steps."""
        file = self.out / "evaluations.json"
        return file.exists() and str(done) in read_json(file)

    @property
    def finished(self) -> bool:
        """Whether the student is there already."""
        return (self.out / "student").exists()

    def take_kept(self, student: Any) -> int:
        """Give the student the weights that the recipe keeps, the last or the best; the step they are of."""
        step = int(self.best["step"]) if self.recipe.keep == "best" else self.first
        if step != self.first:
            student.restore(checkpoint.restore(checkpoint.place(self.out / "checkpoints", step))[0])
        return step

    def export(self, student: Any) -> None:
        """Write the finished student, of the last or the best checkpoint, as the recipe keeps."""
        step = self.take_kept(student)
        with new_folder(self.out / "student") as folder:
            student.save(folder)
            write_text(folder / "README.md", model_card(self.recipe, read_json(self.out / "evaluations.json")[str(step)]))


def model_card(recipe: Any, figures: dict[str, Any]) -> str:
    """What a reader of the student's folder should know, in the hub's format."""
    rows = [f"| {name} | {key} | {value:.4g} |" for name, found in figures.items() for key, value in found.items() if isinstance(value, float)]
    table = "\n".join(["| evaluation | figure | value |", "|---|---|---|", *rows]) if rows else "None was asked for."
    tags = "library_name: transformers\npipeline_tag: text-generation\ntags: [distillation, limbeck]"
    recipe_yaml = to_yaml(recipe).rstrip()
    return f"---\n{tags}\n---\n# A distilled student\n\n## How it was made\n\n```yaml\n{recipe_yaml}\n```\n\n## Evaluation\n\n{table}\n"


def _difference(known: Any, asked: Any, path: str = "") -> str:
    """The first setting in which two recipes differ, in words; empty where none does."""
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in [*known, *(key for key in asked if key not in known)]:
            if found := _difference(known.get(key), asked.get(key), f"{path}.{key}".lstrip(".")):
                return found
        return ""
    return "" if known == asked else f"{path} is {known!r} there, {asked!r} here"
