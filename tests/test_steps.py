"""The bound in discrete time (D3PM's, absorbing) against enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.masked_toys import masked_toy
from support.statistics import assert_mean

from sedd_jax.batch import Batch
from sedd_jax.diffusion import DenseNetwork, LogLinear, Steps

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")
STEPS = 3


def step_bound(toy, num_steps):
  """float64[M]: the sum over steps i of 1 / i times the cross entropy of what is masked at i."""
  bound = np.zeros(len(toy.clean))
  for k in range(1, toy.length + 1):
    for hidden in itertools.combinations(range(toy.length), k):
      losses = toy.cross_entropies(hidden, 99.0)[:, list(hidden)].sum(1)
      for i in range(1, num_steps + 1):
        share = i / num_steps
        bound += losses * share**k * (1 - share) ** (toy.length - k) / i
  return bound


def sampled_law(toy, num_steps):
  """float64[M]: the law of the ancestral sampler, in which step i keeps a mask with (i - 1) / i."""
  mask = toy.process.mask_id
  vocab = toy.process.vocab_size
  law = {(mask,) * toy.length: 1.0}
  for i in range(num_steps, 0, -1):
    after = {}
    for x, p in law.items():
      raw = np.asarray(toy.raw(jnp.asarray([x]), jnp.ones(1)))[0, :, :vocab]
      unmask = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
      choices = [
        [(y, unmask[j, y] / i) for y in range(vocab)] + [(mask, 1 - 1 / i)]
        if token == mask
        else [(token, 1.0)]
        for j, token in enumerate(x)
      ]
      for combination in itertools.product(*choices):
        to, chance = zip(*combination, strict=True)
        after[to] = after.get(to, 0.0) + p * np.prod(chance)
    law = after
  return np.array([law[tuple(x)] for x in toy.clean_states])


def test_it_bounds_the_likelihood_of_its_sampler_and_falls_with_more_steps():
  toy = masked_toy()
  bounds = {steps: step_bound(toy, steps) for steps in (1, 2, 3, 8, 400)}
  for steps in (1, 2, 3):
    law = sampled_law(toy, steps)
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-9)
    assert (bounds[steps] >= -np.log(law) - 1e-9).all()
  # One step draws all tokens independently, and there the bound is exact.
  np.testing.assert_allclose(bounds[1], -np.log(sampled_law(toy, 1)), rtol=1e-9)
  continuous = toy.orders_bound(99.0)[0]
  np.testing.assert_allclose(bounds[400], continuous, rtol=0.01)
  assert np.abs(bounds[8] / continuous - 1).max() > 0.02


def estimator_of(toy):
  network = DenseNetwork(toy.process, toy.log_score_fn)
  return Steps(network=network, noise=LogLinear(), num_steps=STEPS, num_draws=8)


@functools.partial(jax.jit, static_argnums=0)
def estimates(toy, keys):
  batch = Batch.of(toy.clean_states)
  return jax.vmap(lambda keys: estimator_of(toy).terms(None, batch, keys))(keys)


def test_estimates_are_unbiased():
  toy = masked_toy()
  keys = jax.random.split(jax.random.key(0), (200, len(toy.clean)))
  found = estimates(toy, keys)
  assert_mean(found.strict, step_bound(toy, STEPS))
  assert not found.low.any()
  assert not found.high.any()


def test_what_training_minimises_has_the_same_mean():
  toy, draws = masked_toy(), 3000
  x0 = jnp.repeat(jnp.asarray(toy.clean_states), draws, axis=0)
  keys = jax.random.split(jax.random.key(1), len(x0))
  estimator = estimator_of(toy)
  losses = jax.jit(estimator.one_draw, static_argnums=0)(
    estimator.network.stats_fn(None, Batch.of(x0)),
    Batch.of(x0),
    jax.random.uniform(jax.random.key(2), (len(x0),)),
    keys,
  )
  losses = np.asarray(losses).reshape(-1, draws)
  stderr = losses.std(axis=1, ddof=1) / draws**0.5
  np.testing.assert_array_less(np.abs(losses.mean(1) - step_bound(toy, STEPS)), 4 * stderr)
