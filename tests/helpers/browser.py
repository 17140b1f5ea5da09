"""A headless Chromium, driven over a pipe by its own protocol: no driver, no package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


def find_chromium() -> str | None:
    """The path of an installed Chromium; None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One page in one browser with a profile of its own; a context manager."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="shardkit-browser-")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        words = [program, *_OPTIONS, f"--user-data-dir={self._profile}", "about:blank"]
        # The browser reads commands from descriptor 3 and writes answers to descriptor 4.
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *words],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._n_sent = 0
        self._waiting = b""
        self.events: list[dict[str, Any]] = []
        """What the browser told unasked: exceptions, messages of the console, requests."""
        target = self._send("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        wanted = {"targetId": target, "flatten": True}
        self._session = str(self._send("Target.attachToTarget", wanted, None)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._write)  # the browser ends when its pipe does
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """One command of the protocol to the page, and its answer."""
        return self._send(method, values, self._session)

    def open(self, url: str) -> None:
        """Go there, and wait until the page is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def look(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Size of the window in CSS pixels, and which colours the reader prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; AssertionError when it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60.0) -> None:
        """Until a JavaScript expression is true; AssertionError when it does not become so."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that fits a selector."""
        place = self.run(
            f"(() => {{const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def type(self, selector: str, text: str) -> None:
        """Click into a field, empty it, and type."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.press("Backspace")
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One key: Tab, Enter, Backspace, ArrowRight ..."""
        codes = {"Backspace": 8, "Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37}
        values: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        if key == "Enter":
            values["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _send(self, method: str, values: dict[str, Any], session: str | None) -> dict[str, Any]:
        self._n_sent += 1
        message: dict[str, Any] = {"id": self._n_sent, "method": method, "params": values}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser ended"
            self._waiting += more
        line, _, self._waiting = self._waiting.partition(b"\0")
        return dict(json.loads(line))
