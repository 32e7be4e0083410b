"""A real llama.cpp, in a process of its own: what it makes of text, and what it says comes next.

It is the Python package xllamacpp, which carries it ready made; without it the tests that ask it are skipped.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

THERE = importlib.util.find_spec("xllamacpp") or os.environ.get("LIMBECK_XLLAMACPP")
needs_llama = pytest.mark.skipif(not THERE, reason="no llama.cpp to ask; pip install xllamacpp")
SERVE = """
import sys
import xllamacpp
asked = xllamacpp.CommonParams()
asked.model.path, asked.n_ctx, asked.n_parallel, asked.cpuparams.n_threads, asked.warmup, asked.port = sys.argv[1], 256, 1, 1, False, 0
server = xllamacpp.Server(asked)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class Llama:
    """A server of llama.cpp's that has read one file."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _post(self, path: str, **asked: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def ids(self, text: str, around: bool = False) -> list[int]:
        """Tokens of a text, those that steer read as such."""
        return self._post("/tokenize", content=text, add_special=around, parse_special=True)["tokens"]

    def chat(self, prompt: str, tokens: int) -> str:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
        return self._post("/v1/chat/completions", **asked)["choices"][0]["message"]["content"]

    def rendered(self, messages: list[dict[str, str]]) -> str:
        return self._post("/apply-template", messages=messages)["prompt"]

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        found = self._post("/completion", prompt=prompt, n_predict=tokens, temperature=0, return_tokens=True, cache_prompt=False)
        return found["tokens"]

    def next_logp(self, prompt: list[int], size: int) -> list[float]:
        """Log-probabilities [V] of the token that comes next, before anything is done to them.

        An x is written whatever they say: of an end, and of a piece of a letter, the server would tell nothing.
        """
        written = [[self.ids("x")[0], 1e6]]
        found = self._post("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=size, logit_bias=written, cache_prompt=False)
        logp = [-math.inf] * size
        for each in found["completion_probabilities"][0]["top_logprobs"]:
            logp[each["id"]] = each["logprob"]
        return logp


@contextmanager
def reading(file: Path) -> Generator[Llama]:
    """llama.cpp with this file, for as long as the block lasts."""
    python = os.environ.get("LIMBECK_XLLAMACPP") or sys.executable
    with (file.parent / "llama.log").open("w") as log, subprocess.Popen([python, "-c", SERVE, str(file)], stdin=subprocess.PIPE,
                                                                        stdout=subprocess.PIPE, stderr=log, text=True) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url, f"llama.cpp does not read {file}: {(file.parent / 'llama.log').read_text()[-2000:]}"
            yield Llama(url)
        finally:
            server.kill()
