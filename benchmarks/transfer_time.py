"""How long `limbeck evaluate` takes on the quickstart's student: 64 held-out prompts, 64 tokens each, and what a kill costs.

    limbeck quickstart --out FOLDER/quickstart     # or with --steps 20: how well it was taught changes nothing here
    python benchmarks/transfer_time.py --quickstart FOLDER/quickstart --work FOLDER/evaluated

Everything but baselines and the adversarial search, in one process as a user runs it, on the cores the machine has: seconds in all; then the same
killed after about half of that and begun again, seconds of both parts together. The aim: at most five minutes on two cores.
Writes `benchmarks/results/transfer_time.json`.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from measure import machine

from limbeck.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
ROWS, TOKENS = 64, 64


def command(run: Path, out: Path) -> list[str]:
    """As it is typed."""
    data = run.parent / "heldout.jsonl"
    return [sys.executable, "-m", "limbeck", "evaluate", str(run), "--data", str(data), "--rows", str(ROWS), "--max-tokens", str(TOKENS),
            "--robustness", "--out", str(out)]  # fmt: skip


def timed(asked: list[str], limit_s: float | None = None) -> float:
    """Seconds of a command; it is killed at the limit."""
    began = time.monotonic()
    try:
        subprocess.run(asked, check=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        print(f"killed after {limit_s:.0f} s", flush=True)
    return time.monotonic() - began


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", required=True, type=Path, help="the folder of a quickstart")
    parser.add_argument("--work", required=True, type=Path, help="a folder for the evaluations; what is in it goes")
    asked = parser.parse_args()
    run = asked.quickstart / "2-own-answers"
    shutil.rmtree(asked.work, ignore_errors=True)
    whole_s = timed(command(run, asked.work / "whole"))
    parts_s = [timed(command(run, asked.work / "cut"), 0.5 * whole_s), timed(command(run, asked.work / "cut"))]
    first, again = (read_json(asked.work / name / "evaluation.json") for name in ("whole", "cut"))
    same = all(first[part] == again[part] for part in ("figures", "differences", "calibration", "diversity"))
    found = {"machine": machine(), "prompts": ROWS, "max_tokens": TOKENS, "whole_seconds": round(whole_s, 1),
             "killed_and_again_seconds": [round(each, 1) for each in parts_s], "same_figures": same, "speeds": first["speeds"]}  # fmt: skip
    write_json(RESULTS / "transfer_time.json", found)
    print(found)


if __name__ == "__main__":
    main()
