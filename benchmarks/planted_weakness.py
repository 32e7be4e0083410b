"""A planted weakness: a student that never saw one kind of problem. Is it found, and is it mended faster when prompts follow the gap?

    python benchmarks/planted_weakness.py --work FOLDER

Five kinds of problems on six digits: say them again, backwards, ascending, descending, or as running sums; a number before them says which.
A teacher knows all kinds. A student learns from it on four (supervised, forward KL); which is left out goes round with the seed, so that every
kind is left out as often. "found": `limbeck evaluate --category category` of that run on held-out problems of all kinds; the weakness is found
where the slice of the kind left out stands first of all categories and is surely worse. Then the student learns on, from problems of all
kinds, equally many steps of equally many problems: in their own shuffled order ("uniform"), or by `Curriculum(by="student_gap")`; on text
(forward KL on right answers) and on its own answers (on-policy, forward KL). Looked at along the way: KL to the teacher on right answers to
held-out problems, in the kind that was left out and over all kinds, and how many are answered rightly (greedily).
A seed is another start, other problems, another order and another kind. Settings were chosen with seed 0 on development problems
(`--develop`). Writes `planted_weakness.json`, and `.svg`.
"""

from collections.abc import Callable, Mapping
from dataclasses import field
from itertools import accumulate
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab
from arithmetic import Row, Size, part_of, problems, sample, student, write_rows

import limbeck as lb
from limbeck.batch import Batch
from limbeck.data import Data
from limbeck.divergence import ForwardKL
from limbeck.evaluate import Evaluation
from limbeck.files import read_json
from limbeck.objective import Objective
from limbeck.student import Student
from limbeck.teachers import Teacher

KINDS: dict[str, Callable[[list[int]], list[int]]] = {
    "again": list,
    "backwards": lambda digits: digits[::-1],
    "ascending": sorted,
    "descending": lambda digits: sorted(digits, reverse=True),
    "sums": lambda digits: list(accumulate(digits)),
}
SIGNS = {kind: 60 + n for n, kind in enumerate(KINDS)}
"""Numbers that no answer holds."""
TEACHER, STUDENT = Size(3, 96), Size(2, 64)
TEACHER_STEPS, START_STEPS, STEPS, EVERY_LOOK = 1000, 600, 100, 10
SEQUENCES, AT_ONCE, LOOKED_AT, EVALUATED = 64, 16, 50, 500
LEARNING_RATE, AGAIN, EVERY = 3e-3, 1e-3, 10
"""Of the start, and of what follows; steps between measurements of the gap."""
WAYS = {"uniform, text": (False, False), "student_gap, text": (True, False), "uniform, own text": (False, True), "student_gap, own text": (True, True)}
"""Whether prompts follow the gap, and whether the student writes."""


def planted(seed: int) -> str:
    """The kind that this seed's student never sees."""
    return list(KINDS)[seed % len(KINDS)]


def rows(count: int, seed: int, part: str = "learning", without: str | None = None) -> list[Row]:
    """Problems of all kinds in turn, or of all but one, with right answers."""
    kinds = [kind for kind in KINDS if kind != without]
    found = list[Row]()
    for n, problem in enumerate(problems(count, seed, part)):
        kind = kinds[n % len(kinds)]
        said = KINDS[kind]([int(word) for word in problem.split()[:-1]])
        found.append({"prompt": f"{SIGNS[kind]} {problem}", "completion": " ".join(map(str, said)), "category": kind})
    return found


@lb.part
class ByKind(Evaluation):
    """KL to the teacher on right answers, and the share answered rightly, by kind and over all."""

    part: str = "test"
    name: str = "kinds"

    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """Look at each kind; every answer has as many tokens, so that the mean over kinds is the mean over tokens."""
        every, vocabulary = rows(LOOKED_AT * len(KINDS), 1, self.part), student.live.vocabulary
        found = dict[str, Any]()
        for kind in KINDS:
            some = [row for row in every if row["category"] == kind]
            batch = Batch.of([text for row in some for text in vocabulary.texts(row, Data("held-out"), 64)], "corpus")
            (said,) = teacher.score([batch])
            found[f"{kind}: kl_nats"] = float(student.measure(batch, said, Objective([ForwardKL()]))["ForwardKL"].double().mean())
            texts, _ = sample(student.live, [row["prompt"] for row in some], temperature=0)
            found[f"{kind}: right"] = sum(text == row["completion"] for (text,), row in zip(texts, some, strict=True)) / len(some)
        return found | {f"all: {figure}": sum(found[f"{kind}: {figure}"] for kind in KINDS) / len(KINDS) for figure in ("kl_nats", "right")}


def recipe(model: str, source: lb.Source, teacher: lb.Teacher, steps: int, rate: float, seed: int, **more: Any) -> lb.Recipe:
    """What all runs have in common."""
    objective = lb.CrossEntropy() if isinstance(teacher, lb.Silent) else lb.ForwardKL()
    return lb.Recipe(student(model, rate), source, teacher, objective, steps=steps, tokens_per_pass=PASS, seed=seed, save_every=None, **more)


def teacher(lab: Lab) -> str:
    """Folder of the one who knows all kinds, taught by right answers where it is not there."""
    home = lab.work / "planted"
    if not (home / "teacher" / "student").exists():
        text = lb.Corpus(write_rows(home / "all.jsonl", rows(40000, 900)), sequences=2 * SEQUENCES)
        lb.distill(recipe(TEACHER.folder(home / "untaught", 900), text, lb.Silent(), TEACHER_STEPS, 2e-3, 900), home / "teacher")
    return str(home / "teacher" / "student")


def start(lab: Lab, seed: int) -> Path:
    """The run of the student that never saw one kind."""
    home = lab.work / "planted" / f"seed-{seed}"
    if not (home / "run" / "student").exists():
        text = lb.Corpus(write_rows(home / "four.jsonl", rows(20000, 1000 + seed, without=planted(seed))), sequences=SEQUENCES)
        who = lb.Local(teacher(lab), dtype="float32")
        lb.distill(recipe(STUDENT.folder(home / "untaught", seed), text, who, START_STEPS, LEARNING_RATE, seed), home / "run")
    return home / "run"


def goes_on(lab: Lab, way: str, seed: int, folder: Path, rate: float = AGAIN, every: int = EVERY, sequences: int = AT_ONCE,
            part: str = "test") -> dict[int, Figures]:  # fmt: skip
    """Figures by step of a student that learns on from all kinds."""
    by_gap, own = WAYS[way]
    data = write_rows(folder / "all.jsonl", rows(10000, 2000 + seed))
    source: Any = lb.OnPolicy(data, sequences=sequences, sampling=lb.Sampling(max_tokens=8)) if own else lb.Corpus(data, sequences=sequences)
    if by_gap:
        source = lb.Curriculum(source, by="student_gap", every=every)
    lb.distill(recipe(str(start(lab, seed) / "student"), source, lb.Local(teacher(lab), dtype="float32"), STEPS, rate, seed,
                      evaluations=[ByKind(part)], evaluate_every=EVERY_LOOK), folder / "run")  # fmt: skip
    return {int(step): each["kinds"] for step, each in read_json(folder / "run" / "evaluations.json").items()}
