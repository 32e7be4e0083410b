"""What SKD's text costs, counted, beside the arithmetic; and its whole step, by the clock, beside on-policy and supervised ones.

    python benchmarks/interleaved_cost.py --work FOLDER [--student FOLDER]

Pairs: two students of the experiments on arithmetic and their teacher (FOLDER is their `--work`); SmolLM2-135M-Instruct and a student of its
own that has been taught or, where none is given, six of its layers, of whose proposals next to nothing stays. For each K and gamma draws of
the source are taken as they are, while every token that either model reads is counted: rows x places, prompts apart. The acceptance A is the share of
examined proposals that stay, which is the student's share of the text. Beside what was counted stand two arithmetics at that A: ours,
`(1 - A^g) / (1 - A)` tokens a round for g steps of the student and g rows of the teacher, and the one with a token of the teacher's after a
whole proposal, `(1 - A^(g+1)) / (1 - A)` for g steps and g + 1 rows. A text's last round is cut by its end, so that the same
is counted again without those. In a run of `distill` the teacher's passes are counted by what they were for.
The clock: text, scores and learning of each kind of step, in turn, medians. Supervised text was written before, and is not timed.
Writes `benchmarks/results/interleaved_cost.json`.
"""

import argparse
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from arith_lab import Lab
from arithmetic import SHORT, answer_tokens, problems, write_rows
from measure import machine, summary

import limbeck as lb
from limbeck import models, prune
from limbeck.batch import Batch
from limbeck.data import Data
from limbeck.decoding import Written, write
from limbeck.evaluate.acceptance import written_by
from limbeck.files import new_folder, write_json
from limbeck.interleaved import Interleaved
from limbeck.licences import of_model, record
from limbeck.machine import Opening
from limbeck.models import Model, Writing, open_model
from limbeck.quickstart import PROMPTS, converted, packaged_teacher
from limbeck.sources import Share, Source
from limbeck.speculative import expected_tokens
from limbeck.student import Student
from limbeck.teachers import Teacher

RESULTS = Path(__file__).parent / "results"
KS, GAMMA, OTHER_GAMMAS = (1, 5, 25, 100), 5, (2, 8)
LAYERS, CLOCKED_ROUNDS, STEPS = 6, 3, 2
Figures = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Who writes together, what about, and how much of it is drawn and learnt."""

    teacher: str
    student: str
    rows: str
    sequences: int
    sampling: lb.Sampling
    draws: int
    k: int
    """That is timed, and counted with every gamma."""
    dtype: Any

    def interleaved(self, k: int, gamma: int = GAMMA) -> Interleaved:
        """SKD's text."""
        return lb.Interleaved(self.rows, sequences=self.sequences, sampling=self.sampling, accept=lb.InTopK(k), gamma=gamma)

    def recipe(self, source: Source, steps: int = STEPS) -> lb.Recipe:
        """Of a student that hardly moves: all is measured on one pair."""
        learns = lb.Student(self.student, lb.AdamW(1e-7, schedule="constant", warmup=0.0), dtype=self.dtype)
        return lb.Recipe(learns, source, lb.Local(self.teacher, dtype=self.dtype), lb.ForwardKL(), steps=steps, tokens_per_pass=4096,
                         save_every=None, accept_license=["apache-2.0"])  # fmt: skip


# What is counted


@contextmanager
def counted(teacher: str) -> Iterator[dict[str, Counter[str]]]:
    """Tokens that either model reads while it writes, prompts apart, and the passes in which it does."""
    found, feed = {"teacher": Counter[str](), "student": Counter[str]()}, Writing.feed

    def seen(self: Writing, ids_BQ: torch.Tensor, mask_BQ: torch.Tensor | None = None) -> None:
        who, begins = found["teacher" if self.model.name == teacher else "student"], not self.mask_BS.shape[1]
        who["prompts" if begins else "text"] += ids_BQ.numel()
        who["passes"] += 1
        feed(self, ids_BQ, mask_BQ)

    with patch.object(Writing, "feed", seen):
        yield found


@contextmanager
def texts_seen() -> Iterator[list[Written]]:
    """What every draw of SKD's text consisted of."""
    found, written = list[Written](), Interleaved._write

    def seen(self: Interleaved, *given: Any) -> Any:
        made = written(self, *given)
        found.extend(made[0])
        return made

    with patch.object(Interleaved, "_write", seen):
        yield found


def arithmetic(accepted: float, gamma: int) -> dict[str, float]:
    """Steps of the student and rows of the teacher a token, ours and with a token after a whole proposal."""
    ours, theirs = expected_tokens(accepted, gamma - 1), expected_tokens(accepted, gamma)
    return {"tokens_a_round": ours, "steps": gamma / ours, "rows": gamma / ours, "bonus_tokens_a_round": theirs, "bonus_steps": gamma / theirs,
            "bonus_rows": (gamma + 1) / theirs}  # fmt: skip


def beside(steps: float, rows: float, accepted: float, gamma: int) -> Figures:
    """Steps and rows a token as counted, and in those of either arithmetic."""
    told = arithmetic(accepted, gamma)
    found = {"steps": steps, "rows": rows, "times_ours": steps / told["steps"], "steps_times_bonus": steps / told["bonus_steps"],
             "rows_times_bonus": rows / told["bonus_rows"]}  # fmt: skip
    return {name: round(value, 3) for name, value in found.items()}


def cost(pair: Pair, student: Student, teacher: Teacher, k: int, gamma: int) -> Figures:
    """Of SKD's text with these."""
    source = pair.interleaved(k, gamma).load(student.live.vocabulary, Share(0, teacher=teacher))
    with counted(pair.teacher) as read, texts_seen() as texts:
        tokens = sum(len(source.draw(step, student).tokens_N) for step in range(pair.draws))
    rounds = [each for text in texts for each in text.rounds]
    accepted = sum(min(each.kept, each.took) for each in rounds) / tokens
    whole = [each for text in texts for each in text.rounds[:-1]]
    kept, written = sum(each.kept for each in whole), sum(each.took for each in whole)
    assert sum(each.took for each in rounds) == tokens, "text without a round, or a round without text"
    found: Figures = {"k": k, "gamma": gamma, "acceptance": round(accepted, 4), "tokens": tokens, "rounds": len(rounds),
             "tokens_a_round": round(tokens / len(rounds), 3), "told_tokens_a_round": round(arithmetic(accepted, gamma)["tokens_a_round"], 3),
             **beside(read["student"]["text"] / tokens, read["teacher"]["text"] / tokens, accepted, gamma)}  # fmt: skip
    if whole:
        each_token = gamma * len(whole) / written
        found["without_last_rounds"] = {"acceptance": round(kept / written, 4), **beside(each_token, each_token, kept / written, gamma)}
    return found


def passes(pair: Pair, out: Path) -> Figures:
    """The teacher's forward passes in a run: those that wrote, and all others, before the run's first text and after it."""
    happened, opened = list[str](), models.open_model

    def hooked(name: str, *given: Any) -> Model:
        model = opened(name, *given)
        if name == pair.teacher:
            model.causal.get_decoder().register_forward_hook(lambda *_: happened.append("pass"))
        return model

    with patch.object(models, "open_model", hooked), counted(pair.teacher) as read:
        feed = Writing.feed

        def marked(self: Writing, *given: Any) -> None:
            feed(self, *given)
            if self.model.name == pair.teacher:
                happened[-1] = "wrote"

        with patch.object(Writing, "feed", marked):
            lb.distill(pair.recipe(pair.interleaved(pair.k)), out)
    begins = happened.index("wrote")
    assert read["teacher"]["passes"] == happened.count("wrote")
    return {"steps": STEPS, "self_test": happened[:begins].count("pass"), "wrote": happened.count("wrote"), "other": happened[begins:].count("pass")}


# The clock


def timed(student: Student, teacher: Teacher, source: Source, pair: Pair, step: int) -> dict[str, float]:
    """Seconds of a step's parts, and of all."""
    marks = [time.perf_counter()]
    batch = source.draw(step, student)
    marks.append(time.perf_counter())
    parts = batch.split(4096)
    said = list(teacher.score(parts))
    marks.append(time.perf_counter())
    for part, each in zip(parts, said, strict=True):
        student.learn(part, each, pair.recipe(source).objective, 1 / len(batch.places_N))
    student.step(0)
    marks.append(time.perf_counter())
    found = dict(zip(("write", "score", "learn"), (b - a for a, b in pairwise(marks)), strict=True))
    return {**found, "all": marks[-1] - marks[0], "tokens": float(len(batch.places_N))}


def clock(pair: Pair, student: Student, teacher: Any, folder: Path) -> Figures:
    """Whole steps of each kind, in turn."""
    data, vocabulary = Data(pair.rows), student.live.vocabulary
    some = list(data.rows())[: 2 * pair.sequences]
    texts = write(teacher.opened, [vocabulary.prompt(row, data) for row in some], pair.sampling, 0, 0, range(len(some)))
    rows = [{**row, "completion": vocabulary.text(text.tokens)} for row, text in zip(some, texts, strict=True)]
    ready = write_rows(folder / "ready.jsonl", rows)
    share = Share(0, teacher=teacher)
    sources: dict[str, Source] = {
        "supervised": lb.Corpus(ready, sequences=pair.sequences, written_by="teacher"),
        "on-policy": lb.OnPolicy(pair.rows, sequences=pair.sequences, sampling=pair.sampling),
        "SKD": pair.interleaved(pair.k),
    }
    alive = {name: source.load(vocabulary, share) for name, source in sources.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in alive}
    for step in range(CLOCKED_ROUNDS + 1):
        for name, source in alive.items():
            found[name] += [timed(student, teacher, source, pair, step)][: 1 if step else 0]  # the first is to be warm
    middle = {name: {what: summary([each[what] for each in some]) for what in some[0]} for name, some in found.items()}
    times = {name: summary([mine["all"] / other["all"] for mine, other in zip(found["SKD"], found[name], strict=True)]) for name in found}
    return {"k": pair.k, "gamma": GAMMA, "seconds": middle, "skd_times": times}


# The pairs


def cut(teacher: str, folder: Path) -> str:
    """The teacher without its least influential layers."""
    if not folder.exists():
        whole = open_model(teacher, Opening("float32"))
        asked = [whole.vocabulary.prompt(row, Data(str(PROMPTS))) for row in Data(str(PROMPTS)).rows()][:16]
        texts = written_by(whole, asked, lb.Sampling(64))
        prune.by_depth(whole, prune.least_influential(prune.influence(whole, Batch.of(texts, "teacher").split(2048)), LAYERS))
        with new_folder(folder) as made:
            prune.save(whole, made)
            record(made, of_model(teacher))
    return str(folder)


def pairs(work: Path, taught: str | None) -> dict[str, Pair]:
    """All, by name."""
    lab, sums = Lab("interleaved_cost", work, ()), lb.Sampling(max_tokens=answer_tokens(SHORT))
    asked = write_rows(work / "interleaved_cost" / "asked.jsonl", [{"prompt": problem} for problem in problems(512, 700)])
    teacher = str(converted(packaged_teacher()))
    name, folder = ("SmolLM2, taught", taught) if taught else ("SmolLM2, untaught", cut(teacher, work / "interleaved_cost" / "cut"))
    return {
        **{f"arithmetic, {start}": Pair(lab.model("strong"), lab.model(role), asked, 64, sums, 4, 5, "float32")
           for start, role in (("bad start", "infant"), ("good start", "student"))},
        name: Pair(teacher, folder, str(PROMPTS), 8, lb.Sampling(48), 1, 25, "auto"),
    }  # fmt: skip


def measured(pair: Pair, folder: Path) -> Figures:
    """All of one pair."""
    student, teacher = pair.recipe(pair.interleaved(pair.k)).open_pair()
    assert isinstance(teacher, lb.Local)
    counts = list[Figures]()
    for k, gamma in [*((k, GAMMA) for k in KS), *((pair.k, gamma) for gamma in OTHER_GAMMAS)]:
        counts.append(cost(pair, student, teacher, k, gamma))
        print(counts[-1], flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    sizes = {"teacher": teacher.opened.parameters_total, "student": student.live.parameters_total}
    return {"parameters": sizes, "costs": counts, "passes": passes(pair, folder / "run"), "clock": clock(pair, student, teacher, folder)}


def main() -> None:
    """Count, measure, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of the experiments on arithmetic")
    parser.add_argument("--student", help="a student of SmolLM2-135M-Instruct that has been taught")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    found = dict[str, Figures]()
    for name, pair in pairs(asked.work, asked.student).items():
        found[name] = measured(pair, asked.work / "interleaved_cost" / "runs")
        print(name, found[name]["passes"], found[name]["clock"]["skd_times"], flush=True)
        write_json(RESULTS / "interleaved_cost.json", {"machine": machine(), "steps_of_the_run": STEPS, "pairs": found})


if __name__ == "__main__":
    main()
