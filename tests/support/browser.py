"""A headless Chromium for tests, spoken to over its debugging pipe: no package, no port."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
  "--headless=new",
  "--remote-debugging-pipe",
  "--no-first-run",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-extensions",
  "--disable-sync",
  "--hide-scrollbars",
)
# Its sandbox does not start for root, which tests in containers often are.
_ROOT = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def find_chromium() -> str | None:
  return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
  """A browser, and one of its tabs. Messages are the DevTools protocol's."""

  def __init__(self, program: str, profile: Path):
    # Chromium reads commands from descriptor 3 and writes to 4; a shell puts the pipes there.
    commands, self._write = os.pipe()
    self._read, answers = os.pipe()
    shell = f'exec "$@" 3<&{commands} 4>&{answers}'
    self._process = subprocess.Popen(
      ["bash", "-c", shell, "bash", program, *_FLAGS, *_ROOT, f"--user-data-dir={profile}"],
      pass_fds=(commands, answers),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    self._numbers, self._buffer, self.tab = itertools.count(1), b"", None
    self.requests: list[str] = []
    self.errors: list[str] = []
    self.new_tab()

  def new_tab(self) -> str:
    """Opens a tab, which further calls are about until `use` names another."""
    self.tab = None
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self.tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.call(f"{domain}.enable")
    return self.tab

  def use(self, tab: str):
    """Further calls are about this tab."""
    self.tab = tab

  def call(self, method: str, **params):
    """Sends one command and waits for its answer; keeps account of requests and errors."""
    message = {"id": next(self._numbers), "method": method, "params": params}
    if self.tab:
      message["sessionId"] = self.tab
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while (answer := self._next()).get("id") != message["id"]:
      self._note(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def open(self, path: Path, fragment: str = "", **wishes):
    """Loads a file afresh, with the user's wishes."""
    self.visit(path.as_uri() + fragment, **wishes)

  def visit(self, url: str, *, dark=False, calm=False, width=1100, height=800):
    """Loads an address afresh, with the user's wishes."""
    self.requests.clear()
    self.errors.clear()
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=height, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    features = {
      "prefers-color-scheme": "dark" if dark else "light",
      "prefers-reduced-motion": "reduce" if calm else "no-preference",
    }
    media = [{"name": name, "value": value} for name, value in features.items()]
    self.call("Emulation.setEmulatedMedia", features=media)
    self.call("Page.navigate", url="about:blank")
    self.call("Page.navigate", url=url)
    self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
    self.requests[:] = [url for url in self.requests if url != "about:blank"]

  def run(self, expression: str):
    """The value of some JavaScript."""
    done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    if "exceptionDetails" in done:
      raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
    return done["result"].get("value")

  def wait(self, expression: str, seconds: float = 20):
    """Waits until some JavaScript is true."""
    deadline = time.monotonic() + seconds
    while not self.run(expression):
      assert time.monotonic() < deadline, f"{expression} did not become true"
      time.sleep(0.02)

  def type(self, text: str):
    """Text into what has the focus, as from the keyboard."""
    self.call("Input.insertText", text=text)

  def press(self, key: str):
    """A key, as from the keyboard: the code of KeyboardEvent.key."""
    codes = {
      " ": 32,
      "End": 35,
      "Home": 36,
      "ArrowLeft": 37,
      "ArrowRight": 39,
      "Tab": 9,
      "Enter": 13,
    }
    text = {"text": key} if len(key) == 1 else {}
    about = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0)}
    self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
    self.call("Input.dispatchKeyEvent", type="keyUp", **about)

  def screenshot(self, path: Path):
    path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

  def close(self):
    self.tab = None
    self.call("Browser.close")
    self._process.wait(20)
    os.close(self._write)
    os.close(self._read)

  def _next(self):
    while b"\0" not in self._buffer:
      assert select.select([self._read], [], [], 60)[0], "Chromium does not answer"
      part = os.read(self._read, 1 << 20)
      assert part, "Chromium has ended"
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b"\0")
    return json.loads(message)

  def _note(self, event):
    params = event.get("params", {})
    match event.get("method"):
      case "Network.requestWillBeSent":
        self.requests.append(params["request"]["url"])
      case "Runtime.exceptionThrown":
        self.errors.append(str(params["exceptionDetails"]))
      case "Log.entryAdded":
        self.errors.append(params["entry"]["text"])
