"""The command line of `limbeck plan`, and no logic of its own."""

import json
from pathlib import Path
from typing import Annotated

import typer

from limbeck.terminal import show_table


def plan(
    what: Annotated[str | None, typer.Argument(metavar="[RECIPE|METHOD]", help="A recipe's YAML file or a method; by default every way.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Hub name, folder, GGUF file or cache; the URL of a server; or a name with a price.")] = None,
    student: Annotated[str | None, typer.Option(help="Hub name or folder.")] = None,
    data: Annotated[str | None, typer.Option(help="Text to learn from, its prompts to be answered (JSONL, Parquet, hub name).")] = None,
    prompts: Annotated[str | None, typer.Option(help="Other prompts to be answered.")] = None,
    reward: Annotated[str | None, typer.Option(help="A verifier, for methods with a reward.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every recipe: steps=1000.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="How long answers are taken to be; by default as long as they may be.")] = None,
    accepted: Annotated[float, typer.Option(help="Share of a draft's tokens that a verifier lets stand: for skd.")] = 0.8,
    samples: Annotated[int, typer.Option(help="Answers of the teacher to a prompt, where it writes beforehand.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="In place of this machine: h100, h200, a100, l40s or l4, by published numbers.")] = None,
    gpus: Annotated[int | None, typer.Option(help="How many of them.")] = None,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Each of them holds a share of the models (FSDP2), and not a copy.")] = False,
    usd_hour: Annotated[float | None, typer.Option(help="US dollars for an hour of the machine, all its GPUs.")] = None,
    model: Annotated[str | None, typer.Option(help="On the server of a URL: the model's name there.")] = None,
    usd_in: Annotated[float, typer.Option(help="On a server: US dollars for a million tokens read.")] = 0.0,
    usd_out: Annotated[float, typer.Option(help="On a server: US dollars for a million tokens written.")] = 0.0,
    runs: Annotated[list[Path] | None, typer.Option(help="A run whose evaluations say how good its student is; may be given several times.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine again (at most about a minute).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for plan.json and plan.svg, the plot of quality and price.")] = None,
) -> None:  # fmt: skip
    """See what every way from a teacher to a student takes: memory, FLOPs, time, disk, US dollars; which suits; when it has paid for itself."""
    from limbeck.planning.asked import COLUMNS, Asked, AskedMachine, advised, keep, planned, table, where, words
    from limbeck.planning.plan import Assumed

    asked = Asked(what, teacher, student, data, prompts, reward, settings or [], samples, model, usd_in, usd_out)
    made = planned(asked, AskedMachine(gpu, gpus, usd_hour, measure, fsdp), Assumed(answer_tokens, accepted), runs or [])
    if out is not None:
        keep(made, out)
    if as_json:
        print(json.dumps(made.as_plain(), indent=1))
        return
    show_table(COLUMNS, table(made))
    for columns, lines in where(made) if made.machine.ranks > 1 or what is not None else ():
        show_table(columns, lines)
    if made.advice:
        show_table(["", "take", "why"], advised(made))
    print("\n".join([*words(made), *([f"plan: {out / 'plan.json'}, {out / 'plan.svg'}"] if out else [])]))
