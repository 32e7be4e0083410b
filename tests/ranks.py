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
from limbeck.batch import Batch, Text
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


def narrow(work: Path) -> list[str]:
    """In which dtypes weights of a layer stand: as they are kept, and while it is at work."""
    recipe, seen = lb.Recipe.read(work / "narrow.yaml"), list[str]()
    student = recipe.student.load(1)
    layer = student.live.causal.get_decoder().layers[0]
    layer.mlp.register_forward_hook(lambda *given: seen.append(str(layer.mlp.up_proj.weight.dtype)))
    student.forward(Batch.of([Text.answered([1, 2], [3, 4], {})], "corpus"))
    return [str(layer.mlp.up_proj.weight.dtype), *seen, str(layer.mlp.up_proj.weight.to_local().numel()), str(layer.mlp.up_proj.weight.numel())]


def three(work: Path) -> None:
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    distributed.start()
    (work / f"narrow-{distributed.rank()}").write_text(" ".join(narrow(work)))
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
