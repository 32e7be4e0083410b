"""vLLM as the student's pen: new weights after each step, planted faults, and how fast it writes.

    python benchmarks/vllm_writer.py --model FOLDER

A student of the first LAYERS layers of the model in FOLDER learns from the whole of it, on its own answers, which vLLM writes. After
each step what vLLM says of its tokens is compared with the student as it is, and as it was a step before: the first must agree, and the
second shows whether the comparison could have told. Then a reload is left out, and then only the reset of the prefix cache. Speed: the
same prompts and lengths by vLLM and by `Student.write` on one processor and on all, in turn, in bfloat16.
Needs `python benchmarks/vllm_server.py` once. Writes `benchmarks/results/vllm_writer.json` and `.svg`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import bars, in_turn, machine, seconds, summary
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_server import WHEEL, python, serving

import limbeck as lb
from limbeck.batch import Batch
from limbeck.data import Data
from limbeck.decoding import Sampling, Written
from limbeck.engines import ALARM_NATS, EXCESS, MISMATCH, VLLM, Figures
from limbeck.errors import LimbeckError
from limbeck.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from limbeck.machine import Precision
from limbeck.objective import CrossEntropy, Objective
from limbeck.optimizer import AdamW
from limbeck.quickstart import HELDOUT
from limbeck.sources import Share
from limbeck.targets import Nothing

LAYERS, SEQUENCES, TOKENS = 10, 8, 48
SHARED = " ".join(row["prompt"] for row in read_jsonl(HELDOUT)[40:52])
"""Before every question, so that prompts share blocks of the prefix cache, which are of 128 tokens on a processor."""


def shrunk(model: str, layers: int, where: Path) -> str:
    """The first layers of a model, as a folder."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    whole.model.layers = whole.model.layers[:layers]
    whole.config.num_hidden_layers = layers
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = whole.config.layer_types[:layers]
    whole.save_pretrained(where)
    AutoTokenizer.from_pretrained(model).save_pretrained(where)
    return str(where)


def served(student: str, where: Path, dtype: Precision = "bfloat16") -> str:
    """A folder to start a server from: with a head of its own, since vLLM on a processor keeps an old head of one that is the embedding."""
    where.mkdir()
    lb.Student(student, dtype=dtype).load(1).hand_over(where)
    return str(where)


def asked(where: Path, count: int, preamble_first: bool = True) -> Data:
    """Questions behind the same few, or before them."""
    rows = [{"prompt": "\n".join([SHARED, row["prompt"]][:: 1 if preamble_first else -1])} for row in read_jsonl(HELDOUT)[:count]]
    write_jsonl(where / "asked.jsonl", rows)
    return Data(str(where / "asked.jsonl"))


def token_nats(student: lb.Student, batch: Batch) -> torch.Tensor:
    """What the student says of the tokens of a batch [N], by a forward pass."""
    objective = Objective([CrossEntropy()])
    return -student.measure(batch, Nothing(), objective)[objective.terms[0].name].double()


def apart(batch: Batch, nats_N: torch.Tensor) -> dict[str, float]:
    """What the writer said less what the student says: mean distance, mean, and how much one draw of them may be off."""
    gap_N = batch.logp_N.double() - nats_N
    return {"mean": float(gap_N.abs().mean()), "signed": float(gap_N.mean()), "error": float(gap_N.std()) / len(gap_N) ** 0.5, "tokens": len(gap_N)}


def weights_of(student: lb.Student) -> list[torch.Tensor]:
    """A copy of the weights as they are."""
    return [weight.detach().clone() for weight in student.live.module.parameters()]


def put_back(student: lb.Student, weights: Sequence[torch.Tensor]) -> None:
    """The weights as they were."""
    for weight, kept in zip(student.live.module.parameters(), weights, strict=True):
        weight.data.copy_(kept)


class Steps:
    """A student that learns from a teacher on text that vLLM writes, a step at a time."""

    def __init__(self, student: lb.Student, teacher: Any, source: lb.OnPolicy) -> None:
        self.student, self.teacher, self.source, self.objective = student, teacher, source, Objective([lb.ForwardKL()])
        self.step = 0

    def draw(self) -> Batch:
        """The next text."""
        return self.source.draw(self.step, self.student)

    def learn(self, batch: Batch) -> float:
        """A step on it, in nats a token."""
        parts, nats = batch.split(4096), 0.0
        for part, said in zip(parts, self.teacher.score(parts), strict=True):
            found = self.student.learn(part, said, self.objective, scale=1 / len(batch.tokens_N))
            nats += sum(float(each.sum()) for each in found.values())
        self.student.step(self.step)
        self.step += 1
        return nats / len(batch.tokens_N)


def agreement(steps: Steps, count: int) -> list[dict[str, Any]]:
    """After each of `count` steps: the text against the weights as they are, and as they were before the step."""
    found, before = list[dict[str, Any]](), None
    for _ in range(count + 1):
        began = time.perf_counter()
        batch = steps.draw()
        drawn = time.perf_counter() - began
        row: dict[str, Any] = {"step": steps.step, "now": apart(batch, token_nats(steps.student, batch)), "draw_seconds": round(drawn, 3)}
        if before is not None:
            now = weights_of(steps.student)
            put_back(steps.student, before)
            row["a step before"] = apart(batch, token_nats(steps.student, batch))
            put_back(steps.student, now)
        before = weights_of(steps.student)
        row["forward_kl_nats"] = round(steps.learn(batch), 4)
        found.append(row)
        print(row, flush=True)
    return found


FAULTS = {"stale weights": "collective_rpc", "stale prefix cache": "reset_prefix_cache"}
"""What is planted, and what a server is not told for it."""


def planted(steps: Steps, faults: Sequence[str] = tuple(FAULTS), most: int = 6) -> dict[str, Any]:
    """A reload that is left out at each step, and then the reset of the prefix cache: after how many steps the run stops, and what it says."""
    (place,) = steps.source.engine._pen.server.places
    tell, found = place.tell, dict[str, Any]()
    for fault in faults:
        batch = steps.draw()
        seen = found[fault] = {"caught_after_steps": None, "said": "", "not_caught": list[dict[str, float]]()}
        place.tell = lambda path, body=None, left_out=FAULTS[fault]: None if path == left_out else tell(path, body)
        for number in range(1, most + 1):
            steps.learn(batch)
            try:
                batch = steps.draw()
            except LimbeckError as error:
                seen |= {"caught_after_steps": number, "said": str(error)}
                break
            seen["not_caught"].append({name: total / count for name, (total, count) in batch.figures.items()})
        place.tell = tell
        print(fault, seen, flush=True)
        steps.source.engine._handed = None
    steps.draw()  # and all is well again
    return found


def remembered(model: str, work: Path) -> dict[str, Any]:
    """The whole model in float32, all of its weights moved by a share of their spread, its prompts remembered: with and without the reset."""
    found, share = dict[str, Any](), 0.03
    with serving(served(model, work / "remembered", "float32"), work / "remembered.log", "float32", name="student") as url:
        student = lb.Student(model, dtype="float32").load(8)
        source = lb.OnPolicy(
            asked(work, SEQUENCES), sequences=SEQUENCES, sampling=Sampling(TOKENS), engine=VLLM([url], "student", dtype="float32", alarm_nats=100.0)
        )
        source = source.load(student.live.vocabulary, Share())
        (place,) = source.engine._pen.server.places
        tell, draw = place.tell, torch.Generator().manual_seed(0)
        for step, name in enumerate(("as it was", "moved, the reset left out", "the same, and reset")):
            if step == 1:
                for weight in student.live.module.parameters():
                    weight.data += share * weight.data.std() * torch.randn(weight.shape, generator=draw)
                place.tell = lambda path, body=None: None if path == "reset_prefix_cache" else tell(path, body)
            figures = {figure: total / count for figure, (total, count) in source.draw(step, student).figures.items()}
            found[name] = {**figures, "stops": _stops(source.engine, figures)}
            place.tell = tell
            print(name, found[name], flush=True)
    return {"moved_by": share, **found}


def _stops(engine: VLLM, figures: dict[str, float]) -> bool:
    """Whether a run with the alarm as it is by default would stop there."""
    tokens = engine.checked * TOKENS
    try:
        engine._see(Figures(figures[MISMATCH] * tokens, figures[EXCESS] * tokens, tokens), ALARM_NATS["float32"])
    except LimbeckError:
        return True
    return False


class Rounds:
    """The same prompts by vLLM and by the student itself, with other random numbers each time: tokens, and seconds of handing over."""

    def __init__(self, student: lb.Student, engine: VLLM, prompts: Sequence[list[int]]) -> None:
        self.student, self.engine, self.prompts, self.turn = student, engine, prompts, 0
        self.made, self.handed = defaultdict[str, list[int]](list), list[float]()

    def by_vllm(self, tokens: int) -> float:
        """Seconds, the hand-over apart, after which no prompt is remembered."""
        self.turn += 1
        self.handed.append(seconds(lambda: self.engine._hand_over(self.student)))
        seeds, context = [self.turn * 1000 + row for row in range(len(self.prompts))], self.student.live.context
        return self._counted("vLLM", lambda: self.engine._complete(self.prompts, Sampling(tokens), seeds, context))

    def by_student(self, threads: int, tokens: int) -> float:
        """Seconds, on as many processors."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work = lambda: self.student.write(self.prompts, Sampling(tokens), 0, self.turn, range(len(self.prompts)))  # noqa: E731
            return self._counted(f"here on {threads}", work)
        finally:
            torch.set_num_threads(before)

    def _counted(self, who: str, write: Callable[[], list[Written]]) -> float:
        return seconds(lambda: self.made[who].append(sum(len(new.tokens) for new in write())))

    def measured(self, rounds: int) -> dict[str, Any]:
        """Seconds of one token each, which is reading the prompts, and of all; tokens a second of those."""
        cpus = sorted({1, os.cpu_count() or 1})
        both = {"vLLM": self.by_vllm, **{f"here on {threads}": partial(self.by_student, threads) for threads in cpus}}
        turns = {(who, tokens): (lambda work=work, tokens=tokens: work(tokens)) for who, work in both.items() for tokens in (1, TOKENS)}
        times = in_turn({f"{who} {tokens}": take for (who, tokens), take in turns.items()}, rounds)
        made = {who: counts[3::2] for who, counts in self.made.items()}  # of each round the second, without the round of warm-up
        spent = {who: times[f"{who} {TOKENS}"] for who in both}
        rates = {who: [tokens / taken for tokens, taken in zip(made[who], spent[who], strict=True)] for who in both}
        hand = statistics.median(self.handed[2:])
        return {
            "prompt_tokens": sum(len(each) for each in self.prompts),
            "tokens": made,
            "tokens_per_second": {who: summary(each) for who, each in rates.items()},
            "seconds": {who: summary(each) for who, each in spent.items()},
            "seconds_reading": {who: summary(times[f"{who} 1"]) for who in both},
            "with_hand_over": round(statistics.median(made["vLLM"]) / (statistics.median(spent["vLLM"]) + hand), 2),
        }


def speed(loop: "Steps", where: Path, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Tokens a second of vLLM and of the student itself, where the time goes, and what handing the weights over takes."""
    load, handed, found = os.getloadavg(), list[float](), dict[str, Any]()
    for name, preamble_first in (("prompts that begin alike", True), ("prompts of their own", False)):
        data = asked(where, max(sizes), preamble_first)
        prompts = [loop.student.live.vocabulary.prompt(row, data) for row in read_jsonl(Path(data.path))]
        for size in sizes:
            turns = Rounds(loop.student, loop.source.engine, prompts[:size])
            found[f"{size} {name}"] = turns.measured(rounds)
            handed += turns.handed[1:]
            print(size, name, found[f"{size} {name}"], flush=True)
    about = {"load": [round(each, 1) for each in load], "load_after": [round(each, 1) for each in os.getloadavg()]}
    return {**about, "rounds": rounds, "hand_over_seconds": summary(handed), "batches": found}


def begun(folder: str, teacher: str, data: Data, url: str, steps: int) -> Steps:
    """A student in bfloat16 that a server writes for, before its first step."""
    student = lb.Student(folder, AdamW(learning_rate=1e-4, schedule="constant", warmup=0), dtype="bfloat16").load(steps + 32)
    source = lb.OnPolicy(data, sequences=SEQUENCES, sampling=Sampling(TOKENS), engine=VLLM([url], "student"))
    return Steps(student, lb.Local(teacher, dtype="bfloat16").load(student), source.load(student.live.vocabulary, Share()))


def measured(model: str, steps: int, rounds: int, work: Path, only: str) -> dict[str, Any]:
    """What is asked for, with one server."""
    if only == "remembered":
        return {"remembered": remembered(model, work)}
    folder, found = shrunk(model, LAYERS, work / "student"), dict[str, Any]()
    with serving(served(folder, work / "served"), work / "log", "bfloat16", name="student") as url:
        loop = begun(folder, model, asked(work, 32), url, steps)
        if only != "speed":
            found = {"agreement": agreement(loop, steps), "planted": planted(loop)}
        if only != "agreement":
            found["speed"] = speed(loop, work, (8, 32), rounds)
    return found if only else {**found, "remembered": remembered(model, work)}


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of safetensors, SmolLM2-135M-Instruct for example")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", choices=["agreement", "speed", "remembered"], default="", help="one part; the others stay as they were found")
    given = parser.parse_args()
    if python() is None:
        parser.exit(1, "there is no vLLM yet; python benchmarks/vllm_server.py makes it\n")
    with tempfile.TemporaryDirectory() as work:
        found = measured(given.model, given.steps, given.rounds, Path(work), given.only)
    before = read_json(given.out / "vllm_writer.json") if given.only else {}
    settings = {"layers": LAYERS, "sequences": SEQUENCES, "max_tokens": TOKENS, "learning_rate": 1e-4}
    write_json(given.out / "vllm_writer.json", {**before, "machine": machine(), "server": WHEEL, **settings, **found})
    if "speed" in found:
        rates = {name: each["tokens_per_second"] for name, each in found["speed"]["batches"].items()}
        groups = {name: {who: rate["median"] for who, rate in each.items()} for name, each in rates.items()}
        write_text(given.out / "vllm_writer.svg", bars(groups, "tokens/s", f"Writing, {LAYERS} layers of SmolLM2-135M, bfloat16"))


if __name__ == "__main__":
    main()
