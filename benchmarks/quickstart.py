"""What the quickstart reached: figures, seconds a step, and the curve of KL against minutes, from the folder it left.

    limbeck quickstart --out runs/quickstart
    python benchmarks/quickstart.py runs/quickstart

Writes `benchmarks/results/quickstart.json` and the table of the README. Claimed: the held-out KL of the 15-layer student on
teacher-written text is halved at least, on its own text it is lower, and both are below those of the same student after as
many steps of cross-entropy on the teacher's text.
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from limbeck.files import read_json, read_jsonl, write_json, write_text

HERE = Path(__file__).parent
RUNS = ("1-teacher-answers", "2-own-answers", "baseline-cross-entropy")
MARKS = "<!-- quickstart table -->\n", "<!-- end -->"


def curve(run: Path) -> list[dict[str, float]]:
    """Held-out figures by training minutes of one run."""
    seconds = {0: 0.0}
    for row in read_jsonl(run / "timings.jsonl"):
        seconds[row["step"]] = seconds[row["step"] - 1] + row["seconds"]
    found = sorted(read_json(run / "evaluations.json").items(), key=lambda item: int(item[0]))
    return [{"minutes": round(seconds[int(step)] / 60, 3), **_nats(f["teacher-written"])} for step, f in found]


def _nats(figures: dict[str, Any]) -> dict[str, float]:
    return {key: round(figures[key], 4) for key in ("kl_nats", "ce_nats") if key in figures}


def collect(out: Path) -> dict[str, Any]:
    """Everything worth keeping of a quickstart's folder."""
    table, plan = read_json(out / "comparison.json"), read_json(out / "plan.json")
    figures = {
        who: {name: {key: value for key, value in found[name].items() if key != "samples"} for name in ("given", "own")}
        | {"parameters": found["parameters"], "tokens_per_second": round(found["tokens_per_second"], 1)}
        for who, found in table["figures"].items()
    }
    steps = {run: statistics.median(row["seconds"] for row in read_jsonl(out / run / "timings.jsonl")) for run in RUNS}
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "arithmetic": read_json(out / RUNS[0] / "provenance.json")["teacher"]["arithmetic"],
    }
    return {"plan": plan, "machine": machine, "figures": figures, "seconds_per_step": steps, "curves": {run: curve(out / run) for run in RUNS}}


def readme_table(table: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(out: Path) -> None:
    """Write the results and fill in the README."""
    write_json(HERE / "results" / "quickstart.json", collect(out))
    readme = HERE.parent / "README.md"
    before, _, rest = readme.read_text().partition(MARKS[0])
    plan = read_json(out / "plan.json")
    first, own = plan["steps"]
    words = f"One run on two CPU cores: {first} steps on the teacher's answers and {own} on its own, eight answers each; 95 % intervals."
    write_text(readme, f"{before}{MARKS[0]}{readme_table(read_json(out / 'comparison.json'))}\n\n{words}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(json.dumps(collect(out)["seconds_per_step"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
