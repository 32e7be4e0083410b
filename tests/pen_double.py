"""A server that writes as vLLM does, of a toy model: it keeps its weights until told, and remembers keys and values of prompts."""

import copy
import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from listening import Saying, listening
from transformers import AutoModelForCausalLM, AutoTokenizer


class Pen:
    """What stands behind the server.

    ignores: paths that it says to have done, and does not. developing: whether it can be told anything. dies_after: so many
    answers, after which it drops every connection. off_nats: what its log-probabilities are off by.
    """

    def __init__(self, folder: str, ignores: Sequence[str] = (), developing: bool = True, context: int = 128, dies_after: int | None = None,
                 off_nats: float = 0.0) -> None:  # fmt: skip
        self.ignores, self.developing, self.context, self.dies_after, self.off_nats = set(ignores), developing, context, dies_after, off_nats
        self.tokenizer, self.answered, self.told, self.lock = AutoTokenizer.from_pretrained(folder), 0, list[str](), threading.Lock()
        self.remembered, self.backend = dict[tuple[int, ...], Any](), ""
        self.load(folder)

    def load(self, folder: str) -> None:
        """The weights in a folder."""
        self.network = AutoModelForCausalLM.from_pretrained(folder).float().eval()

    def tell(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """What it is told, and its answer."""
        if not self.developing:
            return 404, {"detail": "Not Found"}
        self.told.append(path)
        if path not in self.ignores:
            if path == "reset_prefix_cache":
                self.remembered.clear()
            elif not Path(body["kwargs"]["weights_path"]).is_dir():
                return 500, {"error": {"message": "no such folder"}}
            else:
                assert body["method"] == "reload_weights"
                self.load(body["kwargs"]["weights_path"])
        return 200, {"success": True} if path == "reset_prefix_cache" else {"results": [None]}

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion by the weights as they are, after a prompt as it is remembered."""
        prompt = body["prompt"]
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
        if tuple(ids) not in self.remembered:
            self.remembered[tuple(ids)] = self.network(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
        past, last, draw = copy.deepcopy(self.remembered[tuple(ids)]), ids[-1], torch.Generator().manual_seed(body.get("seed", 0))
        tokens, logp = list[int](), list[float]()
        while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body.get("stop_token_ids", ())):
            said = self.network(torch.tensor([[last]]), past_key_values=past, use_cache=True)
            past, log_p_V = said.past_key_values, torch.log_softmax(said.logits[0, -1].float(), -1)
            last = int(torch.multinomial((log_p_V / body.get("temperature", 1.0)).softmax(-1), 1, generator=draw))
            tokens.append(last)
            logp.append(float(log_p_V[last]) + self.off_nats)
        return {"choices": [{"index": 0, "token_ids": tokens, "prompt_token_ids": ids, "logprobs": {"token_logprobs": logp}}]}


@contextmanager
def writing(pen: Pen) -> Generator[str]:
    """The base URL of a server of it."""

    class Handler(Saying):
        def do_GET(self) -> None:
            if self.path.startswith("/server_info"):
                self.say(200, {"vllm_config": {"weight_transfer_config": {"backend": pen.backend} if pen.backend else None}})
            else:
                self.say(200, {"data": [{"id": "toy", "max_model_len": pen.context}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with pen.lock:
                dead = pen.dies_after is not None and pen.answered >= pen.dies_after
                if not dead and self.path == "/v1/completions":
                    pen.answered += 1
                    answer = 200, pen.complete(body)
                elif not dead:
                    answer = pen.tell(self.path.removeprefix("/"), body)
            if dead:
                self.close_connection = True
                self.connection.close()
                return
            self.say(*answer)

    with listening(Handler) as url:
        yield url
