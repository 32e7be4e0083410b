"""The loss head, from hidden states to the gradients on them and on the head's weight: time and memory.

    python benchmarks/loss_head.py --peer /path/to/trl/bin/python

Aimed at, for N = 1024 tokens, V = 49,152, D = 576, reverse KL and JSD(0.5): in float32 at most 1.2 times its four matrix
products; in bfloat16 at most 2.5 times its own; above the two gradients less than 150 MB of memory, the same at four times
the N and at V = 262,144. Held in bfloat16; in float32 reverse KL is 2 % above, JSD 9 %. Memory is held, but for bfloat16 at
V = 262,144, where the head's copy in bfloat16 alone takes 288 MiB.
Beside it the formula as one writes it down (`naive`: whole logits, autograd), and TRL's chunked kernel, as shipped and with
the tile that suits this machine best. Whoever is measured, in turn, round by round; medians.
Writes `benchmarks/results/loss_head.json` and `benchmarks/results/loss_head.svg`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import MIB, Peer, bars, give_back_memory, in_turn, machine, peak_bytes, seconds, summary
from torch import Tensor

from limbeck.batch import Batch, Text
from limbeck.divergence import JSD, Divergence, ReverseKL
from limbeck.files import read_json, write_json, write_text
from limbeck.head import Head
from limbeck.loss import Outputs, row_loss
from limbeck.machine import hold_memory
from limbeck.objective import Objective
from limbeck.targets import Dense

HERE = Path(__file__).parent
DIVERGENCES: dict[str, Divergence] = {"ReverseKL": ReverseKL(), "JSD(0.5)": JSD(0.5)}
TILES = {"TRL as shipped": 32768, "TRL, tile 1024": 1024}
SHAPE = {"N": 1024, "V": 49152, "D": 576}


class Case:
    """Hidden states and heads of one shape: float32 masters, arithmetic in `dtype`."""

    def __init__(self, N: int, V: int, D: int, dtype: str) -> None:
        torch.manual_seed(0)
        self.kind = getattr(torch, dtype)
        self.hidden_ND = torch.randn(N, D).to(self.kind).requires_grad_()
        self.weight_VD = (0.05 * torch.randn(V, D)).requires_grad_()
        self.said = Dense(torch.randn(N, D).to(self.kind), Head((0.05 * torch.randn(V, D)).to(self.kind), V), "random")
        self.batch = Batch.of([Text.answered([0], [1] * N, {})], "corpus")
        self.no_gradient()

    def no_gradient(self) -> None:
        """The two gradients, there and zero."""
        self.hidden_ND.grad, self.weight_VD.grad = torch.zeros_like(self.hidden_ND), torch.zeros_like(self.weight_VD)

    def ours(self, divergence: Divergence) -> None:
        """Forward and backward of Limbeck."""
        outputs = Outputs(self.hidden_ND, Head(self.weight_VD, len(self.weight_VD)))
        row_loss(outputs, self.said, self.batch, Objective([divergence]), 1 / len(self.hidden_ND))[0].backward()

    def naive(self, name: str) -> None:
        """The formula on whole logits, by autograd."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind == torch.bfloat16):
            logits_NV = self.hidden_ND @ self.weight_VD.T
            with torch.no_grad():
                said_NV = self.said.hidden_ND @ self.said.head.weight_VD.T
        (_formula(name, said_NV.float().log_softmax(-1), logits_NV.float().log_softmax(-1)).sum() / len(self.hidden_ND)).backward()

    def products(self) -> None:
        """The four matrix products, each at once: logits of both, gradients on hidden states and weight."""
        weight_VD = self.weight_VD.detach().to(self.kind)
        hidden_ND = self.hidden_ND.detach()
        torch.mm(self.said.hidden_ND, self.said.head.weight_VD.T)
        logits_NV = torch.mm(hidden_ND, weight_VD.T)
        torch.mm(logits_NV, weight_VD)
        torch.mm(logits_NV.T, hidden_ND)


def _formula(name: str, log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    if name == "ReverseKL":
        return log_q_NV.exp() * (log_q_NV - log_p_NV)
    log_m_NV = (0.5 * (log_p_NV.exp() + log_q_NV.exp())).log()
    return 0.5 * (log_p_NV.exp() * (log_p_NV - log_m_NV) + log_q_NV.exp() * (log_q_NV - log_m_NV))


def timed(shape: dict[str, int], dtype: str, peer: Peer | None, rounds: int, naive: bool = True) -> dict[str, dict[str, Any]]:
    """Seconds of everyone, by divergence."""
    case, found = Case(**shape, dtype=dtype), dict[str, dict[str, Any]]()
    for name, divergence in DIVERGENCES.items():
        contestants: dict[str, Callable[[], float]] = {
            "four products": partial(seconds, case.products),
            "Limbeck": partial(seconds, partial(case.ours, divergence)),
        }
        if naive:
            contestants["naive"] = partial(seconds, partial(case.naive, name))
        for tile, width in TILES.items() if peer else ():
            asked = {**shape, "dtype": dtype, "divergence": name, "tile": width, "measure": "seconds"}
            contestants[tile] = lambda asked=asked: peer.ask(**asked)["seconds"]
        found[name] = {who: summary(values) for who, values in in_turn(contestants, rounds).items()}
        least = found[name]["four products"]["median"]
        for figures in found[name].values():
            figures["times_the_products"] = round(figures["median"] / least, 2)
        print(json.dumps({"shape": shape, "dtype": dtype, "divergence": name, **found[name]}), flush=True)
    return found


def memory(shape: dict[str, int], dtype: str) -> dict[str, int]:
    """MiB above the two gradients, each divergence in a process of its own, so that nothing is left over from before."""
    found = dict[str, int]()
    for name in DIVERGENCES:
        command = [sys.executable, __file__, "--bytes", json.dumps([shape, dtype, name])]
        found[name] = round(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / MIB)
    print(json.dumps({"shape": shape, "dtype": dtype, "MiB": found}), flush=True)
    return found


def one_peak(shape: dict[str, int], dtype: str, name: str) -> int:
    """Bytes above the two gradients: those that are there already, and those of the pass itself, which become them."""
    Case(64, shape["V"], shape["D"], dtype).ours(DIVERGENCES[name])  # libraries and threads are there
    case = Case(**shape, dtype=dtype)
    case.hidden_ND.grad = case.weight_VD.grad = None  # the pass makes them
    gradients = 4 * case.weight_VD.numel() + case.hidden_ND.numel() * case.hidden_ND.element_size()
    give_back_memory()
    return peak_bytes(lambda: case.ours(DIVERGENCES[name])) - gradients


def all_times(asked: argparse.Namespace, large: dict[str, int]) -> dict[str, Any]:
    """Seconds of everyone, and of us alone where the vocabulary is large."""
    peer = Peer(asked.peer, HERE / "peers" / "trl_loss.py") if asked.peer else None
    times = {dtype: timed(SHAPE, dtype, peer, asked.rounds) for dtype in ("float32", "bfloat16")}
    return times | {f"{dtype}, V = 262,144": timed(large, dtype, None, 2, naive=False) for dtype in ("float32", "bfloat16")}


def main() -> None:
    """Measure all and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with TRL 1.16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-alone", action="store_true", help="keep the times that were measured before")
    parser.add_argument("--bytes", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bytes:
        print(one_peak(*json.loads(asked.bytes)))
        return
    hold_memory()
    large, target = {**SHAPE, "V": 262144}, HERE / "results" / "loss_head.json"
    times = read_json(target)["seconds"] if asked.memory_alone else all_times(asked, large)
    shapes = {"": SHAPE, ", N = 4,096": {**SHAPE, "N": 4096}, ", V = 262,144": large}
    mib = {f"{dtype}{name}": memory(shape, dtype) for dtype in ("float32", "bfloat16") for name, shape in shapes.items()}
    write_json(target, {"machine": machine(), "shape": SHAPE, "seconds": times, "MiB_above_the_gradients": mib})
    groups = {
        f"{name}, {d}": {who: each["median"] for who, each in values.items()}
        for d, by in times.items()
        if "V" not in d
        for name, values in by.items()
    }
    title = "Loss head, forward and backward: N = 1,024, V = 49,152, D = 576"
    write_text(HERE / "results" / "loss_head.svg", bars(groups, "s", title))


if __name__ == "__main__":
    main()
