"""The tables of the page on speed, from what the benchmarks found."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *escaped])


def results(name: str) -> Any:
    """What a benchmark found."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def loss_head() -> str:
    """Times and memory of the loss head."""
    found = results("loss_head")
    rows = [
        [what, term, who, f"{each['median']:.2f}", f"{each['times_the_products']:.2f}"]
        for what, by in found["seconds"].items()
        for term, values in by.items()
        for who, each in values.items()
    ]
    times = table(["arithmetic", "term", "who", "seconds", "times its products"], rows)
    mib = [[what, *map(str, by.values())] for what, by in found["MiB_above_the_gradients"].items()]
    return f"{times}\n\n{table(['memory above the two gradients, MiB', 'ReverseKL', 'JSD(0.5)'], mib)}\n\n{_machine(found)}"


def steps() -> str:
    """Times of whole steps."""
    found = results("steps")
    whole = [
        [kind, who, f"{each['median']:.2f}", f"{by['times_limbeck'][who]:.2f}"]
        for kind, by in found["on_policy"].items()
        for who, each in by["seconds"].items()
    ]
    stages = [[kind, name, f"{s['median']:.2f}", f"{s['floor']:.2f}"] for kind, by in found["on_policy"].items() for name, s in by["stages"].items()]
    plain = [
        [kind, who, f"{each['median']:.0f}", str(by["MiB_of_a_step"][who])]
        for kind, by in found["supervised"].items()
        for who, each in by["tokens_per_second"].items()
    ]
    tables = [
        table(["on-policy, arithmetic", "who", "seconds a step", "times Limbeck's"], whole),
        table(["Limbeck's stages", "stage", "seconds", "floor"], [row for row in stages if row[1] != "all"]),
        table(["supervised, arithmetic", "who", "tokens a second", "memory of a step, MiB"], plain),
    ]
    return "\n\n".join([*tables, _machine(found)])


def start() -> str:
    """Seconds until the command line answers."""
    found = results("start")
    return table(["process", "seconds"], [[f"`{what}`", f"{each['median']:.2f}"] for what, each in found["seconds"].items()])


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"Machine: {machine['system']}, {machine['threads']} threads ({', '.join(machine['instructions'])}), torch {machine['torch']}."
