"""Noise of its own for each token, against one level a row and against enumeration.

B: sequences, L: positions, S: states, N: entries of a table, or all sequences of a toy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from support.oracle import random_toy
from support.processes import both

from sedd_jax.batch import Batch
from sedd_jax.diffusion import DenseNetwork, Geometric, Levels, LogLinear, denoising_score_entropy
from sedd_jax.diffusion.levels import at_tokens, map_level, weighted_sum
from sedd_jax.diffusion.losses import score_entropy_at

INDEX = np.array([[0, 2, 1, 2], [1, 1, 0, 0]])
TABLE = np.array([[0.1, 0.5, 2.0], [0.3, 0.7, 9.0]])
LEVELS = Levels(jnp.asarray(TABLE), jnp.asarray(INDEX))


# Levels.


def test_each_token_has_the_number_of_its_entry():
  want = [[0.1, 2.0, 0.5, 2.0], [0.7, 0.7, 0.3, 0.3]]
  np.testing.assert_array_equal(at_tokens(LEVELS), np.array(want, np.float32))
  np.testing.assert_array_equal(at_tokens(jnp.arange(3.0)), np.arange(3.0)[:, None])


def test_a_function_of_levels_is_one_of_their_numbers():
  mapped = map_level(jnp.exp, LEVELS)
  assert isinstance(mapped, Levels)
  np.testing.assert_array_equal(mapped.table, jnp.exp(LEVELS.table))
  np.testing.assert_array_equal(mapped.index, LEVELS.index)
  np.testing.assert_array_equal(map_level(jnp.exp, LEVELS.table[0]), jnp.exp(LEVELS.table[0]))


def test_sums_are_weighted_token_by_token(x64):
  values = np.random.default_rng(0).normal(size=(2, 4))
  levels = LEVELS._replace(table=jnp.asarray(TABLE))
  want = (np.take_along_axis(TABLE, INDEX, axis=1) * values).sum(1)
  np.testing.assert_allclose(weighted_sum(levels, jnp.asarray(values)), want, rtol=1e-14)
  row = TABLE[:, 0]
  np.testing.assert_allclose(
    weighted_sum(jnp.asarray(row), jnp.asarray(values)), row * values.sum(1), rtol=1e-14
  )


# The loss.


def network_of(process):
  """A network whose score of a token depends on all of x and on the noise of that token."""

  def log_score_fn(x_BL, total):
    total_BL = at_tokens(total)
    i = jnp.arange(x_BL.shape[1])[None, :, None]
    y = jnp.arange(process.num_states)[None, None, :]
    phase = 1.0 + 2.3 * x_BL.sum(-1)[:, None, None] + 1.7 * i + 2.9 * y
    return jnp.sin(phase) * (1.0 + 0.5 * jnp.exp(-total_BL))[:, :, None]

  return DenseNetwork(process, log_score_fn)


def random_batch(process, size=6, length=7):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, process.vocab_size, (size, length)).astype(np.int32)
  return Batch(tokens, rng.random((size, length)) < 0.8)


@both
def test_a_table_of_one_number_is_that_number(process):
  batch, keys = random_batch(process), jax.random.split(jax.random.key(0), 6)
  stats_fn = network_of(process).stats_fn()
  t = jnp.linspace(0.1, 0.9, 6)
  index = np.random.default_rng(1).integers(0, 3, batch.tokens.shape)
  table = Levels(jnp.repeat(t[:, None], 3, axis=1), jnp.asarray(index))
  noise = LogLinear()

  def entropy(t):
    total = map_level(noise.total, t)
    return score_entropy_at(stats_fn, batch, total, keys, process=process)

  assert entropy(t).shape == batch.tokens.shape
  assert (np.asarray(entropy(t))[~batch.loss_mask] == 0).all()
  np.testing.assert_array_equal(entropy(table), entropy(t))
  assert np.abs(entropy(t)).max() > 0.1
  # The weight is a factor of each token here and of the sum there.
  loss = [
    denoising_score_entropy(stats_fn, batch, t, keys, process=process, noise=noise)
    for t in (table, t)
  ]
  np.testing.assert_allclose(*loss, rtol=1e-6)


@both
def test_each_token_has_the_entropy_of_its_own_noise(process):
  """A network that sees of a token its own noise alone: so does what is drawn."""
  batch, keys = random_batch(process), jax.random.split(jax.random.key(0), 6)
  raw = jnp.asarray(np.random.default_rng(2).normal(size=(7, process.num_states)), jnp.float32)

  def log_score_fn(x_BL, total):
    return raw[None] - 0.5 * jnp.broadcast_to(at_tokens(total), x_BL.shape)[:, :, None]

  stats_fn = DenseNetwork(process, log_score_fn).stats_fn()
  rng = np.random.default_rng(3)
  table = rng.uniform(0.05, 3.0, (6, 3)).astype(np.float32)
  total = Levels(jnp.asarray(table), jnp.asarray(rng.integers(0, 3, batch.tokens.shape)))
  found = score_entropy_at(stats_fn, batch, total, keys, process=process)
  for entry in range(3):
    alone = score_entropy_at(stats_fn, batch, total.table[:, entry], keys, process=process)
    mine = np.asarray(total.index) == entry
    np.testing.assert_array_equal(np.asarray(found)[mine], np.asarray(alone)[mine])
    assert mine.any()
    assert not np.allclose(found, alone)


def enumerated_loss(toy, log_score, x0, totals, rates, counts):
  """The loss of one clean sequence by its definition, float: its mean over all that it becomes.

  Args:
    toy: says the process.
    log_score: float[N, L, S], of every sequence.
    x0: int[L].
    totals: float[L], the total noise of each token.
    rates: float[L], the rate of each token.
    counts: bool[L], tokens that are noised.
  """
  states, token = toy.states, np.asarray(toy.token_transition(totals))
  chance, loss = np.ones(len(states)), np.zeros(len(states))
  for i, counted in enumerate(counts):
    x, p = states[:, i], token[i, x0[i]]
    if not counted:
      chance = chance * (x == x0[i])
      continue
    chance = chance * p[x]
    own = np.arange(len(p))[None] == x[:, None]
    into = np.where(own, 0.0, toy.token_generator.T[x])
    with np.errstate(divide="ignore", invalid="ignore"):
      r, z = p[None] / p[x][:, None], log_score[:, i]
      terms = into * (np.exp(z) - r * z + scipy.special.xlogy(r, r) - r)
    loss += rates[i] * np.where(into > 0, terms, 0.0).sum(-1)
  return np.where(chance > 0, chance * loss, 0.0).sum()


@both
@pytest.mark.parametrize("given", [None, 1])
def test_the_loss_of_mixed_noise_is_that_of_the_enumeration(process, given, x64):
  # Its Monte Carlo mean, 4 standard errors.
  toy, noise, draws = random_toy(process, length=3), Geometric(0.05, 3.0), 20_000
  network, x0 = network_of(process), toy.states[toy.clean[5]]
  times, index = np.array([0.35, 0.9]), np.array([1, 0, 1])
  counts = np.arange(3) != given

  def repeated(t, size):
    return Levels(*(jnp.broadcast_to(x, (size, len(x))) for x in (t, index)))

  batch = Batch(np.tile(x0, (draws, 1)), np.tile(counts, (draws, 1)))
  loss = jax.jit(
    lambda keys: denoising_score_entropy(
      network.stats_fn(), batch, repeated(times, draws), keys, process=process, noise=noise
    )
  )(jax.random.split(jax.random.key(0), draws))
  totals, rates = np.asarray(noise.total(times)), np.asarray(noise.rate(times))
  log_score = network.log_score_fn(jnp.asarray(toy.states), repeated(totals, len(toy.states)))
  expected = enumerated_loss(toy, np.asarray(log_score), x0, totals[index], rates[index], counts)
  stderr = loss.std() / draws**0.5
  assert abs(loss.mean() - expected) < 4 * stderr
  assert stderr < 0.03 * expected
  # Noise of the other entry would be another loss.
  other = enumerated_loss(
    toy, np.asarray(log_score), x0, totals[1 - index], rates[1 - index], counts
  )
  assert abs(other - expected) > 10 * stderr
