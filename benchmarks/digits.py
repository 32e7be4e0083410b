"""Hinton's experiments (arXiv 1503.02531, section 3) on scikit-learn's digits, and born-again networks (arXiv 1805.04770).

    python benchmarks/digits.py --work FOLDER    # run in the root of the repository; what is in FOLDER is not made again

1,797 images of 8 x 8. 597 are the test set, the same for all; a seed parts the others into 900 to learn from and 300 to choose by, and
draws weights and the order of rows. The teacher (64-256-256-10) sees the 900 also moved by one place each way, as Hinton's large net was
jittered; the student (64-10-10) sees the 900 as they are, for as many steps: alone, by `0.1 CE + 0.9 T^2 KL` from one teacher, and from
five of them as a `Mixture`. A class never shown: no image of a 3 is in the transfer set, and the student learns from scores alone; then
the logit of 3 is raised by what is best on the rows to choose by. Generations: the student taught by its like, four times.
Learning rates of each kind, and the temperature of the last three experiments, are chosen on the rows to choose by, with seeds 100 to 102.
Said: test errors of seeds 0 to 4, means with t intervals, and the difference from alone, seed by seed.
Writes `benchmarks/results/digits.json` and `.svg`.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arith_lab import t_interval
from measure import bars, machine
from sklearn.datasets import load_digits

import limbeck as lb
from limbeck.files import write_json, write_jsonl, write_text
from limbeck.kinds import open_kind
from limbeck.machine import Opening

RESULTS = Path(__file__).parent / "results"
TEST, LEARN, CHOOSE = 597, 900, 300
STEPS, ROWS = 1500, 64
SEEDS, TRIED_SEEDS = (0, 1, 2, 3, 4), (100, 101, 102)
TEMPERATURES = (1.0, 2.0, 4.0, 10.0, 20.0)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
ALPHA = 0.1
TEACHERS = 5
GENERATIONS = 3
LEFT_OUT = 3
OURS = ["unknown licence of digits_nets:large", "unknown licence of digits_nets:small"]
"""The networks are of this repository."""


def rows_of(x: Any, y: Any) -> list[dict[str, Any]]:
    """Images as rows."""
    return [{"features": [round(float(value) / 16, 4) for value in image.ravel()], "label": int(label)} for image, label in zip(x, y, strict=True)]


def moved(x: Any, y: Any) -> tuple[Any, Any]:
    """Images as they are and moved by one place in four directions, the edge left empty."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    at = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    return np.concatenate([padded[:, a : a + 8, b : b + 8] for a, b in at]), np.concatenate([y] * len(at))


def parted(work: Path, seed: int) -> Path:
    """The data of a seed, as files."""
    folder = work / f"data-{seed}"
    if (folder / "test.jsonl").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.md", "---\nlicense: cc-by-4.0\n---\nOptical recognition of handwritten digits (UCI), as scikit-learn gives it.\n")
    digits: Any = load_digits()
    x, y = digits.images, digits.target
    order = np.random.default_rng(1234).permutation(len(x))
    test, rest = order[:TEST], np.random.default_rng(seed).permutation(order[TEST:])
    learn, choose = rest[:LEARN], rest[LEARN : LEARN + CHOOSE]
    seen = learn[y[learn] != LEFT_OUT]
    for name, some in {"learn": learn, "choose": choose, "without": seen, "test": test}.items():
        write_jsonl(folder / f"{name}.jsonl", rows_of(x[some], y[some]))
    write_jsonl(folder / "moved.jsonl", rows_of(*moved(x[learn], y[learn])))
    return folder


@dataclass
class Lab:
    """Runs below a folder, each made once."""

    work: Path

    def learnt(self, name: str, seed: int, net: str, objective: Any, rate: float, teacher: lb.Teacher | None = None, text: str = "learn") -> str:
        """The folder of a student that has learnt."""
        out, data = self.work / "runs" / str(seed) / name, parted(self.work, seed)
        student = lb.Student(net, lb.AdamW(rate), dtype="float32")
        source = lb.Corpus(str(data / f"{text}.jsonl"), sequences=ROWS)
        lb.distill(lb.Recipe(student, source, teacher or lb.Silent(), lb.Objective(objective), steps=STEPS, seed=seed, save_every=None,
                              accept_license=OURS), out)  # fmt: skip
        return str(out / "student")

    def teacher(self, seed: int, rate: float, number: int = 0) -> str:
        """One of a seed's teachers."""
        return self.learnt(
            f"teacher-{number}-{rate:g}", seed, f"digits_nets:large(seed={100 * seed + number})", [lb.CrossEntropy()], rate, text="moved"
        )

    def alone(self, seed: int, rate: float, text: str = "learn") -> str:
        """The student by itself."""
        return self.learnt(f"alone-{text}-{rate:g}", seed, f"digits_nets:small(seed={seed})", [lb.CrossEntropy()], rate, text=text)

    def taught(self, name: str, seed: int, teacher: lb.Teacher, temperature: float, rate: float, alpha: float = ALPHA, text: str = "learn",
               generation: int = 0) -> str:  # fmt: skip
        """The student, taught."""
        kl = (1 - alpha) * lb.ForwardKL(temperature=temperature)
        objective = [kl, alpha * lb.CrossEntropy()] if alpha else [kl]
        net = f"digits_nets:small(seed={seed + 1000 * generation})"
        return self.learnt(f"{name}-{temperature:g}-{rate:g}", seed, net, objective, rate, teacher, text)

    def logits(self, folders: Sequence[str], seed: int, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [rows, 10] of a model, or of the mean of several, on a file; and its labels."""
        data = lb.Data(str(parted(self.work, seed) / f"{text}.jsonl"))
        total: list[torch.Tensor] = []
        for folder in folders:
            model = open_kind(folder, Opening("float32"))
            batch = lb.Batch.of([each for row in data.rows() for each in model.vocabulary.texts(row, data, 9)], "corpus")
            with torch.no_grad():
                total.append(model.forward(batch).hidden_ND.log_softmax(-1))
        return torch.stack(total).logsumexp(0), batch.tokens_N

    def errors(self, folders: str | Sequence[str], seed: int, text: str = "test") -> float:
        """Per cent of a file that are told wrongly."""
        logits, labels = self.logits([folders] if isinstance(folders, str) else folders, seed, text)
        return 100 * float((logits.argmax(-1) != labels).double().mean())


def best(choices: Sequence[Any], error: Callable[[Any, int], float], tried: dict[str, float], what: str) -> Any:
    """The choice with the least mean error on the rows to choose by; all are noted."""
    means = {choice: statistics.mean(error(choice, seed) for seed in TRIED_SEEDS) for choice in choices}
    tried.update({f"{what} {choice}": round(mean, 2) for choice, mean in means.items()})
    return min(means, key=lambda choice: means[choice])


def chosen(lab: Lab) -> tuple[dict[str, Any], dict[str, float]]:
    """Rates and a temperature, and all that was tried."""
    tried = dict[str, float]()
    rate = {
        "teacher": best(RATES, lambda rate, seed: lab.errors(lab.teacher(seed, rate), seed, "choose"), tried, "teacher, rate"),
        "alone": best(RATES, lambda rate, seed: lab.errors(lab.alone(seed, rate), seed, "choose"), tried, "alone, rate"),
    }

    def taught(temperature: float, rate_: float, seed: int) -> float:
        teacher = lb.Local(lab.teacher(seed, rate["teacher"]), dtype="float32")
        return lab.errors(lab.taught("taught", seed, teacher, temperature, rate_), seed, "choose")

    rates = {t: best(RATES, lambda r, seed, t=t: taught(t, r, seed), tried, f"T={t:g}, rate") for t in TEMPERATURES}
    means = {t: tried[f"T={t:g}, rate {rates[t]}"] for t in TEMPERATURES}
    return {"rate": rate, "taught_rates": rates, "temperature": min(means, key=lambda t: means[t])}, tried


def never_shown(lab: Lab, seed: int, folder: str) -> dict[str, float]:
    """Per cent of the left-out class told rightly, before and after its logit was raised; and all errors."""
    logits, labels = lab.logits([folder], seed, "choose")
    raised = [b / 10 for b in range(101)]

    def wrong(log: torch.Tensor, by: float, truth: torch.Tensor) -> float:
        return float(((log + by * torch.nn.functional.one_hot(torch.tensor(LEFT_OUT), 10)).argmax(-1) != truth).double().mean())

    by = min(raised, key=lambda b: wrong(logits, b, labels))
    logits, labels = lab.logits([folder], seed, "test")
    mine = labels == LEFT_OUT
    return {
        "right_of_left_out": 100 * (1 - wrong(logits[mine], 0.0, labels[mine])),
        "right_once_raised": 100 * (1 - wrong(logits[mine], by, labels[mine])),
        "errors": 100 * wrong(logits, 0.0, labels), "errors_once_raised": 100 * wrong(logits, by, labels), "raised_by": by,
    }  # fmt: skip


def of_seed(lab: Lab, seed: int, at: dict[str, Any]) -> dict[str, float]:
    """All test figures of one seed."""
    teachers = [lab.teacher(seed, at["rate"]["teacher"], n) for n in range(TEACHERS)]
    one, t = lb.Local(teachers[0], dtype="float32"), at["temperature"]
    several = lb.Mixture({f"t{n}": lb.Local(each, dtype="float32") for n, each in enumerate(teachers)})
    rate, alone = at["taught_rates"][t], lab.alone(seed, at["rate"]["alone"])
    found = {"teacher": lab.errors(teachers[0], seed), "ensemble of 5": lab.errors(teachers, seed), "alone": lab.errors(alone, seed)}
    for each, its_rate in at["taught_rates"].items():
        found[f"T={each:g}"] = lab.errors(lab.taught("taught", seed, one, each, its_rate), seed)
    found[f"from the ensemble, T={t:g}"] = lab.errors(lab.taught("ensemble", seed, several, t, rate), seed)
    last = alone
    for generation in range(1, GENERATIONS + 1):
        teacher = lb.Local(last, dtype="float32")
        last = lab.taught(f"generation-{generation}", seed, teacher, t, rate, generation=generation)
        found[f"generation {generation}"] = lab.errors(last, seed)
    without = lab.taught("without", seed, one, t, rate, alpha=0.0, text="without")
    shown = lab.taught("soft-only", seed, one, t, rate, alpha=0.0)
    found |= {f"no 3s, taught: {name}": value for name, value in never_shown(lab, seed, without).items()}
    found |= {f"no 3s, alone: {name}": value for name, value in never_shown(lab, seed, lab.alone(seed, at["rate"]["alone"], "without")).items()}
    found |= {f"all digits, scores alone: {name}": value for name, value in never_shown(lab, seed, shown).items()}
    return found


def main() -> None:
    """Choose, learn, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of data and runs; what is there is not made again")
    lab = Lab(parser.parse_args().work)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    at, tried = chosen(lab)
    by_seed = list[dict[str, float]]()
    for seed in SEEDS:
        by_seed.append(of_seed(lab, seed, at))
        print(seed, by_seed[-1], flush=True)
    arms = dict[str, Any]()
    for name in by_seed[0]:
        values = [each[name] for each in by_seed]
        arms[name] = {"mean": round(statistics.mean(values), 3), "interval": t_interval(values), "by_seed": [round(value, 3) for value in values]}
        if ":" not in name and name != "alone":
            fewer = [each["alone"] - each[name] for each in by_seed]
            arms[name] |= {"fewer_than_alone": round(statistics.mean(fewer), 3), "fewer_interval": t_interval(fewer)}
    settings = {"steps": STEPS, "rows": ROWS, "learn": LEARN, "choose": CHOOSE, "test": TEST, "alpha": ALPHA, "seeds": list(SEEDS),
                "tried_seeds": list(TRIED_SEEDS), "rate": at["rate"], "taught_rates": {f"{t:g}": r for t, r in at["taught_rates"].items()},
                "temperature": at["temperature"]}  # fmt: skip
    write_json(RESULTS / "digits.json", {"machine": machine(), "settings": settings, "tried_on_rows_to_choose_by": tried, "arms": arms})
    plain = {name: each["mean"] for name, each in arms.items() if ":" not in name}
    write_text(RESULTS / "digits.svg", bars({"test errors": plain}, "per cent", "A small net of digits, alone and taught"))


if __name__ == "__main__":
    main()
