"""The likelihood bound on enumerated toys: what it bounds, and how well it is estimated.

G: groups, B: sequences, M: clean sequences, R: repetitions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracle import random_toy
from support.processes import both, noises

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  MIN_TIME,
  Absorbing,
  DenseNetwork,
  Geometric,
  LogLinear,
  TimeIntegral,
  Uniform,
  mean_and_stderr,
)

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")
WRONG = 0.3


def ends(noise):
  """Total noise at MIN_TIME and at 1: where the pieces meet."""
  return float(noise.total(MIN_TIME)), float(noise.total(1.0))


@functools.cache
def exact_pieces(toy, noise):
  return toy.bound(*ends(noise))


# What the strict bound is, by quadrature and enumeration.


@both
@noises
@pytest.mark.parametrize("wrong", [0.0, WRONG])
def test_quadrature_has_converged(process, noise, wrong):
  toy = random_toy(process, wrong=wrong)
  for coarse, fine in zip(
    toy.bound(*ends(noise), nodes=32).values(), exact_pieces(toy, noise).values(), strict=True
  ):
    np.testing.assert_allclose(coarse, fine, atol=1e-9)


@both
@noises
@pytest.mark.parametrize("wrong", [0.0, WRONG])
def test_the_reverse_process_keeps_its_probability(process, noise, wrong):
  law = random_toy(process, wrong=wrong).model_law(ends(noise)[1])
  np.testing.assert_allclose(law.sum(), 1.0, atol=1e-9)
  assert law.min() > 0


@noises
@pytest.mark.parametrize("length", [2, 3])
def test_the_absorbing_bound_is_tight_at_the_exact_score(noise, length):
  toy = random_toy(Absorbing(3), length=length)
  bound = sum(exact_pieces(toy, noise).values())
  np.testing.assert_allclose(bound, -np.log(toy.p0.reshape(-1)), atol=1e-9)
  if length == 2:
    np.testing.assert_allclose(bound, -np.log(toy.model_law(ends(noise)[1])), atol=1e-9)


@noises
@pytest.mark.parametrize("length", [2, 3])
def test_the_uniform_bound_at_the_exact_score_costs_what_the_prior_costs(noise, length):
  # The samplers start from the uniform law and not from p_1: E log(p_1 / uniform), and no more.
  toy, last = random_toy(Uniform(3), length=length), ends(noise)[1]
  cost = toy.forward(last) @ np.log(toy.law(last) * 3**length)
  bound = sum(exact_pieces(toy, noise).values())
  np.testing.assert_allclose(bound, -np.log(toy.p0.reshape(-1)) + cost, atol=1e-10)
  assert np.abs(cost).max() < 3e-6


@both
@noises
@pytest.mark.parametrize("wrong", [0.0, 0.1, WRONG, 1.0])
def test_the_strict_bound_lies_above_the_negative_log_likelihood(process, noise, wrong):
  toy = random_toy(process, wrong=wrong)
  bound = sum(exact_pieces(toy, noise).values())
  gap = bound + np.log(toy.model_law(ends(noise)[1]))
  assert (gap > -1e-9).all()  # The error of the master equation.
  if wrong == 0.0:
    assert gap.max() < 1e-6
  if wrong in (0.1, WRONG):
    # Neither tight nor void: second order in the error of the score.
    assert (gap > 0.02 * wrong**2).all()
    assert (gap < 10 * wrong**2).all()


@both
@noises
def test_the_mean_bound_exceeds_the_entropy_of_the_data(process, noise):
  p0 = random_toy(process).p0.reshape(-1)
  entropy = -(p0 * np.log(p0)).sum()
  means = [
    p0 @ sum(exact_pieces(random_toy(process, wrong=wrong), noise).values())
    for wrong in (0.0, 0.1, WRONG)
  ]
  assert means[0] > entropy - 1e-9
  assert entropy + 1e-3 < means[1] < means[2] < entropy + 2.0


@both
@noises
def test_every_piece_counts_and_paper_lies_below_strict(process, noise):
  pieces = exact_pieces(random_toy(process, wrong=WRONG), noise)
  assert all((piece > 0).all() for piece in pieces.values())
  assert (pieces["low"] + pieces["high"] < 0.05 * pieces["main"]).all()


# How it is estimated. Beside the usual schedule, a narrow one: its ends carry much of the integral
# and not a thousandth, so that each piece shows.

estimated = pytest.mark.parametrize("noise", [LogLinear(), Geometric(0.3, 2.0)], ids=str)


def estimator_of(toy, noise, num_draws):
  network = DenseNetwork(toy.process, toy.log_score_fn)
  return TimeIntegral(network=network, noise=noise, num_draws=num_draws)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="num_draws")
def estimate(toy, noise, keys, num_draws):
  """Terms of every clean sequence, for keys [R, M]: float[R, G, M] each."""
  batch = Batch.of(toy.states[toy.clean])
  estimator = estimator_of(toy, noise, num_draws)
  return jax.vmap(lambda keys: estimator.terms(None, batch, keys))(keys)


@functools.cache
def repetitions(toy, noise, seed=0):
  """Terms of 300 repetitions with keys of their own: 16 times in 2 groups."""
  keys = jax.random.split(jax.random.key(seed), (300, len(toy.clean)))
  return estimate(toy, noise, keys, num_draws=16)


@both
@pytest.mark.parametrize("piece", ["low", "main", "high"])
def test_estimates_are_unbiased_in_every_piece(process, piece):
  toy, noise = random_toy(process, wrong=WRONG), Geometric(0.3, 2.0)
  estimates = np.asarray(getattr(repetitions(toy, noise), piece)).mean(axis=1)
  exact = exact_pieces(toy, noise)[piece]
  stderr = estimates.std(axis=0, ddof=1) / len(estimates) ** 0.5
  # 9 sequences, 4 standard errors each; a piece without noise must be exact.
  np.testing.assert_array_less(np.abs(estimates.mean(axis=0) - exact), 4 * stderr + 1e-12)
  assert exact.min() > 0.02
  assert (stderr < 0.25 * exact).all()


@both
@estimated
@pytest.mark.parametrize("kind", ["paper", "strict"])
def test_the_mean_estimate_is_that_of_the_enumeration(process, noise, kind):
  toy = random_toy(process, wrong=WRONG)
  pieces = exact_pieces(toy, noise)
  exact = pieces["main"] if kind == "paper" else sum(pieces.values())
  estimates = getattr(repetitions(toy, noise), kind)
  groups = jnp.moveaxis(estimates, 1, 0).reshape(2, -1)  # All repetitions as one batch.
  mean, stderr = mean_and_stderr(groups)
  assert abs(mean - exact.mean()) < 4 * stderr
  assert stderr < 0.03 * mean


@both
@estimated
def test_the_standard_error_is_honest(process, noise):
  # 300 estimates of one mean scatter as each of them says.
  toy = random_toy(process, wrong=WRONG)
  mean, stderr = jax.vmap(mean_and_stderr)(repetitions(toy, noise).strict)
  said = jnp.sqrt(jnp.mean(stderr**2))
  np.testing.assert_allclose(said, jnp.std(mean, ddof=1), rtol=0.25)


@both
@estimated
def test_estimated_paper_lies_below_estimated_strict(process, noise):
  terms = repetitions(random_toy(process, wrong=WRONG), noise)
  assert (terms.paper <= terms.strict).all()


@pytest.mark.slow
def test_an_estimate_depends_on_its_key_alone():
  toy, noise = random_toy(Absorbing(3), wrong=WRONG), LogLinear()
  x0, keys = jnp.asarray(toy.states[toy.clean[2:6]]), jax.random.split(jax.random.key(5), 4)
  estimator = estimator_of(toy, noise, num_draws=4)

  @jax.jit
  def strict(x0, keys):
    return estimator.terms(None, Batch.of(x0), keys).strict

  together = strict(x0, keys)
  for i in range(4):
    alone = strict(x0[i : i + 1], keys[i : i + 1])
    np.testing.assert_allclose(alone[:, 0], together[:, i], rtol=1e-12)
  assert len(np.unique(together)) == together.size


@both
def test_groups_are_independent(process):
  groups = repetitions(random_toy(process, wrong=WRONG), LogLinear()).strict
  centred = groups - groups.mean(axis=0, keepdims=True)
  products = (centred[:, 0] * centred[:, 1]).reshape(-1)
  spread = centred.std(axis=0).prod(axis=0)
  correlation = products.reshape(300, -1) / spread[None]
  assert abs(correlation.mean()) < 4 / correlation.size**0.5


def test_the_pieces_share_the_likelihood_by_the_chance_to_be_masked():
  # Tokens uniform and independent, at the exact score: each costs log V when it is masked, so the
  # pieces are known in closed form, and so many tokens leave little noise.
  process, noise, length = Absorbing(3), Geometric(0.3, 2.0), 1024

  def log_score_fn(x_BL, total_B):
    raw = jnp.zeros((*x_BL.shape, process.num_states))
    return process.parameterization("scaled").log_score(raw, x_BL, total_B[:, None])

  network = DenseNetwork(process, log_score_fn)
  estimator = TimeIntegral(network=network, noise=noise, num_draws=256)
  batch = Batch.of(jnp.zeros((16, length), jnp.int32))
  terms = jax.jit(lambda keys: estimator.terms(None, batch, keys))(
    jax.random.split(jax.random.key(0), 16)
  )
  survival = np.exp(-np.array([0.0, *ends(noise), np.inf]))
  for piece, share in zip(("low", "main", "high"), -np.diff(survival), strict=True):
    mean, stderr = mean_and_stderr(getattr(terms, piece))
    expected = length * np.log(3) * share
    assert stderr < (0.002 if piece == "main" else 0.01) * expected
    assert abs(mean - expected) < 4 * stderr


def test_low_discrepancy_times_beat_independent_ones():
  # With many tokens the time is what varies. As many groups as times: every time on its own.
  process = Absorbing(3)
  batch = Batch.of(jnp.zeros((1, 64), jnp.int32))

  def log_score_fn(x_BL, total_B):
    raw = jnp.zeros((*x_BL.shape, process.num_states))
    return process.parameterization("conditional").log_score(raw, x_BL, total_B[:, None])

  def spread(num_groups):
    network = DenseNetwork(process, log_score_fn)
    estimator = TimeIntegral(
      network=network, noise=Geometric(), num_draws=16, num_groups=num_groups
    )

    def main(key):
      return estimator.terms(None, batch, jax.random.split(key, 1)).main.mean()

    estimates = jax.jit(jax.vmap(main))(jax.random.split(jax.random.key(0), 200))
    # The loss of a uniform posterior: log 3 for each token.
    np.testing.assert_allclose(estimates.mean(), 64 * np.log(3), rtol=0.05)
    return float(jnp.std(estimates))

  assert spread(num_groups=1) < 0.3 * spread(num_groups=16)


def test_no_key_is_used_twice(strict_keys):
  process, keys = Absorbing(3), jax.random.split(jax.random.key(0), 2)
  network = DenseNetwork(process, lambda x, total: jnp.zeros((*x.shape, process.num_states)))
  estimator = TimeIntegral(network=network, noise=LogLinear(), num_draws=2)
  batch = Batch.of(jnp.zeros((2, 3), jnp.int32))
  terms = jax.jit(lambda keys: estimator.terms(None, batch, keys))(keys)
  assert terms.strict.shape == (2, 2)
  assert jnp.isfinite(terms.strict).all()


@pytest.mark.parametrize(("num_draws", "num_groups"), [(0, 2), (3, 2), (-2, 2), (4, 0), (1, 2)])
def test_invalid_num_draws_is_refused(num_draws, num_groups):
  toy = random_toy(Absorbing(3))
  network = DenseNetwork(toy.process, toy.log_score_fn)
  with pytest.raises(ValueError, match=f"num_draws={num_draws}.*num_groups={num_groups}"):
    TimeIntegral(network=network, noise=LogLinear(), num_draws=num_draws, num_groups=num_groups)


def test_mean_and_stderr_are_those_of_the_groups():
  estimates = np.random.default_rng(0).normal(size=(4, 3))
  mean, stderr = mean_and_stderr(jnp.asarray(estimates))
  np.testing.assert_allclose(mean, estimates.mean(), rtol=1e-12)
  per_sequence = estimates.std(axis=0, ddof=1) / 2
  np.testing.assert_allclose(stderr, np.sqrt((per_sequence**2).sum()) / 3, rtol=1e-12)
