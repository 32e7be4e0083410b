"""A whole run whose text a server writes, in each of several processes: see test_engines.py."""

import json
import sys
from pathlib import Path

import limbeck as lb
from limbeck import distributed
from limbeck.objective import Objective


def recipe(folders: dict[str, str], url: str) -> lb.Recipe:
    """Four prompts a step, one of them more than a rank's share of three."""
    engine = {"type": "VLLM", "servers": [url], "model": "toy", "dtype": "float32", "every": 2}
    source = lb.OnPolicy(folders["prompts"], sequences=3, sampling=lb.Sampling(8), engine=engine)
    student = lb.Student(folders["student"], lb.AdamW(learning_rate=1e-2), dtype="float32")
    return lb.Recipe(student, source, lb.Local(folders["teacher"], dtype="float32"), Objective([lb.ReverseKL()]), steps=4)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    lb.distill(recipe(given["folders"], given["url"]), Path(given["out"]))
    distributed.leave()
