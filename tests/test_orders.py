"""Any-order estimates on enumerated toys: what they are estimates of, and which scatters least.

G: groups, B: sequences, M: clean sequences, R: repetitions.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.masked_toys import masked_toy
from support.statistics import assert_mean

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  MIN_TIME,
  Absorbing,
  DenseNetwork,
  Geometric,
  LogLinear,
  Orders,
  Shares,
  TimeIntegral,
  mean_and_stderr,
)

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")
REPETITIONS, DRAWS = 200, 8
estimators = pytest.mark.parametrize("estimator", [Shares, Orders])


def last_of(noise):
  return float(noise.total(1.0))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames=("draws", "sampling"))
def estimates(estimator, toy, noise, keys, draws=DRAWS, sampling="low_discrepancy", given=None):
  """Terms for keys [R, M], float[R, G, M] each; given bool[M, L]."""
  network = DenseNetwork(toy.process, toy.log_score_fn)
  one = estimator(network=network, noise=noise, num_draws=draws, sampling=sampling)
  batch = Batch.of(toy.clean_states)
  batch = batch if given is None else batch._replace(loss_mask=~given)
  return jax.vmap(lambda keys: one.terms(None, batch, keys))(keys)


@functools.cache
def repetitions(estimator, toy, noise=LogLinear(), draws=DRAWS, sampling="low_discrepancy"):
  keys = jax.random.split(jax.random.key(0), (REPETITIONS, len(toy.clean)))
  return estimates(estimator, toy, noise, keys, draws=draws, sampling=sampling)


# What is estimated.


@pytest.mark.parametrize("length", [2, 3])
def test_the_three_bounds_are_one_for_a_network_without_time(length):
  """Over orders, over masking probabilities, and the integral over time: arXiv:2406.03736."""
  toy, noise = masked_toy(length=length), LogLinear()
  orders, mixture = toy.orders_bound(last_of(noise))
  shares = np.zeros_like(orders)
  for k in range(1, length + 1):
    # The integral of lambda^(k - 1) (1 - lambda)^(n - k).
    weight = math.factorial(k - 1) * math.factorial(length - k) / math.factorial(length)
    for hidden in itertools.combinations(range(length), k):
      shares += weight * toy.cross_entropies(hidden, last_of(noise))[:, list(hidden)].sum(1)
  np.testing.assert_allclose(shares, orders, rtol=1e-12)
  strict = toy.strict(float(noise.total(MIN_TIME)), last_of(noise))
  np.testing.assert_allclose(strict, orders, rtol=1e-8)
  assert (orders > mixture + 1e-4).all(), "a bound that is not tight here"
  np.testing.assert_allclose(np.exp(-mixture).sum(), 1.0, rtol=1e-12)


@estimators
def test_estimates_are_unbiased(estimator):
  toy, noise = masked_toy(), LogLinear()
  assert_mean(repetitions(estimator, toy).strict, toy.orders_bound(last_of(noise))[0])


@estimators
def test_the_mean_lies_within_three_standard_errors(estimator):
  toy, noise = masked_toy(), LogLinear()
  for sampling in ("low_discrepancy", "iid"):
    found = repetitions(estimator, toy, sampling=sampling).strict
    mean, stderr = mean_and_stderr(jnp.moveaxis(found, 1, 0).reshape(2, -1))
    assert abs(mean - toy.orders_bound(last_of(noise))[0].mean()) < 3 * stderr
    assert stderr < 0.03 * mean


def test_shares_are_the_strict_bound_of_a_network_with_time():
  toy, noise = masked_toy(timed=1.0), Geometric(0.05, 3.0)
  exact = toy.strict(float(noise.total(MIN_TIME)), last_of(noise))
  assert_mean(repetitions(Shares, toy, noise).strict, exact)
  others = toy.orders_bound(last_of(noise))[0]
  assert np.abs(exact - others).max() > 0.02, "with time the two are bounds of two models"


def test_orders_bound_the_any_order_model_of_a_network_with_time():
  toy, noise = masked_toy(timed=1.0), Geometric(0.05, 3.0)
  exact, mixture = toy.orders_bound(last_of(noise))
  assert_mean(repetitions(Orders, toy, noise).strict, exact)
  assert (exact > mixture).all()
  np.testing.assert_allclose(np.exp(-mixture).sum(), 1.0, rtol=1e-12)


@estimators
def test_given_tokens_stay_clean_and_do_not_count(estimator):
  """One token given: the bound is that over the orders of the others."""
  toy, noise, known = masked_toy(), LogLinear(), 1
  given = np.broadcast_to(np.arange(toy.length) == known, toy.clean_states.shape)
  keys = jax.random.split(jax.random.key(3), (REPETITIONS, len(toy.clean)))
  found = estimates(estimator, toy, noise, keys, given=jnp.asarray(given)).strict
  others = [i for i in range(toy.length) if i != known]
  exact = np.mean([
    sum(toy.cross_entropies(order[i:], 99.0)[:, order[i]] for i in range(len(order)))
    for order in itertools.permutations(others)
  ], axis=0)  # fmt: skip
  assert_mean(found, exact)
  nothing = estimates(estimator, toy, noise, keys, given=jnp.ones(given.shape, bool))
  assert (nothing.strict == 0.0).all()


# How well.


@pytest.mark.parametrize("estimator", [TimeIntegral, Shares, Orders])
def test_the_standard_error_is_honest(estimator):
  mean, stderr = jax.vmap(mean_and_stderr)(repetitions(estimator, masked_toy()).strict)
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(stderr**2)), jnp.std(mean, ddof=1), rtol=0.25)


def test_orders_scatter_less_than_times_and_evenly_spaced_ones_least():
  """Errors of one sequence's bound at 8 draws, measured over sequences and seeds."""

  def error(estimator, sampling="low_discrepancy"):
    found = repetitions(estimator, masked_toy(), sampling=sampling).strict.mean(1)
    return float(jnp.sqrt(jnp.mean(jnp.var(found, axis=0))))

  assert error(Orders) < 0.8 * error(TimeIntegral)
  assert error(Orders) < 0.8 * error(Shares)
  assert error(Orders) < 0.95 * error(Orders, "iid")


@pytest.mark.parametrize("estimator", [TimeIntegral, Orders])
def test_low_discrepancy_beats_independent_draws_of_long_sequences(estimator):
  """64 tokens that each cost log 2 when masked: what varies is the time, and how many are masked.
  Where that number is set, nothing is left to vary. (Masking probabilities have nothing to gain
  here: all of them have one mean.)"""
  process, batch = Absorbing(2), Batch.of(jnp.zeros((1, 64), jnp.int32))

  def log_score_fn(x, total):
    raw = jnp.zeros((*x.shape, process.num_states))
    return process.parameterization("conditional").log_score(raw, x, total[:, None])

  def error(sampling):
    network = DenseNetwork(process, log_score_fn)
    one = estimator(network=network, noise=Geometric(0.01, 5.0), num_draws=16, sampling=sampling)
    found = jax.jit(jax.vmap(lambda key: one.terms(None, batch, key[None]).main.mean()))(
      jax.random.split(jax.random.key(0), 300)
    )
    return float(jnp.std(found))

  even, independent = error("low_discrepancy"), error("iid")
  if estimator is Orders:
    assert max(even, independent) < 1e-12
  else:
    assert even < 0.9 * independent, (even, independent)


def test_an_estimate_depends_on_its_key_alone():
  toy = masked_toy()
  network = DenseNetwork(toy.process, toy.log_score_fn)
  estimator = Orders(network=network, noise=LogLinear(), num_draws=4)

  @jax.jit
  def strict(x0, keys):
    return estimator.terms(None, Batch.of(x0), keys).strict

  x0, keys = jnp.asarray(toy.clean_states[:3]), jax.random.split(jax.random.key(5), 3)
  together = strict(x0, keys)
  for i in range(3):
    np.testing.assert_allclose(strict(x0[i : i + 1], keys[i : i + 1])[:, 0], together[:, i])
  assert len(np.unique(together)) == together.size


@estimators
def test_no_key_is_used_twice(strict_keys, estimator):
  toy = masked_toy()
  for sampling in ("low_discrepancy", "iid"):
    keys = jax.random.split(jax.random.key(0), (1, len(toy.clean)))
    assert jnp.isfinite(
      estimates(estimator, toy, LogLinear(), keys, draws=2, sampling=sampling).strict
    ).all()


@estimators
def test_draws_that_make_no_groups_are_refused(estimator):
  toy = masked_toy()
  keys = jax.random.split(jax.random.key(0), (1, len(toy.clean)))
  with pytest.raises(ValueError, match=r"num_draws=3.*num_groups=2"):
    estimates(estimator, toy, LogLinear(), keys, draws=3)
  with pytest.raises(ValueError, match="'sobol' must be one of low_discrepancy, iid"):
    estimates(estimator, toy, LogLinear(), keys, sampling="sobol")
