"""Speculative decoding of SmolLM2-135M-Instruct with drafts that are distilled here: what it takes, what it gains.

    python benchmarks/speculation.py --work FOLDER --teach    # text and drafts alone: two hours of one core; resumable
    python benchmarks/speculation.py --work FOLDER            # what of that is missing, and the figures: half an hour more

The draft is the target's LAYERS most influential layers, taught by forward KL on the target's answers (supervised distillation). From there
three go on for as many steps: the same; DistillSpec, where the draft writes and the target scores, by total variation; and that on its own and
the target's text in turn, which was added when sixteen of the held-out prompts had shown that own text alone lowers acceptance. Measured on held-out
prompts, at temperature 1 and greedily: acceptance with intervals on either's text, and differences on the same texts; the costs of a step
and of each verified place at batches of 1 and 8; the speed-up by the formula with these and by the clock, against the faster of our own
plain decoding and `transformers.generate`; and, at a batch of 1, against transformers' assisted generation of the same pair. Greedy text in
float32 is compared with plain greedy text token by token, at batches of 1 and 8. Aimed at: 80 % of the formula's gain; never slower
than assisted generation; 10 % faster after DistillSpec than before.
Writes `benchmarks/results/speculation.json` and `.svg`.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import bars, machine, seconds, summary

import limbeck as lb
from limbeck import prune
from limbeck.batch import Batch
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data
from limbeck.decoding import Sampling, write
from limbeck.evaluate.acceptance import Costs, costs, mean, overlap, speculate, written_by
from limbeck.files import new_folder, write_json, write_text
from limbeck.licences import of_model, record
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.quickstart import HELDOUT, PROMPTS, converted, packaged_teacher
from limbeck.sources import texts_of
from limbeck.speculative import best_length, expected_tokens, speedup

RESULTS = Path(__file__).parent / "results"
LAYERS, SUPERVISED, MORE, SEQUENCES = 3, 400, 120, 8
SAMPLES, ANSWER = 4, lb.Sampling(max_tokens=256)
TOKENS, TIMED, ROUNDS = 64, 128, 2
TEMPERATURES = (1.0, 0.0)
CLOCKED = ("supervised", "DistillSpec in turn")


def cut(teacher: str, answered: Path, folder: Path, layers: int = LAYERS) -> str:
    """The target without its least influential layers."""
    if not folder.exists():
        whole = open_model(teacher, Opening("float32"))
        texts = texts_of(answered, whole.vocabulary, 1024, limit=40)
        kept = prune.least_influential(prune.influence(whole, Batch.of(texts, "teacher").split(2048)), layers)
        prune.by_depth(whole, kept)
        with new_folder(folder) as made:
            prune.save(whole, made)
            record(made, of_model(teacher))
    return str(folder)


def taught(work: Path, teacher: str) -> dict[str, str]:
    """The drafts: cut, taught on the target's text, and what became of that in each of three ways."""
    answered = work / "corpus" / "corpus.jsonl"
    if not answered.exists():
        asked = Order(lb.Local(teacher), Data(str(PROMPTS)), SAMPLES, ANSWER, similarity=None, accept_license=["apache-2.0"])
        write_corpus(asked, work / "corpus")
    ready = lb.Corpus(str(answered), sequences=SEQUENCES, max_tokens=320, written_by="teacher")
    own = lb.OnPolicy(str(PROMPTS), sequences=SEQUENCES, sampling=Sampling(2 * TOKENS))
    drafts = {"cut": cut(teacher, answered, work / f"draft-{LAYERS}")}

    def learn(name: str, start: str, rate: float, source: lb.Source, objective: lb.Divergence, steps: int) -> None:
        recipe = lb.Recipe(lb.Student(drafts[start], lb.AdamW(rate)), source, lb.Local(teacher), objective, steps=steps, save_every=20,
                           tokens_per_pass=2048)  # fmt: skip
        folder = work / name.replace(" ", "-")
        if not (folder / "student").exists():
            lb.distill(recipe, folder)
        drafts[name] = str(folder / "student")

    learn("supervised", "cut", 1e-3, ready, lb.ForwardKL(), SUPERVISED)
    learn("supervised longer", "supervised", 3e-4, ready, lb.ForwardKL(), MORE)
    learn("DistillSpec", "supervised", 3e-4, own, lb.TotalVariation(), MORE)
    learn("DistillSpec in turn", "supervised", 3e-4, lb.Mix(0.5, own, ready), lb.TotalVariation(), MORE)
    return drafts


@torch.no_grad()
def theirs(model: Model, prompts: Sequence[list[int]], sampling: Sampling, rows: int, draft: Model | None = None, seed: int = 0) -> int:
    """Tokens that transformers writes, with a draft or without."""
    torch.manual_seed(seed)
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0} if sampling.temperature else {"do_sample": False}
    helped, count, ends = {"assistant_model": draft.module} if draft else {}, 0, model.vocabulary.end_ids
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        width = max(map(len, some))
        ids_BS = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in some])
        mask_BS = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some])
        found = model.module.generate(ids_BS, attention_mask=mask_BS, max_new_tokens=sampling.max_tokens, pad_token_id=0, eos_token_id=sorted(ends),
                                      **drawn, **helped)[:, width:]  # fmt: skip
        count += sum(next((place + 1 for place, token in enumerate(row) if token in ends), len(row)) for row in found.tolist())
    return count


def rates(contestants: dict[str, Callable[[int], int]]) -> dict[str, list[float]]:
    """Tokens a second, in turn."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for seed in range(ROUNDS + 1):
        for name, take in contestants.items():
            counts = list[int]()
            took = seconds(lambda take=take, seed=seed, counts=counts: counts.append(take(seed)))
            found[name] += [counts[0] / took] if seed else []  # the first is to be warm
    return found


def clock(target: Model, draft: Model, prompts: Sequence[list[int]], sampling: Sampling, accepted: float, rows: int) -> dict[str, Any]:
    """What speculation gains at a batch size, by formula and by the clock."""
    cost = costs(target, draft, prompts, rows)
    best = best_length(accepted, cost.cost, cost.row_cost, 8)
    gammas = sorted({max(1, best), max(1, best) + 1})
    some = [list(prompts[n % len(prompts)]) for n in range(4 * rows if rows == 1 else 2 * rows)]
    rounds: dict[int, list[float]] = {gamma: [] for gamma in gammas}

    def spoken(gamma: int, seed: int) -> int:
        texts = speculate(target, draft, some, sampling, gamma, seed, rows)
        whole = [each for text in texts for each in text.rounds[:-1] if len(each.proposed) == gamma]
        rounds[gamma].append(sum(each.took for each in whole) / max(1, len(whole)))
        return sum(len(text.tokens) for text in texts)

    contestants: dict[str, Callable[[int], int]] = {
        "ours, plain": lambda seed: sum(len(each.tokens) for each in write(target, some, sampling, seed, 0, range(len(some)), at_once=rows)),
        "transformers, plain": lambda seed: theirs(target, some, sampling, rows, seed=seed),
        **{f"ours, {gamma} proposed": (lambda seed, gamma=gamma: spoken(gamma, seed)) for gamma in gammas},
    }
    if rows == 1:
        contestants["transformers, assisted"] = lambda seed: theirs(target, some, sampling, 1, draft, seed)
    found = rates(contestants)
    plain = max(("ours, plain", "transformers, plain"), key=lambda name: statistics.median(found[name]))
    gains = {gamma: statistics.median(mine / other for mine, other in zip(found[f"ours, {gamma} proposed"], found[plain], strict=True))
             for gamma in gammas}  # fmt: skip
    return {
        "cost": round(cost.cost, 3), "row_cost": round(cost.row_cost, 3), "target_ms": round(1e3 * cost.target_seconds, 1),
        "best_gamma": best, "pays_by_formula": best > 0, "tokens_per_second": {name: summary(each) for name, each in found.items()},
        "faster_plain": plain,
        "gains": {str(gamma): _gain(gains[gamma], accepted, gamma, cost, statistics.mean(rounds[gamma])) for gamma in gammas},
        "times_assisted": max(statistics.median(mine / other for mine, other in zip(found[name], found["transformers, assisted"], strict=True))
                              for name in found if name.startswith("ours, ")) if rows == 1 else None,
    }  # fmt: skip


def _gain(measured: float, accepted: float, gamma: int, cost: Costs, kept: float) -> dict[str, float]:
    foretold = speedup(accepted, gamma, cost.cost, cost.row_cost)
    return {"measured": round(measured, 3), "foretold": round(foretold, 3), "share": round(measured / foretold, 3), "tokens_a_round": round(kept, 3),
            "foretold_tokens_a_round": round(expected_tokens(accepted, gamma), 3)}  # fmt: skip


def before_after(target: Model, drafts: dict[str, Model], prompts: Sequence[list[int]], sampling: Sampling, rows: int, gamma: int) -> dict[str, Any]:
    """How much faster the second draft writes than the first: groups of prompts, both in turn; the interval is the bootstrap's over groups."""
    took: dict[str, list[float]] = {name: [] for name in drafts}
    said: dict[str, list[float]] = {name: [] for name in drafts}
    groups = [prompts[start : start + rows] for start in range(0, len(prompts) if rows > 1 else 16, rows)]
    for draft in drafts.values():
        speculate(target, draft, groups[0], Sampling(8), gamma, 0, rows)  # to be warm
    for seed, group in enumerate(groups):
        for name, draft in drafts.items():
            took[name].append(seconds(lambda draft=draft, seed=seed, group=group, name=name: said[name].append(
                sum(len(text.tokens) for text in speculate(target, draft, group, sampling, gamma, seed, rows)))))  # fmt: skip
    first, second = drafts

    def ratio(some: np.ndarray[Any, Any]) -> float:
        pace = {name: np.array(said[name])[some].sum() / np.array(took[name])[some].sum() for name in drafts}
        return float(pace[second] / pace[first])

    draws = np.random.default_rng(0).integers(0, len(groups), (2000, len(groups)))
    bounds = [round(float(each), 3) for each in np.percentile([ratio(some) for some in draws], [2.5, 97.5])]
    return {"gamma": gamma, "groups": len(groups), "times": round(ratio(np.arange(len(groups))), 3), "interval": bounds}


def acceptances(target: Model, drafts: dict[str, str], prompts: Sequence[list[int]], sampling: Sampling) -> dict[str, Any]:
    """Of every draft on the target's text and on its own, and on the same texts of the target's how much more than the supervised one's."""
    texts, found, by_text = written_by(target, prompts, sampling), dict[str, Any](), dict[str, list[list[float]]]()
    for name, path in drafts.items():
        draft = open_model(path, Opening("auto"))
        by_text[name] = overlap(target, draft, texts, sampling)
        own = overlap(target, draft, written_by(draft, prompts, sampling), sampling)
        found[name] = {"target's text": _mean(by_text[name]), "draft's text": _mean(own)}
    for name in found:
        more = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(by_text[name], by_text["supervised"], strict=True)]
        found[name]["more than supervised"] = _mean(more)
    return found


def _mean(by_text: list[list[float]]) -> dict[str, Any]:
    value, bounds = mean(by_text)
    return {"mean": round(value, 4), "interval": [round(bound, 4) for bound in bounds]}


def greedy_agreement(teacher: str, draft_name: str, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Greedy speculative text beside plain greedy text in float32: how many differ, and how far the two tokens were apart there."""
    target, draft, sampling = open_model(teacher, Opening("float32")), open_model(draft_name, Opening("float32")), Sampling(TOKENS, temperature=0)
    plain = write(target, list(prompts), sampling, 0, 0, range(len(prompts)), at_once=1)
    found = dict[str, Any]()
    for rows in (1, 8):
        texts = speculate(target, draft, prompts, sampling, 4, 0, rows)
        gaps = list[float]()
        for prompt, mine, theirs_ in zip(prompts, texts, plain, strict=True):
            place = next((n for n, (a, b) in enumerate(zip(mine.tokens, theirs_.tokens, strict=False)) if a != b), None)
            if place is not None:
                with torch.no_grad():
                    logits_V = target.module(torch.tensor([[*prompt, *mine.tokens[:place]]])).logits[0, -1]
                gaps.append(float((logits_V[mine.tokens[place]] - logits_V[theirs_.tokens[place]]).abs()))
        found[f"batch of {rows}"] = {"texts": len(prompts), "tokens": sum(len(each.tokens) for each in texts), "differ": len(gaps), "gaps_nats": gaps}
    return found


def main() -> None:
    """Teach, measure, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of text and runs; what is there is not made again")
    parser.add_argument("--teach", action="store_true", help="make the drafts, and measure nothing")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    teacher = str(converted(packaged_teacher()))
    drafts = taught(asked.work, teacher)
    if asked.teach:
        return
    target, source = open_model(teacher, Opening("auto")), Data(str(HELDOUT))
    prompts = [target.vocabulary.prompt(row, source) for row in source.rows()][:64]
    found: dict[str, Any] = {"layers": LAYERS, "steps": {"supervised": SUPERVISED, "more": MORE}, "prompts": len(prompts), "tokens": TOKENS}
    found["drafts"] = {name: {"parameters": open_model(path, Opening("auto")).parameters_total} for name, path in drafts.items()}
    for temperature in TEMPERATURES:
        at, timed = f"temperature {temperature:g}", Sampling(TIMED, temperature)
        each = found[at] = {"acceptance": acceptances(target, drafts, prompts, Sampling(TOKENS, temperature))}
        opened = {name: open_model(drafts[name], Opening("auto")) for name in CLOCKED}
        for name, draft in opened.items():
            accepted = each["acceptance"][name]["target's text"]["mean"]
            each[name] = {str(rows): clock(target, draft, prompts, timed, accepted, rows) for rows in (1, 8)}
            print(at, name, each[name], flush=True)
        each["in supervised's speed"] = {
            str(rows): before_after(target, opened, prompts, timed, rows, max(1, each[CLOCKED[1]][str(rows)]["best_gamma"])) for rows in (1, 8)
        }
        write_json(RESULTS / "speculation.json", {"machine": machine(), **found})
    found["greedy_float32"] = greedy_agreement(teacher, drafts[CLOCKED[1]], prompts[:32])
    write_json(RESULTS / "speculation.json", {"machine": machine(), **found})
    groups = {f"batch of {rows}, temperature {t:g}": {who: rate["median"] for who, rate in
                                                      found[f"temperature {t:g}"][CLOCKED[1]][rows]["tokens_per_second"].items()}
              for t in TEMPERATURES for rows in ("1", "8")}  # fmt: skip
    write_text(RESULTS / "speculation.svg", bars(groups, "tokens/s", f"SmolLM2-135M-Instruct with a draft of {LAYERS} layers"))


if __name__ == "__main__":
    main()
