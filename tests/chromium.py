"""Debian's chromium without a window, told what to do through its debugging pipe.

Needs no library and no port: JSON between NULs, on the descriptors that chromium calls 3 and 4.
It has a profile of its own, and no network but what a test gives it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = shutil.which("chromium")
# What Debian's chromium needs as root and without a graphics card.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
OFFLINE = ("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND")


class Tab:
    """One page: what it was asked to do, and everything that it has told since."""

    def __init__(self, to: BinaryIO, answers: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._to = to
        self._from = answers
        self._said = bytearray()
        self._calls = 0
        self._width = 0
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What chromium answers."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters, **self._session}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._read()).get("id") != self._calls:
            self.events.append(answer)
        assert "result" in answer, f"{method}: {answer}"
        return answer["result"]

    def open(self, url: str, width: int = 1100) -> None:
        """Show the page at `url`, and wait for its scripts."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self._width = width
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """The value of a line of JavaScript, of a promise what it comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def pdf(self) -> bytes:
        """The page on paper, as its own rules have it."""
        printed = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(printed["data"])

    def picture(self, top: float, height: float) -> bytes:
        """As PNG what is `height` pixels from `top`."""
        clip = {"x": 0, "y": top, "width": self._width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def requested(self) -> list[str]:
        """Addresses that the page has asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[Any]:
        """Errors of its scripts, and what else went to the console as a warning or worse."""
        return [
            event["params"]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Log.entryAdded"
                and event["params"]["entry"]["level"] in ("warning", "error"))
            or (event["method"] == "Runtime.consoleAPICalled"
                and event["params"]["type"] in ("warning", "error", "assert"))
        ]  # fmt: skip

    def _read(self) -> dict[str, Any]:
        while (end := self._said.find(b"\0")) < 0:
            more = os.read(self._from, 1 << 20)
            assert more, "chromium has ended"
            self._said += more
        message: dict[str, Any] = json.loads(self._said[:end])
        del self._said[: end + 1]
        return message


@contextmanager
def tab(profile: Path, *flags: str) -> Iterator[Tab]:
    """A tab of a browser that ends with the block."""
    assert CHROMIUM is not None
    its_input, ours_out = os.pipe()
    ours_in, its_output = os.pipe()
    browser = subprocess.Popen(
        [
            "bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash",
            CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", *flags,
        ],
        pass_fds=(its_input, its_output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_input)
    os.close(its_output)
    try:
        with os.fdopen(ours_out, "wb") as to:
            yield Tab(to, ours_in)
    finally:
        os.close(ours_in)
        browser.terminate()
        browser.wait(timeout=20)
