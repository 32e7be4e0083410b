"""Run by `test_ranks.py` in each of two processes: every recipe it wrote, as copies (DDP) and as shares (FSDP2)."""

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


def main(work: Path) -> None:
    torch.set_num_threads(1)
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
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
