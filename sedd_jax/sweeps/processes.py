"""Runs commands, a few at a time, until all have ended or a signal arrives."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_all(
  commands: Mapping[str, list[str]],
  *,
  logs: Path,
  parallel: int,
  started: Callable[[str, Path], None],
  ended: Callable[[str, int], None],
) -> int:
  """0 after running all commands in order, or 128 + the number of the signal that ended it.

  On SIGINT or SIGTERM nothing more is started; running commands get SIGTERM and are waited for. The
  second signal kills them.

  Args:
    commands: name -> command.
    logs: folder of `NAME.log`, to which a command's output is appended.
    parallel: number of commands at a time.
    started: called with the name and the log.
    ended: called with the name and the exit code, 128 + N for signal N.
  """
  received: list[int] = []
  before = {
    number: signal.signal(number, lambda number, frame: received.append(number))
    for number in _SIGNALS
  }
  waiting = dict(commands)
  running: dict[str, subprocess.Popen] = {}
  handled = 0
  logs.mkdir(parents=True, exist_ok=True)
  try:
    while running or (waiting and not received):
      while waiting and len(running) < parallel and not received:
        name = next(iter(waiting))
        running[name] = _start(waiting.pop(name), logs / f"{name}.log")
        started(name, logs / f"{name}.log")
      for name, process in list(running.items()):
        if process.poll() is not None:
          del running[name]
          code = process.returncode
          ended(name, code if code >= 0 else 128 - code)
      while handled < len(received):
        handled += 1
        for process in running.values():
          _send(process, signal.SIGTERM if handled == 1 else signal.SIGKILL)
      time.sleep(0.05)
  finally:
    for process in running.values():  # Only after an error here.
      _send(process, signal.SIGTERM)
    for number, handler in before.items():
      signal.signal(number, handler)
  return 128 + received[0] if received else 0


def _start(command: list[str], log: Path) -> subprocess.Popen:
  # In its own session: Ctrl-C in the terminal reaches it only through us, as SIGTERM.
  with log.open("ab") as output:
    return subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


def _send(process: subprocess.Popen, number: int) -> None:
  if number == signal.SIGKILL:
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
