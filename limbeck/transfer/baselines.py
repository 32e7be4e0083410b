"""What a student would be without its teacher: the same steps on the same text by cross-entropy, from the same start and from nothing."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.sources import Source
from limbeck.teachers import Silent

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

FINE_TUNED, SCRATCH = BASELINES = ("fine-tuned", "from scratch")


def baseline(name: str, recipe: "Recipe", folder: Path) -> "Recipe | str":
    """The recipe of a baseline on a run's budget: its steps, its numbers and its ready text; or, in words, why there is none.

    "from scratch" writes a model of the student's shape, drawn at random, into `folder` first.
    """
    from limbeck.objective import CrossEntropy, Objective

    text = ready_text(recipe.source)
    if text is None:
        return f"{type(recipe.source).__name__} has no ready text to learn from without a teacher"
    student = recipe.student if name == FINE_TUNED else replace(recipe.student, model=fresh(recipe.student.model, folder / "untaught"), lora=None)
    return replace(recipe, student=student, source=text, teacher=Silent(), objective=Objective([CrossEntropy()]), evaluations=[],
                   evaluate_every=None, keep="last", early_stop=None, time_limit_minutes=None, trackers=[])  # fmt: skip


def ready_text(source: Source) -> Source | None:
    """The part of a source that others wrote beforehand; None where the student writes all of it."""
    if "student" not in source.writers:
        return source
    inner = [found for value in vars(source).values() if isinstance(value, Source) and (found := ready_text(value)) is not None]
    return inner[0] if inner else None


def fresh(model: str, folder: Path) -> str:
    """A model of the same shape, drawn at random, made once."""
    from limbeck.machine import Opening
    from limbeck.models import open_model
    from limbeck.shrink import drawn, save

    if not folder.exists():
        opened = open_model(model, Opening("float32"))
        save(drawn(opened, opened.causal.config, seed=0), model, folder)
    return str(folder)
