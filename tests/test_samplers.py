"""Samplers draw from their enumerated laws (tests/laws.py), and those are near the data's.

B: sequences, L: positions, N: enumerated sequences.
"""

import functools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import scipy.stats
from support.drawing import DRAWS, drawn_counts, sampling_of
from support.oracle import Toy, random_toy
from support.processes import both, noises
from support.statistics import chi_square_p_value, total_variation

from sedd_jax.diffusion import (
  SAMPLERS,
  Absorbing,
  Adaptive,
  Ancestral,
  Confidence,
  DenseScores,
  EntropyBounded,
  FirstHitting,
  Geometric,
  Given,
  LogLinear,
  PredictorCorrector,
  ReMDM,
  Trapezoidal,
  Truncation,
  Tweedie,
  Uniform,
  even_times,
  nothing_given,
  sample,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def mild_toy(process):
  """A toy whose tokens depend on each other so little that no extrapolated score is negative."""
  return _mild_toy(process)


@functools.cache
def _mild_toy(process):
  p0 = 1.0 + 0.3 * np.random.default_rng(0).random((3, 3))
  return Toy(process, p0 / p0.sum())


# Draws follow the enumerated law.


@pytest.mark.parametrize(
  ("process", "sampler", "name", "options"),
  [
    (Absorbing(3), Ancestral(), "tweedie", {}),
    (Absorbing(3), ReMDM(0.3, 0.9), "remdm", {"cap": 0.3, "rescale": 0.9}),
    (Absorbing(3), Trapezoidal(0.4), "trapezoidal", {"theta": 0.4}),
    (Uniform(3), Trapezoidal(0.4), "trapezoidal", {"theta": 0.4}),
    (Absorbing(3), PredictorCorrector(size=0.4), "predictor_corrector", {"size": 0.4}),
    (Uniform(3), PredictorCorrector(size=0.4), "predictor_corrector", {"size": 0.4}),
    (Absorbing(3), Confidence(), "confidence", {}),
  ],
  ids=str,
)
def test_draws_follow_the_law_of_the_sampler(process, sampler, name, options, x64):
  toy, noise = random_toy(process), LogLinear()
  counts = drawn_counts(toy, sampling_of(process, noise, sampler))
  law = laws.law(toy, noise, name, even_times(4, noise).times, **options)
  assert chi_square_p_value(counts, np.where(law > 1e-9, law, 0.0)) > 1e-3


@pytest.mark.parametrize("wrong", [0.0, 0.7])
def test_first_hitting_fills_in_one_random_position_at_a_time(wrong, x64):
  # Also where the score is wrong: the law is that of drawing the positions in random order. The
  # score is asked at one noise, whatever the time: this toy's error depends on it.
  toy = random_toy(Absorbing(3), 3, wrong)
  law = laws.by_order(toy, 1.0, laws.one_at_random)
  assert (total_variation(law, toy.p_start) > 0.1) == (wrong > 0.0)
  scores = DenseScores(lambda x, total: toy.log_score_fn(x, jnp.ones_like(total)))
  how = sampling_of(toy.process, LogLinear(), FirstHitting())
  keys = jax.random.split(jax.random.key(0), DRAWS)
  x = np.asarray(jax.jit(lambda: sample(scores, keys, how, length=3).x)())
  counts = np.bincount(toy.index(x), minlength=len(toy.states))
  assert chi_square_p_value(counts, law) > 1e-3


@noises
def test_first_hitting_asks_at_the_times_at_which_masks_are_lifted(noise, x64):
  # With n masks left, the share of noised tokens falls by the n-th root of a uniform number.
  batch, length = 2000, 4
  how, scores = sampling_of(Absorbing(3), noise, FirstHitting()), DenseScores(masked_uniform)
  given, keys = nothing_given(batch, length), jax.random.split(jax.random.key(0), batch)
  advance = jax.jit(lambda state: how.advance(scores, keys, state, given, state.steps + 1))
  state, noised = how.start(keys, given), [-np.expm1(-np.asarray(noise.total(jnp.ones(batch))))]
  for left in range(length, 1, -1):
    state = advance(state)
    assert ((state.x == 3).sum(axis=1) == left - 1).all()
    noised.append(-np.expm1(-np.asarray(noise.total(state.t))))
    u = (noised[-1] / noised[-2]) ** left
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3


@noises
@pytest.mark.parametrize(
  "sampler", [Ancestral(), ReMDM(), ReMDM(1.0, 0.5), ReMDM(1.0, 1.0)], ids=str
)
def test_masks_are_as_many_as_the_schedule_says(noise, sampler, x64):
  batch, length = 500, 40
  how, scores = sampling_of(Absorbing(3), noise, sampler, 8), DenseScores(masked_uniform)
  given, keys = nothing_given(batch, length), jax.random.split(jax.random.key(0), batch)
  advance = jax.jit(lambda state: how.advance(scores, keys, state, given, state.steps + 1))
  state = how.start(keys, given)
  for t in how.schedule.times[1:]:
    state = advance(state)
    share = -np.expm1(-float(noise.total(t))) / -np.expm1(-float(noise.total(1.0)))
    stderr = (share * (1.0 - share) / (batch * length)) ** 0.5
    assert abs(float((state.x == 3).mean()) - share) < 4 * stderr + 1e-9


@pytest.mark.parametrize("gamma", [0.0, 1.0, 10.0])
def test_entropy_bounded_draws_follow_its_law(gamma, x64):
  toy = random_toy(Absorbing(3), 3)
  law = laws.by_order(toy, 1.0, laws.entropy_bounded(gamma))
  counts = drawn_counts(toy, sampling_of(toy.process, LogLinear(), EntropyBounded(gamma)))
  assert chi_square_p_value(counts, law) > 1e-3
  assert (total_variation(law, toy.p_start) < 1e-12) == (gamma == 0.0)


# How far the laws are from the data, at the exact score.


@noises
def test_first_hitting_is_exact(noise):
  # The only sampler that is, in finitely many calls: a time step moves positions independently.
  toy = random_toy(Absorbing(3), 3)
  counts = drawn_counts(toy, sampling_of(toy.process, noise, FirstHitting()), draws=100_000)
  assert chi_square_p_value(counts, toy.p_start) > 1e-3
  law = laws.law(toy, noise, "tweedie", even_times(3, noise).times)
  assert chi_square_p_value(counts, np.where(law > 1e-9, law, 0.0)) < 1e-6


@both
@noises
def test_trapezoidal_steps_are_of_second_order(process, noise, x64):
  errors, order = laws.order_of(mild_toy(process), noise, "trapezoidal", (8, 16, 32), theta=0.5)
  assert order > 1.85
  first, first_order = laws.order_of(mild_toy(process), noise, "tweedie", (16, 64))
  assert 0.9 < first_order < 1.1
  # At as many calls of the network.
  assert errors[-1] < first[-1] / 5


@both
@noises
def test_negative_extrapolated_scores_cost_the_second_order_and_no_more(process, noise, x64):
  toy = random_toy(process)
  errors, order = laws.order_of(toy, noise, "trapezoidal", (8, 16, 32), theta=0.5)
  first, _ = laws.order_of(toy, noise, "tweedie", (16, 64))
  assert 0.95 < order < 1.6
  assert errors[-1] < first[-1]


@noises
@pytest.mark.parametrize("cap", [0.02, 1.0])
def test_remdm_converges_to_the_data(noise, cap, x64):
  errors, order = laws.order_of(random_toy(Absorbing(3)), noise, "remdm", cap=cap, rescale=1.0)
  assert 0.6 < order < 1.2
  assert np.all(np.diff(errors) < 0)


def test_remdm_without_remasking_is_ancestral(x64):
  toy, noise = random_toy(Absorbing(3)), LogLinear()
  times = even_times(5, noise).times
  np.testing.assert_allclose(
    laws.law(toy, noise, "remdm", times, cap=0.0, rescale=1.0),
    laws.law(toy, noise, "tweedie", times),
    atol=1e-9,
  )
  keys = jax.random.split(jax.random.key(1), 50)
  x = [
    sample(DenseScores(toy.log_score_fn), keys, sampling_of(toy.process, noise, s), length=2).x
    for s in (ReMDM(cap=0.0), Ancestral())
  ]
  np.testing.assert_array_equal(*x)


@both
@pytest.mark.parametrize("total", [0.05, 0.7, 3.0])
def test_corrector_rates_leave_the_law_as_it_is(process, total, x64):
  toy = random_toy(process)
  p = toy.law(total)
  both_ways = toy.generator + toy.reverse_generator(toy.log_score(total))
  np.testing.assert_allclose(p @ both_ways, 0.0, atol=1e-12)
  # A step of finite size departs from it by the square of its size: positions move at once.
  sizes = np.array([0.2, 0.1, 0.05, 0.025])
  errors = [total_variation(p @ laws.corrector(toy, total, size), p) for size in sizes]
  order = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
  assert 1.9 < order < 2.1


@both
def test_correctors_mend_what_other_steps_did(process, x64):
  toy, noise = random_toy(process), Geometric()
  plain, _ = laws.order_of(toy, noise, "tweedie")
  mended, _ = laws.order_of(toy, noise, "predictor_corrector", size=0.1)
  assert np.all(np.array(mended) < plain)


def test_confidence_is_no_sampler_of_the_model(x64):
  toy, noise = random_toy(Absorbing(3), 3), LogLinear()
  gaps = [
    total_variation(laws.law(toy, noise, "confidence", even_times(n, noise).times), toy.p_start)
    for n in (3, 64)
  ]
  assert gaps[0] > 0.3
  np.testing.assert_allclose(*gaps)  # However many steps.


# Calls.


def masked_uniform(x_BL, total_B):
  """The exact score of independent, equally likely tokens, V = 3."""
  shift = jnp.log(3 * jnp.expm1(total_B))[:, None, None]
  return jnp.zeros((*x_BL.shape, 4)) - shift


@pytest.mark.parametrize(("batch", "length", "num_steps"), [(1, 6, 16), (2, 5, 8)])
def test_no_calls_where_no_token_changes(batch, length, num_steps):
  # A call is made where a token of the batch turns in a step: each turns in one of the N steps.
  how = sampling_of(Absorbing(3), LogLinear(1e-6), Ancestral(), num_steps)
  keys = jax.random.split(jax.random.key(0), (400, batch))
  run = jax.jit(jax.vmap(lambda k: sample(DenseScores(masked_uniform), k, how, length=length)))
  calls = np.asarray(run(keys).calls)
  expected = num_steps * (1 - (1 - 1 / num_steps) ** (batch * length))
  assert abs(calls.mean() - expected) < 3 * calls.std() / len(calls) ** 0.5
  assert calls.max() <= min(num_steps, batch * length)


@pytest.mark.parametrize("name", ["tweedie", "ancestral", "trapezoidal", "first_hitting"])
def test_skipped_calls_change_nothing(name, monkeypatch):
  toy, how = random_toy(Absorbing(3), 3), sampling_of(Absorbing(3), LogLinear(), SAMPLERS[name]())
  keys = jax.random.split(jax.random.key(0), 4)

  def run():
    end = jax.jit(lambda: sample(DenseScores(toy.log_score_fn), keys, how, length=3))()
    return np.asarray(end.x), int(end.calls)

  tokens, calls = run()
  monkeypatch.setattr(jax.lax, "cond", lambda _, see, nothing, *args: see(*args))
  always, _ = run()
  np.testing.assert_array_equal(always, tokens)
  assert calls <= {"trapezoidal": 9}.get(name, 5)


def test_nothing_is_called_once_no_token_is_masked():
  how = sampling_of(Absorbing(3), LogLinear(), Tweedie())
  given = Given(jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), bool))
  end = sample(
    DenseScores(masked_uniform), jax.random.split(jax.random.key(0), 2), how, given=given
  )
  assert (int(end.steps), int(end.calls)) == (4, 0)
  assert (end.x == 1).all()


# Given tokens.


ON_BOTH = ("euler", "tweedie", "trapezoidal", "predictor_corrector")


@pytest.mark.parametrize("name", SAMPLERS)
@both
def test_given_tokens_never_change(name, process):
  if name not in ON_BOTH and process.mask_id is None:
    pytest.skip("lifts masks")
  toy, noise = random_toy(process, 3), LogLinear()
  how = sampling_of(process, noise, SAMPLERS[name]())
  where = jnp.array([[True, False, False], [False, True, True]] * 8)
  given = Given(jnp.ones((16, 3), jnp.int32), where)
  keys, scores = jax.random.split(jax.random.key(0), 16), DenseScores(toy.log_score_fn)
  advance = jax.jit(lambda state: how.advance(scores, keys, state, given, state.steps + 1))
  state = how.start(keys, given)
  while (state.t > how.schedule.end).any():
    state = advance(state)
    assert (state.x[where] == 1).all()
  x = how.finish(scores, keys, state, given).x
  assert (x[where] == 1).all()
  assert (x < 3).all()
  assert len(np.unique(x[~where])) == 3


@pytest.mark.parametrize("sampler", [FirstHitting(), EntropyBounded(0.0)], ids=str)
def test_infilling_is_exact_one_token_at_a_time(sampler):
  toy, given = random_toy(Absorbing(3), 3), (None, 1, None)
  counts = drawn_counts(toy, sampling_of(toy.process, LogLinear(), sampler), given)
  p = toy.p_start * (toy.states[:, 1] == 1)
  assert chi_square_p_value(counts, p / p.sum()) > 1e-3


@noises
@pytest.mark.parametrize("given", [(1, None), (None, 2)])
def test_correctors_bring_uniform_clamping_to_the_posterior(noise, given, x64):
  # With given tokens clamped a corrector keeps p_t given these tokens, and that is the posterior
  # for small t; steps alone settle elsewhere, however many (tests/test_sampling.py).
  toy, times = random_toy(Uniform(3)), tuple(laws.even(64))
  gaps = [
    total_variation(laws.law(toy, noise, "tweedie", times, given), laws.given_data(toy, given))
  ]
  for corrections in (1, 4, 16):
    options = {"size": 0.5, "corrections": corrections}
    p = laws.law(toy, noise, "predictor_corrector", times, given, **options)
    gaps.append(total_variation(p, laws.given_data(toy, given)))
  assert np.all(np.diff(gaps) < 0)
  assert gaps[-1] < gaps[0] / 8
  assert gaps[-1] < 0.006


# Truncated laws.


@both
@pytest.mark.parametrize(
  "truncation", [Truncation(temperature=0.5), Truncation(top_k=2), Truncation(top_p=0.6)], ids=str
)
def test_truncation_acts_on_the_law_of_the_clean_token(process, truncation, x64):
  # With one position the law of x_0 given the others is the data's, and Tweedie steps are exact.
  toy = random_toy(process, length=1)
  counts = drawn_counts(toy, sampling_of(process, LogLinear(), Tweedie(), 3, truncation=truncation))
  p = np.asarray(jnp.exp(truncation(jnp.log(jnp.asarray(toy.p0)))))
  law = np.zeros(len(toy.states))
  law[: len(p)] = p / p.sum()
  # Uniform: samples start at t = 1, where e^-total of the data is left; 0.1 % under log-linear.
  assert total_variation(counts / DRAWS, law) < 0.012
  assert total_variation(counts / DRAWS, toy.p_start) > 0.015


@both
def test_no_truncation_leaves_scores_as_they_are(process, x64):
  toy = random_toy(process)
  x = jnp.asarray(toy.states)
  for total in (0.01, 0.5, 5.0):
    z = toy.log_score_fn(x, jnp.full(len(x), total))
    same = process.with_posterior(z, x, total, lambda log_p: log_p)
    rows = np.asarray(process.needs_score(x)) & (np.asarray(x) >= 0)
    real = slice(0, process.vocab_size)
    np.testing.assert_allclose(same[rows][:, real], z[rows][:, real], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
  "truncation", [Truncation(temperature=0.5), Truncation(top_p=0.9)], ids=str
)
def test_truncation_of_impossible_scores_changes_nothing(truncation):
  # No token has any score: the denoising step takes each with the same probability.
  process = Absorbing(3)
  scores = DenseScores(lambda x, total: jnp.full((*x.shape, 4), -jnp.inf))
  how = sampling_of(process, LogLinear(), Tweedie(), truncation=truncation)
  x = sample(scores, jax.random.split(jax.random.key(0), 300), how, length=2).x
  assert (
    chi_square_p_value(np.bincount(np.asarray(x).ravel(), minlength=3), np.full(3, 1 / 3)) > 1e-3
  )


# Names and bad input.


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(ON_BOTH)))
def test_samplers_of_masks_refuse_the_uniform_process(name):
  with pytest.raises(ValueError, match="absorbing"):
    sampling_of(Uniform(3), LogLinear(), SAMPLERS[name]())


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: ReMDM(cap=1.5), "cap=1.5"),
    (lambda: ReMDM(rescale=-0.1), "rescale=-0.1"),
    (lambda: Trapezoidal(theta=1.0), "theta=1.0"),
    (lambda: EntropyBounded(gamma=-1.0), "gamma=-1.0"),
    (lambda: PredictorCorrector(predictor="heun"), "predictor='heun'"),
    (lambda: PredictorCorrector(corrections=0), "corrections=0"),
    (lambda: PredictorCorrector(size=0.0), "size=0.0"),
    (lambda: Adaptive(tolerance=0.0), "tolerance=0.0"),
    (lambda: Adaptive(first=-1.0), "first=-1.0"),
    (lambda: Adaptive(tolerance=float("inf")), "tolerance=inf"),
    (lambda: Truncation(temperature=0.0), "temperature=0.0"),
    (lambda: Truncation(top_k=-1), "top_k=-1"),
    (lambda: Truncation(top_p=0.0), "top_p=0.0"),
    (lambda: even_times(3, LogLinear(), by="chance"), "'chance'"),
  ],
)
def test_fields_out_of_range_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
