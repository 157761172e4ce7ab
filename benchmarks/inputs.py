"""Inputs of the benchmarks: random tokens, and perturbed parameters."""

import jax
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.models import Params
from sedd_jax.parallel.mesh import distribute
from sedd_jax.training.program import Program


def token_batches(program: Program, count: int = 4) -> list[Batch]:
  """Batches of random tokens."""
  random, tokens = np.random.default_rng(0), program.batch.tokens
  rows = random.integers(program.vocab_size, size=(count, *tokens.shape), dtype=np.int32)
  return [Batch.of(batch).map(lambda x: distribute(x, tokens.sharding)) for batch in rows]


def disturbed_params(program: Program) -> Params:
  """Initial parameters plus 0.02 times normal noise, since initial scores are constant."""
  network = program.network

  def make(seed):
    key_init, key_noise = jax.random.split(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(network.unpad(network.init(key_init)))
    keys = jax.random.split(key_noise, len(leaves))
    noisy = [
      x + 0.02 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)
    ]
    return network.pad(jax.tree.unflatten(tree, noisy))

  shardings = jax.tree.map(lambda x: x.sharding, program.state.params)
  return jax.jit(make, out_shardings=shardings)(0)
