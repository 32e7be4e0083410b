"""A server that answers as OpenAI's does, and in every way of getting it wrong, by turns that a seed decides."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("drop", "half", "429", "500", "slow", "no json", "null", "no usage", "no choices")


class Faulty(ThreadingHTTPServer):
    """Counts what it was asked, what it delivered whole, and how many were at it at once."""

    def __init__(self, faults: Sequence[str], share: float, models: Sequence[str], pause: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.share, self.models, self.pause = faults, share, models, pause
        self.asked, self.delivered, self.made = Counter[str](), Counter[str](), Counter[str]()
        self.tokens, self.at_once, self.most = 0, 0, 0
        self.lock, self.draw = threading.Lock(), random.Random(0)
        self.keys = set[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": model} for model in self.server.models]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.at_once += 1
            self.server.most = max(self.server.most, self.server.at_once)
            self.server.asked[f"{name} {body['seed']}"] += 1
            self.server.keys.add(self.headers.get("Authorization", ""))
            fault = self.server.draw.choice(self.server.faults) if self.server.draw.random() < self.server.share else ""
            self.server.made[fault] += 1
        try:
            self._answer(fault, name, body)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _answer(self, fault: str, name: str, body: dict[str, Any]) -> None:
        if fault in ("429", "500"):
            self._send(b'{"error": {"message": "not now"}}', int(fault), {"Retry-After": "0.01"} if fault == "429" else {})
            return
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        time.sleep(0.8 if fault == "slow" else self.server.pause)
        model = self.server.models[-1 if self.server.asked.total() > 50 else 0]
        whole = {"model": model, "usage": {"prompt_tokens": 7, "completion_tokens": 3},
                 "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": f"re: {name}"}}]}  # fmt: skip
        if fault == "null":
            whole["choices"][0]["message"]["content"] = None  # type: ignore[index]
        for missing in ("usage", "choices"):
            if fault == f"no {missing}":
                del whole[missing]
        data = json.dumps(whole).encode()
        data = data[:-9] if fault == "no json" else data
        if not fault:
            with self.server.lock:
                self.server.delivered[f"{name} {body['seed']}"] += 1
                self.server.tokens += 10
        self._send(data, cut=fault == "half")

    def _send(self, data: bytes, status: int = 200, more: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut or self.close_connection

    def log_message(self, *about: Any) -> None:
        pass


@contextmanager
def faulty(faults: Sequence[str] = FAULTS, share: float = 0.0, models: Sequence[str] = ("toy",), pause: float = 0.001) -> Generator[Faulty]:
    """Serve for as long as the block lasts. pause: before an answer, in seconds."""
    with Faulty(faults, share, models, pause) as server:
        server.handle_error = lambda *about: None  # type: ignore[method-assign]  # a caller that has gone is no error here
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
