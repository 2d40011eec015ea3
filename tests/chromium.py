"""A real browser, driven over its DevTools protocol by a pipe; nothing but Chromium is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 60


def chromium() -> str:
    """Give the program, from MERGEPIPE_CHROMIUM or the path."""
    named = os.environ.get("MERGEPIPE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, (
        "the report is looked at in a real browser: install Chromium (Debian and Ubuntu: "
        "apt-get install chromium), or name it in MERGEPIPE_CHROMIUM"
    )
    return found


class Browser:
    """One tab of a headless browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        self.said: list[str] = []  # of the console, and what the page's policy refused
        self.asked: list[str] = []  # addresses

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command; give its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found["error"]
                return found["result"]
            self._note(found)

    def open_tab(self) -> None:
        """Open a tab, and listen."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def look(self, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Take a screen of that width, and a theme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", mobile=width < 600, **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def load(self, page: Path | str) -> float:
        """Open a file or an address; give the seconds until it is laid out."""
        self.said, self.asked = [], []
        began = time.perf_counter()
        self.send("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while self.run("document.readyState") != "complete":
            time.sleep(0.01)
        self.run("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        return time.perf_counter() - began

    def run(self, expression: str) -> Any:
        """Work out an expression in the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def shoot(self, file: Path) -> Path:
        """Keep a picture of the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True}
        found = self.send("Page.captureScreenshot", format="png", **options)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(found["data"]))
        return file

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        found = event.get("params", {})
        if event["method"] == "Log.entryAdded":
            self.said.append(found["entry"]["text"])
        elif event["method"] == "Runtime.consoleAPICalled":
            self.said.append(str(found["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            self.said.append(str(found["exceptionDetails"]))
        elif event["method"] == "Network.requestWillBeSent":
            self.asked.append(found["request"]["url"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with a fresh profile; end it."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    options = (
        "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
        "--disable-background-networking --disable-component-update --hide-scrollbars "
        "--remote-debugging-pipe"
    )
    line = f'exec "$0" {options} "--user-data-dir=$1" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", line, chromium(), str(profile)],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        found = Browser(ours_out, ours_in)
        found.open_tab()
        yield found
    finally:
        os.close(ours_out)
        os.close(ours_in)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_SECONDS)
