"""Losses, gradients and states that are not finite."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.quick_runs import QUICK, changed, keeping, one_device_mesh, state_of, steps
from support.quick_runs import one_device as one_device

import sedd_jax
from sedd_jax.batch import Batch
from sedd_jax.data import load_dataset
from sedd_jax.training import objectives as objectives_module
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import Checkpoints, load_meta, newest_whole
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics
from sedd_jax.training.optimizer import OptimizerConfig
from sedd_jax.training.program import Program


@pytest.fixture
def poisoned(monkeypatch):
  """Batches of some steps whose loss is not a number, whatever the parameters."""
  batches = load_dataset(QUICK.data).batches(QUICK.train.batch_size, QUICK.seed)
  entropy = objectives_module.denoising_score_entropy

  def poison(*wanted):
    bad = np.stack([batches[step - 1].tokens[0] for step in wanted])

    def with_poison(stats_fn, batch, *arguments, **keywords):
      hit = jnp.any(jnp.all(jnp.asarray(bad)[:, None, :] == batch.tokens[None], axis=2))
      return entropy(stats_fn, batch, *arguments, **keywords) * jnp.where(hit, jnp.nan, 1.0)

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
  rows = {name: np.array(written[name]) for name in Batch._fields if name in written}
  jax.tree.map(np.testing.assert_array_equal, Batch(**rows), batches[4])
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
  _, metrics = program.step(state, Batch(**rows))
  assert np.isnan(metrics["loss"])
  fault(
    "NaN loss",
    injected=1,
    result="stops; names step and arrays, keeps the last checkpoint, saves the batch",
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
    "NaN losses, `train.skip_nonfinite=2` and 3",
    injected=3,
    result="that many are skipped and counted, also across a restart; the next one stops",
  )


def test_skipped_steps_are_left_out_of_the_mean_loss(tmp_path, poisoned):
  poisoned(3)
  lines = {}
  for every in (1, 4):
    report = dataclasses.replace(QUICK.report, log_every=every)
    experiment = changed(dataclasses.replace(QUICK, report=report), steps=4, skip_nonfinite=1)
    assert train(experiment, tmp_path / str(every)) == 0
    metrics = read_metrics(tmp_path / str(every))
    lines[every] = {
      line["step"]: line["loss_nats_per_sequence"] for line in metrics if "grad_norm" in line
    }
  assert sorted(lines[1]) == [1, 2, 4]
  assert lines[4] == {4: sum(lines[1].values()) / 3}


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
