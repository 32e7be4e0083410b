"""What the tests of plans share: two toys and their text, a machine of round numbers."""

from pathlib import Path
from typing import Any

import toys

from limbeck import models
from limbeck.anatomy import anatomy
from limbeck.divergence import ForwardKL
from limbeck.machine import Opening
from limbeck.objective import Objective
from limbeck.planning.candidates import Wanted
from limbeck.planning.costs import Models, scene_of
from limbeck.planning.roofline import Line, Machine, Speeds
from limbeck.planning.work import Actor
from limbeck.recipe import Recipe
from limbeck.sources import Corpus
from limbeck.student import Student
from limbeck.teachers import Local
from limbeck.vocabulary import Vocabulary

LAYERS = 3


def made(home: Path) -> Path:
    """A folder of a student, a teacher and rows."""
    toys.folder(home / "student", seed=1)
    toys.folder(home / "teacher", seed=2, layers=LAYERS)
    toys.jsonl(home / "train.jsonl", toys.rows(40))
    return home


def wanted(home: Path, **more: Any) -> Wanted:
    return Wanted(**{"student": str(home / "student"), "teacher": str(home / "teacher"), "data": str(home / "train.jsonl"), **more})


SPEEDS = Speeds(Line(0.1, 0.01, 1e9), Line(0.3, 0.03, 5e8), {}, {"4x1": (0.002, 0.05, 10.0)}, 32e6)


def by_hand(**more: Any) -> Machine:
    """A machine of round numbers."""
    numbers: dict[str, Any] = {"bytes_per_second": 1e8, "disk_bytes_per_second": 1e6, "memory_bytes": 1e12}
    return Machine(**{"name": "by hand", "speeds": lambda actor: SPEEDS, **numbers, **more})


def actor(home: Path, learner: Student | None = None) -> Actor:
    found = anatomy("student", home / "student")
    return Actor(found, 4, found.parameters_total, learner)


def scene(recipe: Recipe, **more: Any) -> Any:
    found = Models(narrow=False)
    vocabulary = Vocabulary(models.open_vocabulary(recipe.student.model, Opening()).tokenizer, frozenset([257]))
    return scene_of(recipe, found, vocabulary, **more)


def kd(home: Path, source: Any = None, **more: Any) -> Recipe:
    source = source or Corpus(str(home / "train.jsonl"), 4)
    return Recipe(Student(str(home / "student")), source, Local(str(home / "teacher")), Objective([ForwardKL()]), **more)
