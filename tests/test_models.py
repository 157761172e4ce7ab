"""The score transformer against the original's numbers, and its invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support.networks import golden_loss, golden_network, random_params, small_network

from sedd_jax.diffusion import Absorbing, Uniform
from sedd_jax.interop.original import tensors_from_params
from sedd_jax.models import Network, ScoreTransformerConfig


@pytest.mark.parametrize("name", ["absorb", "uniform"])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-4), ("float64", 1e-8)])
def test_log_score_equals_the_original(golden, x64, name, dtype, atol):
  arrays = golden(f"model_{name}.npz")
  network, params = golden_network(arrays, name, dtype)
  for prefix in ("", "alt_"):
    total = arrays[prefix + "sigma"].astype(dtype)
    got = jax.jit(network.log_score)(params, arrays[prefix + "indices"], jnp.asarray(total))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, arrays[prefix + "log_score"], atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["absorb", "uniform"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_loss_and_gradient_equal_the_original(golden, x64, name, dtype, tolerance):
  arrays = golden(f"model_{name}.npz")
  network, params = golden_network(arrays, name, dtype)
  loss_and_grad = jax.jit(jax.value_and_grad(lambda p: golden_loss(network, p, arrays, dtype)))
  loss, grad = loss_and_grad(params)
  # The original's own uniform loss is off by up to 1e-8 in float64 (its README says so).
  loss_tolerance = tolerance if name == "absorb" or dtype == "float32" else 5e-8
  np.testing.assert_allclose(loss, arrays["loss"].mean(), rtol=loss_tolerance)
  grads = tensors_from_params(network, network.unpad(grad))
  assert set(grads) == {k[5:] for k in arrays if k.startswith("grad/")}
  for key, got in grads.items():
    want = arrays[f"grad/{key}"]
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < tolerance, f"{key}: relative L2 {error:.2e}"


@pytest.mark.parametrize(
  ("width", "blocks", "heads", "count"),
  [(768, 12, 12, 169_627_218), (1024, 24, 16, 424_477_010)],
  ids=["small", "medium"],
)
def test_parameter_counts_equal_the_published_models(width, blocks, heads, count):
  config = ScoreTransformerConfig(num_states=50258, width=width, blocks=blocks, heads=heads)
  assert Network(config=config, process=Absorbing(50257)).num_parameters() == count


def test_padding_never_reaches_scores_or_gradients():
  process = Absorbing(10)
  tokens = jax.random.randint(jax.random.key(0), (2, 5), 0, 11)
  total = jnp.array([0.3, 2.0])

  def loss(network, params):
    return jnp.sum(network.log_score(params, tokens, total) ** 2)

  padded, exact = (small_network(process, pad_multiple=m) for m in (128, 1))
  params = random_params(padded)
  assert params["ends"]["output"]["kernel"].shape == (32, 128)
  value, grad = jax.jit(jax.value_and_grad(functools.partial(loss, padded)))(params)
  want, want_grad = jax.jit(jax.value_and_grad(functools.partial(loss, exact)))(
    exact.pad(padded.unpad(params))
  )
  np.testing.assert_allclose(value, want, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4),
    padded.unpad(grad),
    exact.unpad(want_grad),
  )
  jax.tree.map(np.testing.assert_array_equal, grad, padded.pad(padded.unpad(grad)))


@pytest.mark.parametrize("parameterization", ["score", "conditional"])
def test_without_time_input_noise_enters_through_the_parameterization_alone(parameterization):
  without, seeing = (
    dataclasses.replace(
      small_network(Absorbing(11), time_input=time_input), parameterization=parameterization
    )
    for time_input in (False, True)
  )
  params = random_params(without)
  assert jax.tree.structure(params) == jax.tree.structure(random_params(seeing))
  tokens = np.array([[11, 1, 11, 3], [4, 11, 11, 0]])
  zero, low, high = (np.full(2, total, np.float32) for total in (0.0, 0.2, 3.0))
  raw = without.raw(params, tokens, low)
  np.testing.assert_array_equal(raw, without.raw(params, tokens, high))
  np.testing.assert_array_equal(raw, seeing.raw(params, tokens, zero))
  assert np.abs(raw - seeing.raw(params, tokens, high)).max() > 0.1
  log_low, log_high = (without.log_score(params, tokens, total) for total in (low, high))
  shift = np.log(np.expm1(3.0) / np.expm1(0.2)) if parameterization == "conditional" else 0.0
  masked = tokens == 11
  np.testing.assert_allclose(
    log_low[masked][:, :11], log_high[masked][:, :11] + shift, atol=1e-5, rtol=0
  )


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(remat):
  process = Absorbing(10)
  tokens = jax.random.randint(jax.random.key(0), (2, 5), 0, 11)

  def grad(policy):
    network = small_network(process, remat=policy)
    params = random_params(network)
    return jax.jit(jax.grad(lambda p: jnp.sum(network.raw(p, tokens, jnp.ones(2)) ** 2)))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grad("none"), grad(remat)
  )


def test_bfloat16_compute_keeps_scores_in_float32():
  process = Absorbing(10)
  params = random_params(small_network(process))
  tokens = jax.random.randint(jax.random.key(0), (2, 5), 0, 11)
  total = jnp.array([1e-3, 6.0])
  half = small_network(process, dtype="bfloat16")
  got = half.log_score(params, tokens, total)
  want = small_network(process).log_score(params, tokens, total)
  assert got.dtype == jnp.float32
  assert half.read(params, tokens, total).dtype == jnp.float32
  difference = np.abs(got - want)
  # bfloat16 has 8 bits: the result is near, and it is not the float32 one.
  assert 1e-4 < difference.max() < 0.05 * np.abs(want).max()


def test_a_stream_of_half_the_bytes_is_near_the_whole_one():
  process = Absorbing(11)
  whole = small_network(process, dtype="bfloat16")
  half = small_network(process, dtype="bfloat16", stream="bfloat16")
  params = random_params(whole)
  tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 12)
  total = jnp.array([0.3, 2.0])
  assert half.embed(params, tokens).dtype == jnp.bfloat16

  def loss(network, params):
    return jnp.sum(jnp.square(network.log_score(params, tokens, total)))

  scores = [network.log_score(params, tokens, total) for network in (whole, half)]
  assert {x.dtype for x in scores} == {jnp.dtype(jnp.float32)}
  np.testing.assert_allclose(*scores, atol=0.1)
  assert (scores[0] != scores[1]).any()
  # Gradients point the same way.
  first, second = (
    ravel_pytree(jax.grad(lambda p, n=network: loss(n, p))(params))[0] for network in (whole, half)
  )
  assert first @ second > 0.99 * jnp.linalg.norm(first) * jnp.linalg.norm(second)


def test_dropout_depends_on_each_examples_key_alone():
  network = small_network(Absorbing(10), dropout=0.5)
  params = random_params(network)
  tokens = jax.random.randint(jax.random.key(0), (4, 5), 0, 11)
  total, keys = jnp.full(4, 0.5), jax.random.split(jax.random.key(1), 4)
  hidden = jax.jit(network.read)
  whole = hidden(params, tokens, total, keys)
  part = hidden(params, tokens[2:], total[2:], keys[2:])
  np.testing.assert_allclose(whole[2:], part, rtol=1e-5, atol=1e-5)
  other = hidden(params, tokens, total, keys[::-1])
  assert np.abs(whole - other).max() > 0.1
  assert np.abs(whole - hidden(params, tokens, total, None)).max() > 0.1


def test_fresh_scaled_network_is_the_uniform_posterior():
  process = Absorbing(10)
  network = Network(
    config=small_network(process).config, process=process, parameterization="scaled"
  )
  tokens, total = jnp.full((1, 4), 10), jnp.array([0.7])
  log_score = network.log_score(jax.jit(network.init)(jax.random.key(0)), tokens, total)
  np.testing.assert_allclose(log_score[..., :10], -np.log(10 * np.expm1(0.7)), rtol=1e-6)
  np.testing.assert_array_equal(log_score[..., 10], 0.0)


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    (dict(heads=3), "model.heads=3"),
    (dict(dropout=1.0), "model.dropout=1.0"),
    (dict(blocks=0), "model.blocks=0"),
    (dict(dtype="float16"), "model.dtype='float16'"),
    (dict(remat="some"), "model.remat='some'"),
    (dict(stream="float16"), "model.stream='float16'"),
    (dict(stream="bfloat16"), "model.stream='bfloat16' needs model.dtype='bfloat16'"),
  ],
)
def test_bad_shapes_are_refused_by_name(changes, field):
  with pytest.raises(ValueError, match=field.replace(".", r"\.")):
    small_network(Absorbing(10), **changes)


def test_uniform_refuses_absorbing_parameterizations():
  process = Uniform(10)
  with pytest.raises(ValueError, match="needs the absorbing process"):
    Network(config=small_network(process).config, process=process, parameterization="scaled")
