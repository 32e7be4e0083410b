"""What the benchmarks of speed share: rounds taken in turn, medians, peak memory, and a plot of bars."""

import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

MIB = 2**20
COLOURS = ("#3366aa", "#aa6633", "#669944", "#884488", "#999999")


class Peer:
    """A script under another interpreter that answers each line of JSON with one, so that it and we can be measured in turn."""

    def __init__(self, python: str, script: Path, *arguments: str) -> None:
        command = [python, str(script), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ask(self, **what: Any) -> dict[str, Any]:
        """The answer to one question."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(what), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the peer ended: {' '.join(map(str, self._process.args))}")

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, all in each round; one round of warm-up is dropped."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, take in contestants.items():
            found[name].append(take())
    return {name: each[1:] for name, each in found.items()}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def peak_bytes(work: Callable[[], object]) -> int:
    """How far above what was resident before the resident memory rises while it works (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def give_back_memory() -> None:
    """Let the C library return what is freed, so that what is resident is what is in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def machine() -> dict[str, Any]:
    """Where it was measured."""
    import torch

    text = Path("/proc/cpuinfo").read_text()
    flags = set(text.partition("flags")[2].partition("\n")[0].split())
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {"system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
            "instructions": kinds, "torch": torch.__version__}  # fmt: skip


def bars(groups: Mapping[str, Mapping[str, float]], unit: str, title: str) -> str:
    """An SVG of horizontal bars, group by group."""
    rows = [(group, name, value) for group, values in groups.items() for name, value in values.items()]
    most, names = max(value for _, _, value in rows), list(dict.fromkeys(name for _, name, _ in rows))
    lines, y = list[str](), 40
    for group, values in groups.items():
        lines.append(f'<text x="10" y="{y + 14}" font-weight="bold">{escape(group)}</text>')
        y += 22
        for name, value in values.items():
            width, colour = 380 * value / most, COLOURS[names.index(name) % len(COLOURS)]
            lines.append(f'<text x="210" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            lines.append(f'<rect x="220" y="{y + 2}" width="{width:.1f}" height="14" fill="{colour}"/>')
            lines.append(f'<text x="{226 + width:.1f}" y="{y + 13}">{value:.3g} {escape(unit)}</text>')
            y += 19
        y += 10
    lines.insert(0, f'<text x="10" y="22" font-size="15">{escape(title)}</text>')
    lines.insert(0, f'<rect width="700" height="{y}" fill="#ffffff"/>')
    lines.insert(0, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {y}" font-family="sans-serif" font-size="12">')
    return "\n".join([*lines, "</svg>\n"])
