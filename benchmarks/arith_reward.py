"""FLOPs to equal reward: distillation on the student's own text against reinforcement learning with the exact verifier.

    python benchmarks/arith_reward.py --work FOLDER

Distillation is reverse KL to the teacher on one answer to each of 64 problems a step; reinforcement learning is REINFORCE less
the mean of a group of 8 answers to each of 16 problems, at several learning rates, of which the best is compared. Both start
from the same student, read the same problems, and pay for every token: 2 S to write it, 6 S to learn from it and, in
distillation, 2 T for the teacher to score it, S and T the parameters (T is about 8 S). The reward, the share of draws at
temperature 1 that are right, is looked at along the way; FLOPs to a reward are those at which it is first reached, between
two looks by a straight line.
Aimed at: a tenth of the FLOPs. A seed is other problems, draws and another order. Writes `arith_reward.json` and `.svg`.
"""

import math
import statistics
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, draw, experiment, looks, plot, point, publish, summary, t_interval, taught, tokens_read
from arithmetic import ANSWER_TOKENS, Solved, problems, student, write_rows

import limbeck as lb

PROBLEMS = 4096
DISTILLED = "distillation"
RATE, RATES = 1e-3, (1e-4, 3e-4)
LEARNT = {f"reinforcement, rate {rate:g}": rate for rate in RATES}
ARMS = [DISTILLED, *LEARNT]
STEPS = {DISTILLED: (150, 10), **dict.fromkeys(LEARNT, (200, 20))}
"""How many, and after how many the student is looked at."""
GROUP, ASKED = 8, 16
SEQUENCES = {DISTILLED: 64, **dict.fromkeys(LEARNT, GROUP * ASKED)}
TARGETS = (0.31, 0.33, 0.35, 0.375, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
TEACHER, STUDENT = "strong", "student"


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """Learn by one of the ways."""
    path = write_rows(folder / "asked.jsonl", [{"prompt": problem} for problem in problems(PROBLEMS, 500 + seed)])
    sampling, (steps, every) = lb.Sampling(max_tokens=ANSWER_TOKENS), STEPS[arm]
    if arm == DISTILLED:
        source = lb.OnPolicy(path, sequences=SEQUENCES[arm], sampling=sampling)
        recipe = lb.Recipe(student(lab.model(STUDENT), RATE), source, lb.Local(lab.model(TEACHER), dtype="float32"), lb.ReverseKL(), steps=steps,
                           tokens_per_pass=PASS, seed=seed, save_every=None, evaluations=[Solved()], evaluate_every=every)  # fmt: skip
    else:
        source = lb.OnPolicy(path, sequences=ASKED, group=GROUP, sampling=sampling, reward="arithmetic:reward")
        recipe = lb.Recipe(student(lab.model(STUDENT), LEARNT[arm]), source, objective=lb.PolicyGradient(), steps=steps,
                           tokens_per_pass=PASS, seed=seed, save_every=None, evaluations=[Solved()], evaluate_every=every)  # fmt: skip
    figures = taught(recipe, folder / "run")[1]
    scored = 2 * lab.parameters(TEACHER) if arm == DISTILLED else 0
    read = [0, *accumulate(tokens_read(folder / "run", SEQUENCES[arm]))]
    points = [{"step": step, "gflops": round(1e-9 * read[step] * (8 * lab.parameters(STUDENT) + scored), 4), "reward": earned}
              for step, earned in looks(folder / "run", "reward").items()]  # fmt: skip
    return {**figures, "curve": points}


def reached(curve: list[Figures], target: float) -> float | None:
    """GFLOPs at which a curve first reaches a reward; None where it never does."""
    for before, after in pairwise(curve):
        if before["reward"] < target <= after["reward"]:
            share = (target - before["reward"]) / (after["reward"] - before["reward"])
            return before["gflops"] + share * (after["gflops"] - before["gflops"])
    return None


def compared(arms: dict[str, dict[str, Any]], learnt: str) -> list[Figures]:
    """For each target: FLOPs of either, and how many times as many reinforcement takes, seed by seed (geometric mean)."""
    rows = list[Figures]()
    for target in TARGETS:
        pairs = [(reached(each["curve"], target), reached(arms[learnt][seed]["curve"], target), arms[learnt][seed]["curve"][-1]["gflops"])
                 for seed, each in arms[DISTILLED].items() if seed in arms[learnt]]  # fmt: skip
        both = [(mine, theirs) for mine, theirs, _ in pairs if mine and theirs]
        logs, bound = [math.log(theirs / mine) for mine, theirs in both], t_interval([math.log(theirs / mine) for mine, theirs in both])
        rows.append({
            "reward": target, "seeds": len(pairs), "seeds_where_both_reach_it": len(both),
            "distillation_gflops": [mine and round(mine, 3) for mine, _, _ in pairs],
            "reinforcement_gflops": [theirs and round(theirs, 3) for _, theirs, _ in pairs],
            "times": round(math.exp(statistics.mean(logs)), 2) if both else None,
            "times_interval": bound and [round(math.exp(each), 2) for each in bound],
            "times_at_least_where_not_reached": [round(end / mine, 1) for mine, theirs, end in pairs if mine and not theirs],
        })  # fmt: skip
    return rows


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means = {arm: summary(by_seed) for arm, by_seed in arms.items()}
    tried = [arm for arm in LEARNT if arm in means]
    best = max(tried, key=lambda arm: means[arm]["pass@1"]["mean"], default=None)
    settings = {"steps_and_looks": STEPS, "sequences": SEQUENCES, "group": GROUP, "teacher": TEACHER, "student": STUDENT,
                "learning_rates": {DISTILLED: RATE, **LEARNT}}  # fmt: skip
    against = compared(arms, best) if best and DISTILLED in arms else []
    publish(
        lab.name, {"settings": settings, "cast": lab.cast(), "best_reinforcement": best, "to_equal_reward": against, "summary": means, "arms": arms}
    )
    draw(lab.name, plot({arm: _mean_curve(by_seed) for arm, by_seed in arms.items()}, "GFLOPs of student and teacher", "reward",
                        "Reward against FLOPs", log_x=True))  # fmt: skip


def _mean_curve(by_seed: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """Means over seeds at each look but the first, with their intervals."""
    found = list[tuple[float, float, float, float]]()
    for points in zip(*(each["curve"][1:] for each in by_seed.values()), strict=True):
        mean = {"mean": statistics.mean(each["reward"] for each in points), "interval": t_interval([each["reward"] for each in points])}
        found.append(point(statistics.mean(each["gflops"] for each in points), mean))
    return found


if __name__ == "__main__":
    experiment("arith_reward", __doc__, ARMS, make, told)
