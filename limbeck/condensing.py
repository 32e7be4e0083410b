"""Dataset distillation: here the data move, not the student. An outer loop of its own, and its product is a corpus.

A folder holds `recipe.yaml`, `provenance.json`, `metrics.jsonl`, `checkpoints/`, and in the end `corpus.jsonl` or `corpus.safetensors`
with `card.json` and `README.md`. The same settings and seed write the same product, also when killed and resumed in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from limbeck import checkpoint, herding, soft_prompts  # noqa: F401  # a part is known by name once its file is read
from limbeck.config import Part, build, build_file, override, part, plain, to_yaml
from limbeck.data import Data
from limbeck.errors import CheckpointError, RecipeError, Stopped
from limbeck.files import append_jsonl, claimed, read_jsonl, sweep, sync, write_json, write_jsonl, write_text
from limbeck.interrupt import Interrupted, Interrupts
from limbeck.licences import Licence, front_matter, gate, known, plain_licences, section
from limbeck.matching import Condenser, Product
from limbeck.privacy import shareable
from limbeck.progress import Progress
from limbeck.run import see_recipe
from limbeck.settings_file import yaml_of
from limbeck.storage import here


@part
class Condense(Part):
    """What is to be made small, and how.

    data: labelled examples in JSONL or safetensors for the ways that match (`GradientMatching`, `TrajectoryMatching`,
    `DistributionMatching`), text for `Herding` and `SoftPrompts`. save_every: in steps. accept_license: by name, as in a recipe.
    """

    data: Data
    method: Condenser
    seed: int = 0
    save_every: int = 50
    accept_license: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise RecipeError(f"seed must lie between 0 and 2^31, found {self.seed}")
        if self.save_every < 1:
            raise RecipeError(f"save_every must be at least 1, found {self.save_every}")
        if self.data.streaming:
            raise RecipeError("data are made small by looking at all of them at once; leave streaming out")

    @property
    def licences(self) -> dict[str, list[Licence]]:
        """Of what the product comes from, by role."""
        return {"data": self.data.licences, **({"model": found} if (found := self.method.licences) else {})}


def asked_for(what: str, method: str | None = None, given: dict[str, Any] | None = None, settings: list[str] | None = None) -> Condense:
    """What a command line asks for: a YAML file, or data and a method by its name or call.

    given: settings of the method. settings: `KEY=VALUE` of the whole. Where no method is named, text that comes with a model is chosen from,
    and labelled examples are matched by their distributions.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if Path(what).suffix in (".yaml", ".yml"):
        if method or given:
            raise RecipeError(f"{what} says the method and its settings; change them with --set, such as --set method.steps=10")
        return build(override(plain(build_file(Path(what), Condense)), settings or []), Condense)
    method = method or ("Herding" if "model" in given else "DistributionMatching")
    spelled = {"type": method} if method.isidentifier() else plain(build(method, Condenser))
    return build(override({"data": what, "method": {**spelled, **given}}, settings or []), Condense)


def condense(asked: Condense, out: Path | str) -> Product:
    """Make data small, from where `out` stopped; the product lies in it.

    Raises LimbeckError, in one line, for what is the user's to mend; Stopped where SIGINT or SIGTERM asked for the end, after saving.
    """
    out = here(out)
    see_recipe(out, asked)
    licences = known(out / "provenance.json") or asked.licences
    gate([each for found in licences.values() for each in found], asked.accept_license)
    with claimed(out), Interrupts(patient=False) as interrupts:
        see_recipe(out, asked)
        sweep(out)
        work = _Work(asked, out, licences, interrupts)
        with work.saved_when_stopped():
            for step in work.left():
                work.take(step)
            return work.finish()


class _Work:
    """One condensation: the live method, and how far it is."""

    def __init__(self, asked: Condense, out: Path, licences: dict[str, list[Licence]], interrupts: Interrupts) -> None:
        self.asked, self.out, self.licences, self.interrupts = asked, out, licences, interrupts
        self.done, self.figures = 0, dict[str, float]()
        self.live: Condenser | None = None

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Save the last whole step if somebody asked us to stop."""
        try:
            yield
        except Interrupted as stop:
            if self.live is not None and self.done not in checkpoint.steps(self._checkpoints):
                self._save()
            said = f"{self.out}: stopped after {self.done} of {self.asked.method.total_steps} steps, which are saved; the same command goes on"
            raise Stopped(said, stop.number) from None

    @property
    def _checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def left(self) -> Iterator[int]:
        """Load, go back to the newest checkpoint, and give the steps that are still to be taken."""
        write_text(self.out / "recipe.yaml", shareable(to_yaml(self.asked)))
        live = self.asked.method.load(self.asked.data, self.asked.seed, self.out)
        places = checkpoint.steps(self._checkpoints)
        if places:
            tensors, state = checkpoint.restore(checkpoint.place(self._checkpoints, places[-1]))
            if state["data"] != live.fingerprint:
                raise CheckpointError(f"{self.asked.data.path} has changed since {self.out} was begun; give another --out, or put it back")
            live.restore(tensors.whole())
            self.done, self.figures = state["step"], state["figures"]
        self.live = live
        log = self.out / "metrics.jsonl"
        write_jsonl(log, [row for row in read_jsonl(log) if row["step"] <= self.done])
        facts = {"limbeck": version("limbeck"), "packages": {"torch": version("torch")}, "seed": self.asked.seed, "data": live.fingerprint}
        write_json(self.out / "provenance.json", {**facts, "licences": {role: plain_licences(each) for role, each in self.licences.items()}})
        with Progress(self.out.name, live.total_steps, self.done).showing() as progress:
            for step in range(self.done, live.total_steps):
                yield step
                progress.advance(note="  ".join(f"{name} {value:.4g}" for name, value in self.figures.items()))

    def take(self, step: int) -> None:
        """One step, its line in the log, and a checkpoint where it is time."""
        assert self.live is not None
        with self.interrupts.held():
            self.figures = self.live.step(step)
            append_jsonl(self.out / "metrics.jsonl", {"step": step + 1, **self.figures})
            self.done = step + 1
            if self.done % self.asked.save_every == 0 or self.done == self.live.total_steps:
                self._save()

    def _save(self) -> None:
        assert self.live is not None
        if (log := self.out / "metrics.jsonl").exists():
            sync(log)  # the checkpoint must not outlive, in a power cut, the lines that it stands for
        state = {"step": self.done, "data": self.live.fingerprint, "figures": self.figures}
        checkpoint.save(checkpoint.place(self._checkpoints, self.done), self.live.state(), state)
        checkpoint.prune(self._checkpoints, 1, None)

    def finish(self) -> Product:
        """Write the product and its cards."""
        assert self.live is not None
        product = self.live.write(self.out)
        found = [each for several in self.licences.values() for each in several]
        told = {"file": product.file.name, "rows": product.rows, **product.figures, "steps": self.done, "last_step": self.figures}
        made_by = plain(self.asked)
        write_json(self.out / "card.json", {**told, "made_by": made_by, "licences": plain_licences(found)})
        write_text(self.out / "README.md", shareable(_page(told, made_by, found)))
        return product


def _page(told: dict[str, Any], made_by: dict[str, Any], found: list[Licence]) -> str:
    head = yaml_of({**front_matter(found), "tags": ["dataset-distillation", "limbeck"]}).rstrip()
    rows = [f"| {name} | {_shown(value)} |" for name, value in told.items()]
    table = "\n".join(["| what | |", "| --- | --- |", *rows])
    return (
        f"---\n{head}\n---\n# A corpus made small\n\n{table}\n\n## How it was made\n\n```yaml\n{yaml_of(made_by).rstrip()}\n```\n\n{section(found)}\n"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
