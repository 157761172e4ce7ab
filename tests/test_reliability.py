"""A run that nothing destroys: each fault is injected for real."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import TINY
from support.runs import command, final_state, wait_for

import sedd_jax
from sedd_jax.data import DataConfig, load_dataset
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.training import checkpoints as checkpoints_module
from sedd_jax.training import loop, manifest, rundir
from sedd_jax.training import objectives as objectives_module
from sedd_jax.training import program as program_module
from sedd_jax.training.checkpoints import Checkpoints, load_meta, newest_whole, room_note
from sedd_jax.training.experiment import CheckpointConfig
from sedd_jax.training.lock import FolderLock, take
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import MetricsWriter, read_metrics
from sedd_jax.training.optimizer import OptimizerConfig
from sedd_jax.training.program import Program

QUICK = dataclasses.replace(
  TINY,
  data=DataConfig(length=32, split=(0.95, 0.952)),
  report=dataclasses.replace(
    TINY.report, log_every=1, evaluate_every=0, preview_every=0, samples=1
  ),
  checkpoint=CheckpointConfig(every=2, keep_last=4, keep_every=0),
  mesh=MeshConfig(replica=1, fsdp=1),
)


def changed(experiment=QUICK, **train):
  return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **train))


def keeping(**fields):
  return dataclasses.replace(QUICK, checkpoint=dataclasses.replace(QUICK.checkpoint, **fields))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The mesh of one device needs no other."""
  monkeypatch.setattr(program_module, "make_mesh", one_device_mesh)


def one_device_mesh(config):
  return make_mesh(config, devices=jax.devices()[:1])


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


def steps(workdir):
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  return {int(name) if name.isdigit() else name for name in names}


def state_of(workdir, experiment=QUICK):
  step, state = final_state(workdir, dataclasses.replace(experiment, mesh=MeshConfig(fsdp=4)))
  return step, state


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
    result="goes on from the third, ends equal to the bit; the damaged ones are kept aside",
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
    result="does not count; a whole one more stays",
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
    result=f"goes on each time ({in_flight} kills during a save), ends equal to the bit",
  )


def _size(path):
  return path.stat().st_size if path.is_file() else 0


# Signals, and two processes in one directory.


# `sedd train` whose saves take a minute.
# A shell starts what runs in its background with Ctrl-C ignored, and that is inherited.
_SLOW_SAVES = """
import signal, time
from sedd_jax.cli import train
from sedd_jax.training import manifest
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
  fault("second process on a run directory", injected=1, result="refused, with the first's number")

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
    "second Ctrl-C during the save", injected=1, result="leaves at once; what was whole stays so"
  )


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
  def unsupported(*arguments):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr("fcntl.flock", unsupported)
  said = []
  with FolderLock(tmp_path, said.append), (tmp_path / "other").open("w") as file:
    assert not take(file)
  assert "without locks" in said[0]


# Disks.


@pytest.fixture
def disk(tmp_path):
  """A small file system of its own, 4 MiB."""
  path = tmp_path / "disk"
  path.mkdir()
  small = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
  if subprocess.run(small, capture_output=True).returncode:
    pytest.skip("this machine does not let tests mount a file system")
  yield path
  subprocess.run(["umount", "-l", str(path)], check=True)


def mount(*arguments):
  subprocess.run(["mount", *map(str, arguments)], check=True)


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def fill(disk):
  with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
    while file.write(bytes(4096)):
      pass


@pytest.fixture
def at_steps(monkeypatch):
  """Does things after steps of a run in this process."""

  def set_up(actions):
    class Console(loop.RunConsole):
      def update(self, step, loss, tokens_per_second):
        super().update(step, loss, tokens_per_second)
        actions.pop(step, lambda: None)()  # Once: the run may come by again.

    monkeypatch.setattr(loop, "RunConsole", Console)

  return set_up


def test_disks_that_fill_up_or_close_cost_checkpoints_and_nothing_else(
  disk, at_steps, monkeypatch, capsys, fault
):
  """Saves every 4 steps; what is done after a step hits the next save."""
  workdir = disk / "run"
  check_room = checkpoints_module.check_room

  failed = []
  tell = checkpoints_module._unsaved
  monkeypatch.setattr(
    checkpoints_module, "_unsaved", lambda *arguments: failed.append(0) or tell(*arguments)
  )

  def unforeseen():
    fill(disk)
    monkeypatch.setattr(checkpoints_module, "check_room", lambda *arguments: None)

  def close():
    mount(workdir / "checkpoints", "--bind", workdir / "checkpoints")
    mount("-o", "remount,ro,bind", workdir / "checkpoints")

  def free():
    wait_until(lambda: failed)
    failed.clear()
    (disk / "filler").unlink()
    monkeypatch.setattr(checkpoints_module, "check_room", check_room)

  def after(step, action):
    """Saves go on in the background: the fault is to hit the next one."""
    wait_until(lambda: (workdir / "checkpoints" / str(step)).exists())
    action()

  at_steps({
    5: lambda: after(4, lambda: fill(disk)), 9: free,  # Step 8 is not saved, and 12 is.
    13: lambda: after(12, unforeseen), 17: free,  # Step 16 fails in the middle, and 20 is saved.
    25: lambda: after(24, close),  # Step 28, the last one, cannot be saved.
  })  # fmt: skip
  experiment = changed(keeping(every=4, keep_last=2), steps=28)
  with pytest.raises(OSError, match="STEP 28 WAS NOT SAVED"):
    train(experiment, workdir)
  subprocess.run(["umount", str(workdir / "checkpoints")], check=True)
  out = capsys.readouterr().out
  for step in (8, 16):
    assert f"THE CHECKPOINT OF STEP {step} WAS NOT SAVED" in out
  assert "MiB are free, and a checkpoint needs" in out
  assert "No space left on device" in out
  assert steps(workdir) == {20, 24}
  assert newest_whole(workdir, pytest.fail) == 24
  lost = set(range(1, 29)) - {line["step"] for line in read_metrics(workdir)}
  assert lost <= {*range(5, 9), *range(13, 17)}, "the last page of a file may have room"
  assert train(experiment, workdir) == 0
  assert newest_whole(workdir, pytest.fail) == 28
  fault("full disk at a save", injected=2, result="said; training goes on; the next save is whole")
  fault(
    "disk read-only at the last save",
    injected=1,
    result="exit code 2; the checkpoints before stay, and the run goes on from them",
  )


def test_a_directory_that_vanishes_is_not_made_again(tmp_path, at_steps, capsys, fault):
  workdir = tmp_path / "run"

  def vanish():
    wait_until(lambda: (workdir / "checkpoints" / "2").exists())
    time.sleep(0.5)  # The save's thread looks for what is old.
    shutil.rmtree(workdir)

  at_steps({3: vanish})
  with pytest.raises(OSError, match="is not there any more"):
    train(changed(steps=6), workdir)
  assert not workdir.exists()
  assert "THE CHECKPOINT OF STEP 4 WAS NOT SAVED" in capsys.readouterr().out
  fault("run directory removed", injected=1, result="said at each save; exit code 2 at the end")


def test_disks_that_cannot_do_are_refused_before_training(disk, fault):
  fill(disk)
  with pytest.raises(OSError, match=r"cannot be written to|MiB are free, and a checkpoint needs"):
    train(QUICK, disk / "run")
  (disk / "filler").unlink()
  with (disk / "filler").open("wb") as file:
    file.write(bytes(int(3.2 * 2**20)))
  with pytest.raises(OSError, match="MiB are free, and a checkpoint needs"):
    train(QUICK, disk / "run")
  assert not (disk / "run" / rundir.CONFIG).exists(), "it had begun"
  (disk / "filler").unlink()
  assert "the run will keep 40 more checkpoints of 1 MiB" in room_note(disk, 2**20, 40)
  assert room_note(disk, 2**20, 1) is None
  mount("-o", "remount,ro", disk)
  with pytest.raises(OSError, match="cannot be written to: Read-only file system"):
    train(QUICK, disk / "run")
  fault("full disk before training", injected=2, result="refused, with what is free and needed")
  fault("read-only directory before training", injected=1, result="refused by name")


def test_metrics_lost_to_a_full_disk_leave_whole_lines(disk, fault):
  said = []
  with MetricsWriter(disk, 1, said.append) as metrics:
    metrics.write(1, {"loss": 1.0})
    fill(disk)
    for step in range(2, 200):
      metrics.write(step, {"loss": 2.0, "padding": 0.123456789})
    (disk / "filler").unlink()
    metrics.write(200, {"loss": 3.0})
  written = [json.loads(line)["step"] for line in (disk / "metrics.jsonl").read_text().splitlines()]
  assert written[0] == 1
  assert written[-1] == 200
  assert len(written) < 199
  assert sum("metrics are lost" in text for text in said) == 1
  fault("full disk at lines of metrics", injected=198, result="said once; only whole lines stay")


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


# Losses and gradients that are not finite.


@pytest.fixture
def poisoned(monkeypatch):
  """Batches of some steps whose loss is not a number, whatever the parameters."""
  batches = load_dataset(QUICK.data).batches(QUICK.train.batch_size, QUICK.seed)
  entropy = objectives_module.denoising_score_entropy

  def poison(*wanted):
    bad = np.stack([batches[step - 1][0] for step in wanted])

    def with_poison(scores, x0, *arguments, **keywords):
      hit = jnp.any(jnp.all(jnp.asarray(bad)[:, None, :] == x0[None], axis=2))
      return entropy(scores, x0, *arguments, **keywords) * jnp.where(hit, jnp.nan, 1.0)

    monkeypatch.setattr(objectives_module, "denoising_score_entropy", with_poison)
    return batches

  return poison


def test_a_loss_that_is_not_finite_stops_the_run_and_is_written_down(tmp_path, poisoned, fault):
  batches = poisoned(5)
  workdir = tmp_path / "run"
  with pytest.raises(FloatingPointError, match=r"step 5: the loss is nan.*arrays of the gradient"):
    train(changed(steps=8), workdir)
  assert steps(workdir) == {2, 4}
  assert newest_whole(workdir, pytest.fail) == 4
  written = json.loads((workdir / "nonfinite" / "step_00000005.json").read_text())
  assert (written["step"], written["seed"], written["batch"]) == (5, 0, 4)
  assert [tuple(place) for place in written["indices"]] == batches.indices(4)
  np.testing.assert_array_equal(written["tokens"], batches[4])
  assert "ends/output/kernel" in written["not_finite"]

  # What docs/reliability.md says of a replay.
  program = Program(
    experiment=QUICK,
    mesh=one_device_mesh(QUICK.mesh),
    vocab_size=sedd_jax.load(workdir).network.process.vocab_size,
  )
  with Checkpoints(workdir, program.network) as checkpoints:
    state = checkpoints.load_state(4, program.state)
  state = dataclasses.replace(state, step=jnp.int32(written["step"] - 1))
  _, metrics = program.step(state, np.array(written["tokens"], np.int32))
  assert np.isnan(metrics["loss"])
  fault(
    "loss that is not a number",
    injected=1,
    result="stops; names step and arrays, keeps the last checkpoint, writes the batch down",
  )


def test_a_run_that_diverges_keeps_finite_checkpoints(tmp_path, fault):
  wild = dataclasses.replace(
    changed(keeping(every=1), steps=50),
    optimizer=OptimizerConfig(learning_rate=1e15, warmup=0, clip=0.0),
  )
  with pytest.raises(FloatingPointError, match=r"step \d+: "):
    train(wild, tmp_path / "run")
  step, state = state_of(tmp_path / "run", wild)
  assert step >= 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  fault("a learning rate of 1e15", injected=1, result="stops; the checkpoints are finite")


def test_steps_that_are_not_finite_are_skipped_and_counted_over_a_restart(
  tmp_path, poisoned, capsys, fault
):
  poisoned(3, 6, 7)
  workdir = tmp_path / "run"
  assert train(changed(steps=4, skip_nonfinite=2), workdir) == 0
  assert load_meta(workdir, 4)["skipped_steps"] == 1
  with pytest.raises(FloatingPointError, match=r"step 7: .*\(2 such steps may be skipped"):
    train(changed(steps=8, skip_nonfinite=2), workdir)
  assert train(changed(steps=8, skip_nonfinite=3), workdir) == 0
  counted = {d["step"]: d["skipped_steps"] for d in read_metrics(workdir) if "grad_norm" in d}
  assert counted == {1: 0, 2: 0, 4: 1, 5: 1, 8: 3}
  assert "Skipped, 3 of at most 3" in capsys.readouterr().out
  step, state = state_of(workdir, changed(steps=8))
  assert step == 8
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  fault(
    "losses that are not a number, `train.skip_nonfinite=2` and 3",
    injected=3,
    result="so many are skipped and counted, over a restart too; the next one stops",
  )


def test_a_skipped_step_changes_nothing_but_the_count(poisoned):
  batches = poisoned(1)
  program = Program(
    experiment=changed(skip_nonfinite=1), mesh=one_device_mesh(QUICK.mesh), vocab_size=103
  )
  before = jax.device_get(dataclasses.replace(program.create(), key=0))
  state, _ = program.step(program.create(), batches[0])
  after = dataclasses.replace(state, key=0)
  assert int(after.step) == 1
  unmoved = dataclasses.replace(after, step=before.step)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(unmoved), before)
  state, metrics = program.step(state, batches[1])
  assert np.isfinite(metrics["loss"])
  assert np.any(np.asarray(state.params["ends"]["output"]["kernel"]) != 0.0)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, fault):
  """Its loss and gradient were finite: the update itself overflowed."""
  program = Program(experiment=QUICK, mesh=one_device_mesh(QUICK.mesh), vocab_size=103)
  state = program.create()
  state.params["ends"]["output"]["kernel"] = (
    state.params["ends"]["output"]["kernel"].at[0, 0].set(jnp.inf)
  )
  (tmp_path / rundir.CONFIG).write_text("{}")
  with (
    Checkpoints(tmp_path, program.network) as checkpoints,
    pytest.raises(FloatingPointError, match=r"1 of \d+ arrays .*params/ends/output/kernel"),
  ):
    checkpoints.save(state, {})
  assert not (tmp_path / "checkpoints").exists()
  fault("parameters overflow in an update", injected=1, result="stops at the save, by name")
