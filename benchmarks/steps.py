"""Whole training steps: on-policy beside TRL 1.16's `DistillationTrainer`, supervised beside a plain transformers loop.

    python benchmarks/steps.py --teacher FOLDER --data gsm8k-train.jsonl --peer /path/to/trl/bin/python

A teacher of SmolLM2-135M-Instruct and a student of 10 of its layers (the first and the last five). On-policy: 8 prompts of
GSM8K, exactly 64 new tokens each at temperature 1, reverse KL, AdamW. Supervised: 8 rows of GSM8K, forward KL. Masters in
float32, arithmetic in `--dtype` for all, warm-up left out, everyone on the same text in turn, medians.
Aimed at: on-policy at least 2 times as fast as TRL at its fastest settings (3 is the aim); supervised at least 1.5 times the
tokens a second of a loop that forms all logits, with less memory. The first is held in bfloat16 and not in float32, the second
in memory alone: the models' bodies, the same in both loops, take most of a step.

Stages are timed apart, each beside its floor: writing, one reading of the student's weights a token (measured bandwidth);
scoring and learning, their multiplications at the speed of one large product here. Writes `benchmarks/results/steps.json`
and `benchmarks/results/steps.svg`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import MIB, bars, in_turn, machine, peak_bytes, seconds, summary
from transformers import AutoModelForCausalLM

import limbeck as lb
from limbeck import prune
from limbeck.batch import Batch
from limbeck.files import write_json, write_text
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.sources import Share

HERE = Path(__file__).parent
PROMPTS, NEW_TOKENS = 8, 64
KEPT = [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]


def prepared(teacher: str, data: str, work: Path) -> dict[str, str]:
    """The student's folder, and the text as files: prompts alone, and with their answers."""
    student = work / "student"
    if not student.exists():
        model = open_model(teacher, Opening("float32"))
        prune.by_depth(model, KEPT)
        prune.save(model, student)
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()[:256]]
    asked = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    write_text(work / "text.jsonl", "".join(json.dumps(row) + "\n" for row in asked))
    write_text(work / "prompts.jsonl", "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in asked))
    return {"student": str(student), "text": str(work / "text.jsonl"), "prompts": str(work / "prompts.jsonl")}


class Ours:
    """A live recipe of Limbeck, its steps taken by hand so that stages can be timed."""

    def __init__(self, recipe: lb.Recipe) -> None:
        self.recipe = recipe
        self.student, self.teacher = recipe.open_pair()
        self.source = recipe.source.load(self.student.live.vocabulary, Share(0))
        self.batches: dict[int, Batch] = {}

    def endless(self) -> None:
        """Let nothing end an answer early: the end tokens are only words."""
        self.student.live.vocabulary.__dict__["end_ids"] = frozenset({-1})

    def draw(self, step: int) -> Batch:
        """The text of a step."""
        return self.source.draw(step, self.student)

    def learn(self, batch: Batch) -> dict[str, float]:
        """Score, learn, step: seconds of each."""
        found, parts = {"score": 0.0, "learn": 0.0}, batch.split(self.recipe.tokens_per_pass)
        scores = self.teacher.score(parts)
        for part in parts:
            began = time.perf_counter()
            said = next(scores)
            found["score"] += time.perf_counter() - began
            found["learn"] += seconds(lambda part=part, said=said: self.student.learn(part, said, self.recipe.objective, 1 / len(batch.places_N)))
        found["step"] = seconds(lambda: self.student.step(0))
        return found

    def step(self, step: int) -> dict[str, float]:
        """A whole step."""
        began = time.perf_counter()
        batch = self.draw(step)
        return {"write": time.perf_counter() - began, **self.learn(batch), "all": time.perf_counter() - began}


def on_policy(teacher: str, made: dict[str, str], dtype: Any, data_order: bool = True) -> Ours:
    """Limbeck's on-policy step, prompts in the file's order as TRL takes them."""
    source = lb.OnPolicy(made["prompts"], sequences=PROMPTS, sampling=lb.Sampling(max_tokens=NEW_TOKENS))
    recipe = lb.Recipe(_student(made, dtype), source, lb.Local(teacher, dtype=dtype), "ReverseKL()", steps=1000)
    found = Ours(recipe)
    found.source._pool.shuffle = not data_order
    found.endless()
    return found


def _student(made: dict[str, str], dtype: Any) -> lb.Student:
    return lb.Student(made["student"], lb.AdamW(1e-6, schedule="constant", warmup=0.0), dtype=dtype)


def floors(ours: Ours, batch: Batch) -> dict[str, float]:
    """The least seconds each stage can take here."""
    live, tokens, rows = ours.student.live, len(batch.tokens_T), len(batch.places_N)
    weights = live.parameters_total
    width = 2 if live.compute == torch.bfloat16 else 4
    head = live.head.weight_VD.numel()
    body_s, body_t = weights - head, ours.teacher.opened.parameters_total - head
    flops, bandwidth = _product_flops(live.compute), _bytes_per_second()
    read = NEW_TOKENS * weights * width / bandwidth + 2 * body_s * (tokens - rows) / flops
    return {
        "write": read,
        "score": 2 * body_t * tokens / flops,
        "learn": (6 * body_s * tokens + 8 * head * rows) / flops,
        "step": 28 * weights / bandwidth,
    }


def _product_flops(dtype: torch.dtype) -> float:
    a, b = torch.ones(2048, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(8))


def _bytes_per_second() -> float:
    a, b = torch.ones(2**26), torch.ones(2**26)
    return 8 * 2**26 / min(seconds(lambda: b.copy_(a)) for _ in range(5))


def trl(peer: str, teacher: str, made: dict[str, str], dtype: str, steps: int, shipped: bool) -> dict[str, Any]:
    """Steps of TRL in a process of its own."""
    command = [peer, str(HERE / "peers" / "trl_step.py"), "--teacher", teacher, "--student", made["student"], "--prompts", made["prompts"],
               "--dtype", dtype, "--steps", str(steps + 1), "--new-tokens", str(NEW_TOKENS)]  # fmt: skip
    printed = subprocess.run([*command, *(["--as-shipped"] if shipped else [])], capture_output=True, text=True, check=True).stdout
    return json.loads(printed.strip().splitlines()[-1])


def compare_on_policy(asked: argparse.Namespace, made: dict[str, str], dtype: str) -> dict[str, Any]:
    """Blocks of steps in turn: TRL's and ours, each in a warm process of its own, over the same prompts."""
    found: dict[str, list[Any]] = {"Limbeck": [], "TRL, helped": [], "TRL, as shipped": []}
    for _ in range(asked.blocks):
        ours = on_policy(asked.teacher, made, dtype)
        found["Limbeck"] += [ours.step(step) for step in range(asked.steps + 1)][1:]
        limits = floors(ours, ours.draw(0))
        del ours
        for name, shipped in (("TRL, helped", False), ("TRL, as shipped", True)):
            answer = trl(asked.peer, asked.teacher, made, dtype, asked.steps, shipped)
            found[name] += answer["step_seconds"][1:]
    stages = {name: {**summary([row[name] for row in found["Limbeck"]]), "floor": round(limits.get(name, 0.0), 4)} for name in found["Limbeck"][0]}
    whole = {
        "Limbeck": summary([row["all"] for row in found["Limbeck"]]),
        **{name: summary(values) for name, values in found.items() if name != "Limbeck"},
    }
    ratios = {name: round(whole[name]["median"] / whole["Limbeck"]["median"], 2) for name in whole}
    return {"seconds": whole, "times_limbeck": ratios, "stages": stages}


class Plain:
    """The loop that everybody writes first: padded rows, all logits of both models, autograd."""

    def __init__(self, teacher: str, student: str, dtype: str) -> None:
        self.kind = getattr(torch, dtype)
        self.teacher = AutoModelForCausalLM.from_pretrained(teacher, dtype=self.kind).eval()
        self.student = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-6, fused=True)

    def step(self, batch: Batch) -> None:
        """Forward KL on completion tokens, one step."""
        ids_BS = torch.nn.utils.rnn.pad_sequence(batch.sequences(), batch_first=True)
        mask_BS = torch.nn.utils.rnn.pad_sequence([torch.ones(len(t)) for t in batch.sequences()], batch_first=True)
        counted_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
        counted_BS[batch.sequence_N, batch.places_N - batch.starts_B[batch.sequence_N] - 1] = True
        with torch.no_grad():
            said = self.teacher(input_ids=ids_BS, attention_mask=mask_BS).logits
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind == torch.bfloat16):
            logits = self.student(input_ids=ids_BS, attention_mask=mask_BS).logits
        log_q, log_p = logits.float().log_softmax(-1), said.float().log_softmax(-1)
        nats = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        ((nats * counted_BS).sum() / counted_BS.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def supervised(asked: argparse.Namespace, made: dict[str, str], dtype: Any) -> tuple[Ours, Iterator[Batch]]:
    """Limbeck's supervised step, and the text of both."""
    recipe = lb.Recipe(
        _student(made, dtype), lb.Corpus(made["text"], sequences=PROMPTS), lb.Local(asked.teacher, dtype=dtype), "ForwardKL()", steps=1000
    )
    ours = Ours(recipe)
    return ours, (ours.draw(step) for step in range(1000))


def compare_supervised(asked: argparse.Namespace, made: dict[str, str], dtype: str) -> dict[str, Any]:
    """Steps in turn on the same text; memory of each in a process of its own."""
    ours, texts = supervised(asked, made, dtype)
    plain, batches = Plain(asked.teacher, made["student"], dtype), [next(texts) for _ in range(asked.steps * asked.blocks + 1)]
    left = {"Limbeck": iter(batches), "plain loop": iter(batches)}
    takes: dict[str, Callable[[], float]] = {
        "Limbeck": lambda: seconds(partial(ours.learn, next(left["Limbeck"]))),
        "plain loop": lambda: seconds(partial(plain.step, next(left["plain loop"]))),
    }
    found = in_turn(takes, len(batches) - 1)
    rates = {name: [len(b.tokens_T) / s for b, s in zip(batches[1:], values, strict=True)] for name, values in found.items()}
    ratio = statistics.median(a / b for a, b in zip(found["plain loop"], found["Limbeck"], strict=True))
    memory = {name: round(_peak_in_its_own_process(asked, made, dtype, name) / MIB) for name in takes}
    return {"tokens_per_second": {name: summary(values) for name, values in rates.items()}, "times_faster": round(ratio, 2), "MiB_of_a_step": memory}


def _peak_in_its_own_process(asked: argparse.Namespace, made: dict[str, str], dtype: str, name: str) -> int:
    command = [sys.executable, __file__, "--teacher", asked.teacher, "--data", asked.data, "--peak", json.dumps([made, dtype, name])]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1])


def peak_of_a_step(asked: argparse.Namespace, made: dict[str, str], dtype: str, name: str) -> int:
    """Bytes above what is resident after a first step."""
    ours, texts = supervised(asked, made, dtype)
    batches = [next(texts) for _ in range(3)]
    if name == "Limbeck":
        work: Callable[[Batch], object] = ours.learn
    else:
        del ours
        work = Plain(asked.teacher, made["student"], dtype).step
    return peak_bytes(lambda: [work(batch) for batch in batches])


def main() -> None:
    """Measure and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of SmolLM2-135M-Instruct as safetensors")
    parser.add_argument("--data", required=True, help="GSM8K as JSONL: question, answer")
    parser.add_argument("--peer", help="python of an environment with TRL 1.16")
    parser.add_argument("--steps", type=int, default=5, help="of a block, after one of warm-up")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        print(peak_of_a_step(asked, *json.loads(asked.peak)))
        return
    work = Path(tempfile.mkdtemp(prefix="limbeck-steps-"))
    made = prepared(asked.teacher, asked.data, work)
    results: dict[str, Any] = {"machine": machine(), "supervised": {}, "on_policy": {}}
    for dtype in asked.dtype or ["bfloat16", "float32"]:
        results["supervised"][dtype] = compare_supervised(asked, made, dtype)
        print(json.dumps(results["supervised"][dtype]), flush=True)
        if asked.peer:
            results["on_policy"][dtype] = compare_on_policy(asked, made, dtype)
            print(json.dumps(results["on_policy"][dtype]), flush=True)
    shutil.rmtree(work)
    write_json(HERE / "results" / "steps.json", results)
    groups = {f"on-policy, {d}": {name: s["median"] for name, s in found["seconds"].items()} for d, found in results["on_policy"].items()}
    write_text(HERE / "results" / "steps.svg", bars(groups, "s", "Seconds of an on-policy step: 8 prompts x 64 tokens"))


if __name__ == "__main__":
    main()
