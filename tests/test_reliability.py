"""A run that nothing destroys: each fault is injected for real."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from support.quick_runs import QUICK, changed, keeping, one_device_mesh, state_of, steps
from support.quick_runs import one_device as one_device
from support.runs import command, wait_for

import sedd_jax
from sedd_jax.files import manifest
from sedd_jax.files.lock import FolderLock, take
from sedd_jax.training import program as program_module
from sedd_jax.training import run as run_module
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import load_meta, newest_whole
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of 8 steps with checkpoints of 2, 4, 6 and 8."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program_module, "make_mesh", one_device_mesh)
    assert train(QUICK, workdir) == 0
  return workdir


@pytest.fixture
def run(whole, tmp_path):
  """A copy of it."""
  return shutil.copytree(whole, tmp_path / "run")


def assert_same(left, right):
  (step, state), (want_step, want) = left, right
  assert step == want_step
  jax.tree.map(np.testing.assert_array_equal, state, want)


# Damage to what was saved.


def flip(path, generator):
  data = bytearray(path.read_bytes())
  data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
  path.write_bytes(data)


def truncate(path, generator):
  os.truncate(path, generator.integers(path.stat().st_size))


def remove(path, generator):
  path.unlink()


DAMAGES = {"one flipped bit": flip, "truncation": truncate, "missing file": remove}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_is_reported_by_name_and_the_checkpoint_before_is_used(run, kind, fault):
  generator = np.random.default_rng(0)
  step = run / "checkpoints" / "8"
  files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
  assert len(files) > 30
  for path in files:
    intact = path.read_bytes()
    DAMAGES[kind](path, generator)
    said = []
    assert newest_whole(run, said.append) == 6, path
    assert str(path.relative_to(step)) in said[0]
    assert "newest whole checkpoint is that of step 6" in said[-1]
    path.write_bytes(intact)
  assert newest_whole(run) == 8
  fault(
    f"{kind} in a checkpoint, each of its files in turn",
    injected=len(files),
    result="the file is named; the checkpoint before is used",
  )


def test_an_empty_checkpoint_is_passed_over(run, fault):
  shutil.rmtree(run / "checkpoints" / "8")
  (run / "checkpoints" / "8").mkdir()
  said = []
  assert newest_whole(run, said.append) == 6
  assert "8 is damaged: the folder is empty" in said[0]
  fault("empty checkpoint folder", injected=1, result="named; the checkpoint before is used")


def test_a_run_goes_on_before_its_damage_which_is_kept(run, whole, tmp_path, capsys, fault):
  """Steps 8 and 6 damaged: from 4 to 8 again, equal to the bit, and nothing is lost."""
  generator = np.random.default_rng(1)
  data = sorted((run / "checkpoints" / "8" / "params").rglob("d/*"))
  flip(data[0], generator)
  (run / "checkpoints" / "6" / "ema" / "manifest.ocdbt").unlink()
  with pytest.warns(UserWarning, match="damaged"):
    assert sedd_jax.load(run).info["step"] == 4
  assert train(QUICK, run) == 0
  out = capsys.readouterr().out
  assert f"8 is damaged: {data[0].relative_to(run / 'checkpoints' / '8')} holds other bytes" in out
  assert "6 is damaged: ema/manifest.ocdbt is missing" in out
  assert "going on from the checkpoint of step 4" in out
  assert steps(run) == {2, 4, 6, 8, "damaged-6", "damaged-8"}
  assert_same(state_of(run), state_of(whole))
  fault(
    "the two newest checkpoints damaged, run resumed",
    injected=1,
    result="resumes from the third, final state equal to the bit; damaged ones are renamed",
  )


def test_without_a_whole_checkpoint_nothing_starts(run, fault):
  for step in (2, 4, 6, 8):
    os.truncate(run / "checkpoints" / str(step) / "params" / "_METADATA", 5)
  before = sorted(run.rglob("*"))
  for start in (lambda: train(QUICK, run), lambda: sedd_jax.load(run)):
    with pytest.raises(ValueError, match=r"(?s)8 is damaged.*2 is damaged.*No checkpoint in") as e:
      start()
    assert "params/_METADATA has 5 bytes, not" in str(e.value)
  assert set(sorted(run.rglob("*"))) - set(before) <= {run / "lock"}
  fault("every checkpoint damaged", injected=2, result="error that names each; nothing is changed")


def test_damaged_checkpoints_do_not_push_out_whole_ones(run, fault):
  os.truncate(run / "checkpoints" / "6" / "params" / "_METADATA", 5)
  assert train(changed(keeping(keep_last=3), steps=10), run) == 0
  assert steps(run) == {4, 6, 8, 10}, "three whole ones, and the damaged one is not removed"
  fault(
    "older checkpoint damaged while `keep_last` removes",
    injected=1,
    result="does not count; one more valid checkpoint is kept",
  )


def test_a_checkpoint_from_before_manifests_is_used_and_said(run):
  metadata = run / "checkpoints" / "8" / "_CHECKPOINT_METADATA"
  content = json.loads(metadata.read_text())
  del content["custom_metadata"]["manifest"]
  metadata.write_text(json.dumps(content))
  (run / "checkpoints" / "8" / manifest.FILE).unlink()
  said = []
  assert newest_whole(run, said.append) == 8
  assert "before checkpoints had manifests" in said[0]


# kill -9.


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again_a_run_ends_equal_to_the_bit(tmp_path, kills, fault):
  generator = np.random.default_rng(kills)
  killed, straight = tmp_path / "killed", tmp_path / "straight"
  always = "--config.checkpoint.every=1"
  in_flight = kept = 0
  for i in range(kills):
    with (tmp_path / "output").open("w") as output:
      process = subprocess.Popen(
        command(killed, "--config.train.steps=1000000", always, "--config.report.log_every=1"),
        stdout=output, stderr=subprocess.STDOUT,
      )  # fmt: skip
    size = _size(killed / "metrics.jsonl")
    wait_for(lambda size=size: _size(killed / "metrics.jsonl") > size, process, "a step")
    # One in four before the first save of this process.
    time.sleep(0.0 if i % 4 == 3 else generator.uniform(0.0, 2.0))
    if i % 2 == 0:  # The others hit whatever they hit.
      wait_for(lambda: any((killed / "checkpoints").glob("*.partial*")), process, "a save")
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = [path.name for path in (killed / "checkpoints").glob("*")]
    in_flight += any(".partial" in name for name in names)
    step = newest_whole(killed, pytest.fail)
    assert (step or 0) >= kept, "a whole checkpoint was lost"
    kept = step or 0
  assert in_flight >= (kills + 1) // 3
  last = kept + 5
  for workdir, *often in ((killed, always), (straight,)):
    done = subprocess.run(
      command(workdir, f"--config.train.steps={last}", *often), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
  experiment = changed(steps=last)
  assert_same(state_of(killed, experiment), state_of(straight, experiment))
  assert not list((killed / "checkpoints").glob("*.partial*")), "leftovers of killed saves"
  fault(
    f"kill -9 at a random moment, {kills} times in one run",
    injected=kills,
    result=f"resumes each time ({in_flight} kills during a save), final state equal to the bit",
  )


def _size(path):
  return path.stat().st_size if path.is_file() else 0


# Signals, and two processes in one directory.


# `sedd train` whose saves take a minute.
# A shell starts what runs in its background with Ctrl-C ignored, and that is inherited.
_SLOW_SAVES = """
import signal, time
from sedd_jax.cli import train
from sedd_jax.files import manifest
signal.signal(signal.SIGINT, signal.default_int_handler)
manifest.write_manifest = lambda folder: time.sleep(60)
train.run()
"""


def test_a_second_process_is_refused_and_a_second_interrupt_leaves_at_once(tmp_path, fault):
  workdir = tmp_path / "run"
  begun = command(workdir, "--config.checkpoint.every=1000000", "--config.data.split=(0.95,0.952)")
  subprocess.run([*begun, "--config.train.steps=2"], check=True, capture_output=True)
  endless = [*begun, "--config.train.steps=1000000", "--config.report.log_every=1"]
  size = _size(workdir / "metrics.jsonl")
  python, _, _, *flags = endless
  slow = [python, "-c", _SLOW_SAVES, *flags]
  process = subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  wait_for(lambda: _size(workdir / "metrics.jsonl") > size, process, "a step")
  second = subprocess.run(endless, capture_output=True, text=True, timeout=120)
  assert second.returncode == 2
  assert f"is in use: process {process.pid} on" in second.stderr
  assert "Traceback" not in second.stderr
  fault(
    "second process on a run directory",
    injected=1,
    result="refused, naming the first's process number",
  )

  process.send_signal(signal.SIGINT)
  wait_for(lambda: any(workdir.glob("checkpoints/*.partial")), process, "a save")
  process.send_signal(signal.SIGINT)
  out, error = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "saving after this step" in error
  assert "saved step" not in out
  assert any((workdir / "checkpoints").glob("*.partial*")), "it waited for the save"
  assert newest_whole(workdir, pytest.fail) == 2
  fault(
    "second Ctrl-C during the save",
    injected=1,
    result="exits at once; complete checkpoints stay complete",
  )


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
  def unsupported(*arguments):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr("fcntl.flock", unsupported)
  said = []
  with FolderLock(tmp_path, said.append), (tmp_path / "other").open("w") as file:
    assert not take(file)
  assert "without locks" in said[0]


# What may not change.


def test_a_changed_tokenizer_is_refused_with_the_difference(run, fault):
  file = run / rundir.TOKENIZER
  content = json.loads(file.read_text())
  characters = next(key for key, value in content.items() if len(value) > 50)
  value = content[characters]
  content[characters] = value[:3] + value[4:5] + value[3:4] + value[5:]
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=rf"(?s)step 8 in .* tokenizer\.{characters}.* -> "):
    train(changed(steps=10), run)
  os.truncate(file, 20)
  with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
    train(changed(steps=10), run)
  fault("tokenizer changed or cut short", injected=2, result="refused, with the difference")


def test_all_differences_are_listed_at_once(run):
  stored = load_meta(run, 8)
  other = json.loads(json.dumps(stored))
  other["config"]["seed"] = 5
  other["config"]["train"]["steps"] = 99
  other["corpus"]["sha256"] = "0"
  with pytest.raises(ValueError, match=r"(?s)config\.seed: 0 -> 5.*corpus\.sha256: ") as e:
    rundir.check_meta(run, 8, stored, other)
  assert "train.steps" not in str(e.value), "it may change"


# Metrics.


def losses(workdir, *names):
  """Step to the values of some keys, of the lines that have them."""
  lines = [line for line in read_metrics(workdir) if "grad_norm" in line]
  return {line["step"]: tuple(line[name] for name in names) for line in lines}


def test_logged_losses_are_means_over_the_steps_since_the_last_line_over_a_restart_too(
  whole, tmp_path, monkeypatch
):
  """Stopped after step 4, between the lines of steps 3 and 6."""
  each = losses(whole, "loss_nats_per_sequence", "last_loss_nats_per_sequence")
  assert sorted(each) == list(range(1, 9))
  assert all(mean == last for mean, last in each.values()), "one step a line"
  each = {step: last for step, (_, last) in each.items()}

  class Stopping(run_module.RunConsole):
    def update(self, step, loss, tokens_per_second):
      super().update(step, loss, tokens_per_second)
      if step == 3:  # Read while step 4 runs.
        signal.raise_signal(signal.SIGTERM)

  report = dataclasses.replace(QUICK.report, log_every=3)
  experiment = dataclasses.replace(QUICK, report=report)
  with monkeypatch.context() as patch:
    patch.setattr(run_module, "RunConsole", Stopping)
    assert train(experiment, tmp_path / "run") == 128 + signal.SIGTERM
  assert load_meta(tmp_path / "run", 4)["unlogged_steps"] == 1
  assert train(experiment, tmp_path / "run") == 0

  def mean(*numbers):
    return sum(each[i] for i in numbers) / len(numbers)

  got = losses(tmp_path / "run", "loss_nats_per_sequence", "last_loss_nats_per_sequence")
  assert got == {3: (mean(1, 2, 3), each[3]), 6: (mean(4, 5, 6), each[6]), 8: (mean(7, 8), each[8])}
  bits = losses(tmp_path / "run", "train_bits_per_char", "last_train_bits_per_char")
  for step, pair in got.items():
    assert bits[step][0] / bits[step][1] == pytest.approx(pair[0] / pair[1])
