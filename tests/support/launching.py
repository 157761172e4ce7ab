"""Scripts of launch/, run from the checkout with stand-ins for the programs that they call."""

import os
import shlex
import subprocess
import sys
import time

from support.paths import REPOSITORY


def launch(script, *arguments, env=None, timeout=30, **more):
  """Runs a script of launch/ from the checkout."""
  return subprocess.run(
    ["bash", f"launch/{script}", *arguments],
    env=os.environ | (env or {}),
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=timeout,
    **more,
  )


def commands(done):
  """The commands that a dry run printed, without its comments."""
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def fake(folder, name, script):
  """Puts a stand-in for a program into a folder."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
  (folder / name).chmod(0o755)


def path_with(folder):
  return {"PATH": f"{folder}:{os.environ['PATH']}"}


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it did not come"
    time.sleep(0.02)


# A pytest in the background would hand on an ignored SIGINT, which bash cannot trap.
LISTEN = [
  sys.executable,
  "-c",
  "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
  " os.execvp(sys.argv[1], sys.argv[1:])",
]

SLICE = ("--name=pod", "--zone=us-west4-a", "--type=v5litepod-16")
