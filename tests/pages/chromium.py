"""A real headless Chromium, spoken to through the pipe of its developer tools."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes answers to 4; these may be in use here, so a child moves them.
LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 20) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE_S = 60.0


def find_chromium() -> str | None:
    """Return the path of the browser, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Opened:
    """A page in the browser, and what happened while it loaded.

    requests  addresses that the page asked for, itself included
    messages  what appeared on its console, and errors
    """

    browser: Chromium
    session: str
    requests: tuple[str, ...]
    messages: tuple[str, ...]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.browser.call(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True}, session=self.session
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path | None = None) -> bytes:
        """Return the whole page as PNG."""
        self.browser.call("Page.bringToFront", session=self.session)  # a page behind another is never drawn
        size = self.browser.call("Page.getLayoutMetrics", session=self.session)["cssContentSize"]
        options = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        data = base64.b64decode(self.browser.call("Page.captureScreenshot", options, session=self.session)["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def pdf(self, path: Path | None = None) -> bytes:
        """Return the page as it prints."""
        options = {"preferCSSPageSize": True, "printBackground": True}
        data = base64.b64decode(self.browser.call("Page.printToPDF", options, session=self.session)["data"])
        if path is not None:
            path.write_bytes(data)
        return data


class Chromium:
    """The browser process; use as a context manager."""

    def __init__(self, profile: Path) -> None:
        program = find_chromium()
        assert program is not None
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        ends = (read_commands, write_answers)
        command = [sys.executable, "-c", LAUNCH, *map(str, ends), program, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in ends:
            os.close(end)
        self._number, self._buffer = 0, b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._commands)  # the end of its pipe is the end of the browser
        try:
            self._process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def call(self, method: str, parameters: dict[str, Any] | None = None, *, session: str = "") -> dict[str, Any]:
        """Send one command and return its answer; events in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while (answer := self._receive(deadline)).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path | str, *, width: int = 1000, scheme: str = "light", media: str = "") -> Opened:
        """Load a file or an address in a tab of its own, `width` CSS pixels wide, and wait until it is there."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session=session)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", metrics, session=session)
        emulated = {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.call("Emulation.setEmulatedMedia", emulated, session=session)
        self._events.clear()
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.call("Page.navigate", {"url": address}, session=session)
        deadline = time.monotonic() + PATIENCE_S
        while not any(
            (event.get("method"), event.get("sessionId")) == ("Page.loadEventFired", session) for event in self._events
        ):
            self._events.append(self._receive(deadline))
        self.call("Runtime.evaluate", {"expression": "1"}, session=session)  # what was said until now has arrived
        requests = [
            e["params"]["request"]["url"]
            for e in self._events
            if e.get("method") == "Network.requestWillBeSent" and e.get("sessionId") == session
        ]
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        messages = [
            json.dumps(event["params"])
            for event in self._events
            if event.get("method") in said and event.get("sessionId") == session
        ]  # other pages are open too
        return Opened(self, session, tuple(requests), tuple(messages))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(self._answers, 1 << 20) if ready else b""
            assert chunk, "the browser has died" if ready else f"no answer from the browser for {PATIENCE_S} s"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received
