"""The command line, as `test_ranks_stopped.py` runs it: from its second step on each token written, or each pass, takes its time."""

import sys
import time

import torch

from limbeck import cli
from limbeck.decoding import Plain
from limbeck.run import Run
from limbeck.student import Student

SECONDS = 0.4
WHERE = {"writing": (Plain, "write_on"), "passes": (Student, "learn")}


def main(where: str) -> None:
    torch.set_num_threads(1)
    begun, log_step = [], Run.log_step
    owner, name = WHERE[where]
    real = getattr(owner, name)

    def slowly(self, *args, **kwargs):
        time.sleep(SECONDS if begun else 0)
        return real(self, *args, **kwargs)

    def logged(self, step, moved):
        log_step(self, step, moved)
        begun.append(step)

    setattr(owner, name, slowly)
    Run.log_step = logged
    cli.main()


if __name__ == "__main__":
    main(sys.argv.pop(1))
