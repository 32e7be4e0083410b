"""How the throughput of `limbeck write --on ray` grows with its workers, against a server of fixed latency.

    python benchmarks/ray_scaling.py --work FOLDER [--seconds 1] [--rounds 3]

Local Ray workers ask a double on loopback (`ray_double.py`), each `CONCURRENCY` calls at once, `PROMPTS` prompts for each worker,
so that a run takes as long whatever their number. Throughput is in answers that the server gave per second: steady, between the
first tenth of the answers and the last; and whole, from the command's beginning, with Ray joined, to the corpus on disk. Efficiency
is the median throughput over workers times that of one. Rounds go through the numbers of workers in turn.
Writes `benchmarks/results/ray_scaling.json` and `.svg`.
"""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from arith_lab import plot
from measure import machine
from ray_double import MODEL, served

from limbeck.cluster import Resources, joined
from limbeck.corpus import Order
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.endpoint import Endpoint
from limbeck.files import read_jsonl, write_json, write_jsonl, write_text
from limbeck.spread.corpus import PROMPTS as PIECE
from limbeck.spread.corpus import spread

RESULTS = Path(__file__).parent / "results"
WORKERS = (1, 2, 4, 8)
CONCURRENCY, PROMPTS = 4, 160


def run(workers: int, seconds: float, work: Path) -> dict[str, float]:
    """One corpus."""
    out = work / f"corpus-{workers}"
    shutil.rmtree(out, ignore_errors=True)
    count = workers * PROMPTS
    prompts = work / f"prompts-{workers}.jsonl"
    write_jsonl(prompts, [{"prompt": f"prompt {n}"} for n in range(count)])
    with served(work / "log", seconds) as server, joined("ray", Resources(num_cpus=0.25, workers=workers)) as cluster:
        teacher = Endpoint(server.url, MODEL, concurrency=CONCURRENCY)
        order = Order(teacher, Data(str(prompts)), sampling=Sampling(max_tokens=16), similarity=None,
                      accept_license=[f"unknown licence of {MODEL}", f"unknown licence of {prompts}"])  # fmt: skip
        began = time.time()
        spread(cluster, order, out)
        ended = time.time()
        given = sorted(at for at, _ in server.noted("gave"))
    assert len(read_jsonl(out / "corpus.jsonl")) == count == len(given)
    tenth = count // 10
    steady = (count - 2 * tenth) / (given[count - tenth - 1] - given[tenth - 1])
    return {"steady": steady, "whole": count / (ended - began), "seconds": ended - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    (asked.work / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    found: dict[int, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
    with joined("ray", Resources(num_cpus=0.25, workers=4 * max(WORKERS))):
        for number in range(asked.rounds):
            for workers in WORKERS:
                found[workers].append(run(workers, asked.seconds, asked.work))
                print(number, workers, found[workers][-1], os.getloadavg(), flush=True)
    rows = list[dict[str, Any]]()
    median = {
        workers: {name: statistics.median(each[name] for each in several) for name in ("steady", "whole")} for workers, several in found.items()
    }
    for workers, several in found.items():
        row: dict[str, Any] = {"workers": workers, "rounds": several, "most": workers * CONCURRENCY / asked.seconds}
        for name in ("steady", "whole"):
            row |= {name: median[workers][name], f"{name}_efficiency": median[workers][name] / (workers * median[1][name])}
        rows.append(row)
    settings = {"latency_seconds": asked.seconds, "concurrency": CONCURRENCY, "prompts_per_worker": PROMPTS, "prompts_per_piece": PIECE}
    write_json(RESULTS / "ray_scaling.json", {"settings": settings, "rows": rows, "machine": machine()})
    ends = lambda row, name: [bound(each[name] for each in row["rounds"]) for bound in (min, max)]  # noqa: E731
    series = {name: [(row["workers"], row[name], *ends(row, name)) for row in rows] for name in ("steady", "whole")}
    write_text(RESULTS / "ray_scaling.svg", plot(series, "workers", "answers a second", "limbeck write --on ray, a server of fixed latency"))


if __name__ == "__main__":
    main()
