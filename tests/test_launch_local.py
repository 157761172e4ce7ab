"""launch/local.sh."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from support.launching import LISTEN, commands, launch, until
from support.paths import REPOSITORY


def test_local_prints_one_command_for_each_process():
  done = launch(
    "local.sh",
    *("--processes=2", "--devices=3", "--port=1234", "--logs=my logs", "--dry-run"),
    *("sedd", "train", "--config.data.files=a b*"),
  )
  tail = ["JAX_NUM_CPU_DEVICES=3", "JAX_PLATFORMS=cpu", "sedd", "train", "--config.data.files=a b*"]
  head = ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:1234", "JAX_NUM_PROCESSES=2"]
  assert commands(done) == [
    ["mkdir", "-p", "my logs"],
    [*head, "JAX_PROCESS_ID=1", *tail, ">my logs/process_1.log", "2>&1", "&"],
    [*head, "JAX_PROCESS_ID=0", *tail],
  ]


def test_local_deals_out_gpus_and_finds_a_port():
  found = set()
  for _ in range(3):
    lines = commands(launch("local.sh", "--processes=3", "--gpus=2", "--dry-run", "sedd"))
    gpus = [word for line in lines for word in line if word.startswith("JAX_LOCAL_DEVICE_IDS=")]
    assert [word.split("=")[1] for word in gpus] == ["4,5", "2,3", "0,1"]
    assert "JAX_PLATFORMS" not in str(lines)
    (address,) = {word for line in lines for word in line if "ADDRESS" in word}
    host, port = address.split("=")[1].split(":")
    found.add(port)
    with socket.socket() as listener:
      listener.bind((host, int(port)))
  assert len(found) > 1


# Does what STEPS says: `I sleeps`, `I exits CODE`, ...; writes what it saw.
PROCESS = """
import json, os, signal, sys, time
from pathlib import Path

me = os.environ["JAX_PROCESS_ID"]
out = Path(sys.argv[1])
todo = dict(word.split(":") for word in sys.argv[2:])

def on_signal(number, frame):
  (out / f"signal_{me}").write_text(signal.Signals(number).name)
  sys.exit(128 + number)

if todo.get(me) == "stubborn":
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
  signal.signal(signal.SIGTERM, on_signal)
  signal.signal(signal.SIGINT, on_signal)
seen = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
(out / f"env_{me}.partial").write_text(json.dumps(seen))
(out / f"env_{me}.partial").rename(out / f"env_{me}")
os.write(1, f"out of {me}\\n".encode())
os.write(2, f"err of {me}\\n".encode())
if todo.get(me, "").isdigit():
  sys.exit(int(todo[me]))
if me in todo:
  time.sleep(60)
"""


def local(tmp_path, *arguments, options=()):
  script = tmp_path / "process.py"
  script.write_text(PROCESS)
  command = ["bash", "launch/local.sh", *options, sys.executable, script, tmp_path, *arguments]
  return [*LISTEN, *map(str, command)]


@pytest.fixture
def no_jax_variables(monkeypatch):
  for name in [name for name in os.environ if name.startswith("JAX_")]:
    monkeypatch.delenv(name)


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_gives_each_process_its_environment_and_log(tmp_path):
  options = ("--processes=3", "--devices=2", f"--logs={tmp_path}/logs")
  done = subprocess.run(
    local(tmp_path, options=options), cwd=REPOSITORY, capture_output=True, text=True, timeout=30
  )
  assert done.returncode == 0
  assert (done.stdout, done.stderr) == ("out of 0\n", "err of 0\n")
  seen = [json.loads((tmp_path / f"env_{i}").read_text()) for i in range(3)]
  (address,) = {each.pop("JAX_COORDINATOR_ADDRESS") for each in seen}
  assert address.startswith("127.0.0.1:")
  for i, each in enumerate(seen):
    assert each == {
      "JAX_NUM_PROCESSES": "3",
      "JAX_PROCESS_ID": str(i),
      "JAX_NUM_CPU_DEVICES": "2",
      "JAX_PLATFORMS": "cpu",
    }
  assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
    "process_1.log",
    "process_2.log",
  ]
  assert (tmp_path / "logs" / "process_2.log").read_text() == "out of 2\nerr of 2\n"


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_marks_the_lines_of_other_processes(tmp_path):
  done = subprocess.run(
    local(tmp_path, options=("--processes=2",)), cwd=REPOSITORY, capture_output=True, text=True
  )
  assert done.returncode == 0
  lines = done.stdout.splitlines()
  assert sorted(lines) == ["[1] err of 1", "[1] out of 1", "out of 0"]


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_hands_signals_on(tmp_path, number):
  process = subprocess.Popen(
    local(tmp_path, "0:sleeps", "1:sleeps", options=("--processes=2",)),
    cwd=REPOSITORY,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  until(lambda: all((tmp_path / f"env_{i}").exists() for i in range(2)))
  process.send_signal(number)
  assert process.wait(timeout=20) == 128 + number
  assert [(tmp_path / f"signal_{i}").read_text() for i in range(2)] == [number.name] * 2


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_kills_who_stays_behind_a_failed_process(tmp_path):
  began = time.monotonic()
  done = subprocess.run(
    local(tmp_path, "0:stubborn", "1:7", options=("--processes=3", "--grace=1")),
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert done.returncode == 7
  assert "process 1 ended with exit code 7; the others have 1 s" in done.stderr
  assert "1 s are over: killing process 0" in done.stderr
  assert 0.9 < time.monotonic() - began < 20


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_waits_for_a_process_that_is_last_to_end_well(tmp_path):
  script = '[ "$JAX_PROCESS_ID" = 1 ] || { sleep 1.5; echo late; }'
  done = launch("local.sh", "--processes=2", "--grace=0", "bash", "-c", script)
  assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")
