"""A server on loopback that answers as OpenAI's does after a fixed time, and writes down what it was asked and what it gave.

    python benchmarks/ray_double.py PORT LOG SECONDS

A line of LOG is `asked` or `gave`, seconds of the clock, and the prompt. The answer is a function of the prompt alone. The
process may be killed and begun again on the same port: the log goes on.
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "double"


def serve(port: int, log: Path, seconds: float) -> None:
    """Answer until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send({"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            began = time.monotonic()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            note("asked", prompt)
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            message = {"role": "assistant", "content": f"An answer to {prompt}"}
            usage = {"prompt_tokens": len(prompt), "completion_tokens": 4}
            self._send({"model": MODEL, "usage": usage, "choices": [{"finish_reason": "stop", "message": message}]})
            note("gave", prompt)

        def _send(self, said: Any) -> None:
            data = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *about: Any) -> None:
            pass

    class Double(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *about: Any) -> None:
            pass  # a caller that was killed is no error here

    with log.open("a") as file, Double(("127.0.0.1", port), Handler) as server:

        def note(what: str, prompt: str) -> None:
            file.write(f"{what} {time.time():.3f} {prompt}\n")
            file.flush()

        server.serve_forever()


class Served:
    """The server in a process of its own."""

    def __init__(self, log: Path, seconds: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log, self.seconds = log, seconds
        self.begin()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def begin(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen([sys.executable, __file__, str(self.port), str(self.log), str(self.seconds)])
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError("the server did not begin")

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def noted(self, what: str) -> list[tuple[float, str]]:
        """When each prompt was asked, or answered."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(float(at), prompt) for kind, at, prompt in (line.split(" ", 2) for line in lines) if kind == what]

    def counts(self, what: str) -> Counter[str]:
        """How often each prompt was asked, or answered."""
        return Counter(prompt for _, prompt in self.noted(what))


@contextmanager
def served(log: Path, seconds: float) -> Generator[Served]:
    """Serve for as long as the block lasts."""
    log.unlink(missing_ok=True)
    server = Served(log, seconds)
    try:
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
