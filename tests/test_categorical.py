"""Categorical draws follow their law, the far tail included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from support.statistics import chi_square_p_value

from sedd_jax.diffusion import Truncation, sample_categorical

WEIGHTS = np.array([0.5, 0.25, 0.0, 0.2, 0.01, 0.04])


@functools.partial(jax.jit, static_argnums=2)
def counts(key, log_weights, draws):
  """int[S]: how often each state is drawn."""
  rows = jnp.broadcast_to(log_weights, (draws, *log_weights.shape))
  return jnp.bincount(sample_categorical(key, rows), length=log_weights.size)


def test_draws_follow_the_weights(strict_keys):
  drawn = np.asarray(counts(jax.random.key(0), jnp.log(jnp.asarray(WEIGHTS)), 200_000))
  assert drawn.sum() == 200_000
  assert chi_square_p_value(drawn, WEIGHTS) > 1e-3


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_weights_need_no_normalisation(shift):
  # exp(300) is infinite in float32: the draw must work with logarithms.
  drawn = counts(jax.random.key(1), jnp.log(jnp.asarray(WEIGHTS)) + shift, 200_000)
  assert chi_square_p_value(np.asarray(drawn), WEIGHTS) > 1e-3


@pytest.mark.parametrize("finite", [0, 3])
def test_minus_infinity_is_never_drawn(finite):
  log_weights = jnp.where(jnp.arange(4) == finite, -80.0, -jnp.inf)
  assert (sample_categorical(jax.random.key(2), jnp.tile(log_weights, (5000, 1))) == finite).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_draws_are_int32_of_the_leading_shape(dtype):
  for shape in ((2, 3), ()):
    drawn = jax.eval_shape(sample_categorical, jax.random.key(3), jnp.zeros((*shape, 5), dtype))
    assert drawn.dtype == jnp.int32
    assert drawn.shape == shape


def test_draws_are_int32_in_float64_too(x64):
  drawn = jax.eval_shape(sample_categorical, jax.random.key(3), jnp.zeros((2, 5)))
  assert drawn.dtype == jnp.int32


def test_positions_draw_independently(strict_keys):
  rows = jnp.zeros((100_000, 2, 3))
  first, second = np.asarray(jax.jit(sample_categorical)(jax.random.key(4), rows)).T
  assert chi_square_p_value(np.bincount(3 * first + second, minlength=9), np.full(9, 1 / 9)) > 1e-3


# The tail: one head, and TAILS states that are GAP nats below it and 0.27 % of the mass together.

GAP, TAILS, DRAWS, ROWS = 17.0, 2**16, 3000, 4


def races(tails_win):
  """Sums tails_win(key) over DRAWS draws, ROWS in a call, on two CPU devices at a time."""
  run = jax.jit(lambda keys: jax.lax.map(tails_win, keys).sum())
  halves = jax.random.split(jax.random.key(0), DRAWS // ROWS).reshape(2, -1)
  parts = [run(jax.device_put(k, d)) for k, d in zip(halves, jax.devices("cpu"), strict=False)]
  return sum(int(part) for part in parts)


def too_few(count):
  """The probability of at most so many tails in DRAWS unbiased draws."""
  share = TAILS / (TAILS + np.exp(GAP))
  return scipy.special.bdtr(count, DRAWS, share)


def test_the_far_tail_is_drawn_as_often_as_it_should():
  log_weights = jnp.where(jnp.arange(TAILS + 1) == 0, GAP, 0.0)

  def tails_win(key):
    return (sample_categorical(key, jnp.tile(log_weights, (ROWS, 1))) > 0).sum()

  count = races(tails_win)
  assert 0.01 < too_few(count) < 0.99


@pytest.mark.slow
def test_the_tail_test_rejects_float32_gumbel_noise():
  # What jax.random.categorical races in its default mode; its argmax is left out to save time.
  def tails_win(key):
    key_head, key_tails = jax.random.split(key)
    head = GAP + jax.random.gumbel(key_head, (ROWS,))
    return (jax.random.gumbel(key_tails, (ROWS, TAILS)).max(axis=-1) > head).sum()

  assert too_few(races(tails_win)) < 0.01


# More states than one race takes: groups of 256, the last one partial.


@pytest.mark.slow
def test_many_states_follow_the_weights(strict_keys):
  weights = np.random.default_rng(0).dirichlet(np.full(1000, 0.5))
  weights[256:512] = 0.0  # A group that is never drawn.
  weights[999] = 0.05
  weights /= weights.sum()
  drawn = np.asarray(counts(jax.random.key(5), jnp.log(jnp.asarray(weights)), 100_000))
  assert not drawn[weights == 0].any()
  often = weights * 100_000 > 10
  rest = [(~often * drawn).sum(), (~often * weights).sum()]
  assert (
    chi_square_p_value(np.append(drawn[often], rest[0]), np.append(weights[often], rest[1])) > 1e-3
  )


@pytest.mark.parametrize("at", [0, 255, 256, 600])
def test_the_only_state_with_weight_is_drawn(at):
  log_weights = jnp.where(jnp.arange(601) == at, -80.0, -jnp.inf)
  assert (sample_categorical(jax.random.key(2), jnp.tile(log_weights, (100, 1))) == at).all()


# Truncated laws.


def kept(truncation, weights):
  """The states that are left, and their law."""
  z = np.asarray(truncation(jnp.log(jnp.asarray(weights))))
  return np.flatnonzero(z > -np.inf).tolist(), scipy.special.softmax(z)


@pytest.mark.parametrize(
  ("truncation", "states"),
  [
    (Truncation(), [0, 1, 3, 4, 5]),
    (Truncation(top_k=1), [0]),
    (Truncation(top_k=3), [0, 1, 3]),
    (Truncation(top_k=100), [0, 1, 3, 4, 5]),
    (Truncation(top_p=0.5), [0]),
    (Truncation(top_p=0.51), [0, 1]),
    (Truncation(top_p=0.95), [0, 1, 3]),
    (Truncation(top_p=0.96), [0, 1, 3, 5]),
    (Truncation(top_k=2, top_p=0.99), [0, 1]),
    (Truncation(temperature=0.25, top_p=0.95), [0, 1]),
    (Truncation(temperature=1e-3), [0]),
  ],
  ids=str,
)
def test_truncation_keeps_the_most_likely_states(truncation, states, x64):
  found, law = kept(truncation, WEIGHTS)
  assert [i for i in found if law[i] > 1e-9] == states
  want = np.where(np.isin(np.arange(6), states), WEIGHTS ** (1 / truncation.temperature), 0.0)
  np.testing.assert_allclose(law, want / want.sum(), atol=1e-9)


def test_states_as_likely_as_the_last_are_kept():
  assert kept(Truncation(top_k=1), [0.4, 0.4, 0.2])[0] == [0, 1]
  assert kept(Truncation(top_p=0.3), [0.4, 0.4, 0.2])[0] == [0, 1]


def test_truncation_works_on_rows(x64):
  rows = jnp.log(jnp.asarray([WEIGHTS, WEIGHTS[::-1]]))
  together = Truncation(temperature=0.7, top_k=4, top_p=0.9)(rows)
  np.testing.assert_array_equal(
    together, [Truncation(temperature=0.7, top_k=4, top_p=0.9)(row) for row in rows]
  )
