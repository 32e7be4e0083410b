"""Writes with vLLM inside this process, under vLLM's own interpreter: an order as JSON on standard input, what was written on a line of JSON.

Its transformers is older than what Limbeck opens students with, so that of Limbeck the engine's own part alone runs here.
"""

import json
import sys
from typing import Any

from limbeck.decoding import Sampling
from limbeck.engines import VLLM, _Inside


def main() -> None:
    """Take in each folder's weights in turn, and complete the same prompts."""
    asked: dict[str, Any] = json.load(sys.stdin)
    pen, found = _Inside(VLLM(dtype=asked["dtype"], options=asked["options"])), list[Any]()
    for folder in asked["folders"]:
        pen.take(folder)
        prompts = asked["prompts"]
        found.append([[new.tokens, new.logp] for new in pen.complete(prompts, Sampling(asked["max_tokens"]), range(len(prompts)), asked["ends"])])
    print(f"\n{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
