"""The losses on enumerated toys, and the times and keys they are estimated with.

B: sequences, L: positions, S: states, M: clean sequences, N: all sequences, T: quadrature nodes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from support.oracle import (
  enumerated_denoising_score_entropy,
  explicit_score_entropy,
  implicit_score_entropy,
  random_toy,
)
from support.processes import both, noises

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  MIN_TIME,
  Absorbing,
  DenseNetwork,
  Geometric,
  LogLinear,
  Uniform,
  denoising_score_entropy,
  example_keys,
  sample_times,
)

BATCHES = [1, 2, 8, 12, 64]


@functools.partial(jax.jit, static_argnames="parameterization")
def log_score_of(raw, x, total, parameterization):
  """Log scores of the absorbing process over 5 tokens."""
  return Absorbing(5).parameterization(parameterization).log_score(raw, x, total)


# The three score entropies.


@functools.cache
def gradient(entropy):
  """Its derivative by log_score, compiled once."""
  return jax.jit(jax.grad(entropy))


def random_chain(size=5, seed=0):
  """A random generator, clean law and log scores on `size` states; nothing is symmetric."""
  rng = np.random.default_rng(seed)
  off = rng.gamma(1.0, size=(size, size))
  np.fill_diagonal(off, 0.0)
  rates = off - np.diag(off.sum(-1))
  return rates, rng.dirichlet(np.ones(size)), rng.normal(size=(size, size))


def test_the_three_score_entropies_have_one_gradient(x64):
  rates, p0, log_score = random_chain()
  transition = scipy.linalg.expm(0.4 * rates)
  p = p0 @ transition
  explicit = gradient(explicit_score_entropy)(log_score, p, rates)
  implicit = gradient(implicit_score_entropy)(log_score, p, rates)
  denoising = gradient(enumerated_denoising_score_entropy)(log_score, p0, transition, rates)
  assert jnp.abs(explicit).max() > 0.1
  np.testing.assert_allclose(implicit, explicit, rtol=1e-10, atol=1e-14)
  np.testing.assert_allclose(denoising, explicit, rtol=1e-10, atol=1e-14)


@both
def test_explicit_and_implicit_agree_for_the_processes(process, x64):
  toy = random_toy(process, length=1)
  rates, p = toy.token_generator, toy.law(0.7)
  log_score = np.random.default_rng(1).normal(size=rates.shape)
  explicit = gradient(explicit_score_entropy)(log_score, p, rates)
  implicit = gradient(implicit_score_entropy)(log_score, p, rates)
  np.testing.assert_allclose(implicit, explicit, rtol=1e-10, atol=1e-14)


@both
def test_training_has_the_gradient_of_the_explicit_score_entropy(process, x64):
  # What training draws, enumerated: x0 from p0, x given x0, and the process's closed form.
  toy = random_toy(process, length=1)
  rates, p = toy.token_generator, toy.law(0.7)
  log_score = np.random.default_rng(1).normal(size=rates.shape)
  x0, x = (a.reshape(-1) for a in np.meshgrid(toy.clean, np.arange(len(p)), indexing="ij"))
  weight = toy.p0[x0] * toy.forward(0.7).reshape(-1)

  def training(log_score):
    return jnp.sum(weight * process.score_entropy(jnp.asarray(log_score)[x], x, x0, 0.7))

  explicit = gradient(explicit_score_entropy)(log_score, p, rates)
  np.testing.assert_allclose(gradient(training)(log_score), explicit, rtol=1e-10, atol=1e-14)


def test_explicit_score_entropy_is_positive_and_0_at_the_truth(x64):
  rates, p, log_score = random_chain()
  truth = np.log(p)[None, :] - np.log(p)[:, None]
  np.testing.assert_allclose(explicit_score_entropy(truth, p, rates), 0.0, atol=1e-14)
  for scale in (1e-3, 1.0, -1.0):
    assert explicit_score_entropy(truth + scale * log_score, p, rates) > 1e-8


@pytest.mark.parametrize("entropy", [explicit_score_entropy, implicit_score_entropy])
def test_score_entropies_ignore_the_diagonal(entropy, x64):
  rates, p, log_score = random_chain()
  spoiled = log_score + np.diag(np.full(5, np.inf))
  assert entropy(spoiled, p, rates) == entropy(log_score, p, rates)
  np.testing.assert_array_equal(
    gradient(entropy)(spoiled, p, rates), gradient(entropy)(log_score, p, rates)
  )


# The loss and the likelihood.


def enumerated_loss(toy, totals):
  """float64[T, M]: the score entropy of the process, its mean over every x given every x0."""
  states, clean = toy.states, toy.states[toy.clean]
  shape = (len(totals), len(clean), len(states), toy.length)
  z = np.stack([toy.log_score(total) for total in totals])
  entropy = jax.jit(toy.process.score_entropy)(
    jnp.broadcast_to(z[:, None], (*shape, toy.process.num_states)),
    np.broadcast_to(states[None, None], shape),
    np.broadcast_to(clean[None, :, None], shape),
    np.broadcast_to(totals[:, None, None, None], shape),
  )
  forward = np.stack([toy.forward(total) for total in totals])
  return (forward * np.asarray(entropy).sum(-1)).sum(-1)


@both
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_loss_at_the_true_score_integrates_to_the_likelihood(process, length, x64):
  # -log p0(x0) = integral over total noise + KL(P(x_T given x0) || p_T), for every x0. Quadrature
  # in log total: doubling the nodes, or starting at e^-46, moves the sum by less than 1e-12.
  toy, last = random_toy(process, length=length), 3.0
  u, w = np.polynomial.legendre.leggauss(120)
  low, high = -38.0, np.log(last)
  totals = np.exp(low + (high - low) * (1 + u) / 2)
  integral = (w * totals) @ enumerated_loss(toy, totals) * (high - low) / 2
  forward, p = toy.forward(last), toy.law(last)
  with np.errstate(divide="ignore", invalid="ignore"):
    prior = np.where(forward > 0, forward * np.log(forward / p), 0.0).sum(-1)
  assert prior.min() > 1e-3  # Otherwise the prior term would not be tested.
  np.testing.assert_allclose(integral + prior, -np.log(toy.p0.reshape(-1)), atol=1e-9)


@pytest.mark.parametrize(
  ("process", "noise"), [(Absorbing(3), Geometric()), (Uniform(3), LogLinear())], ids=str
)
def test_the_denoising_loss_is_rate_times_the_score_entropy(process, noise, x64, strict_keys):
  # Its Monte Carlo mean at one time against the enumeration; 4 standard errors.
  toy, draws, t = random_toy(process, wrong=0.3), 20_000, 0.6
  x0 = np.broadcast_to(toy.states[toy.clean[5]], (draws, toy.length))
  loss = jax.jit(
    lambda keys: denoising_score_entropy(
      DenseNetwork(process, toy.log_score_fn).stats_fn(),
      Batch.of(x0),
      jnp.full(draws, t),
      keys,
      process=process,
      noise=noise,
    )
  )(jax.random.split(jax.random.key(0), draws))
  expected = float(noise.rate(t)) * toy.score_entropy(float(noise.total(t)))[5]
  assert abs(loss.mean() - expected) < 4 * loss.std() / draws**0.5
  assert loss.std() / draws**0.5 < 0.05 * expected


def network_outputs(shape, seed=0):
  """Raw outputs that depend on nothing, one row per position: float64[L, S]."""
  return np.random.default_rng(seed).normal(size=shape)


@noises
def test_conditional_gives_the_weighted_cross_entropy_of_mdlm(noise, x64):
  process, length = Absorbing(5), 16
  raw_LS = network_outputs((length, process.num_states))
  x0 = np.random.default_rng(1).integers(5, size=(8, length))
  t, keys = jnp.linspace(0.05, 1.0, 8), jax.random.split(jax.random.key(0), 8)

  def log_score_fn(x_BL, total_B):
    raw_BLS = jnp.broadcast_to(raw_LS, (*x_BL.shape, process.num_states))
    return log_score_of(raw_BLS, x_BL, total_B[:, None], parameterization="conditional")

  @jax.jit
  def loss_and_corrupted(x0, t, keys):
    stats_fn = DenseNetwork(process, log_score_fn).stats_fn()
    loss = denoising_score_entropy(stats_fn, Batch.of(x0), t, keys, process=process, noise=noise)
    return loss, jax.vmap(process.corrupt)(keys, x0, noise.total(t))

  loss, x = map(np.asarray, loss_and_corrupted(x0, t, keys))
  total = noise.total(t)
  log_p = np.asarray(jax.nn.log_softmax(raw_LS[:, :5], axis=-1))
  cross_entropy = -np.where(x == process.mask_id, log_p[np.arange(length), x0], 0.0).sum(-1)
  weight = np.asarray(noise.rate(t) / jnp.expm1(total))
  assert cross_entropy.max() > 1.0
  np.testing.assert_allclose(loss, weight * cross_entropy, rtol=1e-9)


def test_conditional_gives_mdlm_gradients(x64):
  process, total = Absorbing(5), 0.3
  raw = network_outputs((4, process.num_states))
  x, x0 = np.full(4, process.mask_id), np.array([0, 1, 4, 4])

  def ours(raw):
    z = log_score_of(raw, x, jnp.full(4, total), parameterization="conditional")
    return process.score_entropy(z, x, x0, total).sum()

  def mdlm(raw):
    log_p = jax.nn.log_softmax(raw[:, :5], axis=-1)
    return -log_p[np.arange(4), x0].sum() / jnp.expm1(total)

  np.testing.assert_allclose(gradient(ours)(raw), gradient(mdlm)(raw), atol=1e-12)


@pytest.mark.parametrize("total", [1e-3, 0.5, 7.0])
def test_scaled_outputs_of_0_are_the_uniform_posterior(total, x64):
  process = Absorbing(5)
  x = jnp.array([process.mask_id])
  z = log_score_of(jnp.zeros((1, 6)), x, jnp.full(1, total), parameterization="scaled")
  # The score of a uniform data law: (e^-total / V) / (1 - e^-total).
  np.testing.assert_allclose(np.exp(z[0, :5]), 1 / np.expm1(total) / 5, rtol=1e-12)
  # Over all the noise that is left, Tweedie draws from that posterior and leaves no mask.
  probs = jax.jit(process.tweedie_probs)(z, x, total)[0]
  np.testing.assert_allclose(probs, [0.2] * 5 + [0.0], atol=1e-12)


@pytest.mark.parametrize("parameterization", ["score", "scaled", "conditional"])
def test_log_scores_are_float32_and_0_at_the_own_entry(parameterization):
  raw = network_outputs((2, 3, 6)).astype(jnp.bfloat16)
  x = np.array([[5, 5, 0], [1, 2, 5]], np.int32)
  z = log_score_of(raw, x, jnp.full((2, 1), 0.5), parameterization=parameterization)
  assert z.dtype == jnp.float32
  assert (np.take_along_axis(np.asarray(z), x[..., None], axis=-1) == 0).all()


def test_score_parameterization_changes_nothing_else(x64):
  raw, x = network_outputs((3, 6)), np.array([5, 0, 2])
  z = log_score_of(raw, x, jnp.full(3, 0.5), parameterization="score")
  other = np.arange(6)[None] != x[:, None]
  np.testing.assert_array_equal(np.asarray(z)[other], raw[other])


def test_an_unknown_parameterization_is_refused():
  with pytest.raises(ValueError, match="parameterization='x0'"):
    log_score_of(jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32), jnp.ones(1), parameterization="x0")


# Times and keys.


@functools.partial(jax.jit, static_argnums=(1, 2))
def unit_times(keys, batch, sampling="low_discrepancy"):
  """float[R, B]: times of R batches, before they are moved to [MIN_TIME, 1]."""
  draw = functools.partial(sample_times, sampling=sampling, min_time=0.0)
  return jax.vmap(lambda key: draw(key, jnp.arange(batch), batch))(keys)


@pytest.mark.parametrize("batch", BATCHES)
def test_low_discrepancy_times_put_one_in_every_slice(batch):
  times = np.asarray(unit_times(jax.random.split(jax.random.key(0), 50), batch), np.float64)
  # Equal gaps, whatever the offset: so exactly one in each slice.
  gaps = np.diff(np.sort(times, axis=-1), axis=-1)
  np.testing.assert_allclose(gaps, 1 / batch, atol=3e-7)
  assert times.min() >= 0.0
  assert times.max() <= 1.0


@pytest.mark.parametrize("batch", BATCHES)
def test_aligned_shards_are_stratified_too(batch):
  times = np.asarray(unit_times(jax.random.split(jax.random.key(1), 50), batch), np.float64)
  sizes = [2**k for k in range(1, 7) if batch % 2**k == 0]
  for size in sizes:
    shards = np.sort(times.reshape(50, batch // size, size), axis=-1)
    np.testing.assert_allclose(np.diff(shards, axis=-1), 1 / size, atol=3e-7)


@pytest.mark.parametrize("sampling", ["low_discrepancy", "iid"])
def test_every_time_is_uniform_on_its_own(sampling):
  # Mean and variance of one example's time over batches: the loss is unbiased for any example.
  times = np.asarray(unit_times(jax.random.split(jax.random.key(2), 20_000), 8, sampling))
  np.testing.assert_allclose(times.mean(0), 0.5, atol=4 / (12 * 20_000) ** 0.5)
  np.testing.assert_allclose(times.var(0), 1 / 12, rtol=0.04)
  if sampling == "iid":
    correlation = np.corrcoef(times.T) - np.eye(8)
    assert np.abs(correlation).max() < 4 / 20_000**0.5


@pytest.mark.parametrize("sampling", ["low_discrepancy", "iid"])
def test_times_lie_between_min_time_and_1(sampling):
  draw = functools.partial(sample_times, sampling=sampling)
  times = draw(jax.random.key(0), jnp.arange(4096), 4096)
  assert times.shape == (4096,)
  assert times.min() >= np.float32(MIN_TIME)
  assert times.min() < 2 * MIN_TIME
  assert times.max() <= 1.0
  np.testing.assert_array_equal(draw(jax.random.key(0), jnp.arange(4), 4, min_time=1.0), 1.0)


def test_unknown_time_sampling_is_refused():
  with pytest.raises(ValueError, match="'sobol'"):
    sample_times(jax.random.key(0), jnp.arange(4), 4, sampling="sobol")


@pytest.mark.parametrize("sampling", ["low_discrepancy", "iid"])
def test_times_do_not_depend_on_how_the_batch_is_split(sampling):
  draw = jax.jit(
    functools.partial(sample_times, jax.random.key(7), batch_size=12, sampling=sampling)
  )
  whole = draw(jnp.arange(12))
  for parts in (2, 3, 12):
    split = [draw(index) for index in jnp.arange(12).reshape(parts, -1)]
    np.testing.assert_array_equal(jnp.concatenate(split), whole)
  np.testing.assert_array_equal(draw(jnp.arange(12).reshape(3, 4)).reshape(-1), whole)


def key_data(key, step, index):
  return np.asarray(jax.random.key_data(example_keys(key, step, jnp.asarray(index))))


def test_example_keys_do_not_depend_on_how_the_batch_is_split():
  whole = key_data(jax.random.key(7), 3, np.arange(12))
  for parts in (2, 3, 12):
    split = [key_data(jax.random.key(7), 3, index) for index in np.arange(12).reshape(parts, -1)]
    np.testing.assert_array_equal(np.concatenate(split), whole)


def test_example_keys_differ_between_examples_steps_and_seeds():
  rows = [key_data(jax.random.key(s), step, np.arange(50)) for s in (0, 1) for step in range(4)]
  assert len(np.unique(np.concatenate(rows), axis=0)) == 2 * 4 * 50


@both
def test_no_key_is_used_twice(process, strict_keys):
  @jax.jit
  def loss(run_key, step, x0):
    time_key, draw_key = jax.random.split(run_key)
    index = jnp.arange(x0.shape[0])
    t = sample_times(time_key, index, x0.shape[0])
    network = DenseNetwork(process, lambda x, total: jnp.zeros((*x.shape, process.num_states)))
    return denoising_score_entropy(
      network.stats_fn(),
      Batch.of(x0),
      t,
      example_keys(draw_key, step, index),
      process=process,
      noise=LogLinear(),
    )

  assert jnp.isfinite(loss(jax.random.key(0), 0, jnp.zeros((4, 6), jnp.int32))).all()


@both
def test_the_loss_of_an_example_depends_on_its_key_alone(process, x64):
  toy = random_toy(process, wrong=0.3)
  x0 = jnp.asarray(toy.states[toy.clean[:6]])
  keys, t = jax.random.split(jax.random.key(0), 6), jnp.linspace(0.1, 0.9, 6)
  loss = jax.jit(
    functools.partial(
      denoising_score_entropy,
      DenseNetwork(process, toy.log_score_fn).stats_fn(),
      process=process,
      noise=LogLinear(),
    )
  )
  whole = loss(Batch.of(x0), t, keys)
  part = loss(Batch.of(x0[2:4]), t[2:4], keys[2:4])
  np.testing.assert_allclose(part, whole[2:4], rtol=1e-12)


def test_conditional_uniform_loss_is_that_of_udlm(x64):
  """As arXiv:2412.10193 writes it, from one-hot vectors and the denoiser's law, in numpy."""
  rng = np.random.default_rng(0)
  process, noise = Uniform(7), LogLinear()
  raw = rng.normal(0.0, 2.0, (5, 6, 7))
  x, x0 = rng.integers(0, 7, (2, 5, 6))
  x[:, 0], x[:, 1] = x0[:, 0], (x0[:, 1] + 1) % 7
  t = np.array([0.003, 0.1, 0.4, 0.8, 0.999])
  total = np.asarray(noise.total(t))[:, None]
  log_score = process.parameterization("conditional").log_score(jnp.asarray(raw), x, total)
  ours = noise.rate(t)[:, None] * process.score_entropy(log_score, x, x0, total)

  alpha = np.exp(-total)[..., None]
  slope = -np.asarray(noise.rate(t))[:, None] * alpha[..., 0]
  law = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
  of_data, of_model = (7 * alpha * p + 1 - alpha for p in (np.eye(7)[x0], law))
  data_at, model_at = (np.take_along_axis(p, x[..., None], -1) for p in (of_data, of_model))
  logs = of_data / data_at * np.log(model_at * of_data / (of_model * data_at))
  theirs = (
    slope / (7 * alpha[..., 0]) * (7 / data_at - 7 / model_at - logs.sum(-1, keepdims=True))[..., 0]
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-9)
