"""How long saving and restoring takes, and how many bytes: weights and moments of SmolLM2-135M, in one process and as shares of two.

Beside it torch.save of the same, and what the disk alone takes for as many bytes (written and synced, then read back after the
pages that the system keeps were given up). Run: python -m benchmarks.checkpoints (or python benchmarks/checkpoints.py).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from limbeck import checkpoint, distributed
from limbeck.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "checkpoints.json"
TIMES = 3
SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip


def state() -> dict[str, torch.Tensor]:
    """Float32 weights and two moments each, as shares where this process has another beside it."""
    module = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2_135M))
    if distributed.is_sharded():
        from torch.distributed.fsdp import fully_shard

        for layer in module.model.layers:
            fully_shard(layer)
        fully_shard(module)
    weights = {f"weight.{name}": weight.detach() for name, weight in module.named_parameters()}
    moments = {f"moment.{name}.{kind}": torch.randn_like(weight) for name, weight in weights.items() for kind in ("exp_avg", "exp_avg_sq")}
    return weights | moments


def forget(folder: Path) -> None:
    """Have the system give up the pages it keeps of these files."""
    for path in [*folder.rglob("*")] if folder.is_dir() else [folder]:
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def timed(work) -> float:
    distributed.wait()
    began = time.monotonic()
    work()
    distributed.wait()
    return time.monotonic() - began


def peak_mb() -> float:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1024


def measured(folder: Path) -> dict[str, float]:
    """Seconds of saving and of restoring, the median of several; bytes; and by how much memory grew at the most."""
    tensors, figures = state(), {"save_seconds": [], "restore_seconds": []}
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mb()
    for n in range(TIMES):
        place = folder / f"step-{n}"
        figures["save_seconds"].append(timed(lambda place=place: checkpoint.save(place, tensors, {})))
        grown = peak_mb() - before
        forget(place)
        figures["restore_seconds"].append(timed(lambda place=place: checkpoint.restore(place)[0].fill(tensors)))
    size = sum(path.stat().st_size for path in place.glob("*"))
    return {name: median(values) for name, values in figures.items()} | {"bytes": size, "save_peak_mb": grown}


def by_torch(folder: Path) -> dict[str, float]:
    """torch.save and torch.load of the same, synced."""
    tensors, figures = state(), {"save_seconds": [], "restore_seconds": []}
    path = folder / "state.pt"

    def save() -> None:
        torch.save(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def load() -> None:
        for name, value in torch.load(path, weights_only=True).items():
            tensors[name].copy_(value)

    for _ in range(TIMES):
        path.unlink(missing_ok=True)
        figures["save_seconds"].append(timed(save))
        forget(path)
        figures["restore_seconds"].append(timed(load))
    return {name: median(values) for name, values in figures.items()} | {"bytes": path.stat().st_size}


def by_disk(folder: Path, size: int) -> dict[str, float]:
    """As many bytes, written and synced and read back."""
    path, block, figures = folder / "bytes", os.urandom(2**24), {"save_seconds": [], "restore_seconds": []}

    def save() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(size // len(block)):
                file.write(block)
            os.fsync(file.fileno())

    def load() -> None:
        with path.open("rb", buffering=0) as file:
            while file.read(len(block)):
                pass

    for _ in range(TIMES):
        path.unlink(missing_ok=True)
        figures["save_seconds"].append(timed(save))
        forget(path)
        figures["restore_seconds"].append(timed(load))
    return {name: median(values) for name, values in figures.items()} | {"bytes": size // len(block) * len(block)}


def agreeing(times: int = 2000) -> float:
    """Seconds that two processes take to ask each other whether one was asked to stop."""
    return timed(lambda: [distributed.agree() for _ in range(times)]) / times


def two(folder: Path) -> None:
    """What each of two processes does."""
    distributed.start()
    found = measured(folder) | {"agree_seconds": agreeing()}
    if distributed.rank() == 0:
        write_json(folder / "two.json", found)
    distributed.leave()


def main() -> None:
    """Measure, and write the results."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        return two(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        one = measured(Path(folder) / "one")
        found = {"torch.save": by_torch(Path(folder)), "disk alone": by_disk(Path(folder), int(one["bytes"])), "one process": one}
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, folder]
        subprocess.run(launch, check=True, env={**os.environ, "ACCELERATE_USE_FSDP": "true"})
        found["two shares"] = json.loads((Path(folder) / "two.json").read_text())
    write_json(RESULTS, {"model": "SmolLM2-135M's shape, float32 weights and two moments", "times": TIMES, "cpus": os.cpu_count(), "found": found})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
