"""What a student learns from what is kept of a teacher: the same student, text, order and steps, by forward KL from each.

    python benchmarks/cache_students.py --teacher FOLDER --student FOLDER --data gsm8k-train.jsonl --work FOLDER --minutes 24

A teacher of SmolLM2-135M-Instruct and a student of 10 of its layers, untrained after the cut; short rows of GSM8K, arithmetic
in bfloat16. The teacher is asked once, its hidden states are kept (with its head they are the full teacher), and all else is
taken of them: 50 draws, 50 stratified draws, the 64 likeliest outcomes with the mass of the others. Beside them the text
alone (cross-entropy), and the 12 likeliest outcomes made to sum to 1, which the library refuses and this file writes itself.
A seed is an order of the text and, where something is drawn, other draws; arms of one seed read the same rows in one order.
Aimed at: from `sampled:50` the held-out KL of the full teacher within 3 % at equal steps.

Held-out, on the same tokens for all: full-vocabulary KL(teacher || student) and cross-entropy in nats a token; calibration
error (ECE) of the likeliest next token in 15 bins of equal width, in percent: against the text, beside that of labels drawn by
the same confidences (a calibrated model's), and against the probability that the teacher gives the same outcome; and how much
surer the student is than the teacher. Intervals are 95 % bootstraps over sequences.
Each arm and seed is a folder below `--work`; those that are finished are not run again. Writes `cache_students.json`,
`cache_students.svg` and `cache_students_calibration.svg` to `benchmarks/results/` after each.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from measure import bars, machine

import limbeck as lb
from limbeck.annotate import Annotation, annotate
from limbeck.batch import Batch, Text
from limbeck.cache import Cache
from limbeck.config import live
from limbeck.evaluate.likelihood import measured
from limbeck.evaluate.statistics import RESAMPLES, interval
from limbeck.files import read_json, write_json, write_text
from limbeck.loss import Outputs, slices
from limbeck.student import Student
from limbeck.targets import Dense, Targets, TopK
from limbeck.teachers import Cached, Local, Silent, Teacher

HERE = Path(__file__).parent
CHARACTERS = 400
"""Longest row of the data that is used: short rows make short steps."""
MAX_TOKENS, TOKENS_PER_PASS = 256, 2048
BINS, CHUNK, SIMULATED = 15, 128, 500
FULL = "full teacher"
KEEPS = {FULL: "hidden", "sampled:50": "sampled:50", "stratified:50": "stratified:50", "top:64": "top:64", "top 12, renormalised": "top:64"}
TEXT = "text alone"
ARMS, PAIR = (*KEEPS, TEXT), (FULL, "sampled:50")
DRAWN = ("sampled:50", "stratified:50")
SUMMED = ("kl_nats", "ce_nats", "ece_percent", "ece_percent_if_calibrated", "ece_percent_against_teacher", "surer_than_teacher", "confidence",
          "accuracy")  # fmt: skip

Array = np.ndarray[Any, Any]


@lb.part
class Renormalised(Cached):
    """The likeliest outcomes alone, their probabilities made to sum to 1."""

    outcomes: int = 12

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """No tail: forward KL of this is that of the outcomes alone."""
        for said in super().score(parts):
            assert isinstance(said, TopK)
            log_p_NK, places_NK = said.log_p_NK.topk(self.outcomes, dim=-1)
            nothing_N = torch.full_like(said.log_tail_N, float("-inf"))
            yield TopK(said.ids_NK.gather(1, places_NK), log_p_NK.log_softmax(-1), nothing_N, said.fingerprint)


@lb.part
class Remembered(Local):
    """A teacher whose hidden states were kept before: it is not asked again."""

    states: str = ""

    _cache: Any = live()

    def load(self, student: Student | None) -> Self:
        """The model, for its vocabulary and head, and the cache."""
        made = super().load(student)
        made._cache = Cache.open(Path(self.states))
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What was kept."""
        return (self._cache.targets(batch, 1.0) for batch in parts)


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    teacher: str
    student: str
    data: Path
    work: Path
    steps: int
    sequences: int
    learning_rate: float
    held_out: int

    @property
    def plain(self) -> dict[str, Any]:
        """What tells these runs from others."""
        return {"steps": self.steps, "sequences": self.sequences, "learning_rate": self.learning_rate, "held_out_rows": self.held_out,
                "longest_row_characters": CHARACTERS, "dtype": "bfloat16"}  # fmt: skip

    def texts(self) -> None:
        """Training rows, as many as the steps take, from the start of the file; held-out rows from its end."""
        rows = [json.loads(line) for line in self.data.read_text().splitlines()]
        short = [row for row in rows if len(row["question"]) + len(row["answer"]) <= CHARACTERS]
        taken = self.steps * self.sequences
        assert taken + self.held_out <= len(short), f"{len(short)} rows are too few for {taken} and {self.held_out}"
        for name, some in (("text", short[:taken]), ("held-out", short[-self.held_out :])):
            lines = [json.dumps({"prompt": row["question"], "completion": row["answer"]}) + "\n" for row in some]
            write_text(self.work / f"{name}.jsonl", "".join(lines))

    def cache(self, keep: str, seed: int) -> str:
        """A cache of the training text, filled where it is not."""
        folder = self.work / "caches" / (f"{keep}-seed-{seed}" if keep in DRAWN else keep)
        if not (folder / "whole").exists():
            asked = {"model": self.teacher, "dtype": "bfloat16"}
            teacher = Local(**asked) if keep == "hidden" else Remembered(**asked, states=self.cache("hidden", 0))
            annotate(Annotation(teacher, lb.Data(str(self.work / "text.jsonl")), keep, max_tokens=MAX_TOKENS, seed=seed), folder)
            (folder / "whole").touch()
        return str(folder)

    def scores(self, arm: str, seed: int) -> tuple[Teacher, lb.Term]:
        """Who teaches, and by what."""
        if arm == TEXT:
            return Silent(), lb.CrossEntropy()
        folder = self.cache(KEEPS[arm], seed if KEEPS[arm] in DRAWN else 0)
        return (Renormalised if "renormalised" in arm else Cached)(folder), lb.ForwardKL()

    def recipe(self, arm: str, seed: int) -> lb.Recipe:
        """A whole run."""
        teacher, term = self.scores(arm, seed)
        student = lb.Student(self.student, lb.AdamW(self.learning_rate), dtype="bfloat16")
        source = lb.Corpus(str(self.work / "text.jsonl"), sequences=self.sequences, max_tokens=MAX_TOKENS)
        return lb.Recipe(student, source, teacher, term, steps=self.steps, tokens_per_pass=TOKENS_PER_PASS, seed=seed, save_every=None)


@dataclass(frozen=True)
class Sure:
    """How sure a model is at N tokens of its likeliest outcome, and what became of it: 1 or 0, or a probability."""

    confidence_N: Array
    outcome_N: Array
    sequence_N: Array

    @cached_property
    def bins_N(self) -> Array:
        """Of equal width."""
        return np.minimum((self.confidence_N * BINS).astype(int), BINS - 1)

    def error(self, outcome_N: Array) -> float:
        """ECE in percent, of outcomes such as these."""
        return 100 * float(np.abs(np.bincount(self.bins_N, outcome_N - self.confidence_N, BINS)).sum()) / len(self.bins_N)

    def figures(self) -> dict[str, Any]:
        """ECE in percent with its interval."""
        sequences = int(self.sequence_N[-1]) + 1
        gaps_BK = np.bincount(self.sequence_N * BINS + self.bins_N, self.outcome_N - self.confidence_N, sequences * BINS).reshape(-1, BINS)
        chosen = np.random.default_rng(0).integers(0, sequences, (RESAMPLES, sequences))
        counts = np.bincount(self.sequence_N)[chosen].sum(1)
        again = 100 * np.abs(gaps_BK[chosen].sum(1)).sum(1) / counts
        bounds = [float(bound) for bound in np.percentile(again, [2.5, 97.5])]
        return {"ece_percent": self.error(self.outcome_N), "ece_percent_interval": bounds}

    def calibrated(self) -> dict[str, Any]:
        """ECE in percent of labels drawn by these confidences: what a calibrated model shows on so few tokens."""
        draws = np.random.default_rng(0)
        found = [self.error(draws.random(len(self.bins_N)) < self.confidence_N) for _ in range(SIMULATED)]
        return {"ece_percent_if_calibrated": statistics.mean(found), "ece_percent_if_calibrated_95th": float(np.percentile(found, 95))}

    def whole(self) -> dict[str, Any]:
        """All that can be said against labels."""
        sure = {"confidence": float(self.confidence_N.mean()), "accuracy": float(self.outcome_N.mean())}
        return {**sure, **self.figures(), **self.calibrated()}


class Told(Teacher):
    """What a teacher said of the held-out text, said again: it is asked once for all students."""

    def __init__(self, said: Sequence[Targets]) -> None:
        self.said = said

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """The same parts come each time."""
        return iter(self.said)


class HeldOut:
    """The text that nobody learnt from, and what the teacher says of it."""

    def __init__(self, setting: Setting) -> None:
        self.teacher = Local(setting.teacher, dtype="bfloat16").load(None)
        vocabulary, data = self.teacher.opened.vocabulary, lb.Data(str(setting.work / "held-out.jsonl"))
        self.texts: list[Text] = [text for row in data.rows() for text in vocabulary.texts(row, data, MAX_TOKENS)]
        self.parts = Batch.of(self.texts, "corpus").split(TOKENS_PER_PASS)
        self.said = list(self.teacher.score(self.parts))

    def figures(self, student: Student) -> dict[str, Any]:
        """All that is measured of a student."""
        student.share_vocabulary(self.teacher.opened.vocabulary)
        likely = measured(self.texts, student, Told(self.said), TOKENS_PER_PASS)
        return {**likely, **self._calibration([student.forward(part) for part in self.parts])}

    def of_teacher(self) -> dict[str, Any]:
        """The teacher by the same measures of calibration."""
        found = self._calibration([_outputs(said) for said in self.said])
        return {name: found[name] for name in found if "teacher" not in name}

    def _calibration(self, outputs: Sequence[Outputs]) -> dict[str, Any]:
        """Against the text, and against the teacher."""
        rows = [_surest(mine, _outputs(said), part) for mine, said, part in zip(outputs, self.said, self.parts, strict=True)]
        mine_N, hit_N, said_N, theirs_N = (np.concatenate([row[place] for row in rows]) for place in range(4))
        first = np.cumsum([0, *(len(part) for part in self.parts)])
        sequence_N = np.concatenate([start + part.sequence_N.numpy() for start, part in zip(first, self.parts, strict=False)])
        surer_B, counts_B = np.bincount(sequence_N, mine_N - theirs_N), np.bincount(sequence_N)
        return {
            **Sure(mine_N, hit_N, sequence_N).whole(),
            **{f"{name}_against_teacher": value for name, value in Sure(mine_N, said_N, sequence_N).figures().items()},
            "surer_than_teacher": float(surer_B.sum() / counts_B.sum()),
            "surer_than_teacher_interval": interval(surer_B.tolist(), counts_B.tolist()),
        }


def _outputs(said: Targets) -> Outputs:
    assert isinstance(said, Dense)
    return Outputs(said.hidden_ND, said.head)


@torch.no_grad()
def _surest(mine: Outputs, theirs: Outputs, part: Batch) -> tuple[Array, Array, Array, Array]:
    """The student's confidence, whether the text says the same, what the teacher gives that outcome, and the teacher's own confidence [N]."""
    heads = [each.head.prepared(each.hidden_ND.dtype) for each in (mine, theirs)]
    found = list[torch.Tensor]()
    for rows in slices(len(part.places_N), CHUNK):
        q_CV, p_CV = (head.logits(each.hidden_ND[rows]).softmax(-1) for head, each in zip(heads, (mine, theirs), strict=True))
        sure_C, top_C = q_CV.max(-1)
        said_C = p_CV.gather(1, top_C[:, None])[:, 0]
        found.append(torch.stack([sure_C, (top_C == part.tokens_N[rows]).float(), said_C, p_CV.amax(-1)]))
    mine_N, hit_N, said_N, theirs_N = torch.cat(found, 1).double().numpy()
    return mine_N, hit_N, said_N, theirs_N


def measured_run(setting: Setting, held_out: HeldOut, arm: str, seed: int) -> None:
    """Train, measure, and leave the figures and the log; weights are large and dropped."""
    out = _folder(setting, arm, seed)
    began = time.monotonic()
    student = lb.distill(setting.recipe(arm, seed), out)
    figures = held_out.figures(student)
    write_json(out / "figures.json", {"arm": arm, "seed": seed, **figures, "seconds": round(time.monotonic() - began, 1)})
    for name in ("checkpoints", "student"):
        shutil.rmtree(out / name, ignore_errors=True)
    print(json.dumps({"arm": arm, "seed": seed, "kl_nats": figures["kl_nats"], "ece_percent": figures["ece_percent"]}), flush=True)


def _folder(setting: Setting, arm: str, seed: int) -> Path:
    return setting.work / "runs" / f"{arm.replace(', ', '-').replace(' ', '-').replace(':', '-')}-{seed}"


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in a file, made where it is not there."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def collected(setting: Setting, untrained: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    """Figures of all finished runs by arm and seed, and what they come to."""
    runs = [read_json(path) for path in (setting.work / "runs").glob("*/figures.json")]
    runs.sort(key=lambda run: (ARMS.index(run["arm"]), run["seed"]))
    arms: dict[str, dict[str, Any]] = {}
    for run in runs:
        arms.setdefault(run["arm"], {})[str(run["seed"])] = {name: value for name, value in run.items() if name not in ("arm", "seed")}
    summary = {arm: _summary(by_seed, arms.get(FULL, {})) for arm, by_seed in arms.items()}
    return {"machine": machine(), "settings": setting.plain, "teacher": teacher, "untrained": untrained, "summary": summary, "arms": arms}


def _summary(by_seed: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds, and KL by that of the full teacher, seed by seed."""
    ratios = [round(figures["kl_nats"] / full[seed]["kl_nats"], 4) for seed, figures in by_seed.items() if seed in full]
    means = {name: round(statistics.mean(figures[name] for figures in by_seed.values()), 4) for name in SUMMED}
    return {"seeds": len(by_seed), **means, "kl_times_full": ratios}


def publish(results: dict[str, Any]) -> None:
    """Write figures and plots."""
    folder, summaries = HERE / "results", results["summary"]
    write_json(folder / "cache_students.json", results)
    settings = results["settings"]
    length = f"{settings['steps']} steps of {settings['sequences']} rows of GSM8K"
    if summaries:
        kl = {"KL(teacher || student), held-out": {arm: each["kl_nats"] for arm, each in summaries.items()}}
        write_text(folder / "cache_students.svg", bars(kl, "nats", f"What a student learns from what is kept: {length}"))
        teacher = results["teacher"]
        against_text = {arm: each["ece_percent"] for arm, each in summaries.items()} | {"teacher itself": teacher["ece_percent"]}
        against_teacher = {arm: each["ece_percent_against_teacher"] for arm, each in summaries.items()}
        groups = {"against the text": against_text, "against the teacher": against_teacher}
        write_text(folder / "cache_students_calibration.svg", bars(groups, "%", f"Calibration error, held-out, after {length}"))


def wanted(arms: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Runs in the order of their worth: every arm once, then the pair that is compared, then all others."""
    runs = [(arm, seed) for seed in range(seeds) for arm in arms]
    return sorted(runs, key=lambda run: (run[1] > 0 and run[0] not in PAIR, run[1]))


def run_all(setting: Setting, arms: Sequence[str], seeds: int, minutes: float) -> None:
    """As many runs as there is time for."""
    began, longest = time.monotonic(), 0.0
    setting.texts()
    held_out = HeldOut(setting)
    teacher = once(setting.work / "teacher.json", held_out.of_teacher)
    untrained = once(setting.work / "untrained.json", lambda: held_out.figures(lb.Student(setting.student, dtype="bfloat16").load(1)))
    for arm, seed in wanted(arms, seeds):
        if (_folder(setting, arm, seed) / "figures.json").exists():
            continue
        started = time.monotonic()
        if started - began + longest > 60 * minutes:
            print(f"no time for {arm}, seed {seed}: the same command with more minutes goes on", flush=True)
            break
        measured_run(setting, held_out, arm, seed)
        longest = max(longest, time.monotonic() - started)
        publish(collected(setting, untrained, teacher))
    publish(collected(setting, untrained, teacher))


def main() -> None:
    """Run, measure and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of SmolLM2-135M-Instruct as safetensors")
    parser.add_argument("--student", required=True, help="folder of a student with the same vocabulary")
    parser.add_argument("--data", required=True, type=Path, help="GSM8K as JSONL: question, answer")
    parser.add_argument("--work", required=True, type=Path, help="folder of caches and runs, kept between calls")
    parser.add_argument("--minutes", type=float, default=24.0, help="no run begins that would not end within them")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=192, help="rows")
    parser.add_argument("--arm", action="append", choices=ARMS, help="of all, these")
    asked = vars(parser.parse_args())
    arms, seeds, minutes = asked.pop("arm") or ARMS, asked.pop("seeds"), asked.pop("minutes")
    setting = Setting(**asked)
    setting.work.mkdir(parents=True, exist_ok=True)
    known = once(setting.work / "settings.json", lambda: setting.plain)
    assert known == setting.plain, f"{setting.work} holds runs of {known}; give another folder"
    run_all(setting, arms, seeds, minutes)


if __name__ == "__main__":
    main()
