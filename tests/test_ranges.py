"""Numbers that a user sets: any value is followed to its limit, or refused by its range."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import (
  SAMPLERS,
  Absorbing,
  Adaptive,
  DenseScores,
  Geometric,
  LogLinear,
  Sampling,
  Truncation,
  Uniform,
  even_times,
  sample,
)
from sedd_jax.generation.samples import SampleRequest
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import blank
from sedd_jax.ranges import check_seed
from sedd_jax.studies.heldout import evaluate_heldout
from sedd_jax.studies.study import StudyConfig
from sedd_jax.training.experiment import Experiment

ANY = st.floats(allow_nan=True) | st.sampled_from([5e-324, 1e-300, 1e-39, 1e39, 1e300, -0.0])
P = np.array([0.1, 0.4, 0.25, 0.15, 0.1, 0.0])
EXTREMES = [5e-324, 1e-300, 1e-39, 1e-12, 1e12, 1e39, 1e300]


def truncated(p, **how):
  return np.asarray(jax.nn.softmax(Truncation(**how)(jnp.log(jnp.asarray(p, jnp.float32)))))


@hypothesis.given(ANY, ANY, st.integers(-2, 10**20))
@hypothesis.settings(deadline=None, max_examples=300)
def test_a_truncation_is_a_law_or_is_refused(temperature, top_p, top_k):
  try:
    law = truncated(P, temperature=temperature, top_p=top_p, top_k=top_k)
  except ValueError:
    sound = 0.0 < temperature < math.inf and 0.0 < top_p <= 1.0 and top_k >= 0
    assert not sound
    return
  np.testing.assert_allclose(law.sum(), 1.0, atol=1e-6)
  assert law[-1] == 0.0
  assert law[1] >= 0.2 - 1e-6  # The likeliest of five possible states.


@pytest.mark.parametrize("temperature", EXTREMES)
def test_temperature_tends_to_its_limits(temperature):
  limit = np.eye(6)[1] if temperature < 1.0 else np.where(P > 0, 0.2, 0.0)
  np.testing.assert_allclose(truncated(P, temperature=temperature), limit, atol=1e-6)


@pytest.mark.parametrize("top_k", [0, 3])
def test_one_compiled_truncation_serves_all_its_numbers(top_k):
  """As an argument of a compiled function its numbers are leaves; the law is the same."""
  compiled = jax.jit(lambda truncation, z: jax.nn.softmax(truncation(z)))
  z = jnp.log(jnp.asarray(P, jnp.float32))
  for temperature in (*EXTREMES, 0.3, 1.0, 2.5):
    for top_p in (5e-324, 1e-39, 0.6, 1.0):
      how = dict(temperature=temperature, top_p=top_p, top_k=top_k)
      np.testing.assert_allclose(compiled(Truncation(**how), z), truncated(P, **how), atol=1e-6)
  # The identity, and cold or not, with top_p or not.
  assert compiled._cache_size() == 4 + (top_k == 0)


@pytest.mark.parametrize("process", [Absorbing(103), Uniform(103)], ids=lambda p: p.name)
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12, 1e-9, 1e-7])
def test_a_cold_law_keeps_its_pace_when_compiled(process, temperature):
  """On many states that are nearly even: rounded quotients of 4.6e9 are 512 nats apart."""
  p = np.exp(0.01 * np.random.default_rng(0).normal(size=103))
  p = jnp.asarray(p / p.sum(), jnp.float32)
  best = int(jnp.argmax(p))
  x = jnp.full((4,), process.num_states - 1)  # The mask, or a token.
  total = jnp.array([0.1, 0.5, 2.0, 6.0])
  log_score = independent(process, p).call(x[:, None], total)[:, 0]
  cold = jax.jit(
    lambda z: process.with_posterior(z, x, total, Truncation(temperature=temperature))
  )(log_score)
  if process.mask_id is not None:
    real, before = np.asarray(cold[:, :-1]), np.asarray(log_score[:, :-1])
    np.testing.assert_array_equal(np.argmax(real, axis=-1), best)
    np.testing.assert_allclose(
      jax.nn.logsumexp(real, axis=-1), jax.nn.logsumexp(before, axis=-1), rtol=1e-5, atol=1e-5
    )
  else:
    kept = np.exp(-np.asarray(total))
    np.testing.assert_allclose(
      jax.nn.softmax(cold, axis=-1)[:, best], kept + (1.0 - kept) / 103, rtol=1e-4
    )


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-39, 1e-9])
def test_the_likeliest_state_is_always_kept(top_p):
  np.testing.assert_array_equal(truncated(P, top_p=top_p), np.eye(6)[1])


def independent(process, p):
  """Exact scores of tokens that are drawn from p, independently."""

  def row(total):
    if process.mask_id is not None:
      return jnp.append(jnp.log(p) - jnp.log(jnp.expm1(total)), 0.0)
    return jnp.log(jnp.exp(-total) * p - jnp.expm1(-total) / len(p))

  def log_score(x_BL, total_B):
    rows = jax.vmap(row)(total_B)[:, None, :]
    if process.mask_id is not None:
      return jnp.broadcast_to(rows, (*x_BL.shape, process.num_states))
    return rows - jnp.take_along_axis(rows, x_BL[..., None], axis=-1)

  return DenseScores(log_score)


@pytest.mark.parametrize("process", [Absorbing(5), Uniform(5)], ids=lambda p: p.name)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_temperature_to_its_limits(process, name):
  sampler, noise = SAMPLERS[name](), LogLinear()
  if sampler.needs_masks and process.mask_id is None:
    pytest.skip(f"{name} lifts masks")
  p = jnp.asarray(P[:5] / P[:5].sum(), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 256)
  for temperature in (1e-300, 1e300):
    sampling = Sampling(
      process=process,
      noise=noise,
      sampler=sampler,
      schedule=even_times(1 if sampler.sets_times else 12, noise),
      truncation=Truncation(temperature=temperature),
    )
    x = np.asarray(sample(independent(process, p), keys, sampling, length=4).x)
    counts = np.bincount(x.ravel(), minlength=5) / x.size
    limit = np.eye(5)[1] if temperature < 1.0 else np.full(5, 0.2)
    # 1,024 draws: the distance of an even law is 0.025 in the mean.
    assert np.abs(counts - limit).sum() / 2 < (1e-9 if temperature < 1.0 else 0.07)


KNOBS = [
  (SAMPLERS[name], field.name)
  for name in SAMPLERS
  for field in dataclasses.fields(SAMPLERS[name])  # pyright: ignore[reportArgumentType]
  if isinstance(field.default, float | int)
]
KNOBS += [(Adaptive, "tolerance"), (Adaptive, "first"), (LogLinear, "eps")]
KNOBS += [(Geometric, "sigma_min"), (Geometric, "sigma_max")]


@pytest.mark.parametrize(("kind", "name"), KNOBS, ids=lambda x: getattr(x, "__name__", x))
def test_every_knob_has_a_range(kind, name):
  for value in (math.nan, -1.0, -math.inf, -1e-300):
    with pytest.raises(ValueError, match=f"{name}=.* must "):
      kind(**{name: value})


@pytest.mark.parametrize(
  ("kind", "name", "value"),
  [
    (SAMPLERS["trapezoidal"], "theta", 1e-300),
    (SAMPLERS["trapezoidal"], "theta", 1.0 - 1e-9),
    (SAMPLERS["predictor_corrector"], "corrections", 10**12),
    (Adaptive, "tolerance", 1e-300),
    (Adaptive, "first", 1e-300),
    (Adaptive, "first", 1e300),
    (LogLinear, "eps", 1e-300),
    (Geometric, "sigma_min", 1e-300),
    (Geometric, "sigma_max", 1e300),
    (SamplerSettings, "steps", 10**12),
  ],
  ids=str,
)
def test_what_float32_or_memory_cannot_hold_is_refused(kind, name, value):
  with pytest.raises(ValueError, match=f"{name}=.* must "):
    kind(**{name: value})


def test_numbers_in_lists_fit_float32_too():
  with pytest.raises(ValueError, match=r"config\.data\.weights=1e\+300 must be a finite number"):
    Experiment.from_config({"data": {"files": "a;b", "weights": [1.0, 1e300]}})


@pytest.mark.parametrize(
  "sampler",
  [
    "remdm:cap=1e-300",
    "predictor_corrector:size=1e-300",
    "entropy_bounded:gamma=1e300",
    "entropy_bounded:gamma=1e-300",
  ],
)
def test_harmless_extremes_still_sample(sampler):
  process, noise = Absorbing(5), LogLinear()
  p = jnp.asarray(P[:5] / P[:5].sum(), jnp.float32)
  sampling = SamplerSettings(sampler=sampler).sampling(process, noise)
  keys = jax.random.split(jax.random.key(0), 256)
  x = np.asarray(sample(independent(process, p), keys, sampling, length=4).x)
  counts = np.bincount(x.ravel(), minlength=5) / x.size
  assert np.abs(counts - np.asarray(p)).sum() / 2 < 0.07


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 1, 10**30, 1.5, "1", None])
def test_one_range_of_seeds(seed):
  def evaluate(seed):
    evaluate_heldout("nowhere", num_times=2, batch_size=1, seed=seed)

  def request(seed):
    SampleRequest(templates=[blank(4)], num=1, seed=seed)

  def study(seed):
    StudyConfig(judge="x", seed=seed)

  def experiment(seed):
    Experiment(seed=seed)

  for use in (check_seed, evaluate, request, study, experiment):
    with pytest.raises(ValueError, match=r"seed=.*2\^32"):
      use(seed)


def test_seeds_at_the_ends_are_seeds():
  assert check_seed(0) == 0
  assert check_seed(np.uint32(2**32 - 1)) == 2**32 - 1
  keys = [jax.random.key_data(jax.random.key(check_seed(s))) for s in (1, 2**31, 2**32 - 1)]
  assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 3


def test_numbers_of_samples_end_where_candidates_begin():
  with pytest.raises(ValueError, match="numbers of samples end at"):
    SampleRequest(templates=[blank(4)], num=2, first=2**31)
