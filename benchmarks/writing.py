"""Local writing against `transformers.generate`: tokens a second at a batch of 32, SmolLM2-135M-Instruct, this processor.

    python benchmarks/writing.py

Two loads, in turn, several rounds, one process: **equal** lengths (32 prompts, 64 tokens each, no end token) and **real** answers
(64 prompts of the quickstart, temperature 1, up to 512 tokens, each until it ends). transformers takes batches of 32 in the order of
the file, padded on the left, its dynamic and its static cache, of which the faster is compared; tokens after an end are not counted.
A third load says what a group costs: 8 answers of one token each to 8 long prompts, against 64 different ones.
Limits: a token of one row takes 2 x parameters FLOPs, a step at least the bytes of the weights.
Aimed at: never slower at equal lengths, 1.6 times on real answers. Writes `benchmarks/results/writing.json` and `.svg`.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import bars, in_turn, machine, seconds, summary

from limbeck.data import Data
from limbeck.decoding import Sampling, write
from limbeck.files import write_json, write_text
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.quickstart import PROMPTS, converted, packaged_teacher

RESULTS = Path(__file__).parent / "results"
BATCH, EQUAL_TOKENS, REAL_PROMPTS, REAL_TOKENS = 32, 64, 64, 512


class Endless:
    """A vocabulary in which nothing ends a text."""

    end_ids = frozenset[int]()


def ours(model: Model, prompts: Sequence[list[int]], tokens: int, seed: int) -> int:
    """Write; how many tokens."""
    return sum(len(each.tokens) for each in write(model, list(prompts), Sampling(tokens), seed, 0, range(len(prompts)), at_once=BATCH))


@torch.no_grad()
def theirs(model: Model, prompts: Sequence[list[int]], tokens: int, ends: Sequence[int], seed: int, cache: str | None) -> int:
    """The same by transformers, batch by batch; tokens up to and with an end."""
    torch.manual_seed(seed)
    count, told = 0, {"cache_implementation": cache} if cache else {}
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        width = max(map(len, some))
        ids_BS = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in some])
        mask_BS = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some])
        written = model.module.generate(ids_BS, attention_mask=mask_BS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
                                        max_new_tokens=tokens, eos_token_id=list(ends) or None, **told)  # fmt: skip
        for row in written[:, width:].tolist():
            count += next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
    return count


def measured(contestants: dict[str, Callable[[int], int]], rounds: int) -> dict[str, Any]:
    """Tokens a second of each, in turn, and how many times theirs ours are: the median of ratios within a round. Round 0 is a seed too."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    counts: dict[str, list[int]] = {name: [] for name in contestants}
    for seed in range(rounds):
        for name, take in contestants.items():
            took = seconds(lambda name=name, take=take, seed=seed: counts[name].append(take(seed)))
            rates[name].append(counts[name][-1] / took)
    best = max((name for name in rates if name != "ours"), key=lambda name: statistics.median(rates[name]))
    ratios = [mine / other for mine, other in zip(rates["ours"], rates[best], strict=True)]
    return {"tokens_per_second": {name: summary(each) for name, each in rates.items()}, "tokens": counts, "fastest_of_theirs": best,
            "times": summary(ratios)}  # fmt: skip


def loads(model: Model, rounds: int, real_rounds: int) -> dict[str, Any]:
    """Both loads; the second as often as `real_rounds` says."""
    asked = Data(str(PROMPTS))
    prompts = [model.vocabulary.prompt(row, asked) for row, _ in zip(asked.rows(), range(REAL_PROMPTS), strict=False)]
    endless: Any = replace(model, vocabulary=Endless())
    ends = sorted(model.vocabulary.end_ids)
    equal = {"ours": lambda seed: ours(endless, prompts[:BATCH], EQUAL_TOKENS, seed)}
    real = {"ours": lambda seed: ours(model, prompts, REAL_TOKENS, seed)}
    for name, cache in (("transformers", None), ("transformers, static cache", "static")):
        equal[name] = lambda seed, cache=cache: theirs(model, prompts[:BATCH], EQUAL_TOKENS, (), seed, cache)
        real[name] = lambda seed, cache=cache: theirs(model, prompts, REAL_TOKENS, ends, seed, cache)
    measured(equal, 1)  # to be warm
    found = {"equal": measured(equal, rounds)}
    real = {name: real[name] for name in ("ours", found["equal"]["fastest_of_theirs"])}  # the slower one would take minutes
    return {**found, "real": measured(real, real_rounds)} if real_rounds else found


def shared(model: Model, rounds: int) -> dict[str, Any]:
    """Seconds for one token after 64 prompts of 200 tokens: eight different ones eight times each, and 64 different ones."""
    draw = torch.Generator().manual_seed(0)
    long = torch.randint(100, 40000, (64, 200), generator=draw).tolist()
    grouped = [prompt for prompt in long[:8] for _ in range(8)]
    asked = {"groups of 8": grouped, "all different": long}
    taken = in_turn({name: (lambda some=some: seconds(lambda: ours(model, some, 1, 0))) for name, some in asked.items()}, rounds)
    times = [apart / together for together, apart in zip(*taken.values(), strict=True)]
    return {"seconds": {name: summary(each) for name, each in taken.items()}, "times": summary(times)}


def limits(model: Model, found: dict[str, Any]) -> dict[str, Any]:
    """What the products with all weights would take of a step of 32 rows, nothing else done, and the share that is of ours."""
    layers = [each.weight for each in model.module.modules() if isinstance(each, torch.nn.Linear)]
    rows = [torch.ones(BATCH, weight.shape[1], dtype=model.compute) for weight in layers]
    with torch.no_grad():
        times = [seconds(lambda: [torch.nn.functional.linear(x, weight) for x, weight in zip(rows, layers, strict=True)]) for _ in range(8)]
    step, ours_step = statistics.median(times), BATCH / found["equal"]["tokens_per_second"]["ours"]["median"]
    return {"step_seconds": round(ours_step, 4), "products_seconds": round(step, 4), "share": round(step / ours_step, 3)}


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--real-rounds", type=int, default=3, help="of real answers, which take minutes each; in bfloat16 alone")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"batch": BATCH}
    for dtype in ("bfloat16", "float32"):
        model = open_model(str(converted(packaged_teacher())), Opening(dtype))
        found = loads(model, asked.rounds, asked.real_rounds if dtype == "bfloat16" else 0)
        figures[dtype] = {**found, "shared_prompts": shared(model, asked.rounds), "limit": limits(model, found)}
        write_json(RESULTS / "writing.json", {"machine": machine(), **figures})
        print(dtype, {load: found[load]["times"] for load in found}, figures[dtype]["shared_prompts"]["times"], flush=True)
    groups = {f"{load}, {dtype}": {name: rate["median"] for name, rate in figures[dtype][load]["tokens_per_second"].items()}
              for dtype in ("bfloat16", "float32") for load in ("equal", "real") if load in figures[dtype]}  # fmt: skip
    write_text(RESULTS / "writing.svg", bars(groups, "tokens/s", "Writing at a batch of 32, SmolLM2-135M-Instruct"))


if __name__ == "__main__":
    main()
