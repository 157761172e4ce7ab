"""The held-out bound and the entropies beside it."""

import math

import jax
import numpy as np
import pytest
from support.networks import random_params, small_network

from sedd_jax.batch import Batch
from sedd_jax.diffusion import Absorbing, Geometric, LogLinear, TimeIntegral, Uniform
from sedd_jax.evaluation.bounds import BoundEstimator, Draws
from sedd_jax.evaluation.entropies import bigram_bits, unigram_bits
from sedd_jax.models import Network


def test_unigram_entropy_is_that_of_the_counts():
  train, heldout = np.array([0, 0, 0, 1]), np.array([0, 1, 2])
  p = np.array([4, 2, 1]) / 7
  assert unigram_bits(train, heldout, 3) == pytest.approx(-np.log2(p).mean())


def test_bigram_entropy_is_that_of_the_counts():
  train, heldout = np.array([0, 1, 0, 1, 0, 2]), np.array([0, 1, 1, 2])
  unigram = np.array([4, 3, 2]) / 9
  want = [
    (2 + unigram[1]) / (3 + 1),  # 0 is followed by 1 in two of three cases.
    (0 + unigram[1]) / (2 + 1),  # 1, 1 was not seen.
    (0 + unigram[2]) / (2 + 1),
  ]
  assert bigram_bits(train, heldout, 3) == pytest.approx(-np.log2(want).mean())


def test_bigram_probabilities_sum_to_one():
  train = np.random.default_rng(0).integers(0, 4, 50)
  total = sum(2.0 ** -bigram_bits(train, np.array([1, b]), 5) for b in range(5))
  assert total == pytest.approx(1.0)


@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=["loglinear", "geometric"])
def test_fresh_scaled_network_is_bounded_by_the_uniform_law(noise):
  """At its zero start the network knows nothing: the bound is L log V in expectation."""
  process = Absorbing(10)
  network = Network(
    config=small_network(process).config, process=process, parameterization="scaled"
  )
  params = jax.jit(network.init)(jax.random.key(0))
  blocks = Batch.of(np.random.default_rng(0).integers(0, 10, (64, 8)).astype(np.int32))
  integral = TimeIntegral(network=network, noise=noise, num_draws=128)
  estimator = BoundEstimator(integral, batch_size=64)
  bound = estimator.bound(params, blocks, chars_per_block=8.0)
  assert abs(bound.strict - math.log2(10)) < 4 * bound.strict_stderr
  assert bound.strict_stderr < 0.05
  assert bound.paper <= bound.strict


@pytest.mark.parametrize(
  "process",
  [Absorbing(10), pytest.param(Uniform(10), marks=pytest.mark.slow)],
  ids=["absorbing", "uniform"],
)
def test_bound_does_not_depend_on_the_batch_size(process):
  network = small_network(process)
  params = random_params(network)
  blocks = Batch.of(np.random.default_rng(0).integers(0, 10, (7, 6)).astype(np.int32))
  integral = TimeIntegral(network=network, noise=LogLinear(), num_draws=4)
  whole, parts = (
    BoundEstimator(integral, batch_size=size).terms(params, blocks) for size in (7, 3)
  )
  assert whole.strict.shape == (2, 7)
  np.testing.assert_allclose(parts.strict, whole.strict, rtol=1e-4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(estimator="dce", num_times=2), "estimator='dce' must be one of times, lambda, orders"),
    (dict(num_times=3), "num_times=3 must be even and at least 2"),
    (dict(num_times=0), "num_times=0 must be even and at least 2"),
  ],
)
def test_draws_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Draws(**fields)


def test_independent_times_have_the_same_mean():
  process = Absorbing(10)
  network = Network(
    config=small_network(process).config, process=process, parameterization="scaled"
  )
  params = jax.jit(network.init)(jax.random.key(0))
  blocks = Batch.of(np.zeros((64, 8), np.int32))
  integral = TimeIntegral(network=network, noise=LogLinear(), num_draws=64, sampling="iid")
  bound = BoundEstimator(integral, batch_size=64).bound(params, blocks, chars_per_block=8.0)
  assert abs(bound.strict - math.log2(10)) < 4 * bound.strict_stderr
  assert bound.strict_stderr < 0.07
