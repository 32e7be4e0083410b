"""SKD beside supervised and on-policy distillation, from a bad start and from a good one (arXiv 2410.11325).

    python benchmarks/arith_interleaved.py --work FOLDER

The same problems, steps, rows of a step, learning rate and divergence (forward KL, as published); what differs is who writes: the
teacher (one sample of each problem), the student, or both, the student proposing and the teacher replacing what is not among its K
likeliest (SKD). The bad start can hardly answer anything, the good one is the student of the other experiments. Reward, the share of draws at
temperature 1 whose sum is right, is looked at along the way; at the end every student is measured as a draft of its teacher too:
acceptance is the mean of sum min(p, q) over the tokens of the teacher's answers to the test's problems. K, learning rates and the count of
problems were chosen by `arith_interleaved_grid.py`, on development problems and with another seed; gamma, on which the distribution of
the text does not depend, is 2, which takes few passes where texts are this short. 256 problems were settled on after 2,000, on which SKD
was not ahead in the one run of each; with the figures of development those of the test with that seed were seen. So both counts are run.
Published: from a bad start SKD is above supervised and supervised above on-policy; from a good one on-policy catches up.
A seed is other problems, other text and another order. Writes `arith_interleaved.json` and a plot for each start.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arith_lab import PASS, Figures, Lab, difference, draw, experiment, looks, plot, point, publish, summary, taught, test_set
from arithmetic import SHORT, Solved, answer_tokens, opened, problems, sample, student, write_rows

import limbeck as lb
from limbeck.evaluate.acceptance import mean, overlap, written_by

SEQUENCES, GAMMA, TEACHER = 64, 2, "strong"
WAYS = ("supervised", "on-policy", "SKD")


@dataclass(frozen=True)
class Setting:
    """Who begins, and how all learn from there."""

    role: str
    learning_rate: float
    k: int
    problems: int = 256
    steps: int = 120

    @property
    def looks(self) -> range:
        """The steps at which rewards are looked at."""
        return range(0, self.steps + 1, self.steps // 4)


STARTS = {
    "bad start": Setting("infant", 3e-3, 1),
    "bad start, many problems": Setting("infant", 3e-3, 1, problems=2000, steps=200),
    "good start": Setting("student", 1e-3, 1),
}
ARMS = [f"{start}: {way}" for start in STARTS for way in WAYS]


def source(lab: Lab, setting: Setting, way: str, seed: int, folder: Path) -> lb.Source:
    """Who writes."""
    asked, sampling = problems(setting.problems, 600 + seed), lb.Sampling(max_tokens=answer_tokens(SHORT))
    if way == "supervised":
        texts, _ = sample(opened(lab.model(TEACHER)), asked, seed=seed)
        rows = [{"prompt": problem, "completion": text} for problem, (text,) in zip(asked, texts, strict=True)]
        return lb.Corpus(write_rows(folder / "text.jsonl", rows), sequences=SEQUENCES, written_by="teacher")
    path = write_rows(folder / "asked.jsonl", [{"prompt": problem} for problem in asked])
    if way == "on-policy":
        return lb.OnPolicy(path, sequences=SEQUENCES, sampling=sampling)
    return lb.Interleaved(path, sequences=SEQUENCES, sampling=sampling, accept=lb.InTopK(setting.k), gamma=GAMMA)


def ran(lab: Lab, setting: Setting, way: str, seed: int, folder: Path, every: int, part: str = "test") -> Figures:
    """One run: what its student does, its rewards along the way, and what it is worth as a draft."""
    learns, who = student(lab.model(setting.role), setting.learning_rate), lb.Local(lab.model(TEACHER), dtype="float32")
    recipe = lb.Recipe(learns, source(lab, setting, way, seed, folder), who, lb.ForwardKL(), steps=setting.steps, tokens_per_pass=PASS,
                       seed=seed, save_every=None, evaluations=[Solved(rows=250, part=part)], evaluate_every=every)  # fmt: skip
    made, figures = taught(recipe, folder / "run")
    rewards = {looked(step): reward for step, reward in looks(folder / "run", "reward").items()}
    return {**figures, **rewards, "acceptance": accepted(lab, made.live)}


def looked(step: int) -> str:
    """Name of the reward at a step."""
    return f"reward at {step}"


def short(start: str) -> str:
    """For the name of a file."""
    return start.replace(" start", "").replace(", ", "_").replace(" ", "_")


def accepted(lab: Lab, draft: Any) -> float:
    """Of its proposals, how many the teacher would accept on its own answers to the test's problems, at temperature 1."""
    teacher, sampling = opened(lab.model(TEACHER)), lb.Sampling(max_tokens=answer_tokens(SHORT))
    texts = written_by(teacher, [teacher.vocabulary.ids(problem) for problem in test_set()], sampling)
    return round(mean(overlap(teacher, draft, texts, sampling))[0], 4)


def make(lab: Lab, arm: str, seed: int, folder: Path) -> Figures:
    """One arm."""
    start, way = arm.split(": ")
    return ran(lab, STARTS[start], way, seed, folder, STARTS[start].steps // 4)


def told(lab: Lab, arms: dict[str, dict[str, Any]]) -> None:
    """Write it down."""
    means, orders = {arm: summary(by_seed) for arm, by_seed in arms.items()}, dict[str, Figures]()
    for start, setting in STARTS.items():
        figures = [*(looked(step) for step in setting.looks), "pass@1", "acceptance"]
        for more, less in (("SKD", "supervised"), ("supervised", "on-policy"), ("SKD", "on-policy")):
            orders[f"{start}: {more} less {less}"] = {figure: difference(arms, f"{start}: {more}", f"{start}: {less}", figure) for figure in figures}
        lines = {way: [point(step, means[arm][looked(step)]) for step in setting.looks] for way in WAYS if (arm := f"{start}: {way}") in means}
        if lines:
            draw(f"{lab.name}_{short(start)}", plot(lines, "steps", "reward", f"From a {start}, forward KL, by who writes"))
    before = {start: accepted(lab, opened(lab.model(setting.role))) for start, setting in STARTS.items()}
    settings = {"sequences": SEQUENCES, "gamma": GAMMA, "teacher": TEACHER, "starts": {start: asdict(setting) for start, setting in STARTS.items()}}
    publish(lab.name, {"settings": settings, "cast": lab.cast(), "acceptance_before": before, "orders": orders, "summary": means, "arms": arms})


if __name__ == "__main__":
    experiment("arith_interleaved", __doc__, ARMS, make, told, roles=(TEACHER, *(setting.role for setting in STARTS.values())))
