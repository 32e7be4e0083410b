"""What hidden states and attention add to a forward KL: SmolLM2-135M-Instruct teaches a student of six of its thirty layers.

    python benchmarks/layers.py --work FOLDER    # an hour of one core, half of it choosing; what is in FOLDER is not made again

The student is the teacher without its least influential layers. It learns on the teacher's answers to the quickstart's prompts, by
`ForwardKL()` alone, with `HiddenStates("even")` beside it, with `Attentions("even")`, and with both. Distance and weight of each are
chosen with seed 0, each by itself beside the forward KL, on answers kept back from learning; nothing of what is published saw them: seeds
1 to 5, held-out prompts. A seed is another order of the rows. Said: KL on held-out text, the mean over seeds with its t interval; of each
arm, by how much it is lower than the forward KL alone with the same seed; what a step takes, in turn with the others, as a share of the
forward KL's alone within each round. Hoped for: a difference above 0, the whole of its interval.
Writes `benchmarks/results/layers.json` and `.svg`.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import speculation
import torch
from across_tokenizers import written
from arith_lab import t_interval
from measure import bars, in_turn, machine, seconds

import limbeck as lb
from limbeck.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from limbeck.licences import of_model, record
from limbeck.quickstart import HELDOUT, PROMPTS, converted, packaged_teacher
from limbeck.sources import Share

RESULTS = Path(__file__).parent / "results"
STEPS, SEQUENCES, TOKENS, RATE, SEEDS, KEPT_BACK = 30, 4, 96, 1e-3, (1, 2, 3, 4, 5), 40
LAYERS, ROUNDS = 6, 7
STATES = [
    weight * lb.HiddenStates("even", distance)
    for distance, weight in (("cosine", 3.0), ("cosine", 30.0), ("mse", 0.003), ("mse", 0.03), ("mse", 0.1))
]
ATTENTIONS = [weight * lb.Attentions("even") for weight in (0.1, 1.0, 10.0)]
Arm = list[lb.Term]


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in a file, made where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)


def parted(work: Path, teacher: str) -> dict[str, str]:
    """The teacher's answers: to learn from, to choose by, to be measured on."""
    rows = written(teacher, PROMPTS, work / "corpus")
    written(teacher, HELDOUT, work / "held-out")
    for name, some in {"learn": rows[:-KEPT_BACK], "choose": rows[-KEPT_BACK:]}.items():
        (work / name).mkdir(exist_ok=True)
        write_jsonl(work / name / "rows.jsonl", some)
        record(work / name, of_model(teacher))
    return {"learn": str(work / "learn" / "rows.jsonl"), "choose": str(work / "choose" / "rows.jsonl"),
            "held-out": str(work / "held-out" / "corpus.jsonl")}  # fmt: skip


def spelt(arm: Arm) -> str:
    """An arm as a recipe writes it."""
    return " + ".join(["ForwardKL", *(f"{each.weight:g} {type(each).__name__}({getattr(each, 'distance', '')})" for each in arm)])


def learnt(arm: Arm, seed: int, student: str, teacher: str, data: dict[str, str], out: Path, measured_on: str) -> dict[str, Any]:
    """One run, and how far its student is from the teacher."""
    source = lb.Corpus(data["learn"], sequences=SEQUENCES, max_tokens=TOKENS, written_by="teacher")
    recipe = lb.Recipe(lb.Student(student, lb.AdamW(RATE), dtype="float32"), source, lb.Local(teacher), lb.Objective([lb.ForwardKL(), *arm]),
                       steps=STEPS, seed=seed, save_every=None)  # fmt: skip
    lb.distill(recipe, out)
    rows = read_jsonl(out / "metrics.jsonl")
    return {
        **measured(str(out / "student"), recipe, data[measured_on]),
        "first_and_last": {key: [round(rows[0][key], 4), round(rows[-1][key], 4)] for key in rows[0] if "/" in key},
    }  # fmt: skip


def measured(student: str, recipe: lb.Recipe, text: str) -> dict[str, Any]:
    """KL of the teacher to a student, nats a token."""
    asked = replace(recipe, student=replace(recipe.student, model=student), objective=lb.Objective([lb.ForwardKL()]))
    found = lb.Likelihood([lb.Data(text)], max_tokens=TOKENS, samples=0).run(*asked.open_pair())
    return {"kl_nats": found["kl_nats"], "tokens": found["tokens"]}


def chosen(arms: list[lb.Term], run: Callable[[Arm], float]) -> lb.Term:
    """The one whose student is nearest on what was kept back."""
    return min(arms, key=lambda each: run([each]))


def figures(by_seed: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and what is gained on the forward KL alone, seed by seed."""
    kl, gains = [each["kl_nats"] for each in by_seed], lower(by_seed, alone)
    return {
        "kl_nats": round(statistics.mean(kl), 4), "interval": t_interval(kl), "by_seed": [round(each, 4) for each in kl],
        "lower_by": gains["mean"], "lower_by_interval": gains["interval"],
        "first_and_last": by_seed[0]["first_and_last"],
    }  # fmt: skip


def lower(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """By how much the first is lower, seed by seed."""
    gains = [theirs["kl_nats"] - mine["kl_nats"] for mine, theirs in zip(one, other, strict=True)]
    return {"mean": round(statistics.mean(gains), 4), "interval": t_interval(gains)}


def costs(arms: dict[str, Arm], student: str, teacher: str, data: dict[str, str]) -> dict[str, float]:
    """What a pass takes, the teacher's and the student's, as a share of that of the forward KL alone: the median over rounds."""
    source = lb.Corpus(data["learn"], sequences=SEQUENCES, max_tokens=TOKENS, written_by="teacher")
    work = dict[str, Callable[[], float]]()
    for name, arm in arms.items():
        recipe = lb.Recipe(lb.Student(student, dtype="float32"), source, lb.Local(teacher), lb.Objective([lb.ForwardKL(), *arm]))
        learner, scorer, objective = recipe.open_all()
        batch = source.load(learner.live.vocabulary, Share(0, 0, 1, scorer)).draw(0, learner)

        def once(learner: Any = learner, scorer: Any = scorer, objective: Any = objective, batch: Any = batch) -> None:
            learner.learn(batch, scorer.about(batch), objective, 1 / len(batch.tokens_N))
            learner.forget()

        work[name] = partial(seconds, once)
    found = in_turn(work, ROUNDS)
    return {name: round(statistics.median(mine / one for mine, one in zip(each, found["alone"], strict=True)), 3) for name, each in found.items()}


def main() -> None:
    """Cut, choose, learn, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of text and runs; what is there is not made again")
    work = parser.parse_args().work
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    teacher = str(converted(packaged_teacher()))
    data = parted(work, teacher)
    student = speculation.cut(teacher, work / "corpus" / "corpus.jsonl", work / f"cut-{LAYERS}", LAYERS)

    def run(arm: Arm, seed: int, text: str) -> dict[str, Any]:
        name = f"{seed}-" + "-".join(["kl", *(f"{type(each).__name__}-{getattr(each, 'distance', '')}-{each.weight:g}" for each in arm)])
        found = once(work / "found" / f"{name}.json", lambda: learnt(arm, seed, student, teacher, data, work / "runs" / name, text))
        print(seed, spelt(arm), found, flush=True)
        return found

    states, attentions = (chosen(several, lambda arm: run(arm, 0, "choose")["kl_nats"]) for several in (STATES, ATTENTIONS))
    arms: dict[str, Arm] = {"alone": [], "states": [states], "attention": [attentions], "both": [states, attentions]}
    found = {name: [run(arm, seed, "held-out") for seed in SEEDS] for name, arm in arms.items()}
    tried = {spelt([each]): round(run([each], 0, "choose")["kl_nats"], 4) for each in [*STATES, *ATTENTIONS]}
    start = once(work / "found" / "start.json", lambda: measured(student, recipe_of(student, teacher, data), data["held-out"]))
    settings = {"steps": STEPS, "sequences": SEQUENCES, "max_tokens": TOKENS, "learning_rate": RATE, "student_layers": LAYERS,
                "teacher_layers": 30, "seeds": list(SEEDS), "held_out_tokens": start["tokens"], "kept_back": KEPT_BACK}  # fmt: skip
    taken = once(work / "found" / "costs.json", lambda: costs(arms, student, teacher, data))
    table = {
        name: {"objective": spelt(arms[name]), **figures(several, found["alone"]), "times_alone": taken[name]} for name, several in found.items()
    }
    write_json(RESULTS / "layers.json", {"machine": machine(), "settings": settings, "before_kl_nats": round(start["kl_nats"], 4),
                                         "tried_on_kept_back": tried, "states_lower_than_both_by": lower(found["states"], found["both"]),
                                         "arms": table})  # fmt: skip
    shown = {each["objective"]: each["kl_nats"] for each in table.values()}
    write_text(RESULTS / "layers.svg", bars({f"after {STEPS} steps, held out": shown}, "nats", "KL of SmolLM2 to a student of six of its layers"))


def recipe_of(student: str, teacher: str, data: dict[str, str]) -> lb.Recipe:
    """What the untaught student is measured with."""
    return lb.Recipe(lb.Student(student, dtype="float32"), lb.Corpus(data["learn"]), lb.Local(teacher), lb.ForwardKL())


if __name__ == "__main__":
    main()
