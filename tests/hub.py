"""A hub on this machine: repositories are made, looked at and filled, by what the real client asks."""

import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What is on it. repositories: by name, their visibility and files; refuses: status of every answer, where it is to refuse."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuses: int | None = None
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if self.refuses:
            return self.refuses, {"error": "not for you"}
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.repositories[name] = {"private": told.get("visibility") == "private", "files": {}}
            return 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if name not in self.repositories:
            return 404, {"error": f"nothing at {path}"}
        there = self.repositories[name]
        if path.endswith("/preupload/main"):
            return 200, {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]}
        if path.endswith("/commit/main"):
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    there["files"][told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
        files = [{"rfilename": file} for file in there["files"]]
        return 200, {"id": name, "private": there["private"], "sha": "0" * 40, "siblings": files, "tags": []}


@contextmanager
def serving() -> Generator[Hub]:
    """A hub, for as long as the block lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.tokens.add(self.headers.get("Authorization"))
            status, told = hub.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_HEAD = _any

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
