"""Muon: what moves by it, how far, and that a run with it resumes and is sharded like any other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import TINY, with_steps
from support.networks import random_params, small_network
from support.runs import final_state

from sedd_jax.diffusion import Absorbing
from sedd_jax.models.layers import flat
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.training.loop import train
from sedd_jax.training.optimizer import OptimizerConfig, make_optimizer
from sedd_jax.training.program import Program

MATRICES = {f"blocks/{name}/kernel" for name in ("qkv", "attn_out", "mlp_in", "mlp_out")}
MUON = dataclasses.replace(TINY, optimizer=dataclasses.replace(TINY.optimizer, name="muon"))


def updates(seed=0, **config):
  """The first updates of a small network's parameters by random gradients."""
  network = small_network(Absorbing(11))
  params = random_params(network)
  settings = OptimizerConfig(learning_rate=1.0, warmup=0, clip=0.0, **config)
  optimizer = make_optimizer(settings, 10, network.table)
  keys = jax.tree.unflatten(
    jax.tree.structure(params),
    list(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))),
  )
  grads = jax.tree.map(lambda x, key: jax.random.normal(key, x.shape), params, keys)
  found, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  return flat(found), flat(grads), flat(params)


def each_matrix(array):
  """[blocks, D, ..., E] as matrices [n, D, E]."""
  return np.moveaxis(np.asarray(array), 1, -2).reshape(-1, array.shape[1], array.shape[-1])


@pytest.mark.parametrize("seed", range(3))
def test_each_blocks_matrix_is_orthogonalised_by_itself(seed):
  """Queries, keys and values too. Five Newton-Schulz steps bring singular values to between 0.65
  and 1.25, but for those that were nearly 0."""
  found, grads, _ = updates(seed, name="muon", muon_factor=1.0)
  for name in MATRICES:
    side = max(found[name].shape[1], found[name].shape[-1])
    for update, grad in zip(each_matrix(found[name]), each_matrix(grads[name]), strict=True):
      values = np.linalg.svd(update / (0.2 * side**0.5), compute_uv=False)
      u, sizes, v = np.linalg.svd(grad, full_matrices=False)
      large = sizes > 0.02 * np.linalg.norm(sizes)
      assert large.sum() > 0.8 * len(sizes)
      assert values.max() < 1.25
      assert values[: large.sum()].min() > 0.65
      # It descends, in the directions of its own gradient's singular vectors.
      inside = -u.T @ update @ v.T
      np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-2 * side**0.5)
      assert (np.diag(inside) > 0).all()


def test_all_else_moves_as_by_adamw():
  by_muon, _, _ = updates(name="muon")
  by_adamw, _, _ = updates()
  assert by_muon.keys() == by_adamw.keys() > MATRICES
  for name in by_adamw:
    same = np.array_equal(by_muon[name], by_adamw[name])
    assert same == (name not in MATRICES), name


def test_updates_are_as_large_as_adamws():
  """0.2 for each entry of a square matrix, times the factor; longer sides have fewer directions."""
  found, _, _ = updates(name="muon", muon_factor=2.0)
  for name in MATRICES:
    assert np.sqrt(np.mean(np.square(found[name]))) == pytest.approx(0.4, rel=0.25), name


def test_weight_decay_is_decoupled_and_on_kernels_only():
  plain, _, params = updates(name="muon", muon_factor=2.0)
  decayed, _, _ = updates(name="muon", muon_factor=2.0, weight_decay=0.1)
  for name, update in plain.items():
    rate = 2.0 if name in MATRICES else 1.0
    want = -0.1 * rate * params[name] if name.endswith("kernel") else jnp.zeros_like(update)
    np.testing.assert_allclose(decayed[name] - update, want, atol=1e-5)


def test_moments_are_sharded_by_the_table():
  experiment = dataclasses.replace(MUON, mesh=MeshConfig(fsdp=2, tensor=2))
  program = Program(experiment=experiment, mesh=make_mesh(experiment.mesh), vocab_size=50)
  table = program.network.table
  seen = set()
  for path, leaf in jax.tree.leaves_with_path(program.state.opt_state):
    if (layer := table.of_path(path)) is not None:
      assert leaf.sharding.spec == table.specs[layer.name]
      seen.add(layer.name)
  assert seen == {layer.name for layer in table}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
  constant = dataclasses.replace(
    MUON, optimizer=dataclasses.replace(MUON.optimizer, schedule="constant")
  )
  for steps, name in ((8, "whole"), (4, "cut"), (8, "cut")):
    assert train(with_steps(steps, constant), tmp_path / name) == 0
  (step, whole), (same, cut) = (final_state(tmp_path / name, constant) for name in ("whole", "cut"))
  assert step == same == 8
  jax.tree.map(np.testing.assert_array_equal, whole, cut)


@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"name": "sgd"}, "optimizer.name='sgd' must be 'adamw' or 'muon'"),
    ({"muon_factor": 0.0}, "optimizer.muon_factor=0.0 must be positive"),
    ({"muon_beta": 1.0}, r"optimizer.muon_beta=1.0 must lie in \[0, 1\)"),
  ],
)
def test_settings_that_are_none_are_refused(fields, why):
  with pytest.raises(ValueError, match=why):
    OptimizerConfig(**fields)
