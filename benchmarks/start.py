"""How soon the command line answers: seconds of whole processes, beside a bare start of Python.

    python benchmarks/start.py

Claimed: `import limbeck` under 0.3 s; `limbeck --help`, and `limbeck check` of what can be refused without opening models,
within half a second of a bare Python start. Writes `benchmarks/results/start.json`.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import in_turn, machine, seconds, summary

from limbeck.files import write_json

RECIPE = """student: student
teacher: {type: Local, model: teacher}
source: {type: Corpus, data: train.jsonl}
objective: ForwardKL()
"""
REFUSED = RECIPE.replace("{type: Local, model: teacher}", "Silent")
MISSPELT = RECIPE + "stepps: 3\n"


def run(folder: Path, *command: str) -> None:
    """One process."""
    subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, check=False)


def main() -> None:
    """Measure and write it down."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in {"recipe.yaml": RECIPE, "refused.yaml": REFUSED, "misspelt.yaml": MISSPELT}.items():
            (folder / file).write_text(text)
        commands = {
            "python -c pass": ["-c", "pass"],
            "import limbeck": ["-c", "import limbeck"],
            "limbeck --help": ["-m", "limbeck", "--help"],
            "limbeck check, an unknown key": ["-m", "limbeck", "check", "misspelt.yaml"],
            "limbeck check, a refusal": ["-m", "limbeck", "check", "refused.yaml"],
            "limbeck check, files that are not there": ["-m", "limbeck", "check", "recipe.yaml"],
        }
        takes: dict[str, Callable[[], float]] = {what: partial(seconds, partial(run, folder, *command)) for what, command in commands.items()}
        found = {what: summary(values) for what, values in in_turn(takes, 9).items()}
    write_json(Path(__file__).parent / "results" / "start.json", {"machine": machine(), "seconds": found})
    for what, figures in found.items():
        print(f"{what}: {figures['median']:.3f} s")


if __name__ == "__main__":
    main()
