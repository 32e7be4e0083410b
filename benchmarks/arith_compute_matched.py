"""Equal compute: few answers of a strong, dear teacher against many of a weak, cheap one (Bansal et al., arXiv 2408.16737).

    python benchmarks/arith_compute_matched.py --work FOLDER

Both answer the same problems for the same FLOPs of sampling, 2 x parameters for each token: the weak one P_strong / P_weak
times as often. A verifier keeps the answers whose result is right, each once. Coverage (a problem has an answer), diversity
(different right answers a problem) and false positives (right result, wrong step) of the text, with bootstraps over problems;
then students learn from it by cross-entropy in equally many steps: one smaller than both (distillation), the weak teacher
itself (from its own text: self-improvement) and the strong one (from the weak one's text: weak to strong).
A seed is other problems and draws. Writes `arith_compute_matched.json` and `.svg`.
"""

from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, publish, summary, taught
from arithmetic import SHORT, Row, interval, opened, problems, prompt_tokens, reward, sample, sound, student, write_rows
from measure import bars

import limbeck as lb
from limbeck.files import read_json, read_jsonl, write_json

PROBLEMS, STEPS, SEQUENCES, TEMPERATURE = 500, 120, 32, 0.5
BUDGETS = {"low": 1, "high": 4}
"""Answers of the strong teacher to each problem."""
LEARNING_RATES = {"student": 1e-3, "weak": 1e-3, "strong": 5e-4}
RUNS = [("student", "low"), ("student", "high"), ("weak", "high"), ("strong", "high")]
ARMS = [f"{learner} from {teacher}, {budget}" for learner, budget in RUNS for teacher in ("strong", "weak")]


def answers(lab: Lab, teacher: str, budget: str) -> int:
    """How many to each problem, for the same FLOPs or a little less."""
    often = BUDGETS[budget]
    return often if teacher == "strong" else often * lab.parameters("strong") // lab.parameters("weak")


def text(lab: Lab, teacher: str, budget: str, seed: int) -> tuple[Path, Figures]:
    """A file of verified rows, and what is to be said of it, made once for all who learn from it."""
    path = lab.work / "text" / f"{teacher}-{budget}-{seed}.jsonl"
    about = path.with_suffix(".json")
    if not about.exists():
        rows, found = _written(lab, teacher, answers(lab, teacher, budget), seed)
        write_rows(path, rows)
        write_json(about, found)
    return path, read_json(about)


def _written(lab: Lab, teacher: str, each: int, seed: int) -> tuple[list[Row], Figures]:
    asked = problems(PROBLEMS, 200 + seed)
    texts_PK, tokens = sample(opened(lab.model(teacher)), asked, TEMPERATURE, each=each, seed=seed)
    right_P = [sorted({text for text in texts if reward(text, {"prompt": problem})}) for problem, texts in zip(asked, texts_PK, strict=True)]
    rows = [{"prompt": problem, "completion": text} for problem, texts in zip(asked, right_P, strict=True) for text in texts]
    wrong = [float(not sound(row["completion"], row["prompt"])) for row in rows]
    covered, ways = [float(bool(texts)) for texts in right_P], [float(len(texts)) for texts in right_P]
    return rows, {
        "answers": each, "rows": len(rows), "teacher_gflops": 2e-9 * lab.parameters(teacher) * (tokens + len(asked) * each * prompt_tokens(SHORT)),
        "coverage": sum(covered) / len(asked), "coverage_interval": interval(covered),
        "diversity": sum(ways) / len(asked), "diversity_interval": interval(ways),
        "rows_false_positives": sum(wrong) / len(wrong), "rows_false_positives_interval": interval(wrong),
    }  # fmt: skip


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn from verified text."""
    (learner, teacher), budget = arm.partition(",")[0].split(" from "), arm.rpartition(" ")[2]
    path, about = text(lab, teacher, budget, seed)
    assert about["rows"] == len(read_jsonl(path))
    source = lb.Corpus(str(path), sequences=SEQUENCES, written_by="teacher")
    learns = student(lab.model(learner), LEARNING_RATES[learner])
    recipe = lb.Recipe(learns, source, steps=STEPS, tokens_per_pass=PASS, seed=seed, save_every=None)
    return {**taught(recipe, folder / "run")[1], **about}


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means = {arm: summary(by_seed) for arm, by_seed in arms.items()}
    settings = {
        "problems": PROBLEMS,
        "steps": STEPS,
        "sequences": SEQUENCES,
        "temperature": TEMPERATURE,
        "learning_rates": LEARNING_RATES,
        "budgets": BUDGETS,
    }
    pairs = [(f"{learner} from weak, {budget}", f"{learner} from strong, {budget}") for learner, budget in RUNS]
    gains = {weak: {figure: difference(arms, weak, strong, figure) for figure in ("accuracy", "pass@1", "pass@16", "distinct")}
             for weak, strong in pairs if weak in arms and strong in arms}  # fmt: skip
    publish(lab.name, {"settings": settings, "cast": lab.cast(), "weak_less_strong": gains, "summary": means, "arms": arms})
    groups = {
        f"{learner} learns, {budget} budget": {
            teacher: 100 * means[arm]["accuracy"]["mean"] for teacher in ("strong", "weak") if (arm := f"{learner} from {teacher}, {budget}") in means
        }
        for learner, budget in RUNS
    }
    groups = {"before": {role: 100 * each["accuracy"] for role, each in lab.cast().items()}, **groups}
    draw(lab.name, bars(groups, "%", "Greedy accuracy from text of a strong or a weak teacher, equal FLOPs of sampling"))


if __name__ == "__main__":
    experiment("arith_compute_matched", __doc__, ARMS, make, told)
