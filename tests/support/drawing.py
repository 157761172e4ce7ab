"""Draws of samplers from toys."""

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import DenseScores, Given, Sampling, even_times, sample

DRAWS = 30_000


def sampling_of(process, noise, sampler, num_steps=4, **rest):
  schedule = even_times(num_steps, noise)
  return Sampling(process=process, noise=noise, sampler=sampler, schedule=schedule, **rest)


def drawn_counts(toy, how, given=None, draws=DRAWS):
  """int[N]: sequences that `sample` draws, in float32. given: a token or None for each position."""
  tokens = jnp.array([0 if g is None else g for g in given or [None] * toy.length])
  where = jnp.array([g is not None for g in given or [None] * toy.length])
  shape = (draws, toy.length)
  kept = Given(jnp.broadcast_to(tokens, shape), jnp.broadcast_to(where, shape))
  run = jax.jit(lambda keys: sample(DenseScores(toy.log_score_fn), keys, how, given=kept).x)
  x = np.asarray(run(jax.random.split(jax.random.key(0), draws)))
  return np.bincount(toy.index(x), minlength=len(toy.states))
