"""TRL's chunked divergence, forward and backward, on random hidden states; runs under the peer's interpreter.

Each line of JSON on standard input, {"N", "V", "D", "dtype", "divergence", "tile", "measure": "seconds" | "bytes"}, is
answered by one: how long it took once, or how far its memory rose. `tile` sets the width of TRL's tiles of the vocabulary,
which is no setting of TRL's (it ships 32768). In bfloat16 it runs under autocast on float32 weights, as in training.
"""

import json
import sys
import time
from functools import cache
from pathlib import Path

import torch
from trl.kernels import chunked_divergence

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import peak_bytes

BETA = {"ReverseKL": 1.0, "JSD(0.5)": 0.5}


@cache
def tensors(N: int, V: int, D: int, dtype: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden, weight = torch.randn(N, D).to(kind).requires_grad_(), (0.05 * torch.randn(V, D)).requires_grad_()
    return [hidden, weight, torch.randn(N, D).to(kind), (0.05 * torch.randn(V, D)).to(kind)]


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        hidden, weight, teacher_hidden, teacher_weight = tensors(asked["N"], asked["V"], asked["D"], asked["dtype"])
        chunked_divergence.VOCAB_CHUNK_SIZE = asked["tile"]
        hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)  # the two gradients, there before

        def work(hidden=hidden, weight=weight, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight, asked=asked) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=asked["dtype"] == "bfloat16"):
                nats_N, _ = chunked_divergence.ChunkedDivergenceFunction.apply(
                    hidden, weight, None, teacher_hidden, teacher_weight, None, BETA[asked["divergence"]]
                )
            nats_N.mean().backward()

        if asked["measure"] == "bytes":
            print(json.dumps({"bytes": peak_bytes(work)}), flush=True)
        else:
            began = time.perf_counter()
            work()
            print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
