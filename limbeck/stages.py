"""The run of a pipeline: one run folder after the other, below one folder that knows what it is and what came of it.

OUT/pipeline.yaml (resolved) · OUT/STAGE/ (a run folder each) · OUT/summary.json (what each stage ended with).
"""

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from limbeck import checkpoint, distributed, nodes, storage
from limbeck.errors import CheckpointError, LimbeckError
from limbeck.files import claimed, read_json, read_jsonl, write_json, write_text
from limbeck.licences import gate, known
from limbeck.pipeline import Pipeline, Plan
from limbeck.privacy import shareable
from limbeck.recipe import Recipe
from limbeck.run import see_recipe
from limbeck.student import Student

RESOLVED, SUMMARY = "pipeline.yaml", "summary.json"


def distill_stages(pipeline: Pipeline, out: Path | str) -> Student:
    """Run the stages in their order, from where `out` stopped; the student of the last one.

    Finished stages are not opened again. Raises LimbeckError, in one line, for whatever is the user's to mend: what no stage may
    learn from is told before the first begins.
    """
    from limbeck.train import distill

    out = nodes.here(out)
    leads = distributed.rank() == 0
    nodes.befriend(out)
    with claimed(out) if leads else nullcontext():
        if leads:
            begin(pipeline, out)
        distributed.wait()
        with nodes.together(out):
            for name in list(pipeline.stages)[:-1]:
                recipe = pipeline.recipe(name, out)
                if not distributed.first_says(leads and finished(out / name, recipe)):
                    distill(recipe, out / name)
                gc.collect()  # models refer to themselves; their memory is wanted for the next
            student = distill(pipeline.recipe(pipeline.last, out), out / pipeline.last)
        if leads:
            write_json(out / SUMMARY, {"stages": {name: ended(out / name) for name in pipeline.stages}})
    return student


def begin(pipeline: Pipeline, out: Path) -> None:
    """See that the folder is this pipeline's and that every stage may learn from what it asks for, and write down what it is."""
    see_folder(pipeline, out)
    for name in pipeline.stages:
        see_licences(pipeline, name, out)
    write_text(out / RESOLVED, shareable(pipeline.yaml))


def see_folder(pipeline: Pipeline, out: Path) -> None:
    """See that a folder holds no other pipeline, and no run of a recipe. Raises CheckpointError."""
    if (out / "recipe.yaml").exists():
        raise CheckpointError(f"{out} holds the run of one recipe, and stages need a folder of their own; give another --out")
    see_recipe(out, pipeline, RESOLVED)


def see_licences(pipeline: Pipeline, name: str, out: Path) -> None:
    """See that a stage may learn from all it will be made of, also from what earlier stages are. Raises RecipeError."""
    found = known(out / name / "provenance.json") or pipeline.licences(name)
    try:
        gate([each for role in found if role != "student" for each in found[role]], pipeline.stages[name].accept_license)
    except LimbeckError as error:
        raise error.told_at(f'stage "{name}"') from None


def finished(out: Path, recipe: Recipe) -> bool:
    """Whether a run is at its end; a folder of another recipe is refused."""
    see_recipe(out, recipe)
    return (out / "student").exists()


def carry_out(plan: Plan, out: Path) -> Path:
    """Run what a file asks for, unless it is finished; the folder of the run whose student is the product."""
    from limbeck.train import distill

    out = nodes.here(out)
    if distributed.first_says(distributed.rank() == 0 and _is_done(plan, out)):
        if distributed.rank() == 0:
            storage.settle(out)
    elif isinstance(plan, Pipeline):
        distill_stages(plan, out)
    else:
        distill(plan, out)
    return product(plan, out)


def _is_done(plan: Plan, out: Path) -> bool:
    """Whether all is there already; a folder of anything else is refused."""
    if isinstance(plan, Pipeline):
        see_folder(plan, out)
        return (out / SUMMARY).exists()
    return finished(out, plan)


def product(plan: Plan, out: Path) -> Path:
    """The folder of the run whose student is the product."""
    return out / plan.last if isinstance(plan, Pipeline) else out


def ended(out: Path) -> dict[str, Any]:
    """What a finished run came to, by its files.

    steps: that were made. loss_nats: the mean of the last tenth of them. evaluations: of the weights that were kept, figures by
    name. stopped: why before the last step, where it was.
    """
    losses = [row["loss_nats"] for row in read_jsonl(out / "metrics.jsonl") if "evaluation" not in row]
    last = losses[-max(1, len(losses) // 10) :]
    state = _newest(out)
    evaluations = read_json(out / "evaluations.json") if (out / "evaluations.json").exists() else {}
    found = {"steps": len(losses), "loss_nats": sum(last) / len(last) if last else None, "student": f"{out.name}/student"}
    kept = str(state["best"]["step"] if state.get("keeps_best") else state.get("step", len(losses)))
    return {**found, "evaluations": evaluations.get(kept, {}), **({"stopped": state["stopped"]} if state.get("stopped") else {})}


def _newest(out: Path) -> dict[str, Any]:
    """The state of a run's newest checkpoint, and whether the run keeps its best weights."""
    from limbeck.config import read_yaml

    steps = checkpoint.steps(out / "checkpoints")
    state = read_json(checkpoint.place(out / "checkpoints", steps[-1]) / "state.json") if steps else {}
    return {**state, "keeps_best": bool(state.get("best")) and read_yaml(out / "recipe.yaml")["keep"] == "best"}
