"""Drives a headless Chromium through the DevTools protocol: pages, keys, scripts and pictures.

Chromium is not a package of Python: the programs and tests that need one look for it and say so if there is none.
"""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_STARTED = re.compile(rb"DevTools listening on (ws://\S+)")
_START_S = 60.0
_WAIT_S = 60.0
# As the protocol names them: key, code, Windows' number of the key.
_KEYS = {
    "Tab": ("Tab", "Tab", 9),
    "Enter": ("Enter", "Enter", 13),
    "ArrowRight": ("ArrowRight", "ArrowRight", 39),
    "ArrowDown": ("ArrowDown", "ArrowDown", 40),
}


def find_chromium() -> str | None:
    """Return the path of a Chromium, None if this machine has none."""
    return next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)


class PageError(Exception):
    """The browser refused a command, or a script on the page raised."""


class _Connection:
    """A connection of the protocol: commands and their results, and the events in between."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; raise PageError if it is refused."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=_WAIT_S))
            if message.get("id") == self._number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        """Take an event."""


class Tab(_Connection):
    """One tab. ``problems`` lists uncaught errors, errors in the browser's log, and violations of the page's policy."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        # Every tab behaves as if its window were the one in front: it gets keys, and its timers are not slowed down.
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        self.send("Page.bringToFront")

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(about["exceptionDetails"])[:600])
            case "Log.entryAdded" if about["entry"]["level"] == "error":
                self.problems.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "assert"):
                self.problems.append(json.dumps(about["args"])[:600])

    def open(self, url: str) -> None:
        """Go to an address."""
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return the value of an expression on the page; a promise is awaited. Raises PageError."""
        got = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in got:
            raise PageError(json.dumps(got["exceptionDetails"])[:600])
        return got["result"].get("value")

    def wait(self, script: str, timeout_s: float = _WAIT_S) -> Any:
        """Return the value of an expression once it is true. Raises PageError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                text = self.run("document.body.innerText")
                raise PageError(f"not within {timeout_s:g} s: {script}; {self.problems}; the page says: {text[:1500]}")
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.send("Input.insertText", text=text)

    def press(self, name: str) -> None:
        """Press and release a key of ``_KEYS``."""
        key, code, number = _KEYS[name]
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        text = {"text": "\r"} if name == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def dress(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Set the size and the colour scheme."""
        scale = 2 if phone else 1
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Save a screenshot of the page as a PNG file."""
        got = self.send("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(got["data"]))


class Chromium(_Connection):
    """A running browser. ``tab`` opens a tab, as if in a window of its own: it shares no storage with the others."""

    def __init__(self, socket: ClientConnection, address: str) -> None:
        super().__init__(socket)
        self._address = address

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """Open a new tab for the block."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        with _connected(f"{self._address}/devtools/page/{target}") as socket:
            yield Tab(socket)
        self.send("Target.disposeBrowserContext", browserContextId=context)


def _connected(url: str) -> ClientConnection:
    # No pings: on a machine without a free processor the browser answers late, and is not gone.
    return connect(url, max_size=None, ping_interval=None, open_timeout=_START_S)


@contextmanager
def running_chromium(path: str) -> Iterator[Chromium]:
    """Run a headless Chromium with an empty profile. Raises PageError if it does not start."""
    with tempfile.TemporaryDirectory(prefix="hr-chromium-", ignore_cleanup_errors=True) as folder:
        # Without its sandbox: it is root in CI's containers, and reads only pages that the test serves.
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}/profile", "--hide-scrollbars"]
        options += ["--force-color-profile=srgb", "--disable-background-networking", "--disable-component-update"]
        errors = Path(folder) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen([path, *options, "about:blank"], stdout=stderr, stderr=stderr)
        try:
            url = _address(process, errors)
            with _connected(url) as socket:
                yield Chromium(socket, url.split("/devtools/")[0])
        finally:
            process.terminate()
            process.wait(timeout=20)


def _address(process: subprocess.Popen[bytes], errors: Path) -> str:
    deadline = time.monotonic() + _START_S
    while (found := _STARTED.search(errors.read_bytes())) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise PageError(f"Chromium did not start: {errors.read_text(errors='replace')[-800:]}")
        time.sleep(0.05)
    return found[1].decode()
