"""The grid of GKD: five divergences, each on the teacher's text, on a mix and on the student's own (arXiv 2306.13649, figure 4).

    python benchmarks/arith_divergences.py --work FOLDER

Every cell learns from the same problems in equally many steps at one learning rate; the teacher's text is one sample of each
problem. Reward is the share of draws at temperature 1 whose sum is right, on held-out problems (greedy accuracy stands beside it);
diversity is the entropy of the first operand over 16 draws of a problem, at most ln 6 = 1.79 nats.
Published: the more on-policy, the greater the gain, and the nearer to reverse KL, the less diversity.
A seed is other problems, other text of the teacher and another order. Writes `arith_divergences.json` and `.svg`.
"""

from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, plot, point, publish, summary, taught
from arithmetic import SHORT, answer_tokens, opened, problems, sample, student, write_rows

import limbeck as lb

PROBLEMS, STEPS, SEQUENCES, LEARNING_RATE = 1000, 60, 64, 1e-3
DIVERGENCES: dict[str, lb.Divergence] = {"ForwardKL": lb.ForwardKL(), "JSD(0.1)": lb.JSD(0.1), "JSD(0.5)": lb.JSD(0.5), "JSD(0.9)": lb.JSD(0.9),
                                         "ReverseKL": lb.ReverseKL()}  # fmt: skip
FRACTIONS = {"supervised": 0.0, "mixed": 0.5, "on-policy": 1.0}
ARMS = [f"{divergence}, {share}" for divergence in DIVERGENCES for share in FRACTIONS]
TEACHER, STUDENT = "strong", "student"


def source(lab: Lab, fraction: float, seed: int, folder: Path) -> lb.Source:
    """Own text with probability `fraction`, else the teacher's."""
    asked = problems(PROBLEMS, 300 + seed)
    own = lb.OnPolicy(write_rows(folder / "asked.jsonl", [{"prompt": problem} for problem in asked]), sequences=SEQUENCES,
                      sampling=lb.Sampling(max_tokens=answer_tokens(SHORT)))  # fmt: skip
    texts, _ = sample(opened(lab.model(TEACHER)), asked, seed=seed)
    rows = [{"prompt": problem, "completion": text} for problem, (text,) in zip(asked, texts, strict=True)]
    ready = lb.Corpus(write_rows(folder / "text.jsonl", rows), sequences=SEQUENCES, written_by="teacher")
    return {0.0: ready, 1.0: own}.get(fraction) or lb.Mix(fraction, own, ready)


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """One cell."""
    divergence, share = arm.split(", ")
    who = lb.Local(lab.model(TEACHER), dtype="float32")
    learns = student(lab.model(STUDENT), LEARNING_RATE)
    recipe = lb.Recipe(learns, source(lab, FRACTIONS[share], seed, folder), who, DIVERGENCES[divergence], steps=STEPS, tokens_per_pass=PASS,
                       seed=seed, save_every=None)  # fmt: skip
    return taught(recipe, folder / "run")[1]


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means = {arm: summary(by_seed) for arm, by_seed in arms.items()}
    settings = {"problems": PROBLEMS, "steps": STEPS, "sequences": SEQUENCES, "learning_rate": LEARNING_RATE, "teacher": TEACHER, "student": STUDENT}
    before = lab.cast()[STUDENT]["pass@1"]
    gains = {share: {divergence: round(means[arm]["pass@1"]["mean"] - before, 4) for divergence in DIVERGENCES
                     if (arm := f"{divergence}, {share}") in means} for share in FRACTIONS}  # fmt: skip
    orders = {f"{divergence}: {more} less {less}": difference(arms, f"{divergence}, {more}", f"{divergence}, {less}", "pass@1")
              for divergence in DIVERGENCES for more, less in (("on-policy", "mixed"), ("mixed", "supervised"))}  # fmt: skip
    publish(lab.name, {"settings": settings, "cast": lab.cast(), "gain": gains, "orders": orders, "summary": means, "arms": arms})
    series = {share: [_point(means[arm]) for divergence in DIVERGENCES if (arm := f"{divergence}, {share}") in means] for share in FRACTIONS}
    title = "Reward against diversity: ForwardKL, JSD(0.1), (0.5), (0.9), ReverseKL along each line"
    draw(lab.name, plot({name: some for name, some in series.items() if some}, "nats of the first operand", "reward", title))


def _point(mean: Figures) -> tuple[float, float, float, float]:
    return point(mean["first_operand_nats"]["mean"], mean["pass@1"])


if __name__ == "__main__":
    experiment("arith_divergences", __doc__, ARMS, make, told)
