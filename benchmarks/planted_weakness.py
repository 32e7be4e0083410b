"""A planted weakness: a student that never saw one kind of problem. Is it found, and is it mended faster when prompts follow the gap?

    python benchmarks/planted_weakness.py --work FOLDER

Five kinds of problems on six digits: say them again, backwards, ascending, descending, or as running sums; a number before them says which.
A teacher knows all kinds. A student learns from it on four (supervised, forward KL); which is left out goes round with the seed, so that every
kind is left out once in five seeds. "found": `limbeck evaluate` of that run on held-out problems of all kinds; the weakness is found where the
slice of the kind left out is surely worse and no other category has a greater gap. Then the student learns on (on-policy, forward KL),
equally many steps of equally many prompts, in their own shuffled order ("uniform") or by `Curriculum(by="student_gap")`; the kind left out is
a fifth of the prompts or one in 25, and the learning rate lower or higher. Looked at along the way: KL to the teacher on right answers to
held-out problems, in the kind that was left out and over all kinds alike, and how many are answered rightly (greedily). The curriculum
writes more: each measurement of the gaps is a step's answers to each kind.
A seed is another start, other problems, another order and another kind. Settings were chosen on development
problems, with seeds that are not published. Writes `planted_weakness.json` and `.svg`.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, plot, publish, summary, t_interval
from arithmetic import Row, Size, problems, sample, student, write_rows

import limbeck as lb
from limbeck.batch import Batch
from limbeck.data import Data
from limbeck.divergence import ForwardKL
from limbeck.evaluate import Evaluation
from limbeck.files import read_json
from limbeck.objective import Objective
from limbeck.student import Student
from limbeck.teachers import Teacher
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import of_runs

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
TEACHER_STEPS, START_STEPS, STEPS, EVERY_LOOK = 1000, 600, 100, 20
SEQUENCES, AT_ONCE, LOOKED_AT, EVALUATED = 64, 16, 40, 200
LEARNING_RATE, EVERY = 3e-3, 10
"""Of the start; steps between measurements of the gap."""
WAYS, POOLS, RATES = ("uniform", "student_gap"), {"a fifth": 5, "one in 25": 25}, (3e-4, 1e-3)
"""Of prompts; how often the kind left out comes among them; of learning on."""
ARMS = ["found", *(f"{way}, {pool}, rate {rate:g}" for rate in RATES for pool in POOLS for way in WAYS)]
WEAK, EVERY_KIND = "the kind left out", "all kinds"


def planted(seed: int) -> str:
    """The kind that this seed's student never sees."""
    return list(KINDS)[seed % len(KINDS)]


def rows(count: int, seed: int, part: str = "learning", seldom: str | None = None, once_in: int | None = None) -> list[Row]:
    """Problems of all kinds in turn, with right answers; one of them seldom: once in so many, or never."""
    kinds = [kind for kind in KINDS if kind != seldom]
    found = list[Row]()
    for n, problem in enumerate(problems(count, seed, part)):
        kind = seldom if seldom and once_in and n % once_in == 0 else kinds[n % len(kinds)]
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
        text = lb.Corpus(write_rows(home / "four.jsonl", rows(20000, 1000 + seed, seldom=planted(seed))), sequences=SEQUENCES)
        who = lb.Local(teacher(lab), dtype="float32")
        lb.distill(recipe(STUDENT.folder(home / "untaught", seed), text, who, START_STEPS, LEARNING_RATE, seed), home / "run")
    return home / "run"


def goes_on(lab: Lab, arm: str, seed: int, folder: Path, every: int = EVERY) -> Figures:
    """A student that learns on from all kinds: figures of the kind left out and of all, at every look."""
    way, pool, rate = arm.split(", ")
    asked = rows(10000, 2000 + seed, seldom=planted(seed), once_in=POOLS[pool])
    prompts = [{"prompt": row["prompt"], "category": row["category"]} for row in asked]
    source: Any = lb.OnPolicy(write_rows(folder / "all.jsonl", prompts), sequences=AT_ONCE, sampling=lb.Sampling(max_tokens=8))
    if way == "student_gap":
        source = lb.Curriculum(source, by="student_gap", every=every)
    who = lb.Local(teacher(lab), dtype="float32")
    learns = recipe(str(start(lab, seed) / "student"), source, who, STEPS, float(rate.removeprefix("rate ")), seed,
                    evaluations=[ByKind()], evaluate_every=EVERY_LOOK)  # fmt: skip
    lb.distill(learns, folder / "run")
    looks = {int(step): each["kinds"] for step, each in read_json(folder / "run" / "evaluations.json").items()}
    curve = [{"step": step, **{f"{name}: {figure}": round(each[f"{kind}: {figure}"], 5) for name, kind in ((WEAK, planted(seed)), (EVERY_KIND, "all"))
                               for figure in ("kl_nats", "right")}} for step, each in looks.items()]  # fmt: skip
    return {"planted": planted(seed), **summed(curve), "curve": curve}


def summed(curve: Sequence[Figures]) -> Figures:
    """Of each figure what it is after 20 and 40 steps and in the end, and its mean over the looks after the first."""
    at = {look["step"]: look for look in curve}
    names = [name for name in curve[0] if name != "step"]
    found = {f"{name}, step {step}": at[step][name] for name in names for step in (20, 40, STEPS)}
    return {**found, **{f"{name}, mean": sum(look[name] for look in curve[1:]) / (len(curve) - 1) for name in names}}


def found(lab: Lab, seed: int, folder: Path) -> Figures:
    """Whether the evaluation of the start finds the kind that was left out."""
    data = write_rows(folder / "held-out.jsonl", rows(EVALUATED, 2, "test"))
    told = evaluate_transfer(of_runs([start(lab, seed)], None, False), Asked(data, EVALUATED, max_tokens=8), folder / "evaluation")
    slices = [each for each in told["gaps"] if each["text"] == "given" and each["kind"] == "category"]
    order = sorted(slices, key=lambda each: -each["students"]["after"]["kl_nats"]["value"])
    sure = [each["name"] for each in slices if each["students"]["after"]["surely_worse"]]
    worst = order[0]["students"]["after"]
    advice = [each["says"] for each in told["advice"] if f'"{planted(seed)}"' in each["says"]]
    hit = order[0]["name"] == planted(seed) and worst["surely_worse"]
    return {"planted": planted(seed), "first": order[0]["name"], "surely_worse": sure, "hit": float(hit),
            "others": float(sum(name != planted(seed) for name in sure)), "advised": float(bool(advice)), "gap": worst["kl_nats"]["value"],
            "above_rest": worst["above_rest"]["value"], "at_least": worst["above_rest"]["at_least"],
            "gaps": {each["name"]: each["students"]["after"]["kl_nats"]["value"] for each in slices}}  # fmt: skip


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """One arm of one seed."""
    return found(lab, seed, folder) if arm == "found" else goes_on(lab, arm, seed, folder)


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    pairs = {f"{pool}, rate {rate:g}": [f"{way}, {pool}, rate {rate:g}" for way in WAYS] for pool in POOLS for rate in RATES}
    names = [name for name in next((each for arm, by in arms.items() if arm != "found" for each in by.values()), {}) if ": " in name]
    both = {pair: arms_of for pair, arms_of in pairs.items() if arms.keys() >= set(arms_of)}
    gains = {pair: {name: difference(arms, gap, uniform, name) for name in names} for pair, (uniform, gap) in both.items()}
    settings = {"steps": STEPS, "prompts_of_a_step": AT_ONCE, "every": EVERY, "evaluated": EVALUATED, "looked_at": LOOKED_AT * len(KINDS)}
    means = {arm: summary(by) for arm, by in arms.items()}
    publish(lab.name, {"settings": settings, "summary": means, "student_gap_less_uniform": gains, "arms": arms})
    seldom = {arm.replace(", one in 25", ""): list(by.values()) for arm, by in arms.items() if "one in 25" in arm}
    series = {arm: [log_point(looks[0]["step"], [look[f"{WEAK}: kl_nats"] for look in looks])
                    for looks in zip(*(each["curve"] for each in some), strict=True)] for arm, some in seldom.items()}  # fmt: skip
    if series:
        draw(lab.name, plot(series, "steps", "log10 of KL, nats", "The gap in the kind left out, one in 25 prompts"))


def log_point(step: int, nats: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean over seeds of the logarithm, and its t interval."""
    logs = [math.log10(each) for each in nats]
    low, high = t_interval(logs) or [statistics.mean(logs)] * 2
    return float(step), statistics.mean(logs), low, high


if __name__ == "__main__":
    experiment("planted_weakness", __doc__, ARMS, make, told, roles=())
