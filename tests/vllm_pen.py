"""A server that writes as vLLM does, of a toy model: it takes in new weights when told, and remembers what prompts left behind."""

import copy
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@contextmanager
def writing(folder: str, context: int = 128, deaf: bool = False, remembers: bool = False, told: bool = True, dies_after: int | None = None,
            cuts: str | None = None) -> Generator[SimpleNamespace]:  # fmt: skip
    """A server (`url`) of the model in `folder`. deaf: says that it took in weights, and did not; remembers: keeps what prompts left behind;
    told: whether it is in its development mode. dies_after: so many answers it gives none. cuts: another tokenizer's folder.
    """
    there = SimpleNamespace(answered=list[list[int]](), reloads=list[str](), resets=0, lock=threading.Lock(), memory=dict[tuple[int, ...], Any]())
    there.network = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(cuts or folder)

    def act(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        match path:
            case "/v1/completions" if dies_after is not None and len(there.answered) >= dies_after:
                return 500, {"error": {"message": "dead"}}
            case "/v1/completions":
                ids = tokenizer(body["prompt"], add_special_tokens=False)["input_ids"] if isinstance(body["prompt"], str) else body["prompt"]
                there.answered.append(ids)
                return 200, {"model": "toy", "choices": [{"prompt_token_ids": ids, **complete(there, ids, body)}]}
            case "/collective_rpc" if told:
                assert body["method"] == "reload_weights"
                there.reloads.append(body["kwargs"]["weights_path"])
                if not deaf:
                    there.network = AutoModelForCausalLM.from_pretrained(there.reloads[-1]).float().eval()
                return 200, {"results": [None]}
            case "/reset_prefix_cache" if told:
                there.resets += 1
                if not remembers:
                    there.memory.clear()
                return 200, {"success": True}
        return 404, {"detail": "Not Found"}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(200, {"data": [{"id": "toy", "max_model_len": context}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with there.lock:
                status, answer = act(self.path.partition("?")[0], body)
            self._say(status, answer)

        def _say(self, status: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *about: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        there.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield there
        finally:
            server.shutdown()
            thread.join()


@torch.no_grad()
def complete(there: SimpleNamespace, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
    """Go on from what is remembered of the prompt, made now where nothing is."""
    if tuple(ids) not in there.memory:
        there.memory[tuple(ids)] = there.network(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
    past, last = copy.deepcopy(there.memory[tuple(ids)]), ids[-1]
    draws = torch.Generator().manual_seed(body.get("seed", 0))
    tokens, nats = list[int](), list[float]()
    while len(tokens) < body["max_tokens"] and last not in body.get("stop_token_ids", [])[: len(tokens)]:
        log_p_V = torch.log_softmax(there.network(torch.tensor([[last]]), past_key_values=past, use_cache=True).logits[0, -1, :258], -1)
        cold = body.get("temperature", 1.0) == 0
        last = int(log_p_V.argmax() if cold else torch.multinomial(log_p_V.exp(), 1, generator=draws))
        tokens.append(last)
        nats.append(float(log_p_V[last]))
    reason = "stop" if last in body.get("stop_token_ids", []) else "length"
    return {"index": 0, "text": "", "finish_reason": reason, "token_ids": tokens, "logprobs": {"token_logprobs": nats}}
