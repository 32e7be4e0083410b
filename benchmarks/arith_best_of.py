"""Best-of-N against single samples: what a student learns of a weak teacher's text when a verifier chooses it.

    python benchmarks/arith_best_of.py --work FOLDER

A teacher that is right about three times of four answers N times, and the first answer whose result is right is kept; problems
without any are passed over until ROWS are found. The student learns by cross-entropy, from equally many rows, in equally many
steps. Beside N = 4 and 16: one sample that nobody verified, and one that was. What the choice costs is the teacher's FLOPs.
A seed is other problems, other draws and another order. Writes `arith_best_of.json` and `.svg`.
"""

from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, publish, summary, taught
from arithmetic import SHORT, Row, opened, problems, prompt_tokens, reward, sample, sound, student, write_rows
from measure import bars

import limbeck as lb

ROWS, STEPS, SEQUENCES, LEARNING_RATE = 2000, 200, 32, 1e-3
TEMPERATURE = 0.5
"""Of the teacher, who is right three times of four by it."""
ARMS = {"single, unverified": (1, False), "single, verified": (1, True), "best of 4": (4, True), "best of 16": (16, True)}
TEACHER, STUDENT = "weak", "student"


def chosen(lab: Lab, answers: int, verified: bool, seed: int) -> tuple[list[Row], Figures]:
    """Rows of the teacher's text, and what it took to find them."""
    model, rows, asked, tokens = opened(lab.model(TEACHER)), list[Row](), 0, 0
    line = problems(10 * ROWS, 100 + seed)
    while len(rows) < ROWS:
        some = line[asked : asked + 500]
        texts, written = sample(model, some, TEMPERATURE, each=answers, seed=1000 * seed + asked)
        asked, tokens = asked + len(some), tokens + written + len(some) * answers * prompt_tokens(SHORT)
        for problem, answered in zip(some, texts, strict=True):
            good = [text for text in answered if not verified or reward(text, {"prompt": problem})]
            rows += [{"prompt": problem, "completion": good[0]}] if good else []
    rows = rows[:ROWS]
    right = [row for row in rows if reward(row["completion"], row)]
    steps_right = sum(sound(row["completion"], row["prompt"]) for row in right)
    return rows, {"rows_right": len(right) / ROWS, "rows_sound": steps_right / ROWS, "rows_false_positives": 1 - steps_right / len(right),
                  "problems_asked": asked, "teacher_gflops": 2e-9 * lab.parameters(TEACHER) * tokens}  # fmt: skip


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Write, choose, learn."""
    rows, about = chosen(lab, *ARMS[arm], seed)
    source = lb.Corpus(write_rows(folder / "rows.jsonl", rows), sequences=SEQUENCES, written_by="teacher")
    recipe = lb.Recipe(student(lab.model(STUDENT), LEARNING_RATE), source, steps=STEPS, tokens_per_pass=PASS, seed=seed, save_every=None)
    return {**taught(recipe, folder / "run")[1], **about}


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means = {arm: summary(by_seed) for arm, by_seed in arms.items()}
    settings = {
        "rows": ROWS,
        "steps": STEPS,
        "sequences": SEQUENCES,
        "learning_rate": LEARNING_RATE,
        "temperature": TEMPERATURE,
        "teacher": TEACHER,
        "student": STUDENT,
    }
    gains = {arm: difference(arms, arm, "single, unverified") for arm in list(ARMS)[1:]}
    publish(lab.name, {"settings": settings, "cast": lab.cast(), "gain_over_single_unverified": gains, "summary": means, "arms": arms})
    shown = {"greedy accuracy": "accuracy", "right at temperature 1": "pass@1", "rows with a sound chain": "rows_sound"}
    groups = {title: {arm: 100 * mean[key]["mean"] for arm, mean in means.items()} for title, key in shown.items()}
    draw(lab.name, bars(groups, "%", f"Best of N: {ROWS} rows of a teacher that is right three times of four"))


if __name__ == "__main__":
    experiment("arith_best_of", __doc__, list(ARMS), make, told)
