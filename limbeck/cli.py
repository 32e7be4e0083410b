"""The command line: the verbs, and no logic of their own."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli_cluster import Needs, On, Workers, placed
from limbeck.cli_evaluate import evaluate
from limbeck.cli_export import export
from limbeck.cli_plan import plan
from limbeck.errors import LimbeckError, RecipeError, Stopped, did_you_mean
from limbeck.storage import named
from limbeck.terminal import show_table as _table

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.pipeline import Plan

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Distill language models.")

KNOWN = (
    "A YAML file of a recipe or of stages, or a method: sft, kd, gkd, on_policy, distillm, gkd_rl, skd, distillspec, fitnets, tinybert, "
    "uld, alm, gold, distilbert."
)
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE|METHOD", help=KNOWN)]
TeacherName = Annotated[str | None, typer.Option("--teacher", help="For a method: hub name, folder, GGUF file or cache.")]
StudentName = Annotated[str | None, typer.Option("--student", help="For a method: hub name or folder.")]
DataPath = Annotated[str | None, typer.Option("--data", help="For a method: text to learn from (JSONL, Parquet, hub name).")]
PromptsPath = Annotated[str | None, typer.Option("--prompts", help="For a method: prompts that the student answers.")]
RewardName = Annotated[str | None, typer.Option("--reward", help="For a method: a verifier, module:function.")]
Accepted = Annotated[list[str] | None, typer.Option("--accept-license", help="A licence or terms that you may learn from, by name.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: objective.temperature=2.")]
Out = Annotated[Path, typer.Option("--out", help="The folder of the run; the same command goes on where it stopped.")]


@app.command()
def distill(
    recipe: RecipeName, teacher: TeacherName = None, student: StudentName = None, data: DataPath = None, prompts: PromptsPath = None,
    reward: RewardName = None, settings: Settings = None,
    sweep: Annotated[list[str] | None, typer.Option("--sweep", metavar="KEY=V1,V2,...", help="A run for each value of a setting, or each "
                                                    "combination of several; one table and plot of all.")] = None,
    accept_license: Accepted = None, out: Out = Path("runs/distill"), on: On = None, workers: Workers = None, resource: Needs = None,
) -> None:  # fmt: skip
    """Move a student toward its teacher, by a recipe, by stages or by a method's name."""
    given = {"teacher": teacher, "student": student, "data": data, "prompts": prompts, "reward": reward}
    if sweep and on:
        raise RecipeError("the runs of a sweep go one after the other here; give --on without --sweep, or stages that do not wait for each other")
    if sweep:
        return _sweep(sweep, lambda more: _planned(recipe, [*(settings or []), *more], accept_license, **given), out)
    planned = _planned(recipe, settings, accept_license, **given)
    from limbeck.distributed import leave, rank
    from limbeck.stages import carry_out

    ran = placed(on, workers, resource, lambda: carry_out(planned, out), "stages", planned, out)
    if rank() == 0:
        print(named(f"student: {ran / 'student'}"))
    leave()


def _sweep(asked: list[str], make: "Callable[[list[str]], Plan]", out: Path) -> None:
    """Run every combination, and show what came of them."""
    from limbeck.distributed import leave, rank
    from limbeck.sweep import points, sweep

    found = sweep(points(asked, make), out)
    if rank() == 0:
        _table(found["columns"], found["rows"])
        print(f"plot: {out / 'sweep.html'}")
    leave()


@app.command()
def check(
    recipe: RecipeName, teacher: TeacherName = None, student: StudentName = None, data: DataPath = None, prompts: PromptsPath = None,
    reward: RewardName = None, settings: Settings = None, accept_license: Accepted = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what needs no torch.")] = False,
    out: Out = Path("runs/distill"),
) -> None:  # fmt: skip
    """See what stands in the way of a recipe before it costs anything: files, models, lengths, memory, and a test of the numbers."""
    planned = _planned(recipe, settings, accept_license, teacher=teacher, student=student, data=data, prompts=prompts, reward=reward)
    from limbeck.check_stages import check_plan

    lines = check_plan(planned, out, quick)
    problems = [line.found for line in lines if line.verdict == "problem"]
    _table(["what", "found", "verdict"], [[line.what, line.found, line.verdict] for line in lines])
    print(f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "nothing stands in the way")
    for problem in problems:
        print(f"limbeck: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(2)


def _planned(recipe: str, settings: list[str] | None, accepted: list[str] | None, **given: str | None) -> "Plan":
    """The recipe or the stages that a command line asks for."""
    from limbeck.config import override, plain
    from limbeck.methods import METHODS, named
    from limbeck.pipeline import accepting, plan_of, read_plan

    asked = {name: value for name, value in given.items() if value is not None}
    if recipe in METHODS:
        made = plan_of(override(plain(named(recipe, **asked)), settings or []))
    elif not Path(recipe).suffix:
        raise RecipeError(f'there is no method "{recipe}"{did_you_mean(recipe, METHODS)} A recipe is a YAML file')
    elif asked:
        raise RecipeError(f"--{next(iter(asked))} goes with a method ({', '.join(METHODS)}); {recipe} is a recipe: use --set")
    else:
        made = read_plan(recipe, settings or [])
    return accepting(made, accepted or [])


app.command()(plan)
app.command()(evaluate)


@app.command()
def cache(
    out: Annotated[Path, typer.Option("--out", help="The folder of the cache; the same command goes on where it stopped.")],
    teacher: Annotated[str | None, typer.Option(help="Hub name, folder or GGUF file.")] = None,
    data: Annotated[str | None, typer.Option(help="Text to annotate (JSONL, Parquet, hub name).")] = None,
    keep: Annotated[str, typer.Option(help="sampled:50, stratified:50, top:64, hidden or dense.")] = "sampled:50",
    temperature: Annotated[list[float] | None, typer.Option(help="Of the scores; several are kept side by side, in one pass. Default: 1.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longer sequences are cut there, as a Corpus cuts them.")] = 1024,
    template: Annotated[str, typer.Option(help="How prompts are rendered: auto, chat or plain.")] = "auto",
    held_out: Annotated[str | None, typer.Option(help="Text to evaluate on, kept with every probability.")] = None,
    held_out_rows: Annotated[int, typer.Option(help="How many rows of it.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the teacher's arithmetic: auto, float32 or bfloat16.")] = "auto",
    tokens_per_pass: Annotated[int, typer.Option(help="Padded tokens that are in memory at once.")] = 2048,
    verify: Annotated[bool, typer.Option("--verify", help="Only read every byte that is there, and name what is missing or damaged.")] = False,
    on: On = None, workers: Workers = None, resource: Needs = None,
) -> None:  # fmt: skip
    """Ask a teacher once, and keep what it says of some data: students then learn from the folder."""
    from limbeck.annotate import Annotation, Filled, annotate
    from limbeck.annotate import verify as look
    from limbeck.data import Data
    from limbeck.teachers import Local

    if verify:
        damages = look(out)
        print("\n".join(map(str, damages)) if damages else f"{out}: every byte is as it was written")
        raise typer.Exit(2 if damages else 0)
    if teacher is None or data is None:
        raise RecipeError(f"cache needs --{'teacher' if teacher is None else 'data'}; only --verify does without")
    chosen: dict[str, Any] = {"template": template}
    text, held = Data(data, **chosen), None if held_out is None else Data(held_out, **chosen)
    asker: Any = {"dtype": dtype}
    asked = Annotation(Local(teacher, **asker), text, keep, temperature or [1.0], max_tokens, seed, tokens_per_pass, held, held_out_rows)
    found = placed(on, workers, resource, lambda: Filled.of(annotate(asked, out)), "cache", asked, out)
    figures = [f"{found.rows:,}", f"{found.tokens:,}", f"{found.bytes / 1e6:,.1f}", f"{found.bytes / found.tokens:.1f}"]
    _table(["cache", "rows", "completion tokens", "MB", "bytes a token"], [[str(out), *figures]])


@app.command()
def write(
    teacher: Annotated[list[str], typer.Option(help="Who answers: hub name, folder, GGUF file, the URL of a server up to /v1, or "
                                                    "'Endpoint(\"URL\", \"MODEL\", usd_in=1, usd_out=4)'; several share a budget.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the corpus; the same command goes on where it stopped.")],
    prompts: Annotated[str | None, typer.Option(help="What is asked (JSONL, Parquet, hub name).")] = None,
    seeds: Annotated[str | None, typer.Option(help="In place of prompts: tasks of which the teacher makes others first (self-instruct).")] = None,
    instruct: Annotated[int | None, typer.Option(help="With seeds: how many.")] = None,
    samples: Annotated[int, typer.Option(help="Answers to each prompt.")] = 1,
    keep: Annotated[str, typer.Option(help="Which of them: all, verified, best:2, majority, mbr.")] = "all",
    verifier: Annotated[str | None, typer.Option(help="Says how good an answer is: Number, 'Regex(\"^yes\")', module:function.")] = None,
    above: Annotated[float, typer.Option(help="What a reward must pass, for verified and best.")] = 0.0,
    turns: Annotated[int, typer.Option(help="Answers in a dialogue: what is kept goes on, with a user who is played.")] = 1,
    user: Annotated[str | None, typer.Option(help="Who plays the user, given as a teacher is; by default the teacher.")] = None,
    persona: Annotated[str | None, typer.Option(help="Who the user is, in a sentence or two.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of an answer; those that are cut there are dropped.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of the likeliest tokens, this much probability is drawn from.")] = 1.0,
    template: Annotated[str, typer.Option(help="How prompts are rendered: auto, chat or plain.")] = "auto",
    against: Annotated[list[str] | None, typer.Option(help="A test set that no row may overlap with; may be given several times.")] = None,
    similarity: Annotated[float, typer.Option(help="Rows more alike than this are near duplicates; 1 keeps all but the same.")] = 0.8,
    reasoning: Annotated[str, typer.Option(help="What was thought before an answer: apart (a column) or inline (taught).")] = "apart",
    model: Annotated[str | None, typer.Option(help="On the server of a URL: the model's name there.")] = None,
    key_env: Annotated[str | None, typer.Option(help="On a server: the environment variable with the key.")] = None,
    concurrency: Annotated[int, typer.Option(help="On a server: calls at once.")] = 8,
    usd_in: Annotated[float, typer.Option(help="On a server: US dollars for a million tokens read.")] = 0.0,
    usd_out: Annotated[float, typer.Option(help="On a server: US dollars for a million tokens written.")] = 0.0,
    budget_usd: Annotated[float | None, typer.Option(help="US dollars that the folder may cost in all.")] = None,
    budget_flops: Annotated[float | None, typer.Option(help="FLOPs that the folder may take in all.")] = None,
    pilot: Annotated[int, typer.Option(help="Of several teachers: so many prompts tell how they share the budget.")] = 32,
    pilot_samples: Annotated[int, typer.Option(help="Answers of each of them to each of these, and the most to any prompt.")] = 8,
    measure: Annotated[str, typer.Option(help="What is to be most: diversity (of right answers) or coverage (prompts with one).")] = "diversity",
    sound: Annotated[str | None, typer.Option(help="A second verifier: which right answers are sound.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the teacher's arithmetic: auto, float32 or bfloat16.")] = "auto",
    accept_license: Accepted = None, on: On = None, workers: Workers = None, resource: Needs = None,
) -> None:  # fmt: skip
    """Let a teacher answer prompts, choose among its answers, and keep them as a corpus to learn from."""
    asked = dict(locals())
    from limbeck.corpus import write_corpus
    from limbeck.ordered import order_of

    order = order_of(**asked)
    card = placed(on, workers, resource, lambda: write_corpus(order, out), "corpus", order, out)
    _table(["corpus", str(out)], [[name, f"{count:,}"] for name, count in card.counts()])
    if card.pilot:
        _table(*card.pilot.table())
        print(card.pilot)
    print(f"{card.took.completion_tokens:,} tokens, {card.took.flops:.3g} FLOPs, {card.took.usd:.4f} US dollars; {card.ended}")


@app.command()
def shrink(
    teacher: Annotated[str, typer.Argument(help="Hub name, folder or GGUF file.")],
    out: Annotated[Path, typer.Option(help="The folder of the student.")],
    layers: Annotated[str | None, typer.Option(help="How many layers stay, or which ones: 6, or 0,4,9.")] = None,
    by: Annotated[str, typer.Option(help="Which layers stay: influence (on --data) or even.")] = "influence",
    hidden: Annotated[int | None, typer.Option(help="Hidden channels that stay.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads that stay.")] = None,
    feed_forward: Annotated[int | None, typer.Option(help="Feed-forward channels that stay.")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="None of the weights: a random model of this shape.")] = False,
    data: Annotated[str | None, typer.Option(help="Real text, which decides what stays (JSONL, Parquet, hub name).")] = None,
) -> None:  # fmt: skip
    """Make a student of a teacher: fewer layers, narrower ones, or a small one of the same family; its size and speed beside the teacher's."""
    from limbeck.config import build
    from limbeck.shrink import Shape, told
    from limbeck.shrink import shrink as make

    which = [int(each) if each.strip().isdigit() else each for each in layers.split(",")] if layers else None
    asked = {"layers": which[0] if which and len(which) == 1 else which, "by": by, "hidden": hidden, "heads": heads}
    sizes = make(teacher, build({**asked, "feed_forward": feed_forward, "from_scratch": from_scratch}, Shape), out, data)
    _table(["", *(Path(each.name).name for each in sizes)], told(sizes))
    print(f"student: {out}")


@app.command()
def condense(
    data: Annotated[str, typer.Argument(metavar="DATA|YAML", help="Labelled examples (JSONL, safetensors), text (JSONL, Parquet, hub name), "
                                                                 "or a YAML file of all settings.")],
    method: Annotated[str | None, typer.Option(help="GradientMatching, TrajectoryMatching, DistributionMatching (the default), and for text "
                                                    "Herding (the default) or SoftPrompts; or a call with settings.")] = None,
    per_class: Annotated[int | None, typer.Option(help="Of labelled examples: how many of each class.")] = None,
    network: Annotated[str | None, typer.Option(help="Of labelled examples: MLP, ConvNet (the default), or module:function.")] = None,
    model: Annotated[str | None, typer.Option(help="Of text: hub name, folder or GGUF file that reads it.")] = None,
    rows: Annotated[int | None, typer.Option(help="Of text: how many rows.")] = None,
    steps: Annotated[int | None, typer.Option(help="How often what is learnt moves.")] = None,
    settings: Settings = None,
    accept_license: Accepted = None,
    out: Annotated[Path, typer.Option("--out", help="The folder of the product; the same command goes on where it stopped.")] = Path("runs/condense"),
) -> None:  # fmt: skip
    """Make data small: a few examples, or rows, that teach what all of them do."""
    from dataclasses import replace

    from limbeck.condensing import asked_for
    from limbeck.condensing import condense as run

    given = {"per_class": per_class, "network": network, "model": model, "rows": rows, "steps": steps}
    asked = asked_for(data, method, given, settings)
    product = run(replace(asked, accept_license=list(dict.fromkeys([*asked.accept_license, *(accept_license or [])]))), out)
    print(named(str(product.file)) + f": {product.rows:,} rows; {', '.join(f'{name} {value}' for name, value in product.figures.items())}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, of pipelines, or of evaluations.")],
    out: Annotated[Path | None, typer.Option(help="Where the page goes; by default into the first run.")] = None,
    data: Annotated[Path | None, typer.Option("--json", help="Also write what is on the page to this file, as JSON.")] = None,
) -> None:
    """Draw one page from one or many runs: what transferred and where not, curves, tables, completions, costs, provenance."""
    from limbeck.report import report as draw

    print(named(f"report: {draw(runs, out or runs[0] / 'report.html', data=data)}") + (f"\ndata:   {data}" if data else ""))


app.command()(export)


@app.command()
def quickstart(
    teacher: Annotated[
        str | None, typer.Option(help="Hub name, folder or GGUF file; by default SmolLM2-135M-Instruct from a Python package.")
    ] = None,
    layers: Annotated[int, typer.Option(help="How many of its layers the student keeps.")] = 15,
    minutes: Annotated[float, typer.Option(help="About how long it may take, set-up left out.")] = 8.0,
    steps: Annotated[int | None, typer.Option(help="Steps in place of minutes; a fifth of them are on-policy.")] = None,
    prompts: Annotated[int | None, typer.Option(help="How many of the shipped prompts to use; by default all.")] = None,
    accept_license: Accepted = None,
    out: Annotated[Path, typer.Option(help="The folder of everything; the same command goes on where it stopped.")] = Path("runs/quickstart"),
) -> None:
    """Distill a real language model, end to end, on this machine."""
    from limbeck.quickstart import quickstart as run

    table = run(out, teacher, layers, minutes, steps, prompts, accept_license or [])
    _table(table["columns"], table["rows"])
    for sample in table["samples"]:
        _table(["", sample["prompt"]], [[who, text] for who, text in sample["completions"].items()])
    print(f"student: {out / '2-own-answers' / 'student'}\nreport:  {out / 'report.html'}")


def main() -> None:
    """Run a command; what is the user's to mend is said in one line."""
    try:
        _quiet()
        app()
    except Stopped as error:
        from limbeck.distributed import leave, rank

        if rank() == 0:
            print(named(f"limbeck: {error}"), file=sys.stderr)
        leave(error.code)
        sys.exit(error.code)
    except LimbeckError as error:
        from limbeck.distributed import break_off, speaks

        if speaks():
            print(named(f"limbeck: {error}"), file=sys.stderr)
        break_off(2)
        sys.exit(2)
    except KeyboardInterrupt:
        print("limbeck: stopped at once; what was saved before is there", file=sys.stderr)
        sys.exit(130)


def _quiet() -> None:
    """Keep the progress bars of the libraries out of ours; set before they are imported."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    main()
