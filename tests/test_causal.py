"""Causal mode of the transformer: an exact likelihood, a cache that changes nothing, its law."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import random_params

from sedd_jax.diffusion import Truncation
from sedd_jax.models import CausalNetwork, ScoreTransformerConfig, decode
from sedd_jax.models.attention import attention
from sedd_jax.models.visibility import ALL, CAUSAL, Visibility

V, L = 5, 4


def causal_network(vocab_size=V, **changes):
  shape = dict(
    width=32, blocks=2, heads=2, cond_dim=16, dropout=0.0, visibility=CAUSAL, time_input=False
  )
  return CausalNetwork(
    config=ScoreTransformerConfig(num_states=vocab_size + 1, **(shape | changes))
  )


def every_sequence(vocab_size, length):
  return np.array(list(itertools.product(range(vocab_size), repeat=length)), np.int32)


def test_probabilities_of_all_sequences_sum_to_one():
  network = causal_network(3)
  log_prob = jax.jit(network.log_prob)(random_params(network), every_sequence(3, 3))
  assert log_prob.shape == (27, 3)
  np.testing.assert_allclose(np.exp(log_prob.sum(1)).sum(), 1.0, atol=1e-6)
  # Not by being uniform.
  assert np.std(log_prob.sum(1)) > 0.1


def test_log_prob_is_that_of_the_logits_and_sees_no_later_token():
  network = causal_network()
  params = random_params(network)
  tokens = np.random.default_rng(0).integers(0, V, (3, 6))
  log_prob = network.log_prob(params, tokens)
  logits = network.logits(params, tokens)
  assert logits.shape == (3, 6, V)
  assert logits.dtype == jnp.float32
  law = jax.nn.log_softmax(logits, axis=-1)
  want = np.take_along_axis(np.asarray(law[:, :-1]), tokens[:, 1:, None], axis=2)[..., 0]
  np.testing.assert_allclose(log_prob[:, 1:], want, atol=1e-5)
  other = tokens.copy()
  other[:, 3] = (tokens[:, 3] + 1) % V
  changed = network.log_prob(params, other)
  np.testing.assert_array_equal(changed[:, :3], log_prob[:, :3])
  assert np.abs(changed[:, 3:] - log_prob[:, 3:]).max() > 1e-3
  np.testing.assert_array_equal(network.logits(params, other)[:, :3], logits[:, :3])


def test_cached_steps_equal_the_whole_pass():
  network = causal_network()
  params = random_params(network)
  tokens = np.random.default_rng(1).integers(0, V, (2, 5))
  cache = network.empty_cache(2, 6)
  step = jax.jit(network.step)
  _, cache = step(params, cache, jnp.full(2, network.start), 0)
  for i in range(5):
    logits, cache = step(params, cache, tokens[:, i], i + 1)
    np.testing.assert_allclose(logits, network.logits(params, tokens)[:, i], atol=2e-5)


def test_gradient_of_the_tiled_likelihood_equals_that_of_dense_logits(x64):
  network = causal_network(dtype="float64", width=16, blocks=1)
  params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(network))
  tokens = np.random.default_rng(2).integers(0, V, (2, 5))

  def dense(params):
    started = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=V)
    raw = network.raw(params, started, jnp.zeros(2))[:, :-1, :V]
    law = jax.nn.log_softmax(raw, axis=-1)
    return jnp.sum(jnp.take_along_axis(law, tokens[..., None], axis=2))

  value, grad = jax.value_and_grad(lambda p: jnp.sum(network.log_prob(p, tokens)))(params)
  want, want_grad = jax.value_and_grad(dense)(params)
  np.testing.assert_allclose(value, want, rtol=1e-12)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), grad, want_grad)


@pytest.mark.parametrize(
  "truncation",
  [Truncation(temperature=0.7, top_k=2), pytest.param(Truncation(), marks=pytest.mark.slow)],
)
def test_law_of_decoding_is_the_models(truncation):
  network = causal_network(3)
  params = random_params(network)
  num = 10_000
  keys = jax.random.split(jax.random.key(0), num)
  nothing = jnp.zeros((num, 2), jnp.int32)
  tokens, log_prob = jax.jit(decode, static_argnums=0, static_argnames="truncation")(
    network, params, keys, nothing, jnp.zeros(num, jnp.int32), truncation=truncation
  )
  np.testing.assert_allclose(log_prob, network.log_prob(params, tokens), atol=2e-5)
  counts = np.bincount(np.asarray(tokens) @ [3, 1], minlength=9)
  sequences = every_sequence(3, 2)
  laws = np.zeros(9)
  start = network.raw(params, np.full((1, 1), network.start), jnp.zeros(1))[0, 0, :3]
  law_first = jax.nn.softmax(truncation(start))
  for i, (a, b) in enumerate(sequences):
    after = network.logits(params, np.array([[a]]))[0, 0]
    laws[i] = law_first[a] * jax.nn.softmax(truncation(after))[b]
  np.testing.assert_allclose(laws.sum(), 1.0, atol=1e-6)
  wanted = num * laws
  assert counts[wanted == 0].sum() == 0
  there = wanted > 0
  chi2 = np.sum((counts[there] - wanted[there]) ** 2 / wanted[there])
  assert chi2 < 30.0  # 99.98 % quantile for 8 degrees of freedom.


def test_a_prefix_stays_and_a_sample_depends_on_its_key_alone():
  network = causal_network()
  params = random_params(network)
  keys = jax.random.split(jax.random.key(3), 4)
  prefix = jnp.asarray(np.random.default_rng(4).integers(0, V, (4, 6)), jnp.int32)
  lengths = jnp.array([0, 2, 6, 2])
  tokens, _ = decode(network, params, keys, prefix, lengths)
  for row, given, length in zip(np.asarray(tokens), np.asarray(prefix), lengths, strict=True):
    np.testing.assert_array_equal(row[:length], given[:length])
  alone, _ = decode(network, params, keys[1:2], prefix[1:2], lengths[1:2])
  np.testing.assert_array_equal(alone[0], tokens[1])


def test_padding_of_the_tables_changes_nothing(x64):
  padded, exact = (causal_network(pad_multiple=n, dtype="float64") for n in (128, 1))
  params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(padded))
  tokens = np.random.default_rng(5).integers(0, V, (2, 4))
  unpadded = exact.pad(padded.unpad(params))
  np.testing.assert_allclose(
    padded.log_prob(params, tokens), exact.log_prob(unpadded, tokens), rtol=1e-12
  )


def test_a_network_that_sees_all_is_refused():
  config = causal_network().config
  for change in ({"visibility": ALL}, {"time_input": True}):
    with pytest.raises(ValueError, match=r"model\.visibility"):
      CausalNetwork(config=dataclasses.replace(config, **change))


def test_causal_splash_equals_xla_in_values_and_gradients():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 2, 8))

  def run(kernel):
    def loss(q, k, v):
      return jnp.sum(jnp.sin(attention(q, k, v, Visibility(CAUSAL), kernel=kernel)))

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run("splash"), run("xla"))


def test_parts_of_the_queries_see_no_later_key(monkeypatch):
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 10, 2, 4))
  whole = attention(q, k, v, Visibility(CAUSAL))
  monkeypatch.setattr("sedd_jax.models.attention._MOST_QUERIES", 4)
  np.testing.assert_allclose(attention(q, k, v, Visibility(CAUSAL)), whole, atol=1e-6)
