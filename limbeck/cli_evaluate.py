"""The command line of `limbeck evaluate`, and no logic of its own."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from limbeck.cli_cluster import Needs, On, Workers, placed
from limbeck.errors import RecipeError
from limbeck.terminal import show_table


def evaluate(
    data: Annotated[str, typer.Option(help="Held-out rows: text, or prompts (JSONL, Parquet, hub name).")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders: their students before and after, judged by their teacher.")] = None,
    student: Annotated[str | None, typer.Option(help="In place of runs: hub name or folder.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Hub name, folder, GGUF file or cache; of runs by default their own.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Train the same student on the run's text alone, from its start and from "
                                                                "nothing, below each run, and measure both.")] = False,
    rows: Annotated[int, typer.Option(help="How many rows to take.")] = 64,
    each: Annotated[int, typer.Option(help="Answers to a prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Of what is written.")] = 0,
    tasks: Annotated[list[str] | None, typer.Option(help="A file of prompts with answers, `FILE:VERIFIER`, or `lm_eval:NAME`; may be given "
                                                         "several times.")] = None,
    task_rows: Annotated[int, typer.Option(help="How many prompts of each task to take.")] = 64,
    task_max_tokens: Annotated[int, typer.Option(help="Of an answer to a task.")] = 256,
    robustness: Annotated[bool, typer.Option("--robustness", help="Read the same answers after edited prompts: typos, case, paraphrase templates, "
                                                                  "distractors, longer context, other scripts, truncation.")] = False,
    edit: Annotated[list[str] | None, typer.Option(help="For robustness: only this edit, or kind of edit; may be given again.")] = None,
    other: Annotated[str | None, typer.Option(help="For robustness: rows of another kind than --data's.")] = None,
    adversarial: Annotated[int, typer.Option(help="For robustness: steps of a search for a suffix that parts student and teacher.")] = 0,
    category: Annotated[str | None, typer.Option(help="Column of the rows by which gaps are sliced; by default `category` where rows have it, else "
                                                      "clusters of prompts.")] = None,
    acceptance: Annotated[bool, typer.Option("--acceptance", help="Measure how well --draft serves --target: acceptance, costs, speed.")] = False,
    show_drafts: Annotated[bool, typer.Option("--show-drafts", help="Print text of the pair, what was proposed in colour.")] = False,
    target: Annotated[str | None, typer.Option(help="For drafts: hub name, folder or GGUF file.")] = None,
    draft: Annotated[str | None, typer.Option(help="For drafts: hub name, folder or GGUF file.")] = None,
    gamma: Annotated[int | None, typer.Option(help="For drafts: tokens proposed at once; by default what pays best.")] = None,
    temperature: Annotated[float, typer.Option(help="For drafts: in service; 0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="For drafts: in service.")] = 1.0,
    dtype: Annotated[str, typer.Option(help="For drafts: of their arithmetic: auto, float32 or bfloat16.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="The folder of the evaluation; by default `evaluation` in the first run. The same command goes "
                                                  "on where it stopped. For drafts: a JSON file, a plot beside it.")] = None,
    on: On = None, workers: Workers = None, resource: Needs = None,
) -> None:  # fmt: skip
    """Measure what transferred: teacher, student before and after and baselines, on held-out text and on their own; or how well a draft serves."""
    if acceptance or show_drafts or target or draft:
        return _drafts(target, draft, bool(runs or student or teacher or tasks), data, rows, (max_tokens, temperature, top_p), dtype, gamma,
                       (acceptance or not show_drafts, show_drafts), out)  # fmt: skip
    from limbeck.transfer.measure import evaluate_transfer
    from limbeck.transfer.robustness import asked_for as asked_robust
    from limbeck.transfer.rows import Asked
    from limbeck.transfer.subjects import Who
    from limbeck.transfer.summary import shown
    from limbeck.transfer.tasks import TasksAsked

    robust = asked_robust(robustness, edit or [], other, adversarial)
    judged = TasksAsked(tuple(tasks or ()), task_rows, task_max_tokens)
    folder, asked = out or (runs[0] / "evaluation" if runs else Path("runs/evaluation")), Asked(data, rows, each, max_tokens, seed=seed)
    who = Who(runs or [], student, teacher, baselines)
    rest = asked, folder, judged, robust, category
    found = placed(on, workers, resource, lambda: evaluate_transfer(who.subjects(), *rest), "transfer", who, *rest)
    for columns, lines in shown(found):
        show_table(columns, lines)
    for said in found["advice"]:
        print(f"{said['of']}: {said['says']}\n  because {said['because']}")
    missing = [*found["missing"], *found.get("robustness", {}).get("missing", [])]
    print("\n".join([*(f"missing: {each}" for each in missing), f"evaluation: {folder / 'evaluation.json'}"]))


def _drafts(
    target: str | None, draft: str | None, others: bool, data: str, rows: int, sampling: tuple[int, float, float], dtype: str, gamma: int | None,
    what: tuple[bool, bool], out: Path | None,
) -> None:  # fmt: skip
    from limbeck.decoding import Sampling
    from limbeck.drafts import evaluate_pair

    if not (target and draft) or others:
        raise RecipeError("drafts are evaluated in pairs: give --target and --draft, and neither runs nor --student nor --teacher nor --tasks")
    found = evaluate_pair(target, draft, data, rows, Sampling(*sampling), cast(Any, dtype), gamma, *what, out)
    for prompt, text in found.texts:
        show_table(["", prompt], [["", text]])
    if found.rows:
        show_table(["figure", "value", ""], found.rows)
    print("\n".join(found.words))
