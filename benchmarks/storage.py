"""What sending to a store adds to a run: moto's S3 server on loopback, in a process of its own.

    python benchmarks/storage.py

A run of toys, and checkpoints of SmolLM2-135M's size (135 M numbers in bfloat16, one file of 270 MB): seconds on this disk and
through the mirror of an S3 URL, in turn, medians. "saved" is how long the one who saves waits; "sent" is until all is in the
store. A loopback has no distance, and moto is no fast server: it shares the processor with the run, which makes sending look
dearer than it is. Writes `benchmarks/results/storage.json`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import machine

from limbeck import checkpoint, storage
from limbeck.files import write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
ROUNDS, NUMBERS, PORT = 3, 135_000_000, 5977
SERVER = f"""
import time
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address="127.0.0.1", port={PORT}, verbose=False).start()
time.sleep(3600)
"""


def led() -> None:
    from fsspec.config import conf, set_conf_env

    os.environ |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"FSSPEC_S3": json.dumps({"endpoint_url": f"http://127.0.0.1:{PORT}"})}
    set_conf_env(conf)
    import fsspec

    storage.persistently("moto", lambda: fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket"), (1.0,) * 30)


def toy_run(home: Path, out: str) -> float:
    import toys
    from test_runs import recipe

    import limbeck as lb

    toy = {"student": str(home / "student"), "teacher": str(home / "teacher"), "data": str(home / "data.jsonl")}
    if not (home / "student").exists():
        toys.folder(home / "student", seed=1), toys.folder(home / "teacher", seed=2), toys.jsonl(home / "data.jsonl", toys.rows(64))
    asked = recipe("kd", toy, steps=40, save_every=10)
    began = time.monotonic()
    lb.distill(asked, out)
    return time.monotonic() - began


def saving(out: str, tensors: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds until a checkpoint is saved, and until all is where it belongs."""
    folder = storage.here(out)
    began = time.monotonic()
    with storage.writing(folder):
        checkpoint.save(checkpoint.place(folder, 1), tensors, {})
        saved = time.monotonic() - began
    return saved, time.monotonic() - began


def main() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory() as work:
            os.environ["XDG_CACHE_HOME"] = work
            led()
            home, found = Path(work), {"run on disk": [], "run in s3": [], "saved on disk": [], "saved in s3": [], "sent to s3": []}
            tensors = {"weights": torch.randn(NUMBERS).to(torch.bfloat16)}
            toy_run(home, f"{work}/first")  # what is slow once
            for turn in range(ROUNDS):
                found["run on disk"].append(toy_run(home, f"{work}/run-{turn}"))
                found["run in s3"].append(toy_run(home, f"s3://bucket/run-{turn}"))
                found["saved on disk"].append(saving(f"{work}/saved-{turn}", tensors)[0])
                saved, sent = saving(f"s3://bucket/saved-{turn}", tensors)
                found["saved in s3"].append(saved)
                found["sent to s3"].append(sent)
        medians = {name: statistics.median(each) for name, each in found.items()}
        facts = {"machine": machine(), "load": os.getloadavg()[0], "checkpoint_bytes": 2 * NUMBERS, "toy_steps": 40}
        write_json(Path(__file__).parent / "results" / "storage.json", {**facts, "seconds": medians, "rounds": found})
        print(json.dumps(medians, indent=1))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
