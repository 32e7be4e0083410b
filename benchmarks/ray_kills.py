"""What is left of `--on ray` when somebody is killed: workers, a teacher's actor, the server, the driver, at random moments.

    python benchmarks/ray_kills.py --work FOLDER [--seed 0]

Twenty kills (SIGKILL), each in work of its own, at a moment that the seed draws from the middle of what the work takes unbroken:
- a worker of `limbeck write`, and one of `limbeck cache`: Ray begins it again;
- an actor of a `Pool`, while a student's parts are scored: begun again, and asked again;
- the server that `limbeck write` asks, begun again a second later on the same port;
- the driver of `limbeck write`, and of `limbeck cache`: the same command is given again.
Then the rows are compared with those of a local run that nobody broke, and the calls that the server got with the ledger. An
answer may be asked again only if its call was under way at the kill: at most `CONCURRENCY` calls of each process that died with
them (one worker; all of them with the driver or the server). Writes `benchmarks/results/ray_kills.json`.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine
from ray_double import MODEL, Served, served

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import toys
from deaths import processes

import limbeck as lb
from limbeck.batch import Batch
from limbeck.cache import Cache
from limbeck.cluster import joined, ray
from limbeck.data import Data
from limbeck.files import read_jsonl, write_json, write_jsonl
from limbeck.pool import Pool

RESULTS = Path(__file__).parent / "results"
WORKERS, CONCURRENCY, LATENCY = 3, 4, 0.25
PROMPTS, ROWS = 240, 3000


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Lab:
    """A cluster on this machine, a folder, and what an unbroken local run made."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.draw = work, random.Random(seed)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        toys.licensed(work)
        write_jsonl(work / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(PROMPTS)])
        self.teacher, self.student = (toys.folder(work / name, seed=seed, layers=3) for name, seed in (("teacher", 2), ("student", 1)))
        self.data = toys.jsonl(work / "train.jsonl", [{**row, "prompt": f"{n} {row['prompt']}"} for n, row in enumerate(toys.rows(ROWS))])
        self.address = self._begin()

    def _begin(self) -> str:
        port = 20000 + os.getpid() % 20000
        self.port = port
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
                   "--num-cpus=8", "--include-dashboard=false", "--disable-usage-stats"]  # fmt: skip
        self.cluster = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not _answers(port):
            time.sleep(0.2)
        time.sleep(5.0)
        return f"127.0.0.1:{port}"

    def end(self) -> None:
        """Take the cluster down."""
        self.cluster.terminate()
        self.cluster.wait(timeout=60)

    def command(self, *words: str, on: bool = True) -> "subprocess.Popen[str]":
        """Limbeck's command line, on the cluster or here."""
        there = ["--on", self.address, "--workers", str(WORKERS)] if on else []
        return subprocess.Popen([sys.executable, "-m", "limbeck", *words, *there], cwd=self.work, text=True,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip

    def write(self, server: Served, out: str, on: bool = True) -> "subprocess.Popen[str]":
        """A corpus."""
        return self.command("write", "--teacher", server.url, "--model", MODEL, "--prompts", "prompts.jsonl", "--concurrency", str(CONCURRENCY),
                            "--similarity", "1", "--accept-license", f"unknown licence of {MODEL}", "--out", out, on=on)  # fmt: skip

    def cache(self, out: str, on: bool = True) -> "subprocess.Popen[str]":
        """A cache."""
        return self.command("cache", "--teacher", "teacher", "--data", "train.jsonl", "--dtype", "float32", "--out", out, on=on)


def ended(process: "subprocess.Popen[str]") -> None:
    """Wait for a command that must succeed."""
    said = process.communicate(timeout=500)[1]
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}: {said}")


def within(lab: Lab, process: "subprocess.Popen[str]", begun: Callable[[], bool], seconds: float) -> None:
    """Wait for the work to be under way, and then for a drawn part of what it takes."""
    while not begun():
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[1])
        time.sleep(0.02)
    time.sleep(lab.draw.uniform(0.1, 0.8) * seconds)


def rows_of(cache: Path) -> dict[bytes, Any]:
    """What a cache holds, by key."""
    found = Cache.open(cache)
    columns = ["key", *found.keep.types, "entropy"]
    return {row["key"]: row for name in found.shards.entered() for row in found.shards.read(name, columns).to_pylist()}


def broken_write(lab: Lab, number: int, whom: str, whole: list[dict[str, Any]]) -> dict[str, Any]:
    """A corpus, somebody killed on the way."""
    out = f"write-{number}"
    with served(lab.work / "log", LATENCY) as server:
        process, again = lab.write(server, out), 0
        within(lab, process, lambda: bool(server.noted("asked")), PROMPTS * LATENCY / WORKERS / CONCURRENCY)
        under_way = server.counts("asked").total() - server.counts("gave").total()
        at = len(server.noted("gave"))
        if whom == "server":
            server.kill()
            time.sleep(1.0)
            server.begin()
        elif whom == "driver":
            process.kill()
            process.wait()
            process, again = lab.write(server, out), 1
        else:
            os.kill(lab.draw.choice(processes("MapWorker(MapBatches(Hand)", lab.port)), signal.SIGKILL)
        ended(process)
        asked = server.counts("asked")
    with sqlite3.connect(lab.work / out / "ledger.sqlite") as ledger:
        recorded = ledger.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    most = CONCURRENCY * (1 if whom == "worker" else WORKERS)
    twice = sum(count - 1 for count in asked.values())
    return {"job": "write", "killed": whom, "after_answers": at, "under_way": under_way, "commands": 1 + again, "recorded": recorded,
            "prompts": PROMPTS, "never_asked": PROMPTS - len(asked), "asked_again": twice, "may_be_asked_again": most,
            "most_calls_of_one": max(asked.values()), "same_rows": read_jsonl(lab.work / out / "corpus.jsonl") == whole}  # fmt: skip


def broken_cache(lab: Lab, number: int, whom: str, whole: dict[bytes, Any]) -> dict[str, Any]:
    """A cache, somebody killed on the way."""
    out = lab.work / f"cache-{number}"
    process, again = lab.cache(out.name), 0
    shards = lambda: len([*(out / "shards").glob("*.parquet")]) if (out / "shards").exists() else 0  # noqa: E731
    within(lab, process, lambda: shards() > 2 and bool(processes("MapWorker(MapBatches(Hand)", lab.port)), 1.0)
    at = shards()
    if whom == "driver":
        process.kill()
        process.wait()
        process, again = lab.cache(out.name), 1
    else:
        os.kill(lab.draw.choice(processes("MapWorker(MapBatches(Hand)", lab.port)), signal.SIGKILL)
    ended(process)
    found = rows_of(out)
    written = sum(line["rows"] for line in Cache.open(out).shards.entered().values())
    return {"job": "cache", "killed": whom, "after_shards": at, "commands": 1 + again, "rows": len(whole), "written": written,
            "doubled": written - len(found), "same_rows": found == whole}  # fmt: skip


def broken_pool(lab: Lab, parts: list[Batch], whole: list[torch.Tensor], pool: Pool) -> dict[str, Any]:
    """Parts scored by a pool, one of its actors killed on the way."""
    at, found = lab.draw.randrange(2, len(parts) - 6), list[torch.Tensor]()
    for number, said in enumerate(pool.score(parts)):
        found.append(said.hidden_ND)  # type: ignore[attr-defined]
        if number == at:
            os.kill(lab.draw.choice(processes("Hand", lab.port)), signal.SIGKILL)
    same = len(found) == len(whole) and all(map(torch.equal, found, whole))
    return {"job": "score", "killed": "teacher's actor", "after_parts": at + 1, "parts": len(parts), "came": len(found), "same_rows": same}


def main() -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    lab = Lab(asked.work.resolve(), asked.seed)
    try:
        found = kills(lab)
    finally:
        lab.end()
    settings = {"seed": asked.seed, "workers": WORKERS, "concurrency": CONCURRENCY, "latency_seconds": LATENCY, "prompts": PROMPTS, "rows": ROWS}
    same = sum(each["same_rows"] for each in found)
    write_json(RESULTS / "ray_kills.json", {"settings": settings, "kills": found, "same_rows": same, "machine": machine()})
    print(f"{same} of {len(found)} with the rows of an unbroken run")


def kills(lab: Lab) -> list[dict[str, Any]]:
    """All twenty."""
    found = list[dict[str, Any]]()

    def note(row: dict[str, Any]) -> None:
        found.append(row)
        print(json.dumps(row), flush=True)

    with served(lab.work / "log", 0.01) as server:
        ended(lab.write(server, "local", on=False))
    ended(lab.cache("local-cache", on=False))
    corpus, cache = read_jsonl(lab.work / "local" / "corpus.jsonl"), rows_of(lab.work / "local-cache")
    for number, whom in enumerate(["worker"] * 4 + ["server"] * 4 + ["driver"] * 3):
        note(broken_write(lab, number, whom, corpus))
    for number, whom in enumerate(["worker"] * 3 + ["driver"] * 2):
        note(broken_cache(lab, number, whom, cache))
    local = lb.Local(lab.teacher, dtype="float32")
    with joined(lab.address):
        student = lb.Student(lab.student, dtype="float32").load(1)
        texts = [text for row in toys.rows(400) for text in student.live.vocabulary.texts(row, Data("x"), 100)]
        parts = Batch.of(texts, "corpus").split(120)
        whole = [said.hidden_ND for said in local.load(student).score(parts)]  # type: ignore[attr-defined]
        pool = Pool(local, 2, on=lab.address).load(student)
        for _ in range(4):
            note(broken_pool(lab, parts, whole, pool))
        del pool
        assert ray().is_initialized()
    return found


if __name__ == "__main__":
    main()
