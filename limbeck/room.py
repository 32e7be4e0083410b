"""Whether the models of a run fit in the memory that is free, said before one of them is opened, with what would fit."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import distributed
from limbeck.anatomy import Anatomy, anatomy
from limbeck.config import Part, settings_of
from limbeck.errors import LimbeckError, ModelError, RecipeError
from limbeck.estimate import frozen_bytes, learner_bytes, widths
from limbeck.lazy import torch
from limbeck.machine import device
from limbeck.offload import is_elsewhere
from limbeck.places import is_call, locate
from limbeck.recipe import Recipe
from limbeck.teachers import Local

MARGIN = 0.10
"""By how much of what is free the models must be beyond it before they are refused: so that no run that would go is."""


def see_room(recipe: Recipe) -> None:
    """Raise RecipeError where student and teacher at rest do not fit: what they need, what is free, what would fit.

    Counted are weights, gradients and moments alone, by the heads of weight files; models whose files are not here count nothing.
    """
    free_bytes = min(distributed.gathered(free_memory_bytes()))  # none opens a model before all have looked
    needed = resting_bytes(recipe)
    if sum(needed.values()) <= (1 + MARGIN) * free_bytes:
        return
    parts = ", ".join(f"{what} {value / 1e9:.1f}" for what, value in needed.items())
    would = [words for words, change in CHANGES if _fits(change, recipe, free_bytes)]
    ways = [*would, *_more_processes(recipe, free_bytes), "a teacher on a server: Endpoint(url, model)"]
    raise RecipeError(
        f"the models need about {sum(needed.values()) / 1e9:.1f} GB ({parts}), and {free_bytes / 1e9:.1f} GB are free; would fit: {'; '.join(ways)}"
    )


def resting_bytes(recipe: Recipe, ranks: int | None = None) -> dict[str, int]:
    """What a process holds between passes, by what for, as far as the files say; of several on one machine without a GPU, all of them.

    ranks: of how many processes that share the models, if not of those that there are.
    """
    known = _known(recipe.student.model)
    found = learner_bytes(known, recipe.student) if known else {}
    found["teacher"] = sum(_teacher_bytes(each) for each in locals_of(recipe.teacher))
    return {what: int(value * _copies(recipe, what, ranks)) for what, value in found.items() if value}


def _teacher_bytes(teacher: Local) -> int:
    known = None if teacher.model == "@student" else _known(teacher.model)
    elsewhere = teacher.offload if is_elsewhere(teacher.offload) else None
    return frozen_bytes(known, teacher.quantization, widths(True)(teacher.dtype), elsewhere) if known else 0


def _copies(recipe: Recipe, what: str, ranks: int | None) -> float:
    """How many copies of a model, or what share of it, are in the memory that a process is free to take."""
    asked = ranks or distributed.ranks()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device().type == "cpu" and ranks is None else 1
    cut = (distributed.is_sharded() or ranks is not None) and not (what == "teacher" and any(each.uncut for each in locals_of(recipe.teacher)))
    return here / asked if cut else here


def _known(model: str) -> Anatomy | None:
    """A model by its files; None where these are not here, or are no files: what is wrong with them is said when they are opened."""
    try:
        place = None if is_call(model) else locate(model)
        return anatomy(model, place) if place else None
    except (ModelError, OSError):
        return None


def locals_of(part: Any) -> Iterator[Local]:
    """The models of this machine's below a teacher, it itself among them."""
    if isinstance(part, Local):
        yield part
        return
    below = [getattr(part, name) for name in settings_of(type(part))] if isinstance(part, Part) else []
    for value in below:
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            yield from locals_of(each)


def _local(**settings: Any) -> Callable[[Recipe], Recipe]:
    """Change the teacher, where it is one model."""

    def change(recipe: Recipe) -> Recipe:
        if not isinstance(recipe.teacher, Local):
            raise RecipeError("only a Local is one model; change its parts")
        return replace(recipe, teacher=replace(recipe.teacher, **settings))

    return change


CHANGES: tuple[tuple[str, Callable[[Recipe], Recipe]], ...] = (
    ("teacher.dtype: bfloat16", _local(dtype="bfloat16")),
    ("teacher.quantization: 4bit", _local(quantization="4bit", offload=None)),
    ("teacher.offload: disk", _local(offload="disk", quantization=None)),
    ("student.optimizer.eight_bit: true",
     lambda recipe: replace(recipe, student=replace(recipe.student, optimizer=replace(recipe.student.optimizer, eight_bit=True)))),
)  # fmt: skip
"""What a recipe may be changed by to take less, each by itself."""


def _fits(change: Callable[[Recipe], Recipe], recipe: Recipe, free_bytes: int) -> bool:
    try:
        changed = change(recipe)
    except LimbeckError:  # a teacher that has no such setting
        return False
    return changed != recipe and sum(resting_bytes(changed).values()) <= free_bytes


def _more_processes(recipe: Recipe, free_bytes: int) -> list[str]:
    """Shares on more processes: on GPUs alone, since those without one share the same memory."""
    if device().type == "cpu":
        return []
    wanted = [2**n for n in range(1, 11) if 2**n > distributed.ranks() and sum(resting_bytes(recipe, 2**n).values()) <= free_bytes]
    return [f"shares on {wanted[0]} GPUs: accelerate launch --use_fsdp --fsdp_version 2 --num_processes {wanted[0]}"] if wanted else []


def free_memory_bytes() -> int:
    """Memory that can be taken: the GPU's where there is one, else the machine's or the container's; what this process holds already is free to it.

    What a stage before left in the process's heap is taken again, and cannot be told from what is in use: it counts as free.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    import psutil

    held = psutil.Process().memory_info().rss * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(held + min(psutil.virtual_memory().available + psutil.swap_memory().free, _container_free_bytes()))


def _container_free_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What the container may still take: files that are only kept in memory for speed give way."""
    limit, taken, stat = folder / "memory.max", folder / "memory.current", folder / "memory.stat"
    if not (limit.is_file() and taken.is_file() and stat.is_file()) or not limit.read_text().strip().isdecimal():
        return 2**63
    kept = dict(line.split() for line in stat.read_text().splitlines())
    return int(limit.read_text()) - int(taken.read_text()) + int(kept.get("inactive_file", 0)) + int(kept.get("active_file", 0))
