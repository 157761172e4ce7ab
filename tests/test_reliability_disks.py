"""Disks that fill up, close or vanish under a run."""

import contextlib
import json
import shutil
import subprocess
import time

import pytest
from support.quick_runs import QUICK, changed, keeping, steps
from support.quick_runs import one_device as one_device

from sedd_jax.training import checkpoints as checkpoints_module
from sedd_jax.training import run as run_module
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import newest_whole, room_note
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import MetricsWriter, read_metrics


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
    class Console(run_module.RunConsole):
      def update(self, step, loss, tokens_per_second):
        super().update(step, loss, tokens_per_second)
        actions.pop(step, lambda: None)()  # Once: the run may come by again.

    monkeypatch.setattr(run_module, "RunConsole", Console)

  return set_up


def test_disks_that_fill_up_or_close_cost_checkpoints_and_nothing_else(
  disk, at_steps, monkeypatch, capsys, fault
):
  """Saves every 4 steps; what is done after a step hits the next save."""
  workdir = disk / "run"
  check_room = checkpoints_module.check_room

  failed = []
  tell = checkpoints_module.unsaved_message
  monkeypatch.setattr(
    checkpoints_module, "unsaved_message", lambda *arguments: failed.append(0) or tell(*arguments)
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
  fault(
    "full disk at a save", injected=2, result="reported; training continues; the next save succeeds"
  )
  fault(
    "disk read-only at the last save",
    injected=1,
    result="exit code 2; earlier checkpoints stay, and the run resumes from them",
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
  fault("run directory removed", injected=1, result="reported at each save; exit code 2 at the end")


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
  fault(
    "full disk before training", injected=2, result="refused, with the free and the needed space"
  )
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
  fault(
    "full disk while writing metrics",
    injected=198,
    result="reported once; only complete lines stay",
  )
