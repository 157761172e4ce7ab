"""The score entropy of both processes against its definition and the original's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.processes import both, call, of_golden

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  Absorbing,
  DenseNetwork,
  LogLinear,
  Uniform,
  denoising_score_entropy,
)


def score_entropy(process, log_score, x, x0, total):
  return call(process, "score_entropy", log_score, x, x0, total)


@functools.partial(jax.jit, static_argnums=0)
def score_entropy_grad(process, log_score, x, x0, total):
  return jax.grad(lambda z: process.score_entropy(z, x, x0, total).sum())(log_score)


@pytest.mark.parametrize("file", ["graph.npz", "bigvocab.npz"])
def test_score_entropy_matches_the_original_in_float64(file, golden, x64):
  for process, g in of_golden(golden(file)):
    log_score = g["log_score"].astype(np.float64)
    ours = score_entropy(process, log_score, g["x"], g["x0"], g["sigma"])
    np.testing.assert_allclose(ours, g["score_entropy_exact"], rtol=1e-9)


@pytest.mark.parametrize("file", ["graph.npz", "bigvocab.npz"])
def test_score_entropy_matches_the_original_in_float32(file, golden):
  for process, g in of_golden(golden(file)):
    log_score, total = g["log_score"].astype(np.float32), g["sigma"].astype(np.float32)
    ours = score_entropy(process, log_score, g["x"], g["x0"], total)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, g["score_entropy_exact"], rtol=1e-5)


def test_score_entropy_gradient_matches_the_original(golden, x64):
  for process, g in of_golden(golden("graph.npz")):
    ours = score_entropy_grad(process, g["log_score"], g["x"], g["x0"], g["sigma"])
    np.testing.assert_allclose(ours, g["score_entropy_grad"], rtol=1e-9, atol=1e-12)


# Score entropy against its definition.


def extended_score_entropy(process, log_score, x, x0, total):
  """The definition for one position in extended precision: its value, and its terms' size."""
  z, total = log_score.astype(np.longdouble), np.longdouble(total)
  vocab = np.longdouble(process.vocab_size)
  y = np.arange(z.size)
  jump = -np.expm1(-total)
  if isinstance(process, Uniform):
    p = np.full(z.size, jump / vocab)
    p[x0] = np.exp(-total) + jump / vocab
    weight = np.full(z.size, 1 / vocab)
  else:
    p = np.zeros(z.size, np.longdouble)
    p[x0], p[process.mask_id] = np.exp(-total), jump
    weight = ((y < process.vocab_size) & (x == process.mask_id)).astype(np.longdouble)
  keep = (y != x) & (weight > 0)
  z, weight, r = z[keep], weight[keep], p[keep] / p[x]
  k = r * (np.log(np.where(r > 0, r, 1)) - 1)
  size = weight * (np.exp(z) + np.abs(r * z) + np.abs(k))
  return (weight * (np.exp(z) - r * z + k)).sum(), size.sum()


@pytest.mark.parametrize("vocab", [2, 27, 50257, 128256])
@pytest.mark.parametrize("kind", [Absorbing, Uniform])
def test_score_entropy_is_right_to_1e_5_in_float32(kind, vocab):
  process = kind(vocab)
  totals = np.float32([1e-6, 1e-4, 1e-2, 0.3, 1.0, 5.0, 20.0])
  rng = np.random.default_rng(vocab)
  log_score = rng.normal(size=process.num_states).astype(np.float32)
  x0 = rng.integers(vocab - 1, size=totals.size)
  noisy = np.full_like(x0, process.mask_id if kind is Absorbing else vocab - 1)
  for x in (noisy, x0):
    rows = np.broadcast_to(log_score, (totals.size, process.num_states))
    ours = score_entropy(process, rows, x, x0, totals)
    exact = [
      extended_score_entropy(process, log_score, *row)[0] for row in zip(x, x0, totals, strict=True)
    ]
    np.testing.assert_allclose(ours, np.array(exact, np.float64), rtol=1e-5)


@pytest.mark.parametrize("vocab", [27, 50257])
@pytest.mark.parametrize("kind", [Absorbing, Uniform])
def test_score_entropy_is_right_to_1e_9_in_float64(kind, vocab, x64):
  process = kind(vocab)
  totals = np.array([1e-6, 1e-4, 1e-2, 0.3, 1.0, 5.0, 20.0])
  rng = np.random.default_rng(vocab)
  log_score = rng.normal(size=process.num_states)
  x0 = rng.integers(vocab - 1, size=totals.size)
  x = np.full_like(x0, process.mask_id if kind is Absorbing else vocab - 1)
  rows = np.broadcast_to(log_score, (totals.size, process.num_states))
  ours = score_entropy(process, rows, x, x0, totals)
  exact = [
    extended_score_entropy(process, log_score, *row)[0] for row in zip(x, x0, totals, strict=True)
  ]
  np.testing.assert_allclose(ours, np.array(exact, np.float64), rtol=1e-9)


@pytest.mark.parametrize("kind", [Absorbing, Uniform])
def test_float32_loses_only_rounding_near_the_truth(kind):
  # There the terms cancel, so that the error is small beside them and not beside the rest.
  process, totals = kind(50257), np.float32([1e-4, 1e-2, 1.0, 20.0])
  rng = np.random.default_rng(0)
  x0 = np.full(totals.size, 3)
  noisy = np.full_like(x0, process.mask_id if kind is Absorbing else 5)
  for x in (noisy, x0):
    truth = np.maximum(true_log_ratio(process, x, x0, totals), -30.0)
    rows = (truth + 0.1 * rng.normal(size=truth.shape)).astype(np.float32)
    ours = score_entropy(process, rows, x, x0, totals)
    exact = [extended_score_entropy(process, *row) for row in zip(rows, x, x0, totals, strict=True)]
    value, size = np.array(exact, np.float64).T
    np.testing.assert_array_less(np.abs(ours - value), 3e-7 * size + 1e-30)


def true_log_ratio(process, x, x0, total):
  """log P(y given x0) / P(x given x0), float64[..., S]; -inf where nothing leads to y."""
  p = np.asarray(call(process, "transition", x0, total), np.float64)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.log(p) - np.log(np.take_along_axis(p, x[..., None], axis=-1))


def reachable_pairs(process):
  """Every pair (x, x0) that can occur."""
  mask = process.mask_id
  pairs = [(x, x0) for x0 in range(process.vocab_size) for x in range(process.num_states)]
  return np.array([(x, x0) for x, x0 in pairs if mask is None or x in (x0, mask)]).T


@both
@pytest.mark.parametrize("total", [1e-4, 0.3, 5.0])
def test_score_entropy_is_0_at_the_true_ratio(process, total, x64):
  x, x0 = reachable_pairs(process)
  z = true_log_ratio(process, x, x0, total)
  # -1e3 for -inf: a ratio of 0 costs nothing at a score of 0. One state's own entry is 0 anyhow.
  ours = score_entropy(process, np.maximum(z, -1e3), x, x0, total)
  scale = 1 + 1 / np.expm1(total)
  np.testing.assert_allclose(ours, 0.0, atol=1e-14 * scale * 10)


@both
@pytest.mark.parametrize("total", [1e-4, 0.3, 5.0])
def test_score_entropy_is_positive_elsewhere(process, total, x64):
  x, x0 = reachable_pairs(process)
  z = np.maximum(true_log_ratio(process, x, x0, total), -5.0)
  error = np.random.default_rng(0).normal(size=(200, *z.shape))
  rows = z[None] + 0.1 * error
  many = [np.broadcast_to(a, rows.shape[:-1]) for a in (x, x0)]
  ours = np.asarray(score_entropy(process, rows, *many, total))
  costs = np.broadcast_to((x == process.mask_id) | (process.mask_id is None), ours.shape)
  assert (ours[costs] > 0).all()
  assert (ours[~costs] == 0).all()


@both
def test_gradient_of_score_entropy_vanishes_at_the_true_ratio(process, x64):
  x, x0 = reachable_pairs(process)
  z = np.maximum(true_log_ratio(process, x, x0, 0.3), -1e3)
  np.testing.assert_allclose(score_entropy_grad(process, z, x, x0, 0.3), 0.0, atol=1e-13)


@both
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_score_entropy_ignores_the_own_entry(process, junk, x64):
  x, x0 = reachable_pairs(process)
  z = np.random.default_rng(0).normal(size=(x.size, process.num_states))
  spoiled = z.copy()
  spoiled[np.arange(x.size), x] = junk
  np.testing.assert_array_equal(
    score_entropy(process, spoiled, x, x0, 0.3), score_entropy(process, z, x, x0, 0.3)
  )
  gradient = score_entropy_grad(process, spoiled, x, x0, 0.3)
  np.testing.assert_array_equal(gradient, score_entropy_grad(process, z, x, x0, 0.3))
  assert (np.asarray(gradient)[np.arange(x.size), x] == 0).all()


# Extremes.


EXTREMES = {
  "ordinary": 0.3,
  "minus_infinity": -np.inf,
  "very_negative": -3e38,
  "very_positive": 80.0,
}


@both
@pytest.mark.parametrize("total", [0.0, 1e-30, 1e-6, 20.0, 1e3, 1e30])
@pytest.mark.parametrize("value", EXTREMES.values(), ids=EXTREMES)
def test_score_entropy_is_never_nan(process, total, value):
  x, x0 = reachable_pairs(process)
  rows = np.full((x.size, process.num_states), value, np.float32)
  assert not jnp.isnan(score_entropy(process, rows, x, x0, np.float32(total))).any()


@both
@pytest.mark.parametrize("total", [0.0, 1e-30, 1e-6, 20.0, 1e3, 1e30])
@pytest.mark.parametrize("value", EXTREMES.values(), ids=EXTREMES)
def test_gradient_of_score_entropy_is_never_nan(process, total, value):
  x, x0 = reachable_pairs(process)
  rows = np.full((x.size, process.num_states), value, np.float32)
  assert not jnp.isnan(score_entropy_grad(process, rows, x, x0, np.float32(total))).any()


def test_unmasked_rows_with_huge_scores_leave_the_gradient_alone():
  process = Absorbing(3)
  x, x0 = np.array([3, 1]), np.array([0, 1])
  rows = np.array([[0.1, 0.2, 0.3, 0.0], [3e38, 1e3, np.inf, 200.0]], np.float32)
  gradient = np.asarray(score_entropy_grad(process, rows, x, x0, np.float32(0.3)))
  assert np.isfinite(gradient[0]).all()
  assert (gradient[1] == 0).all()


def test_huge_scores_of_unmasked_rows_leave_the_training_gradient_alone():
  # Training goes through ScoreStats, not through `score_entropy`.
  process = Absorbing(3)
  x0, keys = jnp.zeros((1, 64), jnp.int32), jax.random.split(jax.random.key(0), 1)

  @jax.jit
  @jax.value_and_grad
  def loss(huge):
    def log_score_fn(x, total):
      row = jnp.where((x == process.mask_id)[..., None], 0.1, huge)
      return jnp.broadcast_to(row, (*x.shape, process.num_states))

    return denoising_score_entropy(
      DenseNetwork(process, log_score_fn).stats_fn(),
      Batch.of(x0),
      jnp.full(1, 0.5),
      keys,
      process=process,
      noise=LogLinear(),
    ).sum()

  value, gradient = loss(200.0)
  assert jnp.isfinite(value)
  assert gradient == 0
