"""A real chromium, driven over a pipe (the DevTools protocol, messages of JSON that end in a zero byte): no driver, no port, no network."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip
PATIENCE = 120
"""Seconds, for a machine with other work."""
STARTER = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
"""Chromium reads commands from descriptor 3, and answers on 4."""


class Browser:
    """One page of it."""

    def __init__(self, told: int, said: int) -> None:
        self.told, self.said = told, said
        self.waiting, self.number, self.session = b"", 0, ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **({"sessionId": self.session} if self.session else {})}
        os.write(self.told, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self.number:
            pass
        assert "error" not in found, found["error"]
        return found["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            assert select.select([self.said], [], [], PATIENCE)[0], f"the browser has said nothing for {PATIENCE} seconds"
            piece = os.read(self.said, 2**16)
            assert piece, "the browser is gone"
            self.waiting += piece
        message, self.waiting = self.waiting.split(b"\0", 1)
        return json.loads(message)

    def see(self, width: int, dark: bool = False, medium: str = "", height: int = 800) -> None:
        """What kind of screen, or of paper, it is."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", media=medium, features=features)

    def open(self, page: Path) -> None:
        """Open a page, and wait until it has drawn what it draws."""
        self.ask("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete' && document.body.dataset.innerWidth !== undefined")

    def until(self, condition: str) -> None:
        """Wait until something is so."""
        poll = f"new Promise((done) => {{ const see = () => ({condition}) ? done(true) : setTimeout(see, 25); see(); }})"
        assert self.run(poll) is True

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, timeout=60_000)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, down and up."""
        more = {"key": key, "code": key, "windowsVirtualKeyCode": code, **({"text": "\r"} if key == "Enter" else {})}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **more)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, to: Path) -> None:
        """The whole page as a PNG."""
        to.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def paper(self, to: Path) -> None:
        """The page as it is printed."""
        to.write_bytes(base64.b64decode(self.ask("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium here to open the page in; apt-get install chromium")
    to_read, told = os.pipe()
    said, to_write = os.pipe()
    command = [sys.executable, "-c", STARTER, str(to_read), str(to_write), program, *FLAGS, f"--user-data-dir={folder / 'browser'}"]
    nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command, pass_fds=(to_read, to_write), **nothing) as process:
        for each in (to_read, to_write):
            os.close(each)
        found = Browser(told, said)
        try:
            yield found
        finally:
            os.close(told)
            os.close(said)
            process.terminate()
            process.wait(30)
