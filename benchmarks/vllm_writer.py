"""vLLM as the student's pen: new weights after each step, planted faults, and how fast it writes.

    python benchmarks/vllm_writer.py --model FOLDER

A student of the first LAYERS layers of the model in FOLDER learns from the whole of it, on its own answers, which vLLM writes. After
each step what vLLM says of its tokens is compared with the student as it is, and as it was a step before: the first must agree, and the
second shows whether the comparison could have told. Then a reload is left out, and then only the reset of the prefix cache. Speed: the
same prompts and lengths by vLLM and by `Student.write`, in turn, both in bfloat16.
Needs `python benchmarks/vllm_server.py` once. Writes `benchmarks/results/vllm_writer.json` and `.svg`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import bars, in_turn, machine, seconds, summary
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_server import WHEEL, python, serving

import limbeck as lb
from limbeck.batch import Batch
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.engines import VLLM
from limbeck.errors import LimbeckError
from limbeck.files import read_jsonl, write_json, write_jsonl, write_text
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


def asked(where: Path, count: int) -> Data:
    """Questions behind the same few."""
    rows = [{"prompt": f"{SHARED}\n{row['prompt']}"} for row in read_jsonl(HELDOUT)[:count]]
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


class Steps:
    """A student that learns from a teacher on text that vLLM writes, a step at a time."""

    def __init__(self, student: lb.Student, teacher: Any, source: lb.OnPolicy) -> None:
        self.student, self.teacher, self.source, self.objective = student, teacher, source, Objective([lb.ReverseKL()])
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
            stale = steps.student.state()
            steps.student.restore(before)
            row["a step before"] = apart(batch, token_nats(steps.student, batch))
            steps.student.restore(stale)
        before = {name: weight.detach().clone() if isinstance(weight, torch.Tensor) else weight for name, weight in steps.student.state().items()}
        row["reverse_kl_nats"] = round(steps.learn(batch), 4)
        found.append(row)
        print(row, flush=True)
    return found


def planted(steps: Steps, url: str) -> dict[str, Any]:
    """A reload that is left out, and a reset of the prefix cache that is left out: what is said, or None where nothing was."""
    pen, found = steps.source.engine._pen, dict[str, Any]()
    (place,) = pen.server.places
    tell = place.tell
    for fault, left_out in (("stale weights", "collective_rpc"), ("stale prefix cache", "reset_prefix_cache")):
        steps.learn(steps.draw())  # the prefix is remembered, and the weights move on
        place.tell = lambda path, body=None, left_out=left_out: None if path == left_out else tell(path, body)
        try:
            steps.draw()
            found[fault] = None
        except LimbeckError as error:
            found[fault] = str(error)
        place.tell = tell
        print(fault, found[fault], flush=True)
        steps.source.engine._handed = None
    steps.draw()  # and all is well again
    found["afterwards"] = "agrees"
    return found


def speed(student: lb.Student, engine: VLLM, prompts: Sequence[list[int]], sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Tokens a second of vLLM and of the student itself, and what handing the weights over takes."""
    found: dict[str, Any] = {"load": [round(each, 1) for each in os.getloadavg()], "hand_over_seconds": []}
    for size in sizes:
        these, sampling, rows = list(prompts[:size]), Sampling(TOKENS), range(size)
        made, turn = {"vLLM": list[int](), "here": list[int]()}, [0]

        def by_vllm(these: Any = these, sampling: Any = sampling, rows: Any = rows, made: Any = made) -> float:
            turn[0] += 1
            found["hand_over_seconds"].append(seconds(lambda: engine._hand_over(student)))
            seeds = [turn[0] * 1000 + row for row in rows]
            return seconds(lambda: made["vLLM"].append(sum(len(new.tokens) for new in engine._complete(these, sampling, seeds, student.live.context))))

        def by_student(these: Any = these, sampling: Any = sampling, rows: Any = rows, made: Any = made) -> float:
            return seconds(lambda: made["here"].append(sum(len(new.tokens) for new in student.write(these, sampling, 0, turn[0], rows))))

        times = in_turn({"vLLM": by_vllm, "here": by_student}, rounds)
        rates = {name: [tokens / taken for tokens, taken in zip(made[name][1:], times[name], strict=True)] for name in times}
        found[f"batch {size}"] = {
            "prompt_tokens": sum(len(each) for each in these),
            "tokens": {name: made[name][1:] for name in made},
            "tokens_per_second": {name: summary(each) for name, each in rates.items()},
            "seconds": {name: summary(each) for name, each in times.items()},
        }
        print(size, found[f"batch {size}"], flush=True)
    found["hand_over_seconds"] = summary(found["hand_over_seconds"][1:])
    hand = found["hand_over_seconds"]["median"]
    for size in sizes:
        each = found[f"batch {size}"]
        each["with_hand_over"] = round(statistics.median(each["tokens"]["vLLM"]) / (each["seconds"]["vLLM"]["median"] + hand), 2)
    found["load_after"] = [round(each, 1) for each in os.getloadavg()]
    return found


def measured(model: str, steps: int, rounds: int, work: Path) -> dict[str, Any]:
    """All of it, with one server."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    folder, data = shrunk(model, LAYERS, work / "student"), asked(work, 32)
    with serving(folder, work / "log", "bfloat16", name="student") as url:
        student = lb.Student(folder, AdamW(learning_rate=1e-4, warmup=0), dtype="bfloat16").load(steps + 8)
        teacher = lb.Local(model, dtype="bfloat16").load(student)
        vocabulary = student.live.vocabulary
        engine = VLLM([url], "student", folder=str(work / "weights"))
        source = lb.OnPolicy(data, sequences=SEQUENCES, sampling=Sampling(TOKENS), engine=engine).load(vocabulary, Share())
        loop = Steps(student, teacher, source)
        found = {"agreement": agreement(loop, steps), "planted": planted(loop, url)}
        prompts = [vocabulary.prompt(row, data) for row in read_jsonl(Path(data.path))]
        return {**found, "speed": speed(student, source.engine, prompts, (8, 32), rounds)}


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of safetensors, SmolLM2-135M-Instruct for example")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if python() is None:
        parser.exit(1, "there is no vLLM yet; python benchmarks/vllm_server.py makes it\n")
    with tempfile.TemporaryDirectory() as work:
        found = measured(given.model, given.steps, given.rounds, Path(work))
    settings = {"layers": LAYERS, "sequences": SEQUENCES, "max_tokens": TOKENS, "learning_rate": 1e-4}
    write_json(given.out / "vllm_writer.json", {"machine": machine(), "server": WHEEL, **settings, **found})
    batches = {name: each["tokens_per_second"] for name, each in found["speed"].items() if name.startswith("batch")}
    groups = {name: {who: rate["median"] for who, rate in each.items()} for name, each in batches.items()}
    write_text(given.out / "vllm_writer.svg", bars(groups, "tokens/s", f"Writing, {LAYERS} layers of SmolLM2-135M, bfloat16"))


if __name__ == "__main__":
    main()
