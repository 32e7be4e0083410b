"""What `limbeck plan` foretells beside what runs take: seconds of a step and memory at its peak, for this repository's recipes.

    OMP_NUM_THREADS=1 python benchmarks/plan.py --teacher FOLDER --answers answers-train-....jsonl --data gsm8k-train.jsonl --work FOLDER

The quickstart's three recipes (SmolLM2-135M-Instruct teaches fifteen of its layers, on its answers and on the student's), named methods
on GSM8K with ten of its layers, and all named methods of the tiny pair of the arithmetic. For each recipe in turn: this machine is
measured anew for its shapes (`limbeck.planning.calibrate`, nothing kept from before), the plan is made, then `limbeck.distill` runs it in a process
of its own. Compared are the mean step that was foretold and the median of the steps that were taken, the first left out, and the memory.

Seconds are those of the process on one thread (`time.process_time`), in the measurement and in the run: the machine was shared with other
work, and what that takes is none of either's. With a machine to itself they are those of the clock. Aimed at: each within 25 %.
Writes `benchmarks/results/plan.json`, `benchmarks/results/plan.svg`; the same command goes on where it stopped.
"""

import argparse
import inspect
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arithmetic
from measure import COLOURS, machine

import limbeck as lb
from limbeck import prune, run
from limbeck.batch import WRITERS
from limbeck.config import plain
from limbeck.decoding import Sampling
from limbeck.files import read_json, read_jsonl, write_json, write_text
from limbeck.interleaved import Interleaved
from limbeck.machine import Opening, bfloat16_pays
from limbeck.methods import METHODS, named
from limbeck.models import open_model, open_vocabulary
from limbeck.planning import calibrate
from limbeck.planning.candidates import of_recipe
from limbeck.planning.costs import Models, costs_memory, scene_of, work_of
from limbeck.planning.plan import Assumed, plan
from limbeck.rollouts import OnPolicy
from limbeck.sources import Mix, Share
from limbeck.vocabulary import Vocabulary

HERE = Path(__file__).parent
STEPS = 4
"""Of a run; the first is left out."""
BAND = 0.25
TEN = [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]
FIFTEEN = [*range(8), *range(23, 30)]
MANY = 40
"""Steps of a run of the tiny pair."""


def cut(teacher: str, kept: list[int], folder: Path) -> str:
    """A student of some of the teacher's layers."""
    if not folder.exists():
        model = open_model(teacher, Opening("float32"))
        prune.by_depth(model, kept)
        prune.save(model, folder)
        licensed(folder, "apache-2.0")
    return str(folder)


def licensed(folder: Path, name: str) -> None:
    """Say under what licence that is from which what lies there was made."""
    write_text(folder / "README.md", f"---\nlicense: {name}\n---\n")


def recipes(asked: argparse.Namespace) -> dict[str, lb.Recipe]:
    """Every recipe that is compared, by name."""
    return {**_quickstart(asked), **_of_gsm8k(asked), **_tiny(asked.work)}


def _quickstart(asked: argparse.Namespace) -> dict[str, lb.Recipe]:
    """The three of the quickstart, with its sizes."""
    student, answers = cut(asked.teacher, FIFTEEN, asked.work / "fifteen-layers"), str(asked.answers)
    prompts, more = str(Path(lb.__file__).parent / "assets" / "prompts.jsonl"), {"steps": STEPS, "save_every": None, "tokens_per_pass": 2048}
    corpus, own = lb.Corpus(answers, 8, written_by="teacher"), OnPolicy(prompts, 8, Sampling(max_tokens=64))
    return {
        "quickstart: teacher's answers": lb.Recipe(lb.Student(student), corpus, lb.Local(asked.teacher), "ForwardKL()", **more),
        "quickstart: own answers": lb.Recipe(lb.Student(student), own, lb.Local(asked.teacher), "ForwardKL()", **more),
        "quickstart: baseline": lb.Recipe(lb.Student(student), corpus, lb.Silent(), "CrossEntropy()", **more),
    }  # fmt: skip


def _of_gsm8k(asked: argparse.Namespace) -> dict[str, lb.Recipe]:
    """Named methods, four rows a step and answers of 32 tokens."""
    student, data = cut(asked.teacher, TEN, asked.work / "ten-layers"), asked.work / "gsm8k" / "rows.jsonl"
    if not data.exists():
        rows = [json.loads(line) for line in Path(asked.data).read_text().splitlines()[:256]]
        data.parent.mkdir(parents=True)
        licensed(data.parent, "mit")
        write_text(data, "".join(json.dumps(_asked(row)) + "\n" for row in rows))
    found = dict[str, lb.Recipe]()
    for name in ("kd", "fitnets", "on_policy", "skd", "gkd_rl"):
        found[f"GSM8K: {name}"] = _sized(_named(name, student, asked.teacher, str(data)), 4, 32, STEPS)
    return found


def _asked(row: dict[str, str]) -> dict[str, str]:
    """A row of GSM8K, its result in a column of its own."""
    return {"prompt": row["question"], "completion": row["answer"], "answer": row["answer"].rpartition("#### ")[2]}


def _tiny(work: Path) -> dict[str, lb.Recipe]:
    """All named methods of causal models of one vocabulary, on sums."""
    size = {"teacher": arithmetic.Size(4, 128), "student": arithmetic.Size(2, 64)}
    for who, each in size.items():
        if not (work / "tiny" / who).exists():
            each.folder(work / "tiny" / who, 0)
    solved = arithmetic.solved(256, 0, arithmetic.SHORT)
    data = arithmetic.write_rows(work / "tiny" / "rows" / "rows.jsonl", [row | {"answer": row["completion"].rpartition(" ")[2]} for row in solved])
    student, teacher = (str(work / "tiny" / who) for who in ("student", "teacher"))
    names = ("sft", "kd", "fitnets", "tinybert", "on_policy", "gkd", "distillm", "skd", "distillspec", "gkd_rl")
    return {f"sums: {name}": _sized(_named(name, student, teacher, data), 32, 14, MANY) for name in names}


def _named(name: str, student: str, teacher: str, data: str) -> lb.Recipe:
    takes = inspect.signature(METHODS[name]).parameters
    given = {"student": student, "teacher": teacher, "data": data, "prompts": data, "reward": "Number()", "group": 2}
    return named(name, **{key: value for key, value in given.items() if key in takes})


def _sized(recipe: lb.Recipe, sequences: int, answer: int, steps: int) -> lb.Recipe:
    """With so many rows a step and so long answers; data in plain text."""

    def inside(settings: Any) -> Any:
        if isinstance(settings, list):
            return [inside(each) for each in settings]
        if not isinstance(settings, dict):
            return settings
        sizes = {"sequences": sequences, "max_tokens": answer if settings.get("type") == "Sampling" else settings.get("max_tokens")}
        return {
            key: sizes.get(key, inside(value)) if key in sizes and settings.get("type") != "Data" else inside(value)
            for key, value in settings.items()
        }

    return lb.Recipe.of({**inside(plain(recipe)), "steps": steps, "save_every": None})


def accepted_of(recipe: lb.Recipe) -> float:
    """What share of a student's proposals stands, by the first draw: nobody can know it before. Of a rule without a token more."""
    student, teacher = recipe.open_pair()
    batch = recipe.source.load(student.live.vocabulary, Share(recipe.seed, teacher=teacher)).draw(0, student)
    share, gamma = float((batch.writers_N == WRITERS.index("student")).double().mean()), recipe.source.gamma

    def of(accepted: float) -> float:
        kept = [accepted**n for n in range(1, gamma + 1)]
        return sum(kept) / (1 + sum(kept[:-1]))

    low, high = 0.0, 1.0
    for _ in range(40):
        low, high = ((low + high) / 2, high) if of((low + high) / 2) < share else (low, (low + high) / 2)
    return low


def foretold(recipe: lb.Recipe, work: Path) -> dict[str, Any]:
    """The plan of a recipe on this machine, measured anew."""
    folder = work / "measured"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    accepted = accepted_of(recipe) if isinstance(recipe.source, Interleaved) else 0.8
    made = plan([of_recipe(recipe, "recipe")], calibrate.here(folder=folder), Assumed(accepted=accepted))
    costs = made.rows[0].costs
    assert costs is not None
    found = {"step_seconds": costs.step_seconds, "seconds": sum(costs.step_seconds.values()), "tokens": costs.tokens_a_step}
    sizes = {"memory_bytes": sum(costs.memory_bytes.values()), "step_gflops": costs.step_flops / 1e9, "measuring_seconds": time.monotonic() - began}
    return found | sizes


def taken(file: Path, out: Path) -> dict[str, Any]:
    """Run a recipe here: this process is there for nothing else."""
    run.time = SimpleNamespace(monotonic=time.process_time)  # what a step takes of this process
    lb.distill(lb.Recipe.read(file), out)
    steps, metrics = read_jsonl(out / "timings.jsonl")[1:], [row for row in read_jsonl(out / "metrics.jsonl") if "tokens" in row]
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    seconds = [row["seconds"] for row in steps]
    tokens, peak = statistics.mean(row["tokens"] for row in metrics[1:]), 1024 * int(resident.split()[1])
    return {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "mean": statistics.mean(seconds),
            "steps": len(seconds), "tokens": tokens, "memory_bytes": peak}  # fmt: skip


def compared(name: str, recipe: lb.Recipe, asked: argparse.Namespace) -> dict[str, Any]:
    """Both, one after the other."""
    told = foretold(recipe, asked.work)
    file, out = asked.work / "recipe.yaml", asked.work / "run"
    write_text(file, recipe.yaml)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--run", str(file), "--work", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    took = json.loads(done.stdout.strip().splitlines()[-1])
    middle = took["mean"] if isinstance(recipe.source, Mix) else took["seconds"]  # now one kind of step, now the other
    return {"foretold": told, "took": took, "compared_seconds": middle, "time_error": told["seconds"] / middle - 1,
            "memory_error": told["memory_bytes"] / took["memory_bytes"] - 1}  # fmt: skip


def picture(found: dict[str, Any]) -> str:
    """Foretold against taken, seconds of a step, both logarithmic, with the band."""
    points = [(name, each["compared_seconds"], each["foretold"]["seconds"]) for name, each in found.items()]
    low = math.floor(math.log10(min(min(a, b) for _, a, b in points)))
    high = math.ceil(math.log10(max(max(a, b) for _, a, b in points)))
    place = lambda value: 70 + 400 * (math.log10(value) - low) / (high - low)  # noqa: E731
    up = lambda value: 520 - place(value)  # noqa: E731
    tall = 520
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {tall}" font-family="sans-serif" font-size="12">',
             f'<rect width="760" height="{tall}" fill="#ffffff"/>',
             '<text x="10" y="22" font-size="15">Seconds of a step: foretold and taken</text>']  # fmt: skip
    band = [(10.0**low, 1 + BAND), (10.0**high, 1 + BAND), (10.0**high, 1 - BAND), (10.0**low, 1 - BAND)]
    lines.append(f'<polygon points="{" ".join(f"{place(x):.1f},{up(x * factor):.1f}" for x, factor in band)}" fill="#669944" opacity="0.2"/>')
    lines.append(f'<path d="M{place(10.0**low)} {up(10.0**low)}L{place(10.0**high)} {up(10.0**high)}" stroke="#669944"/>')
    lines.append('<path d="M70 50V450H470" fill="none" stroke="#5b616b"/>')
    for power in range(low, high + 1):
        lines.append(f'<text x="{place(10.0**power):.1f}" y="466" text-anchor="middle">{10.0**power:g}</text>')
        lines.append(f'<text x="64" y="{up(10.0**power) + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    lines += ['<text x="270" y="488" text-anchor="middle">taken, s</text>', '<text x="70" y="42" text-anchor="middle">foretold, s</text>']
    for number, (name, took, told) in enumerate(points):
        colour = COLOURS[["quickstart", "GSM8K", "sums"].index(name.partition(":")[0])]
        lines.append(f'<circle cx="{place(took):.1f}" cy="{up(told):.1f}" r="4" fill="{colour}"/>')
        lines.append(f'<circle cx="490" cy="{50 + 20 * number}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="500" y="{54 + 20 * number}">{escape(name)}: {100 * (told / took - 1):+.0f} %</text>')
    return "\n".join([*lines, "</svg>\n"])


def memory(recipe: lb.Recipe) -> int:
    """What a plan says of a recipe's memory, for which nothing is measured."""
    models = Models(bfloat16_pays())
    student = models.anatomy(recipe.student.model)
    vocabulary = Vocabulary(open_vocabulary(recipe.student.model, Opening()).tokenizer, student.end_ids)
    return sum(costs_memory(work_of(scene_of(recipe, models, vocabulary)), scene_of(recipe, models, vocabulary), models).values())


def publish(found: dict[str, Any], made: dict[str, lb.Recipe]) -> None:
    """Write what there is, memory as it is told now."""
    found = {name: found[name] for name in made if name in found}
    for name, each in found.items():
        each["foretold"]["memory_bytes"] = memory(made[name])
        each["memory_error"] = each["foretold"]["memory_bytes"] / each["took"]["memory_bytes"] - 1
    inside = [name for name, each in found.items() if abs(each["time_error"]) <= BAND]
    inside_too = [name for name, each in found.items() if abs(each["memory_error"]) <= BAND]
    figures = {"band": BAND, "recipes": len(found), "time_within": len(inside), "memory_within": len(inside_too), "found": found}
    write_json(HERE / "results" / "plan.json", {"machine": machine(), "clock": "process seconds, one thread", **figures})
    write_text(HERE / "results" / "plan.svg", picture(found))


def main() -> None:
    """Compare, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder of SmolLM2-135M-Instruct as safetensors")
    parser.add_argument("--answers", type=Path, help="the quickstart's answers of that teacher, in the user's cache")
    parser.add_argument("--data", help="GSM8K as JSONL: question, answer")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--only", default="", help="recipes whose name begins so")
    parser.add_argument("--again", action="store_true", help="those that are there already too")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(taken(asked.run, asked.work)))
        return
    calibrate.CLOCK = time.process_time
    file = asked.work / "found.json"
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    for name, recipe in recipes(asked).items():
        if name.startswith(asked.only) and (asked.again or name not in found):
            found[name] = compared(name, recipe, asked)
            write_json(file, found)
            each = found[name]
            told, took = each["foretold"]["seconds"], each["compared_seconds"]
            errors = f"{100 * each['time_error']:+.0f} %; memory {100 * each['memory_error']:+.0f} %"
            print(f"{name}: foretold {told:.4g} s, took {took:.4g}: {errors}", flush=True)
    publish(found, recipes(asked))


if __name__ == "__main__":
    main()
