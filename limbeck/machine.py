"""What this machine computes in, and how a model's weights are to be read on it."""

import ctypes
import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from limbeck.lazy import torch

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Opening:
    """How a model's weights are read. `dtype` "auto" is bfloat16 where the processor gains by it, else float32.

    training: in transformers' training mode, dropout set to 0: for what works in no other, such as activation
    checkpoints, and 4-bit weights, which bitsandbytes packs on a CPU for inference alone, losing their gradient.
    offload: where the layers lie, and come from one by one when they are needed. cut: whether each rank is to hold a share, so
    that a model that is larger than one GPU is opened in main memory.
    """

    dtype: Precision = "auto"
    attention: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    training: bool = False
    offload: Literal["cpu", "disk"] | None = None
    cut: bool = False


@cache
def device() -> "torch.device":
    """Where models live: the accelerator if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


@cache
def hold_memory() -> None:
    """Keep freed memory in the process, on a CPU under Linux.

    The C library gives each large block back to the kernel, which clears its pages again for the next chunk of logits:
    a third of the time of learning went there. The price: memory stays at its peak, about a sixth above.
    """
    if device().type == "cpu" and platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-4, 0)  # M_MMAP_MAX: blocks of any size come from the heap
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: no heap given back


@cache
def bfloat16_pays() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster: it must have the instructions, and be measured to gain."""
    if device().type != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if "avx512_bf16" not in _processor_flags() and "amx_bf16" not in _processor_flags() and "bf16" not in _processor_flags():
        return False
    return _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _processor_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}


def _product_seconds(dtype: "torch.dtype") -> float:
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times = list[float]()
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return min(times)


def precision(wanted: Precision) -> "torch.dtype":
    """The dtype meant by a setting, on this machine."""
    if wanted == "auto":
        return torch.bfloat16 if bfloat16_pays() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
