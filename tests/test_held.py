"""Weights that a run holds: no gradient, moments or average; saved once, sharded like others."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from support.experiments import TINY
from support.networks import random_params, small_network

import sedd_jax
from sedd_jax.batch import Batch
from sedd_jax.diffusion import Absorbing
from sedd_jax.models.layers import flat
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.training.experiment import TrainConfig
from sedd_jax.training.loop import train
from sedd_jax.training.program import Program
from sedd_jax.training.state import merged, split

HELD = ("ends/embedding/embedding", "blocks/mlp_in/kernel", "blocks/mlp_in/bias")
HOLD = "embedding|mlp_in"


def holding(steps=4, mesh=None, **fields):
  return dataclasses.replace(
    TINY,
    train=TrainConfig(steps=steps, batch_size=4, hold=HOLD),
    mesh=mesh or TINY.mesh,
    **fields,
  )


def program_of(experiment, devices=4):
  mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
  return Program(experiment=experiment, mesh=mesh, vocab_size=10)


def test_split_and_merged_are_inverse():
  params = random_params(small_network(Absorbing(10)))
  trained, held = split(params, HELD)
  assert set(flat(held)) == set(HELD)
  assert not set(flat(trained)) & set(HELD)
  whole = merged(trained, held)
  assert jax.tree.structure(whole) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, whole, params)
  assert merged(params, {}) is params


def num_entries(state):
  return sum(x.size for x in jax.tree.leaves(state.replace(key=None)))


def test_held_weights_have_no_moments_and_no_average():
  state, of_all = (program_of(experiment).state for experiment in (holding(), TINY))
  assert set(flat(state.held)) == set(HELD)
  size = sum(x.size for x in jax.tree.leaves(state.held))
  assert num_entries(of_all) - num_entries(state) == 3 * size


def test_held_weights_are_an_argument_of_the_compiled_step():
  program = program_of(holding(mesh=MeshConfig(replica=1, fsdp=1, tensor=1)), devices=1)
  batch = Batch.of(np.zeros((4, 32), np.int32))
  losses = []
  for factor in (1.0, 2.0):
    state = program.create()
    state = state.replace(held=jax.tree.map(lambda x, factor=factor: x * factor, state.held))
    state, _ = program.step(state, batch)  # The first output layer is 0: no loss depends on others.
    losses.append(float(program.step(state, batch)[1]["loss"]))
  assert losses[0] != losses[1]
  assert program.step._cache_size() == 1


def test_held_weights_are_sharded_by_the_same_table():
  mesh = MeshConfig(fsdp=2, tensor=2)
  held = program_of(holding(mesh=mesh)).state
  of_free = flat(program_of(dataclasses.replace(TINY, mesh=mesh)).state.params)
  for name, x in flat(held.held).items():
    assert x.sharding == of_free[name].sharding
  assert held.held["ends"]["embedding"]["embedding"].sharding.spec == jax.P("tensor", "fsdp")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run that holds some of its weights."""
  workdir = tmp_path_factory.mktemp("held") / "run"
  assert train(holding(), workdir) == 0
  return workdir


def test_held_weights_stay_and_the_others_move(run):
  model = sedd_jax.load(run)
  fresh = flat(model.network.init(jax.random.split(jax.random.key(TINY.seed))[0]))
  for name, x in flat(model.params).items():
    same = np.array_equal(np.asarray(x), np.asarray(fresh[name]))
    assert same == (name in HELD), name


def test_held_weights_are_saved_once(run):
  folder = run / "checkpoints"
  steps = [path for path in folder.iterdir() if path.name.isdigit()]
  assert steps
  assert (folder / "held" / "manifest.json").is_file()
  assert not [path for step in steps for path in step.rglob("*held*")]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
  assert train(holding(steps=8), tmp_path / "whole") == 0
  assert train(holding(steps=4), tmp_path / "parts") == 0
  manifest = tmp_path / "parts" / "checkpoints" / "held" / "manifest.json"
  before = manifest.stat().st_mtime_ns
  assert train(holding(steps=8), tmp_path / "parts") == 0
  assert manifest.stat().st_mtime_ns == before
  whole, parts = (sedd_jax.load(tmp_path / name).params for name in ("whole", "parts"))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_damaged_held_weights_are_named(run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(run, copy)
  files = [path for path in (copy / "checkpoints" / "held").rglob("*") if path.is_file()]
  file = max(files, key=lambda path: path.stat().st_size)
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"held weights in .* are damaged"):
    sedd_jax.load(copy)


def test_missing_held_weights_are_named(run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(run, copy)
  shutil.rmtree(copy / "checkpoints" / "held")
  for use in (lambda: sedd_jax.load(copy), lambda: train(holding(steps=8), copy)):
    with pytest.raises(ValueError, match=r"held weights in .* are damaged: the folder is miss"):
      use()


def test_held_weights_of_another_run_are_refused(run, tmp_path):
  assert train(holding(steps=1, seed=1), tmp_path / "other") == 0
  copy = tmp_path / "run"
  shutil.copytree(run, copy)
  shutil.rmtree(copy / "checkpoints" / "held")
  shutil.copytree(tmp_path / "other" / "checkpoints" / "held", copy / "checkpoints" / "held")
  with pytest.raises(ValueError, match="not those of this checkpoint"):
    sedd_jax.load(copy)


@pytest.mark.slow
def test_held_weights_of_an_earlier_start_are_replaced(tmp_path):
  """A kill may leave them without a checkpoint; the next start may hold others."""
  folder = tmp_path / "run" / "checkpoints"
  assert train(holding(seed=1), tmp_path / "run") == 0
  earlier = sedd_jax.load(tmp_path / "run").params
  for step in folder.glob("[0-9]*"):
    shutil.rmtree(step)
  file = tmp_path / "run" / "config.json"  # The same run, but another start.
  file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": 2}))
  assert train(holding(seed=2), tmp_path / "run") == 0
  model = sedd_jax.load(tmp_path / "run")
  fresh = flat(model.network.init(jax.random.split(jax.random.key(2))[0]))
  for name in HELD[:2]:
    np.testing.assert_array_equal(flat(model.params)[name], fresh[name])
    assert np.any(np.asarray(flat(earlier)[name]) != fresh[name])


@pytest.mark.parametrize(("hold", "message"), [("nobody", "none"), (".", "all")])
def test_a_pattern_that_holds_nothing_or_all_is_refused(hold, message):
  experiment = dataclasses.replace(TINY, train=TrainConfig(steps=1, batch_size=4, hold=hold))
  with pytest.raises(
    ValueError, match=rf"train.hold='{re.escape(hold)}' matches {message} of the param"
  ):
    program_of(experiment)


def test_a_pattern_that_is_none_is_refused():
  with pytest.raises(ValueError, match=r"train.hold='\(' must be a regular expression"):
    TrainConfig(hold="(")
