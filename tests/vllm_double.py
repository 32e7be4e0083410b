"""A server that scores as vLLM does, of a toy model: real log-probabilities over HTTP, and every way of getting them wrong."""

import itertools
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from listening import Saying, listening
from transformers import AutoModelForCausalLM, AutoTokenizer

Spoil = Callable[[list[Any]], Any]
"""What becomes of the prompt's log-probabilities on their way."""


@contextmanager
def served(folder: str, context: int = 128, spoil: Spoil = lambda entries: entries, slow: Callable[[int], None] = lambda length: None,
           asked: list[dict[str, Any]] | None = None) -> Generator[str]:  # fmt: skip
    """The base URL of a server of the model in `folder`. slow: called with a text's length before it is scored; asked: gets each body.

    Every third call is first answered with "not now".
    """
    calls = itertools.count()
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)

    class Handler(Saying):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.say(200, {"object": "list", "data": [{"id": "toy", "object": "model", "max_model_len": context}]})

        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if next(calls) % 3 == 1:
                self.say(503, {"error": {"message": "not now"}}, {"Retry-After": "0.01"})
                return
            assert body["model"] == "toy" and body["max_tokens"] == 1
            if asked is not None:
                asked.append(body)
            ids = tokenizer(body["prompt"], add_special_tokens=False)["input_ids"] if isinstance(body["prompt"], str) else body["prompt"]
            slow(len(ids))
            entries = spoil(scored(network, ids, body["prompt_logprobs"]))
            self.say(200, {"object": "text_completion", "choices": [{"index": 0, "text": "", "prompt_logprobs": entries}]})

    with listening(Handler) as url:
        yield url


@torch.no_grad()
def scored(network: Any, ids: list[int], top: int) -> list[Any]:
    """Of each token but the first its own log-probability and those of the `top` likeliest outcomes, over every row of the head."""
    log_p_TV = torch.log_softmax(network(torch.tensor([ids])).logits[0, :-1].float(), -1)
    ranks_T = (log_p_TV > log_p_TV.gather(1, torch.tensor(ids[1:])[:, None])).sum(-1) + 1
    entries: list[Any] = [None]
    for token, log_p_V, rank in zip(ids[1:], log_p_TV, ranks_T.tolist(), strict=True):
        best = log_p_V.topk(top)
        named = [(token, rank), *zip(best.indices.tolist(), range(1, top + 1), strict=True)]
        entries.append({str(v): {"logprob": float(log_p_V[v]), "rank": place, "decoded_token": ""} for v, place in named})
    return entries
