"""`sedd sweep`, and launch/sweep.py, which is the same, over a stand-in trainer."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
from support.launching import until
from support.paths import REPOSITORY
from support.sweeps import make_runs, run_directory

from sedd_jax.sweeps import state as sweep_state

# Trains as the trainer does, in no time: saves on SIGTERM, goes on from there, writes its result.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path

flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
workdir, seed = Path(flags["workdir"]), int(flags["config.seed"])
steps = int(flags["config.train.steps"])
workdir.mkdir(parents=True, exist_ok=True)
saved = workdir / "saved"
step = int(saved.read_text()) if saved.exists() else 0
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
print("starts at", step, os.environ.get("JAX_NUM_PROCESSES"), flush=True)
code = os.environ.get(f"EXIT_{seed}")
if code:
  sys.exit(int(code))
while step < steps and not stop:
  step += 1
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": step}) + "\\n")
  while "FOREVER" in os.environ and step == 2 and not stop:
    time.sleep(0.02)
if stop:
  saved.write_text(str(step))
  sys.exit(143)
result = {"step": step, "heldout_bits_per_char_strict": 3 - seed / 4}
result["heldout_bits_per_char_strict_stderr"] = 0.01
if os.environ.get("JAX_PROCESS_ID", "0") == "0":
  (workdir / "evaluation.json").write_text(json.dumps(result))
"""


@pytest.fixture
def sweep(tmp_path):
  """Starts launch/sweep.py with the stand-in trainer; what a test leaves behind is stopped."""
  script = tmp_path / "trainer.py"
  script.write_text(TRAINER)
  trainer = shlex.join([sys.executable, str(script)])
  processes = []

  def start(*arguments, config="configs/quickstart.py", steps=3, env=None):
    head = [sys.executable, "launch/sweep.py", f"--root={tmp_path}/root", f"--command={trainer}"]
    if config:
      head += [f"--config={config}", f"--config.train.steps={steps}"]
    process = subprocess.Popen(
      [*head, *arguments],
      cwd=REPOSITORY,
      env=os.environ | {"COLUMNS": "200"} | (env or {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    return process

  yield start
  for process in processes:
    if process.poll() is None:
      process.terminate()
      process.communicate(timeout=20)


def finish(process, timeout=40):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def statuses(tmp_path):
  with (tmp_path / "root" / "results.csv").open() as file:
    return {row["name"]: (row["status"], row["step"]) for row in csv.DictReader(file)}


def log(tmp_path, name):
  return (tmp_path / "root" / "logs" / f"{name}.log").read_text()


@pytest.mark.multiprocess
def test_a_sweep_notes_failures_goes_on_and_starts_them_again(sweep, tmp_path):
  grid = "--sweep=seed=1..4"
  code, out, err = finish(sweep(grid, env={"EXIT_1": "2", "EXIT_3": "1"}))
  assert (code, err) == (1, "")
  assert statuses(tmp_path) == {
    "seed-4": ("done", "3"),
    "seed-2": ("done", "3"),
    "seed-1": ("failed (2)", ""),
    "seed-3": ("failed (1)", ""),
  }
  assert next(iter(statuses(tmp_path))) == "seed-4"  # The best first.
  assert f"seed=1: exit code 2, see {tmp_path}/root/logs/seed-1.log" in out
  assert re.search(r"1 .* 4 .* done .* 3/3 .* 2\.0000 ± 0\.0100", out)
  stored = json.loads((tmp_path / "root" / "sweep.json").read_text())
  assert stored["spec"]["runs"]["seed-2"] == {"seed": 2}
  assert stored["spec"]["common"] == {"train.steps": 3}
  assert shlex.split(stored["commands"]["seed-2"])[2:] == [
    *("--config=configs/quickstart.py", f"--workdir={tmp_path}/root/seed-2"),
    *("--config.train.steps=3", "--config.seed=2"),
  ]

  code, out, err = finish(sweep(grid))
  assert (code, err) == (0, "")
  assert {status for status, _ in statuses(tmp_path).values()} == {"done"}
  assert "seed=2: done" in out
  assert log(tmp_path, "seed-2").count("starts at") == 1
  assert log(tmp_path, "seed-3").count("starts at") == 2

  # Another sweep does not mix with it, and nothing is started.
  code, out, err = finish(sweep("--sweep=seed=4..5", steps=4))
  assert (code, out) == (2, "")
  assert "holds another sweep" in err
  for line in (
    "--config.train.steps: 3 -> 4",
    "gone: seed=1",
    "new: seed=5",
    "Choose a new --root",
  ):
    assert line in err
  assert not (tmp_path / "root" / "seed-5").exists()

  code, out, err = finish(sweep("--table", config=None))
  assert (code, err) == (0, "")
  assert out.count("done") == 4


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on_where_it_was(sweep, tmp_path, number):
  grid = ("--sweep=seed=1..3", "--parallel=2")
  process = sweep(*grid, env={"FOREVER": "1"})
  # Both stand at their step 2 at the same time.
  metrics = [tmp_path / "root" / f"seed-{seed}" / "metrics.jsonl" for seed in (1, 2)]
  until(lambda: all(file.exists() and file.read_text().count("\n") == 2 for file in metrics))
  process.send_signal(number)
  code, _, err = finish(process)
  assert (code, err) == (128 + number, "")
  assert statuses(tmp_path) == {
    "seed-1": ("stopped (143)", "2"),
    "seed-2": ("stopped (143)", "2"),
    "seed-3": ("not started", ""),
  }
  if number == signal.SIGTERM:
    return
  code, _, err = finish(sweep(*grid))
  assert (code, err) == (0, "")
  assert set(statuses(tmp_path).values()) == {("done", "3")}
  assert "starts at 2" in log(tmp_path, "seed-1")
  assert log(tmp_path, "seed-3") == "starts at 0 None\n"


@pytest.mark.multiprocess
def test_a_second_signal_kills(sweep, tmp_path):
  stubborn = tmp_path / "stubborn.sh"
  stubborn.write_text(f'trap "" TERM; touch "{tmp_path}/up"; while :; do sleep 0.05; done\n')
  process = sweep("--sweep=seed=1", f"--command=bash {stubborn}")
  until((tmp_path / "up").exists)
  process.send_signal(signal.SIGINT)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=0.5)
  process.send_signal(signal.SIGINT)
  assert finish(process)[0] == 130
  assert statuses(tmp_path) == {"seed-1": ("failed (137)", "")}


@pytest.mark.multiprocess
def test_a_run_may_be_several_processes(sweep, tmp_path):
  process = sweep("--sweep=seed=1", "--processes=2", "--launch_args=--devices=2 --grace=5")
  code, _, err = finish(process)
  assert (code, err) == (0, "")
  lines = log(tmp_path, "seed-1").splitlines()
  assert sorted(lines) == ["[1] starts at 0 2", "starts at 0 2"]


@pytest.mark.multiprocess
def test_slurm_jobs_are_submitted_once(sweep, tmp_path):
  program = tmp_path / "bin" / "sbatch"
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/submitted"\n')
  program.chmod(0o755)
  env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
  arguments = ("--sweep=seed=1,2", "--backend=slurm", "--launch_args=--nodes=2")
  assert finish(sweep(*arguments, env=env))[0] == 0
  lines = (tmp_path / "submitted").read_text().splitlines()
  head = "--job-name=root-seed-1 --dependency=singleton --nodes=2 launch/slurm.sbatch "
  assert len(lines) == 2
  assert lines[0].startswith(head)
  assert statuses(tmp_path)["seed-1"] == ("submitted", "")
  # The jobs wait in the queue; what --table shows of them comes from their directories.
  code, out, _ = finish(sweep(*arguments, env=env))
  assert code == 0
  assert "seed=1: submitted before; --resubmit" in out
  assert len((tmp_path / "submitted").read_text().splitlines()) == 2
  runs = make_runs([{"seed": 1}, {"seed": 2}])
  run_directory(tmp_path / "root" / "seed-2", evaluation={"step": 50})
  state = sweep_state.State(tmp_path / "root")
  assert state.left(runs, True) == (["seed-1"], {"seed-2": "done"})
  assert state.left(runs, False)[0] == []


def test_a_dry_run_prints_what_is_left_and_writes_nothing(sweep, tmp_path):
  arguments = ("--sweep=model.width=64,128;seed=1", "--config.data.files=a b*", "--command=sedd x")
  code, out, err = finish(sweep(*arguments, "--dry-run"))
  assert (code, err) == (0, "")
  root = tmp_path / "root"
  expected = [
    [
      *("sedd", "x", "--config=configs/quickstart.py", f"--workdir={root}/width-{width}_seed-1"),
      *("--config.train.steps=3", "--config.data.files=a b*"),
      *(f"--config.model.width={width}", "--config.seed=1"),
    ]
    for width in (64, 128)
  ]
  assert [shlex.split(line) for line in out.splitlines()] == expected
  assert not root.exists()
  run_directory(root / "width-64_seed-1", evaluation={"step": 3})
  code, out, _ = finish(sweep(*arguments, "--dry-run"))
  assert [shlex.split(line) for line in out.splitlines()] == expected[1:]
  assert [path.name for path in root.iterdir()] == ["width-64_seed-1"]


def test_points_come_from_the_config(sweep, tmp_path):
  code, out, err = finish(sweep("--backend=print", config="configs/text8.py:uniform"))
  assert (code, err) == (0, "")
  assert not (tmp_path / "root").exists()
  lines = out.splitlines()
  assert len(lines) == 6
  assert lines[0].endswith("--config.optimizer.learning_rate=0.0001 --config.seed=0")
  assert all("--config=configs/text8.py:uniform " in line for line in lines)


def test_faults_are_found_before_anything_starts(sweep, tmp_path):
  faults = {
    ("--sweep=model.width=128,100",): "run model.width=100: ",
    ("--sweep=seed=1", "--config.model.widht=3"): 'Did you mean "width"',
    (): "configs/quickstart.py has no sweep()",
    ("--sweep=seed=1", "--root=gs://bucket/x"): "is an address; only local paths",
    ("--sweep=seed=1", "--command=no-such-program x"): "no program 'no-such-program'",
    ("--sweep=seed=1", "--backend=tpu_vm", "--parallel=2"): "apply only to --backend=local",
    ("--table",): "holds no sweep",
  }
  # Side by side: most of their time is the import of jax.
  started = [(sweep(*arguments), message) for arguments, message in faults.items()]
  for process, message in started:
    code, out, err = finish(process)
    assert (code, message in err, out) == (2, True, ""), err
    assert "Traceback" not in err
  assert not (tmp_path / "root").exists()
