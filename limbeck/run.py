"""A run is a folder: what it was told, what it is made of, how it went, where it stands.

recipe.yaml · provenance.json · metrics.jsonl (no clocks in it) · timings.jsonl · samples.jsonl · checkpoints/ · student/
· evaluations.json. The same recipe and seed write the same metrics on the same machine, also when resumed in between.
"""

import fcntl
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from limbeck import checkpoint, distributed, nodes, storage
from limbeck.batch import Batch
from limbeck.config import read_yaml, to_yaml
from limbeck.errors import CheckpointError, DataError, LimbeckError, Stopped, is_out_of_memory
from limbeck.files import append_jsonl, new_folder, read_json, read_jsonl, sweep, sync, write_json, write_jsonl, write_text
from limbeck.interrupt import Interrupted, Interrupts
from limbeck.lazy import Tensor
from limbeck.licences import Licence, front_matter, gate, known, plain_licences, section
from limbeck.privacy import shareable
from limbeck.progress import Progress
from limbeck.settings_file import parsed_yaml, yaml_of
from limbeck.sources import settled
from limbeck.tally import Tally
from limbeck.trackers import Trackers

LOGS = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")


class Run:
    """The folder of one run, and where in it we are."""

    def __init__(self, out: Path | str, recipe: Any) -> None:
        self.out, self.recipe = nodes.here(out), recipe
        self.ranks, self.rank = distributed.ranks(), distributed.rank()
        self.leads = self.rank == 0
        """Whether this rank writes the files; all others only know what is in them."""
        self.licences = dict[str, list[Licence]]()
        """Of what it is made of, by role; known to the rank that leads."""
        self.finished = False
        """Whether the student is there already."""
        self.first, self.best = 0, dict[str, float]()
        self.stopped: str | None = None
        self.tokens_per_pass = recipe.tokens_per_pass
        self._tally, self._left_out, self._drawn, self._idle = Tally(recipe.objective), 0, dict[str, float](), False
        self._student: Any = None
        self._source: Any = None
        self._source_state = dict[str, Any]()
        self._evaluations = dict[str, Any]()
        self._saved: int | None = None
        """The step of the newest checkpoint."""
        self._progress: Progress | None = None
        self._interrupts = Interrupts()
        self._claimed = ExitStack()
        self._trackers = Trackers(recipe.trackers if self.leads else [], self.out)
        nodes.befriend(self.out)
        if self.leads:
            see_recipe(self.out, recipe)
            self.licences = licences_of(self.out, recipe)
            self._claim()

    def __enter__(self) -> Self:
        self._interrupts.__enter__()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Save where we stand if somebody asked us to stop, and let others have the folder."""
        try:
            if isinstance(error, Interrupted):
                raise self._saved_and_left(error.number) from None
            if isinstance(error, BaseException) and is_out_of_memory(error):
                where = f"after {self.first} steps, outside of a pass" if self._student else "while the models were opened"
                raise LimbeckError(f"out of memory {where}; lower sequences or max_tokens, or take smaller models") from error
            if isinstance(error, BaseException) and distributed.is_lost(error):
                raise LimbeckError(f"{self.out}: another process of this job is gone; the same command goes on from what was saved") from error
        finally:
            self._interrupts.__exit__()
            self._trackers.close()
            self._claimed.__exit__(*sys.exc_info())

    def _saved_and_left(self, number: int) -> Stopped:
        """Save the weights as the last whole step left them; what to say of it."""
        name, go_on = signal.Signals(number).name, "the same command goes on from there"
        if self._student is None:
            return Stopped(f"{self.out}: stopped by {name} before the first step; {go_on}", number)
        if self.finished:
            return Stopped(f"{self.out}: stopped by {name}; the run is finished", number)
        if self.first != self._saved:
            self.save(self._student)
        return Stopped(f"{self.out}: stopped by {name} after {self.first} of {self.recipe.steps} steps, which are saved; {go_on}", number)

    def _claim(self) -> None:
        """Take the folder for ourselves, and see that it is this recipe's."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = self._claimed.enter_context((self.out / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._claimed.close()
            raise CheckpointError(f"{self.out} is in use by another process; wait for it, or give another --out") from None
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.out} ({error.strerror}); give another --out") from None
        try:
            self._claimed.enter_context(storage.writing(self.out))
            self._write_recipe()
        except LimbeckError:
            self._claimed.close()
            raise

    def _write_recipe(self) -> None:
        see_recipe(self.out, self.recipe)
        sweep(self.out)
        write_text(self.out / "recipe.yaml", shareable(to_yaml(self.recipe)))

    def attach(self, student: Any, source: Any) -> None:
        """Put student and source where the newest checkpoint left them, and cut the logs back to it."""
        if self.ranks > 1:
            self._interrupts.be_patient()
        distributed.wait()  # the leader has the folder
        self._claimed.enter_context(nodes.together(self.out))
        self._saved, self.finished, known = distributed.first_says(self._there())
        if self._saved is not None:
            saved, state = checkpoint.restore(checkpoint.place(self.out / "checkpoints", self._saved))
            student.restore(saved)
            source.restore(state["source"])
            self.first, self.best, self.stopped = state["step"], state["best"], state["stopped"]
            self._evaluations = {step: found for step, found in known.items() if int(step) <= self.first}
        distributed.wait()
        if self.leads:
            self._cut_logs(self._saved is not None)
            self._prune()
        self._student, self._source, self._source_state = student, source, source.state()

    def _there(self) -> tuple[int | None, bool, dict[str, Any]]:
        """What is in the folder: the newest checkpoint's step, whether the student is, the evaluations."""
        known = read_json(self.out / "evaluations.json") if (self.out / "evaluations.json").exists() else {}
        return max(checkpoint.steps(self.out / "checkpoints"), default=None), (self.out / "student").exists(), known

    def _logs(self) -> list[Path]:
        return [self.out / name for name in LOGS if (self.out / name).exists()]

    def _cut_logs(self, resumed: bool) -> None:
        """Leave what the steps so far wrote; an evaluation counts when it has reached evaluations.json, which is written last."""
        for name in LOGS:
            rows = [row for row in read_jsonl(self.out / name) if resumed and row["step"] <= self.first]
            write_jsonl(self.out / name, [row for row in rows if "evaluation" not in row or str(row["step"]) in self._evaluations])
        if (self.out / "evaluations.json").exists():
            write_json(self.out / "evaluations.json", self._evaluations)

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
            "licences": {role: plain_licences(found) for role, found in self.licences.items()},
        }
        if not self.leads:
            return
        write_text(self.out / "provenance.json", shareable(json.dumps(facts, indent=2)) + "\n")
        said = named_teacher(teacher)
        print(f"{self.out.name}: teacher {said}; student {student['model']} in {student['arithmetic']}", file=sys.stderr)

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to be done, shown as they are; ends early when the time is up or nothing gets better."""
        limit, began = self.recipe.time_limit_minutes, time.monotonic()
        start, self._progress = self.first, Progress(self.out.name, total, self.first)
        with self._progress.showing():
            for step in range(start, total):
                late = limit is not None and step > start and time.monotonic() - began > 60 * limit
                distributed.agree()
                if any(distributed.sum_over_ranks([late])):
                    self.stopped = f"the time limit of {limit} minutes, after {step} steps"
                if self.stopped:
                    return
                self._step_began = time.monotonic()
                yield step

    def count(self, batch: Batch) -> int:
        """Completion tokens of a step over all ranks. Raises DataError where there are none."""
        names = sorted({name for names in distributed.gathered(list(batch.figures)) for name in names})
        figures = [value for name in names for value in batch.figures.get(name, (0.0, 0.0))]
        total, left_out, idle, *summed = distributed.sum_over_ranks([len(batch.places_N), batch.left_out, not len(batch), *figures])
        why = f"left out {int(left_out)} rows ({self.recipe.source.leaves_out})"
        if not total:
            raise DataError(f"step {self.first + 1}: nothing to learn from; {why}")
        if left_out and not self._left_out and self.leads:
            print(f"{self.out.name}: step {self.first + 1} {why}; metrics.jsonl counts them", file=sys.stderr)
        if idle and self.ranks > 1 and not self._idle and self.leads:
            todo = f"raise the sequences of a step to {self.ranks} or more, or launch fewer"
            print(f"{self.out.name}: step {self.first + 1} has no rows for {int(idle)} of {self.ranks} processes; {todo}", file=sys.stderr)
        self._left_out, self._idle = self._left_out + int(left_out), self._idle or bool(idle)
        means = {name: value / count for name, value, count in zip(names, summed[::2], summed[1::2], strict=True) if count}
        self._drawn = {**({"left_out": int(left_out)} if left_out else {}), **means}
        return int(total)

    def cut_smaller(self, student: Any, error: BaseException) -> None:
        """Make ready for the same step in passes of half the size. Raises LimbeckError where that was done before, or ranks wait."""
        size = self.tokens_per_pass
        if self.ranks > 1 or size < self.recipe.tokens_per_pass:
            raise LimbeckError(f"out of memory in passes of {size} tokens; lower tokens_per_pass or max_tokens, or checkpoint activations") from error
        self.tokens_per_pass = max(1, size // 2)
        self._tally = Tally(self.recipe.objective)
        student.forget()
        print(f"{self.out.name}: out of memory in passes of {size} tokens; going on with {self.tokens_per_pass}", file=sys.stderr)

    def add(self, nats: dict[str, Tensor], batch: Batch) -> None:
        """Count one pass of the step."""
        self._tally.add(nats, batch)

    @contextmanager
    def undivided(self) -> Generator[None]:
        """Whoever asks us to stop waits for the end of the block: weights and log move together."""
        with self._interrupts.held():
            yield

    def log_step(self, step: int, moved: dict[str, float]) -> None:
        """Write a line of metrics for the step just made, and one of timings; from here on it counts as done."""
        figures = self._tally.figures()
        self._tally = Tally(self.recipe.objective)
        seconds = time.monotonic() - self._step_began
        self.first, self._source_state = step + 1, self._source.state()
        if not self.leads:
            return
        figures |= self._drawn
        append_jsonl(self.out / "metrics.jsonl", {"step": step + 1, **figures, **moved})
        self._trackers.log({**figures, **moved}, step + 1)
        append_jsonl(self.out / "timings.jsonl", {"step": step + 1, "seconds": seconds, "tokens_per_second": figures["tokens"] / seconds})
        if self._progress:
            self._progress.advance(1, int(figures["tokens"]), f"{figures['loss_nats']:.3f} nats")

    def log_evaluation(self, found: dict[str, dict[str, Any]]) -> None:
        """Write what an evaluation found where we stand: figures to metrics and evaluations.json, texts to samples."""
        with self.undivided():
            figures = {name: {k: v for k, v in each.items() if k != "samples"} for name, each in found.items()}
            self._evaluations[str(self.first)] = figures
            self._watch(self.first, found)
            if self.leads:
                self._write_evaluation(found, figures)

    def _write_evaluation(self, found: dict[str, dict[str, Any]], figures: dict[str, dict[str, Any]]) -> None:
        for name, evaluation in found.items():
            append_jsonl(self.out / "metrics.jsonl", {"step": self.first, "evaluation": name, **figures[name]})
            self._trackers.log({f"{name}/{key}": value for key, value in figures[name].items()}, self.first)
            for sample in evaluation.get("samples", []):
                append_jsonl(self.out / "samples.jsonl", {"step": self.first, "evaluation": name, **sample})
        write_json(self.out / "evaluations.json", self._evaluations)  # last: with it the evaluation counts

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

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.stopped is not None or self.first >= self.recipe.steps

    def due(self, what: str) -> bool:
        """Whether it is time to evaluate or save where we stand: before and after all, as often as the recipe says, and not twice."""
        if self.finished:
            return False
        if what == "evaluate":
            every, done = self.recipe.evaluate_every, str(self.first) in self._evaluations
            return not done and (self.first == 0 or self.over or (every is not None and self.first % every == 0))
        every, best = self.recipe.save_every, self.recipe.keep == "best" and self.best.get("step") == self.first
        due = self.over or best or (every is not None and self.first > 0 and self.first % every == 0)
        return due and self.first != self._saved

    def save(self, student: Any) -> None:
        """Write a checkpoint of where we stand and drop those no longer asked for; every rank must call."""
        state = {"step": self.first, "best": self.best, "stopped": self.stopped, "source": settled(self._source_state)}
        folder = self.out / "checkpoints"
        for path in self._logs() if self.leads else ():
            sync(path)  # the checkpoint must not outlive, in a power cut, the lines that it stands for
        checkpoint.save(checkpoint.place(folder, self.first), student.state(), state)
        self._saved = self.first
        if self.leads:
            self._prune()
        checkpoint.let_go(folder)

    def _prune(self) -> None:
        """Drop the checkpoints that are no longer asked for."""
        best = int(self.best["step"]) if self.best and self.recipe.keep == "best" else None
        checkpoint.prune(self.out / "checkpoints", self.recipe.keep_last, best)

    def take_kept(self, student: Any) -> int:
        """Give the student the weights that the recipe keeps, the last or the best; the step they are of."""
        step = int(self.best["step"]) if self.recipe.keep == "best" else self.first
        if step != self.first:
            place = checkpoint.place(self.out / "checkpoints", step)
            nodes.bring(place)
            student.restore(checkpoint.restore(place)[0])
        return step

    def export(self, student: Any) -> None:
        """Write the finished student, of the last or the best checkpoint, as the recipe keeps; every rank must call."""
        step = self.take_kept(student)
        if not self.leads:
            student.save(None)
        else:
            with new_folder(self.out / "student") as folder:
                student.save(folder)
                write_text(folder / "README.md", shareable(model_card(self.recipe, self._evaluations[str(step)], self.licences, student.live.tags)))
        self.finished = True
        distributed.wait()
        nodes.bring(self.out / "student")
        if self.leads:
            self._prune()


def licences_of(out: Path, recipe: Any) -> dict[str, list[Licence]]:
    """The licences of what a run is made of, by role: as its folder has them since it began, else as they are found now.

    The student's base is recorded, and stops nothing: to train on top of a model is not to train on what it says. Raises
    RecipeError for what else does not permit training and is not accepted.
    """
    found = known(out / "provenance.json") or recipe.licences
    gate([each for role in found if role != "student" for each in found[role]], recipe.accept_license)
    return found


def model_card(recipe: Any, figures: dict[str, Any], licences: dict[str, list[Licence]], tags: dict[str, str]) -> str:
    """What a reader of the student's folder should know, in the hub's format; the student comes under all that it was made of."""
    found = list(dict.fromkeys(each for several in licences.values() for each in several))
    rows = [f"| {name} | {key} | {value:.4g} |" for name, found in figures.items() for key, value in found.items() if isinstance(value, float)]
    table = "\n".join(["| evaluation | figure | value |", "|---|---|---|", *rows]) if rows else "None was asked for."
    head, made = (
        yaml_of(tags | {"tags": ["distillation", "limbeck"]} | front_matter(found)).rstrip(),
        f"## How it was made\n\n```yaml\n{to_yaml(recipe).rstrip()}\n```",
    )
    return f"---\n{head}\n---\n# A distilled student\n\n{made}\n\n## Evaluation\n\n{table}\n\n{section(found)}"


def named_teacher(teacher: dict[str, Any] | str) -> str:
    """A teacher in a few words; of several, each."""
    if isinstance(teacher, str):
        return teacher
    if "model" in teacher:
        return f"{teacher['model']} in {teacher['arithmetic']}" + (f", {teacher['kept']} kept" if "kept" in teacher else "")
    return " + ".join(named_teacher(each) for each in teacher.values())


def see_recipe(out: Path, recipe: Any, file: str = "recipe.yaml") -> None:
    """See that a folder holds no run of another recipe. Raises CheckpointError with the first setting that differs."""
    known = out / file
    if known.exists() and (found := _difference(read_yaml(known), parsed_yaml(shareable(to_yaml(recipe))))):
        raise CheckpointError(f"{out} holds a run of another recipe ({found}); give another --out, or remove it")


def _difference(known: Any, asked: Any, path: str = "") -> str:
    """The first setting in which two recipes differ, in words; empty where none does."""
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in [*known, *(key for key in asked if key not in known)]:
            if found := _difference(known.get(key), asked.get(key), f"{path}.{key}".lstrip(".")):
                return found
        return ""
    return "" if known == asked else f"{path} is {known!r} there, {asked!r} here"
