"""Quality against the number of problems and against FLOPs: own text (online) or the teacher's, written once (offline).

    python benchmarks/arith_prompts.py --work FOLDER

Online the student answers the problems and learns by reverse KL to the teacher, which scores every new answer; offline the
teacher answers each problem once, and the student learns by forward KL to what the teacher says of its own text, kept after
the first time (limbeck annotate), so that its FLOPs are paid once for each problem. Equally many steps of equally many rows;
the reward (the share of draws at temperature 1 that are right) is looked at along the way. A seed is other problems, draws and
another order. Writes `arith_prompts.json`, `.svg` and `arith_prompts_flops.svg`.
"""

from itertools import accumulate
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, looks, mean_curve, plot, point, publish, summary, taught, tokens_read
from arithmetic import SHORT, Solved, answer_tokens, opened, problems, prompt_tokens, sample, student, write_rows

import limbeck as lb

COUNTS = (32, 256, 2048)
STEPS, SEQUENCES, EVERY, LEARNING_RATE = 100, 64, 25, 1e-3
ARMS = [f"{way}, {count} problems" for count in COUNTS for way in ("online", "offline")]
TEACHER, STUDENT = "strong", "student"


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """One way, from so many problems."""
    online, count = arm.startswith("online"), int(arm.split()[1])
    asked = problems(count, 400 + seed)
    if online:
        path = write_rows(folder / "asked.jsonl", [{"prompt": problem} for problem in asked])
        source: lb.Source = lb.OnPolicy(path, sequences=SEQUENCES, sampling=lb.Sampling(max_tokens=answer_tokens(SHORT)))
    else:
        texts, _ = sample(opened(lab.model(TEACHER)), asked, seed=seed)
        rows = [{"prompt": problem, "completion": text} for problem, (text,) in zip(asked, texts, strict=True)]
        source = lb.Corpus(write_rows(folder / "text.jsonl", rows), sequences=SEQUENCES, written_by="teacher")
    learns, who = student(lab.model(STUDENT), LEARNING_RATE), lb.Local(lab.model(TEACHER), dtype="float32")
    recipe = lb.Recipe(learns, source, who, lb.ReverseKL() if online else lb.ForwardKL(), steps=STEPS, tokens_per_pass=PASS, seed=seed,
                       save_every=None, evaluations=[Solved()], evaluate_every=EVERY)  # fmt: skip
    figures = taught(recipe, folder / "run")[1]
    return {**figures, "curve": curve(lab, online, count, folder / "run")}


def curve(lab: Lab, online: bool, count: int, run: Path) -> list[Figures]:
    """Step, FLOPs so far and reward."""
    learner, teacher = lab.parameters(STUDENT), lab.parameters(TEACHER)
    read = [0, *accumulate(tokens_read(run, SEQUENCES))]
    points = list[Figures]()
    for step, earned in looks(run, "reward").items():
        if online:
            flops = read[step] * (8 * learner + 2 * teacher)
        else:  # what is not read yet need not have been written: written and scored once each
            flops = read[step] * 6 * learner + min(count, step * SEQUENCES) * (prompt_tokens(SHORT) + answer_tokens(SHORT)) * 4 * teacher
        points.append({"step": step, "gflops": round(1e-9 * flops, 3), "reward": earned})
    return points


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means = {arm: summary(by_seed) for arm, by_seed in arms.items()}
    settings = {"steps": STEPS, "sequences": SEQUENCES, "learning_rate": LEARNING_RATE, "teacher": TEACHER, "student": STUDENT}
    gains = {str(count): difference(arms, f"online, {count} problems", f"offline, {count} problems", "pass@1") for count in COUNTS}
    publish(lab.name, {"settings": settings, "cast": lab.cast(), "online_less_offline": gains, "summary": means, "arms": arms})
    against_count = {way: [point(count, means[arm]["pass@1"]) for count in COUNTS if (arm := f"{way}, {count} problems") in means]
                     for way in ("online", "offline")}  # fmt: skip
    draw(lab.name, plot(against_count, "problems", "reward", f"Quality against the number of problems, {STEPS} steps", log_x=True))
    against_flops = {arm: mean_curve(by_seed) for arm, by_seed in arms.items() if int(arm.split()[1]) in (COUNTS[0], COUNTS[-1])}
    if against_flops:
        draw(f"{lab.name}_flops", plot(against_flops, "GFLOPs of student and teacher", "reward", "Quality against FLOPs", log_x=True))


if __name__ == "__main__":
    experiment("arith_prompts", __doc__, ARMS, make, told)
