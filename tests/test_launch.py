"""The scripts in launch/."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPERVISE = Path(__file__).resolve().parent.parent / "launch" / "supervise.sh"


def supervise(script, log, retries=5):
  return subprocess.run(
    [SUPERVISE, "bash", "-c", script],
    env=os.environ | {"PAUSE": "0", "RETRIES": str(retries), "LOG": str(log)},
    capture_output=True,
    text=True,
  )


def test_a_preempted_command_is_started_again_until_it_is_done(tmp_path):
  log = tmp_path / "log"
  script = 'echo run >> "$LOG"; [ "$(wc -l < "$LOG")" -ge 3 ] || exit 143'
  done = supervise(script, log)
  assert done.returncode == 0
  assert log.read_text() == "run\n" * 3
  assert "exit code 143, restart 2 of 5" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_on_to_the_command_and_nothing_is_restarted(tmp_path, number):
  log = tmp_path / "log"
  script = (
    'trap \'echo saved >> "$LOG"; exit 9\' TERM INT; echo run >> "$LOG";'
    " while true; do sleep 0.05; done"
  )
  # A pytest in the background would hand on an ignored SIGINT, which bash cannot trap.
  listen = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " os.execv(sys.argv[1], sys.argv[1:])"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", listen, SUPERVISE, "bash", "-c", script],
    env=os.environ | {"PAUSE": "0", "LOG": str(log)},
    stderr=subprocess.DEVNULL,
  )
  while not log.is_file() or not log.read_text():
    time.sleep(0.02)
  process.send_signal(number)
  assert process.wait(timeout=20) == 9
  assert log.read_text() == "run\nsaved\n"


@pytest.mark.parametrize(("code", "runs"), [(2, 1), (130, 1), (0, 1), (137, 3)])
def test_errors_of_the_user_are_not_repeated(tmp_path, code, runs):
  log = tmp_path / "log"
  done = supervise(f'echo run >> "$LOG"; exit {code}', log, retries=2)
  assert done.returncode == code
  assert log.read_text() == "run\n" * runs
