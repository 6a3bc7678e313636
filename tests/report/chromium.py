"""A headless Chromium, controlled through its DevTools protocol: clicks, text input, evaluation and console messages."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request

from websockets.sync.client import connect

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]


class Page:
    """One tab. `problems` collects every exception, console error and log entry of level error."""

    def __init__(self, socket):
        self.socket, self.numbers, self.problems, self.requests = socket, itertools.count(1), [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._on_event(message)

    def _on_event(self, message):
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "assert"}
        ):
            self.problems.append(parameters)
        if method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href.split('#')[0] === {json.dumps(url)} && document.readyState === 'complete'")

    def evaluate(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, expression, seconds=20):
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def press(self, key, code):
        text = {"Enter": "\r"}.get(key)
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **event)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def resize(self, width, height, theme="light"):
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def open_browser(profile):
    """Open a page in a browser with its own profile folder; the browser is terminated afterwards."""
    command = [BINARY, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _wait_for_port(profile / "DevToolsActivePort", process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            targets = json.load(answer)
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        with connect(address, max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for_port(file, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"Chromium exited at startup with {process.returncode}")
        if file.exists() and file.read_text().strip():
            return file.read_text().split()[0]
        time.sleep(0.05)
    raise TimeoutError("Chromium did not open its debugging port")
