"""The two processes against matrix exponentials and the original's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from support.oracle import random_toy
from support.processes import both, call, of_golden
from support.statistics import chi_square_p_value

from sedd_jax.diffusion import Absorbing, Euler, LogLinear, Row, Uniform

TOTALS = [1e-4, 0.3, 2.0, 8.0]


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
  "euler": lambda process, z, x, total: Euler().law(
    Row(z, x, total), jnp.minimum(total, 1.0), jnp.zeros(()), process=process, noise=LogLinear()
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
