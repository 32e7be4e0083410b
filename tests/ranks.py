"""Run by `test_ranks.py` in each of several processes: every recipe it wrote.

Two take it as copies (DDP) and as shares (FSDP2), and are asked to stop in the middle of a run; three take shares alone, and go on from there.
"""

import os
import signal
import sys
from pathlib import Path

import torch

import limbeck as lb
from limbeck import distributed
from limbeck.errors import Stopped
from limbeck.run import Run


def asked_to_stop(at: int):
    """A `log_step` after which the second rank alone hears SIGTERM."""
    real = Run.log_step

    def log_step(self, step, moved):
        real(self, step, moved)
        if step + 1 == at and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return log_step


def two(work: Path) -> None:
    for path in sorted(work.glob("*.yaml")):
        for how, sharded in (("copies", "false"), ("shares", "true")):
            os.environ["ACCELERATE_USE_FSDP"] = sharded
            lb.distill(lb.Recipe.read(path), work / f"{path.stem}-{how}")
    Run.log_step = asked_to_stop(2)
    for how, sharded in (("copies", "false"), ("shares", "true")):
        os.environ["ACCELERATE_USE_FSDP"] = sharded
        try:
            lb.distill(lb.Recipe.read(work / "gkd_rl.yaml"), work / f"stopped-{how}")
        except Stopped as error:
            (work / f"stopped-{how}-{distributed.rank()}").write_text(str(error))


def three(work: Path) -> None:
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for path in sorted(work.glob("*.yaml")):
        lb.distill(lb.Recipe.read(path), work / f"{path.stem}-three")
    for how in ("copies", "shares"):
        lb.distill(lb.Recipe.read(work / "gkd_rl.yaml"), work / f"onwards-{how}")


def main(work: Path) -> None:
    torch.set_num_threads(1)
    {"2": two, "3": three}[os.environ["WORLD_SIZE"]](work)
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
