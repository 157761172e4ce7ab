"""Watching a run: speed, profile, hangs, compiled programs kept."""

import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from support.command import sedd
from support.experiments import ABSORBING
from support.paths import REPOSITORY
from support.runs import command

from sedd_jax.diffusion import MIN_TIME, Absorbing, Geometric, LogLinear, Uniform
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.parallel.chips import TPUS, device_flops
from sedd_jax.training import operations
from sedd_jax.training.flops import forward_flops, needed_share
from sedd_jax.training.metrics import read_metrics
from sedd_jax.training.operations import Clock, Operations
from sedd_jax.training.program import Program
from sedd_jax.training.startup import startup_report


@pytest.fixture
def program():
  return Program(experiment=ABSORBING, mesh=make_mesh(MeshConfig(fsdp=4)), vocab_size=10)


@pytest.fixture
def now(monkeypatch):
  """A clock that the test moves."""
  time = types.SimpleNamespace(now=100.0)
  monkeypatch.setattr(operations.time, "monotonic", lambda: time.now)
  return time


def test_clock_leaves_out_the_first_step_after_a_pause(program, now):
  clock = Clock(program)
  assert clock.read(1) == {}
  now.now += 4.0
  assert clock.read(3) == {"step_seconds": 2.0, "tokens_per_second": 16 * 8 / 2.0}
  clock.pause()
  now.now += 1000.0
  assert clock.read(4)["step_seconds"] == 2.0, "the evaluation counted"
  now.now += 1.0
  assert clock.read(5)["step_seconds"] == 1.0


def test_mfu_is_the_models_own_work_over_the_peak_of_all_devices(program, now, monkeypatch):
  monkeypatch.setattr(operations, "device_flops", lambda kind: 1e9)
  clock = Clock(program)
  clock.read(1)
  now.now += 0.5
  share = needed_share(program.network.process, program.score_entropy.noise)
  want = 3 * forward_flops(program.network, 16, 8, share) / 0.5 / 4e9
  np.testing.assert_allclose(clock.read(2)["mfu"], want)


def test_forward_flops_by_hand(program):
  """Two blocks of width 16, 11 states, 16 sequences of 8 tokens, conditioning of width 8."""
  per_token = 2 * (3 * 16 * 16 + 16 * 16 + 2 * 16 * 64) + 2 * (2 * 8 * 16) + 16 * 11
  modulation = 2 * 8 * 96 + 8 * 32
  assert forward_flops(program.network, 16, 8) == 2 * (16 * 8 * per_token + 16 * modulation)
  half = 16 * 11 / 2
  want = 2 * (16 * 8 * (per_token - half) + 16 * modulation)
  assert forward_flops(program.network, 16, 8, 0.5) == want


@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_masked_positions_alone_need_the_output_layer(eps):
  # Log-linear noise masks (1 - eps) t of the tokens, and t is spread over [MIN_TIME, 1].
  want = (1.0 - eps) * (1.0 + MIN_TIME) / 2
  assert needed_share(Absorbing(10), LogLinear(eps)) == pytest.approx(want, rel=1e-6)
  geometric = needed_share(Absorbing(10), Geometric())
  t = np.linspace(MIN_TIME, 1.0, 200_001)
  masked = -np.expm1(-(1e-4 ** (1.0 - t)) * 20.0**t)
  assert geometric == pytest.approx(np.trapezoid(masked, t) / (1.0 - MIN_TIME), rel=1e-5)
  assert needed_share(Uniform(10), LogLinear(eps)) == 1.0


def test_peaks_of_devices():
  assert device_flops("TPU v5 lite") == TPUS["v5e"].flops
  assert device_flops("TPU v5p") == device_flops("TPU v5") == TPUS["v5p"].flops
  assert device_flops("NVIDIA H200") == 989e12
  assert device_flops("cpu") is None


def test_startup_report_says_what_runs_where(program):
  dataset = types.SimpleNamespace(
    train_rows=[np.zeros((1234, 8))], heldout_rows=np.zeros((5, 8)), identity={"name": "toy"}
  )
  text = startup_report(program, dataset)
  assert f"{program.network.num_parameters():,} parameters" in text
  assert "1,234 training" in text.replace("\n", " ")
  assert "4 device(s) (cpu), 1 process(es); mesh: replica 1 x fsdp 4 x tensor 1" in text
  assert "4 sequence(s) of 16 at a time" in text
  state = program.create()
  held = sum(
    x.addressable_shards[0].data.nbytes
    for x in jax.tree.leaves(state)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )
  assert program.bytes_per_device() == held


@pytest.mark.parametrize("text", ["5", "a..b", "3..", "5..4", "0..2"])
def test_bad_profile_ranges_are_refused(tmp_path, text):
  config = f"--config={REPOSITORY}/configs/quickstart.py"
  done = sedd("train", config, f"--workdir={tmp_path / 'run'}", f"--profile_steps={text}")
  assert done.returncode == 2
  assert f"--profile_steps={text} must be" in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("steps", "made", "said"),
  [
    (None, (0, 10), False),
    ((3, 5), (0, 10), False),
    ((3, 5), (4, 10), False),
    ((3, 5), (5, 10), True),
    ((8, 12), (0, 10), False),
    ((11, 12), (0, 10), True),
  ],
)
def test_profile_that_a_run_misses_is_said(tmp_path, steps, made, said):
  profile = operations.Profile(steps, tmp_path, lead=True)
  assert bool(profile.missed(*made)) == said


def test_profile_starts_late_in_a_resumed_run_and_ends_with_it(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  with operations.Profile((3, 9), tmp_path, lead=True) as profile:
    for step in (5, 6):
      profile.before(step)
      profile.after(step, None)
    profile.stop()
  assert calls == ["start", "stop"]
  with operations.Profile((3, 9), tmp_path, lead=False) as profile:
    profile.before(3)
  assert calls == ["start", "stop"], "process 0 alone writes"


@pytest.mark.parametrize("seconds", [-1.0, 1e9])
def test_hang_seconds_out_of_range_are_refused(seconds):
  with pytest.raises(ValueError, match="--hang_seconds="):
    Operations(hang_seconds=seconds)


def test_watchdog_prints_the_stack_of_a_step_that_hangs():
  code = """
import time
from sedd_jax.training.operations import Watchdog
def a_collective_that_nobody_joins():
  time.sleep(3)
with Watchdog(0.5) as dog:
  time.sleep(0.3)
  dog.alive()
  time.sleep(0.3)  # Silent so far: something happened in between.
  a_collective_that_nobody_joins()
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
  )
  assert "a_collective_that_nobody_joins" in done.stderr
  assert done.stderr.count("Timeout (0:00:00.5") > 1, "said once only"


@pytest.mark.slow
def test_profile_and_compilation_cache_of_a_run(tmp_path):
  cache = tmp_path / "cache"
  run = [
    *command(tmp_path / "run", "--config.train.steps=6"), f"--compilation_cache={cache}",
    "--profile_steps=3..4", "--config.report.log_every=1",
  ]  # fmt: skip
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  subprocess.run(run, check=True, cwd=REPOSITORY, env=environment, capture_output=True)
  assert list((tmp_path / "run" / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb"))
  assert any("train_step" in entry.name for entry in cache.iterdir())
  last = next(line for line in reversed(read_metrics(tmp_path / "run")) if "grad_norm" in line)
  assert {"step_seconds", "tokens_per_second", "input_wait_seconds"} <= last.keys()
  assert "mfu" not in last, "a CPU has no peak in the table"


@pytest.mark.slow
def test_bucket_as_workdir_is_refused_with_what_would_do():
  run = [*command("gs://bucket/run", "--config.train.steps=6")]
  done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=REPOSITORY)
  assert done.returncode == 2
  assert "gcsfuse" in done.stderr
