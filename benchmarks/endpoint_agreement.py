"""What a vLLM server says of a text, and writes, beside the same model here.

    python benchmarks/endpoint_agreement.py --model FOLDER --data gsm8k-test.jsonl

Both on the processor of this machine, in bfloat16 and then in float32; the same model in float32 here shows how much of a
difference is arithmetic. Aimed at: log-probabilities of the tokens of at least 64 texts within 0.05 nats in the mean and
0.3 in 99 of 100; greedy texts that part only where the two tokens are closer than 0.1 nats. The second is held in float32
and not in bfloat16, whose logits of this model stand 0.125 nats apart: a tie within 0.1 is an exact one there.
Needs `python benchmarks/vllm_server.py` once. Writes `benchmarks/results/endpoint_agreement.json`.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor
from vllm_server import WHEEL, python, serving

from limbeck.answers import Purse, Question
from limbeck.batch import Batch, Text
from limbeck.data import Data
from limbeck.decoding import Sampling, write
from limbeck.endpoint import Endpoint
from limbeck.files import read_jsonl, write_json
from limbeck.machine import Opening, Precision
from limbeck.models import Model, open_model
from limbeck.student import Student
from limbeck.targets import Logits, TopK

TOP = 20
ASKED = Data("gsm8k.jsonl")
MEAN_NATS, P99_NATS, TIE_NATS = 0.05, 0.3, 0.1


@dataclass(frozen=True)
class Apart:
    """How far two lists of log-probabilities are apart, in nats. signed: their mean difference."""

    mean: float
    p99: float
    most: float
    signed: float

    @staticmethod
    def of(a_N: Tensor, b_N: Tensor) -> "Apart":
        gap_N = (a_N - b_N).abs().double()
        return Apart(float(gap_N.mean()), float(gap_N.quantile(0.99)), float(gap_N.max()), float((a_N - b_N).double().mean()))


@dataclass(frozen=True)
class Parting:
    """Where two greedy texts part, and how much better each side finds its own token than the other's when it reads both, in nats.

    Below 0 where it finds otherwise on reading than it did in writing. float32: ours over the server's, by the same model in float32.
    """

    place: int
    here: float
    server: float
    float32: float


@torch.no_grad()
def log_probs(model: Model, batch: Batch) -> Tensor:
    """Log-probabilities [N, V] of this model, by hand: hidden states, head, softmax."""
    outputs = model.forward(batch)
    head = outputs.head.prepared(outputs.hidden_ND.dtype)
    return Logits(head.product(outputs.hidden_ND), head).block(slice(None)).log_probs()


def of_tokens(log_p_NV: Tensor, batch: Batch) -> Tensor:
    """Those of the tokens themselves [N]."""
    return log_p_NV.gather(1, batch.tokens_N[:, None])[:, 0]


def token_of(said: TopK, batch: Batch) -> Tensor:
    """What a server said of the tokens themselves [N]."""
    return said.log_p_NK.masked_fill(said.ids_NK != batch.tokens_N[:, None], -torch.inf).amax(-1)


def scores(endpoint: Endpoint, models: dict[str, Model], batches: Sequence[Batch]) -> dict[str, Any]:
    """The same tokens scored by the server and by each model here: differences of each pair."""
    began = time.monotonic()
    said = list(endpoint.score(batches))
    seconds = time.monotonic() - began
    found: dict[str, list[Tensor]] = {"server": [], **{name: [] for name in models}}
    tails: dict[str, list[Tensor]] = {"server": [], **{name: [] for name in models}}
    for batch, each in zip(batches, said, strict=True):
        assert isinstance(each, TopK)
        found["server"].append(token_of(each, batch))
        tails["server"].append(each.log_tail_N.exp())
        for name, model in models.items():
            log_p_NV = log_probs(model, batch)
            found[name].append(of_tokens(log_p_NV, batch))
            tails[name].append(log_p_NV.exp().scatter(1, each.ids_NK, 0.0).sum(-1))
    whole, rest = ({name: torch.cat(parts) for name, parts in each.items()} for each in (found, tails))
    names = list(whole)
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    return {
        "texts": sum(len(batch) for batch in batches),
        "tokens": len(whole["server"]),
        "seconds": seconds,
        "tokens_apart": {f"{a} and {b}": asdict(Apart.of(whole[a], whole[b])) for a, b in pairs},
        "tail_mass_apart": {f"{a} and {b}": float((rest[a] - rest[b]).abs().mean()) for a, b in pairs},
        "tail_mass": {name: float(each.mean()) for name, each in rest.items()},
    }


def greedy(endpoint: Endpoint, models: dict[str, Model], prompts: Sequence[list[int]], max_tokens: int) -> dict[str, Any]:
    """Greedy answers of the server and of the model here, token by token, and where they part."""
    here = write(models["here"], list(prompts), Sampling(max_tokens, temperature=0), 0, 0, range(len(prompts)))
    server, asked = endpoint._server, {"model": endpoint.model, "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}
    body_of = [{**asked, "prompt": prompt} for prompt in prompts]
    there = dict(server.each(range(len(prompts)), lambda n: server.post("completions", body_of[n])["choices"][0]["token_ids"]))
    partings, same = list[Parting](), 0
    for n, (prompt, mine) in enumerate(zip(prompts, here, strict=True)):
        theirs = there[n]
        place = next((n for n, (a, b) in enumerate(zip(mine.tokens, theirs, strict=False)) if a != b), None)
        assert place is not None or len(mine.tokens) == len(theirs), "one text goes on where the other ended"
        same += place is None
        if place is not None:
            partings.append(_parting(endpoint, models, [*prompt, *mine.tokens[:place]], place, mine.tokens[place], theirs[place]))
    return {
        "answers": len(prompts),
        "tokens": sum(len(mine.tokens) for mine in here),
        "same": same,
        "widest_float32": max((abs(each.float32) for each in partings), default=0.0),
        "partings": [asdict(each) for each in partings],
    }


def _parting(endpoint: Endpoint, models: dict[str, Model], before: list[int], place: int, mine: int, theirs: int) -> Parting:
    """How each side finds the two tokens that it and the other one chose."""
    both = Batch.of([Text.answered(before, [mine], {}), Text.answered(before, [theirs], {})], "teacher")
    gaps = {name: of_tokens(log_probs(model, both), both) for name, model in models.items()}
    (said,) = endpoint.score([both])
    assert isinstance(said, TopK)
    server = token_of(said, both)
    return Parting(place, float(gaps["here"].diff().neg()), float(server.diff()), float(gaps["float32"].diff().neg()))


def written(endpoint: Endpoint, questions: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """Answers through the chat interface, as `limbeck write` asks for them."""
    purse, asked = Purse(), [Question({"prompt": text}, ASKED, (0, 1)) for text in questions]
    given = list(endpoint.answers(asked, Sampling(max_tokens), purse))
    return {
        "answers": len(given),
        "nonempty": sum(bool(each.answer.text.strip()) for each in given),
        "ended": sum(each.answer.finish == "end" for each in given),
        "completion_tokens": purse.spent.completion_tokens,
        "prompt_tokens": purse.spent.prompt_tokens,
    }


def texts_of(model: Model, rows: Sequence[dict[str, Any]], max_tokens: int) -> list[Text]:
    """Questions with their answers, as dialogues."""
    return [text for row in rows for text in model.vocabulary.texts({"prompt": row["question"], "completion": row["answer"]}, ASKED, max_tokens)]


def measured(asked: argparse.Namespace, arithmetic: Precision) -> dict[str, Any]:
    """Server and model in one arithmetic."""
    rows = read_jsonl(asked.data)[: asked.texts]
    models = {"here": open_model(asked.model, Opening(arithmetic)), "float32": open_model(asked.model, Opening("float32"))}
    batches = Batch.of(texts_of(models["here"], rows, 512), "corpus").split(1024)
    prompts = [models["here"].vocabulary.prompt({"prompt": row["question"]}, ASKED) for row in rows]
    with tempfile.TemporaryDirectory() as work, serving(asked.model, Path(work) / "vllm.log", arithmetic) as url:
        endpoint = Endpoint(url, "teacher", top=TOP, tokenizer=asked.model, concurrency=16, seconds=600).load(Student(asked.model).load(1))
        found = {"scores": scores(endpoint, models, batches), "greedy": greedy(endpoint, models, prompts, asked.max_tokens)}
        return {**found, "chat": written(endpoint, [row["question"] for row in rows[:16]], asked.max_tokens)}


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of safetensors, SmolLM2-135M-Instruct for example")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64, help="of a greedy answer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    if python() is None:
        parser.exit(1, "there is no vLLM yet; python benchmarks/vllm_server.py makes it\n")
    arithmetics: tuple[Precision, ...] = ("bfloat16", "float32")
    found = {arithmetic: measured(asked, arithmetic) for arithmetic in arithmetics}
    write_json(asked.out / "endpoint_agreement.json", {"machine": machine(), "server": WHEEL, "top": TOP, **found})
    for arithmetic, each in found.items():
        scored, parted, apart = each["scores"], each["greedy"], each["scores"]["tokens_apart"]["server and here"]
        print(f"{arithmetic}: {scored['tokens']:,} tokens of {scored['texts']} texts {apart['mean']:.2g} nats apart on average (aim {MEAN_NATS}), "
              f"{apart['p99']:.2g} in 99 of 100 (aim {P99_NATS}); {parted['same']} of {parted['answers']} greedy answers are the same, the others "
              f"part where the tokens are {parted['widest_float32']:.3f} nats apart in float32 at the most (aim {TIE_NATS})")  # fmt: skip


if __name__ == "__main__":
    main()
