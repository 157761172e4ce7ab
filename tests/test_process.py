"""The two processes against matrix exponentials, extended precision and the original's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from support.oracle import random_toy
from support.statistics import chi_square_p_value

from sedd_jax.diffusion import (
  Absorbing,
  Euler,
  LogLinear,
  Uniform,
  denoising_score_entropy,
  from_log_score,
)

PROCESSES = [Absorbing(3), Uniform(3)]
TOTALS = [1e-4, 0.3, 2.0, 8.0]
both = pytest.mark.parametrize("process", PROCESSES, ids=str)


def of_golden(arrays):
  """(process, arrays of its group) for every group, sizes read from the arrays."""
  prefixes = sorted(k.removesuffix("x0") for k in arrays if k.endswith("_x0"))
  for prefix in prefixes:
    group = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    size = group["log_score"].shape[-1]
    yield Absorbing(size - 1) if prefix.startswith("absorb") else Uniform(size), group


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(process, method, *args):
  """A method of a process, compiled."""
  return getattr(process, method)(*args)


def score_entropy(process, log_score, x, x0, total):
  return call(process, "score_entropy", log_score, x, x0, total)


@functools.partial(jax.jit, static_argnums=0)
def score_entropy_grad(process, log_score, x, x0, total):
  return jax.grad(lambda z: process.score_entropy(z, x, x0, total).sum())(log_score)


# Forward.


@both
@pytest.mark.parametrize("total", TOTALS)
def test_transition_is_expm_of_rates(process, total, x64):
  x = jnp.arange(process.num_states)
  expected = scipy.linalg.expm(total * np.asarray(call(process, "rates", x)))
  np.testing.assert_allclose(
    call(process, "transition", x, total), expected, rtol=1e-11, atol=1e-15
  )


@both
def test_rates_are_those_of_the_definition(process, x64):
  rates = call(process, "rates", jnp.arange(process.num_states))
  np.testing.assert_allclose(rates, random_toy(process).token_generator, rtol=1e-15)


@both
def test_transition_rows_sum_to_1(process):
  x = jnp.arange(process.num_states)
  total = jnp.array([0.0, 1e-6, 1e-3, 0.7, 20.0, 1e3])[:, None]
  rows = call(process, "transition", jnp.broadcast_to(x, (6, x.size)), total)
  assert (rows >= 0).all()
  np.testing.assert_allclose(rows.sum(-1), 1.0, rtol=1e-6)


@both
def test_transitions_compose(process, x64):
  x = jnp.arange(process.num_states)
  composed = call(process, "transition", x, 0.3) @ call(process, "transition", x, 1.1)
  np.testing.assert_allclose(composed, call(process, "transition", x, 1.4), rtol=1e-12)


@both
def test_total_broadcasts_to_tokens(process):
  x0 = jnp.zeros((2, 3), jnp.int32)
  for total in (0.5, jnp.full((2, 1), 0.5), jnp.full((2, 3), 0.5)):
    row = jax.eval_shape(process.transition, x0, total)
    assert row.shape == (2, 3, process.num_states)
    x = jax.eval_shape(process.corrupt, jax.random.key(0), x0, total)
    assert (x.shape, x.dtype) == ((2, 3), jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 2))
def corrupted_counts(process, total, shape):
  """int[V, S]: states that corruption leads to, from each token; shape[0] rows of every token."""
  x0 = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  x = process.corrupt(jax.random.key(1), x0, total)
  hit = x[:, :, None] == jnp.arange(process.num_states)[None, None, :]
  return hit.sum(0)


@both
@pytest.mark.parametrize("total", [0.3, 2.5])
def test_corrupt_draws_from_transition(process, total, strict_keys):
  counts = np.asarray(corrupted_counts(process, total, (100_000, 3)))
  expected = np.asarray(call(process, "transition", jnp.arange(3), total), np.float64)
  for token in range(3):
    assert chi_square_p_value(counts[token], expected[token]) > 1e-3


@both
def test_corrupt_draws_from_transition_at_little_noise(process, strict_keys):
  counts = np.asarray(corrupted_counts(process, 1e-4, (1_000_000, 3)))
  expected = np.asarray(call(process, "transition", jnp.arange(3), 1e-4), np.float64)
  assert chi_square_p_value(counts.sum(0), expected.sum(0) / 3) > 1e-3
  for token in range(3):
    assert chi_square_p_value(counts[token], expected[token]) > 1e-3


@pytest.mark.slow
def test_corrupt_is_right_below_the_steps_of_float32_uniforms():
  # Uniforms in steps of 2^-23 jump with probability 1.2e-7 at least: 24 jumps here, where 4 belong.
  process, total, draws = Absorbing(3), 2e-8, 200
  x0 = jnp.zeros(1_000_000, jnp.int32)
  jumps = jax.jit(
    lambda keys: jax.lax.map(lambda k: (process.corrupt(k, x0, total) != x0).sum(), keys).sum()
  )(jax.random.split(jax.random.key(2), draws))
  assert (
    0 < int(jumps) <= 12
  )  # Poisson(4): outside with probability 2 %; Poisson(24): inside, 0.5 %.


@both
def test_corrupt_without_noise_changes_nothing(process):
  x0 = np.arange(30_000) % 3
  x = call(process, "corrupt", jax.random.key(0), x0, 0.0)
  assert x.dtype == jnp.int32
  assert (x == x0).all()


@both
def test_corrupt_with_all_the_noise_leaves_no_trace(process):
  x0 = jnp.zeros(30_000, jnp.int32)
  x = np.asarray(call(process, "corrupt", jax.random.key(0), x0, 1e4))
  if process.mask_id is not None:
    assert (x == process.mask_id).all()
  else:
    assert chi_square_p_value(np.bincount(x, minlength=3), np.full(3, 1 / 3)) > 1e-3


def test_states_are_the_tokens_and_perhaps_a_mask():
  assert (Absorbing(5).num_states, Absorbing(5).mask_id) == (6, 5)
  assert (Uniform(5).num_states, Uniform(5).mask_id) == (5, None)


@pytest.mark.parametrize("process", [Absorbing, Uniform])
def test_no_vocabulary_is_refused(process):
  with pytest.raises(ValueError, match="vocab_size=0"):
    process(0)


# The original's numbers.


def test_rates_and_transitions_match_the_original(golden, x64):
  for process, g in of_golden(golden("graph.npz")):
    assert process.num_states == g["dim"]
    np.testing.assert_allclose(call(process, "rates", g["x"]), g["rate"], rtol=1e-9)
    np.testing.assert_allclose(
      call(process, "transition", g["x"], g["sigma"]), g["transition"], rtol=1e-9, atol=1e-15
    )


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


def test_reverse_rates_match_the_original(golden, x64):
  for process, g in of_golden(golden("graph.npz")):
    ours = call(process, "reverse_rates", np.log(g["score"]), g["x"])
    np.testing.assert_allclose(ours, g["reverse_rate"], rtol=1e-9, atol=1e-12)


def test_tweedie_is_the_staggered_score_times_the_transition(golden, x64):
  # The original neither clips nor renormalises, and draws as if it had: negatives never win.
  for process, g in of_golden(golden("graph.npz")):
    # P(y becomes x in the step): column x of each row's transition matrix.
    states = jnp.broadcast_to(jnp.arange(process.num_states), (len(g["x"]), process.num_states))
    steps = np.asarray(call(process, "transition", states, g["dsigma"]))
    into = np.stack([step[:, x].T for step, x in zip(steps, g["x"], strict=True)])
    weight = np.maximum(g["staggered_score"] * into, 0.0)
    expected = weight / weight.sum(-1, keepdims=True)
    ours = call(process, "tweedie_probs", np.log(g["score"]), g["x"], g["dsigma"])
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


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
      from_log_score(log_score_fn, process),
      x0,
      jnp.full(1, 0.5),
      keys,
      process=process,
      noise=LogLinear(),
    ).sum()

  value, gradient = loss(200.0)
  assert jnp.isfinite(value)
  assert gradient == 0


# Reverse.


@both
def test_reverse_rates_generate_the_time_reversal(process, x64):
  # p(total) falls back along -dp/dtotal = p R, with R assembled over both positions.
  toy = random_toy(process)
  for total in (0.05, 0.7, 3.0):
    z = toy.log_score(total)
    rates = np.asarray(call(process, "reverse_rates", z, toy.states))
    generator = np.zeros((len(toy.states),) * 2)
    start = np.broadcast_to(np.arange(len(toy.states))[:, None, None], rates.shape)
    np.add.at(generator, (start, toy.neighbours), rates)
    np.testing.assert_allclose(generator.sum(-1), 0.0, atol=1e-10)
    p = toy.law(total)
    np.testing.assert_allclose(p @ generator, -p @ toy.generator, rtol=1e-9, atol=1e-12)


@both
def test_the_oracle_agrees_with_expm(process, x64):
  # The oracle's scores come from products over positions; expm of the whole generator decides.
  toy = random_toy(process, length=3)
  for total in (0.05, 0.7, 3.0):
    p = toy.law(total)
    np.testing.assert_allclose(toy.p_start[toy.clean] @ toy.forward(total), p, rtol=1e-10)
    with np.errstate(divide="ignore"):
      expected = np.log(p)[toy.neighbours] - np.log(p)[:, None, None]
    np.testing.assert_allclose(toy.log_score(total), expected, atol=1e-9)


@both
@pytest.mark.parametrize(("total", "step"), [(0.7, 0.3), (3.0, 0.01), (3.0, 2.9), (0.01, 0.009)])
def test_tweedie_is_exact_for_one_token(process, total, step, x64):
  toy = random_toy(process, length=1)
  p = call(process, "tweedie_probs", toy.log_score(total)[:, 0], toy.states[:, 0], step)
  np.testing.assert_allclose(toy.law(total) @ p, toy.law(total - step), rtol=1e-9)


@both
@pytest.mark.parametrize("total", [1e-4, 0.7, 8.0])
def test_denoising_is_exact_for_one_token(process, total, x64):
  toy = random_toy(process, length=1)
  x = toy.states[:, 0]
  p = np.asarray(call(process, "denoise_probs", toy.log_score(total)[:, 0], x, total))
  # What the absorbing process leaves unmasked stays: exact too.
  np.testing.assert_allclose(toy.law(total) @ p, toy.p_start, rtol=1e-9, atol=1e-12)


def rows_at_the_edge(process):
  """float32[:, S] log scores: huge, tiny and -inf entries, alone and together."""
  size = process.num_states
  values = [-np.inf, -3e38, -100.0, 0.0, 3.0, 60.0, 100.0, 1e4, 3e38]
  rows = [np.full(size, v) for v in values]
  rng = np.random.default_rng(0)
  rows += [rng.choice(values, size=size) for _ in range(60)]
  return np.array(rows, np.float32)


STEPS = {
  "tweedie": lambda process, z, x, total: process.tweedie_probs(z, x, total),
  "denoise": lambda process, z, x, total: process.denoise_probs(z, x, total),
  # t from 1 to 0 under LogLinear: the longest step at the highest rate; scaled by `total`.
  "euler": lambda process, z, x, total: Euler().probs(
    z, x, jnp.minimum(total, 1.0), jnp.zeros(()), process=process, noise=LogLinear()
  ),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def step_probs(name, process, z, x, total):
  return STEPS[name](process, z, x, total)


@both
@pytest.mark.parametrize("total", [0.0, 1e-30, 1e-4, 0.5, 20.0, 1e3, 1e30])
@pytest.mark.parametrize("name", STEPS)
def test_steps_are_probabilities_whatever_the_scores(name, process, total):
  rows = rows_at_the_edge(process)
  states = np.arange(process.num_states)
  z = np.repeat(rows, states.size, axis=0)
  p = np.asarray(step_probs(name, process, z, np.tile(states, len(rows)), np.float32(total)))
  assert np.isfinite(p).all()
  assert (p >= 0).all()
  np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-5)


@both
@pytest.mark.parametrize("name", ["tweedie", "euler"])
def test_a_step_of_no_length_changes_nothing(name, process):
  rows = rows_at_the_edge(process)
  states = np.arange(process.num_states)
  z = np.repeat(rows, states.size, axis=0)
  p = step_probs(name, process, z, np.tile(states, len(rows)), np.float32(0.0))
  np.testing.assert_array_equal(p, np.tile(np.eye(states.size), (len(rows), 1)))


def test_denoising_never_leaves_a_mask():
  process = Absorbing(3)
  rows = rows_at_the_edge(process)
  for total in (0.0, 1e-4, 20.0):
    x = np.full(len(rows), process.mask_id)
    p = step_probs("denoise", process, rows, x, np.float32(total))
    assert (p[:, process.mask_id] == 0).all()


def test_steps_never_change_an_unmasked_token():
  process = Absorbing(3)
  rows = rows_at_the_edge(process)
  for name in STEPS:
    p = step_probs(name, process, rows, np.full(len(rows), 1), np.float32(0.5))
    np.testing.assert_array_equal(p, np.tile(np.eye(4)[1], (len(rows), 1)))


@both
def test_sampling_starts_from_the_limit_of_corruption(process, strict_keys):
  start = np.asarray(process.prior(jax.random.key(0), (30_000,)))
  assert start.dtype == np.int32
  limit = np.asarray(call(process, "transition", jnp.zeros((), jnp.int32), 1e4), np.float64)
  assert chi_square_p_value(np.bincount(start, minlength=limit.size), limit) > 1e-3
