"""The times of samplers' steps: even, given, or adaptive."""

import dataclasses

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from support.drawing import DRAWS, drawn_counts, sampling_of
from support.oracle import random_toy
from support.processes import both, noises
from support.statistics import chi_square_p_value, total_variation

from sedd_jax.diffusion import (
  Absorbing,
  Adaptive,
  DenseScores,
  EntropyBounded,
  FirstHitting,
  Geometric,
  LogLinear,
  Times,
  Trapezoidal,
  Tweedie,
  Uniform,
  even_times,
  sample,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
SOME_STEPS = [even_times(steps, LogLinear()) for steps in (5, 64, 4096, 4097)]


@pytest.mark.parametrize("by", ["time", "noise", "tokens"])
@noises
def test_times_are_even_in_what_they_say(noise, by, x64):
  times = np.array(even_times(9, noise, by=by).times)
  totals = np.asarray(noise.total(times))
  measure = {"time": times, "noise": totals, "tokens": -np.expm1(-totals)}[by]
  np.testing.assert_allclose(np.diff(measure), np.diff(measure)[0], rtol=1e-5)
  assert (times[0], times[-1]) == (1.0, 1e-5)


def test_a_list_of_times_is_followed(x64):
  toy, noise, times = random_toy(Absorbing(3)), Geometric(), (1.0, 0.8, 0.75, 0.3)
  how = dataclasses.replace(sampling_of(toy.process, noise, Tweedie()), schedule=Times(times))
  counts = drawn_counts(toy, how)
  law = laws.law(toy, noise, "tweedie", times)
  assert chi_square_p_value(counts, np.where(law > 1e-9, law, 0.0)) > 1e-3


def test_one_compiled_function_serves_all_lists_of_times():
  """As its argument, up to a size; the times are the same."""

  @jax.jit
  def following(times, t):
    end = jnp.broadcast_to(times.end, t.shape)
    return jnp.stack([times.next(t, step, None, None) for step in range(4)]), end

  t = jnp.ones(2)
  for times in (Times((1.0, 0.8, 0.75, 0.3, 0.2)), even_times(4, LogLinear()), *SOME_STEPS):
    found, end = following(times, t)
    want = np.asarray(times.times[1:5], np.float32)
    np.testing.assert_array_equal(found, np.repeat(want[:, None], 2, axis=1))
    np.testing.assert_array_equal(end, np.float32(times.times[-1]))
  assert following._cache_size() == 2  # The longest list has its own.


@pytest.mark.parametrize(
  "times", [(1.0,), (0.9, 0.1), (1.0, 0.5, 0.5), (1.0, 0.0), (1.0, 0.2, 0.7), (1.0, float("nan"))]
)
def test_other_lists_of_times_are_refused(times):
  with pytest.raises(ValueError, match="must start at 1 and fall"):
    Times(times)


def test_times_too_close_for_float32_are_refused():
  with pytest.raises(ValueError, match="too close"):
    Times((1.0, 1.0 - 1e-9, 0.5))


def steps_of(tolerance, process=Uniform(3)):
  toy = random_toy(process)
  how = sampling_of(process, LogLinear(), Trapezoidal())
  how = dataclasses.replace(how, schedule=Adaptive(tolerance=tolerance))
  keys = jax.random.split(jax.random.key(0), 64)
  return int(jax.jit(lambda: sample(DenseScores(toy.log_score_fn), keys, how, length=2))().steps)


def test_a_smaller_tolerance_takes_more_steps():
  steps = [steps_of(tolerance) for tolerance in (1.0, 0.1, 0.01)]
  assert steps[0] < steps[1] < steps[2] < 1000


@both
def test_adaptive_steps_come_near_the_data(process):
  toy = random_toy(process)
  how = dataclasses.replace(sampling_of(process, Geometric(), Trapezoidal()), schedule=Adaptive())
  counts = drawn_counts(toy, how)
  assert total_variation(counts / DRAWS, toy.p_start) < 0.01


def test_adaptive_steps_lead_on_however_small_the_tolerance():
  t = jnp.array([1.0, 0.5, 1e-3])
  schedule = Adaptive(tolerance=1e-9)
  for noise in (LogLinear(), Geometric()):
    assert (schedule.next(t, 0, jnp.full(3, 1e12), noise) < t).all()


def test_adaptive_steps_are_those_of_the_sequence_alone():
  toy, keys = random_toy(Uniform(3)), jax.random.split(jax.random.key(3), 6)
  how = sampling_of(toy.process, LogLinear(), Trapezoidal())
  how = dataclasses.replace(how, schedule=Adaptive())
  run = jax.jit(lambda keys: sample(DenseScores(toy.log_score_fn), keys, how, length=2).x)
  np.testing.assert_array_equal(run(keys), np.concatenate([run(key[None]) for key in keys]))


def test_adaptive_steps_need_an_error():
  with pytest.raises(ValueError, match="trapezoidal"):
    dataclasses.replace(sampling_of(Uniform(3), LogLinear(), Tweedie()), schedule=Adaptive())


@pytest.mark.parametrize("sampler", [FirstHitting(), EntropyBounded()], ids=str)
def test_samplers_that_set_their_times_end_where_they_end(sampler):
  how = sampling_of(Absorbing(3), LogLinear(), sampler)
  with pytest.raises(ValueError, match="sets its own times"):
    dataclasses.replace(how, schedule=Times((1.0, 0.5)))
