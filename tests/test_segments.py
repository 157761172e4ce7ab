"""Documents that share a row and do not see each other: the same as rows of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import random_params, small_network

from sedd_jax.batch import Batch
from sedd_jax.diffusion import Absorbing, Levels, Uniform
from sedd_jax.models import CausalNetwork
from sedd_jax.models.attention import PerShard, attention
from sedd_jax.models.visibility import ALL, CAUSAL, Visibility
from sedd_jax.parallel import MeshConfig, OnMesh, make_mesh, tree_shardings

LENGTHS = (5, 8, 3)
SEGMENTS = np.repeat(np.arange(3), LENGTHS)[None].astype(np.int32)
STOPS = np.cumsum(LENGTHS)
DOCUMENTS = [slice(stop - length, stop) for stop, length in zip(STOPS, LENGTHS, strict=True)]


def tokens_of(process, seed=0):
  """A clean row and a noisy one, int32[1, 16]; document d has tokens 3 d to 3 d + 2 alone."""
  rng = np.random.default_rng(seed)
  x0 = (rng.integers(0, 3, (1, 16)) + 3 * SEGMENTS).astype(np.int32)
  noisy = process.mask_id if process.mask_id is not None else x0[:, ::-1]
  return np.where(rng.random((1, 16)) < 0.5, noisy, x0).astype(np.int32), x0


def entropies(network, params, x, x0, segments, total=0.7):
  """Score entropy of each token, float[1, L]."""
  batch, total = Batch.of(x0)._replace(segments=segments), jnp.full(1, total)
  stats = network.stats_fn(params, batch)(x, x0, total)
  return network.process.score_entropy_from_stats(stats, x, x0, total[:, None])


@pytest.mark.parametrize("process", [Absorbing(9), Uniform(9)], ids=str)
def test_a_packed_loss_is_the_sum_of_the_separate_losses(process, x64):
  network = small_network(process, dtype="float64")
  params = jax.tree.map(lambda p: p.astype("float64"), random_params(network))
  x, x0 = tokens_of(process)
  packed = entropies(network, params, x, x0, SEGMENTS)[0]
  alone = [entropies(network, params, x[:, d], x0[:, d], None)[0] for d in DOCUMENTS]
  np.testing.assert_allclose(packed, np.concatenate(alone), rtol=1e-11, atol=1e-13)
  whole = entropies(network, params, x, x0, None)[0]
  assert np.max(np.abs(whole - packed)) > 1e-3  # Without segments they do see each other.


@pytest.mark.parametrize("process", [Absorbing(9), Uniform(9)], ids=str)
def test_no_gradient_crosses_a_border(process):
  network = small_network(process)
  params = random_params(network)
  x, x0 = tokens_of(process)
  x = np.where(x == process.mask_id, x0, x) if process.mask_id is not None else x0
  x[0, 0] = process.mask_id if process.mask_id is not None else x[0, 1]

  def loss(embedding):
    ends = params["ends"] | {"embedding": {"embedding": embedding}}
    return jnp.sum(entropies(network, params | {"ends": ends}, x, x0, SEGMENTS)[0, DOCUMENTS[0]])

  grad = np.asarray(jax.jit(jax.grad(loss))(params["ends"]["embedding"]["embedding"]))
  assert np.any(grad[:3] != 0.0)
  np.testing.assert_array_equal(grad[3:9], 0.0)  # Tokens of the other documents.


def test_a_causal_packed_likelihood_is_the_sum_of_the_separate_ones(x64):
  config = dataclasses.replace(
    small_network(Absorbing(9), dtype="float64").config, visibility=CAUSAL, time_input=False
  )
  network = CausalNetwork(config=config)
  params = jax.tree.map(lambda p: p.astype("float64"), random_params(network))
  _, x0 = tokens_of(Absorbing(9))
  packed = network.log_prob(params, x0, SEGMENTS)[0]
  alone = [network.log_prob(params, x0[:, d])[0] for d in DOCUMENTS]
  np.testing.assert_allclose(packed, np.concatenate(alone), rtol=1e-11)


@pytest.mark.parametrize("rule", [ALL, CAUSAL], ids=lambda rule: rule.name)
@pytest.mark.parametrize("mesh", [None, dict(fsdp=2, tensor=2)], ids=["one", "mesh"])
def test_splash_keeps_documents_apart_like_xla(rule, mesh):
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (2, 128, 2, 16)) for key in keys)
  borders = np.array([[40, 90], [1, 127]])
  segments = jnp.asarray((np.arange(128) >= borders[..., None]).sum(1), jnp.int32)
  per_shard = PerShard() if mesh is None else PerShard(make_mesh(MeshConfig(**mesh)))

  def run(kernel, per_shard, q, k, v):
    visibility = Visibility(rule, segments)
    return attention(q, k, v, visibility, kernel=kernel, per_shard=per_shard)

  def loss(kernel, per_shard):
    def of(*qkv):
      return jnp.sum(jnp.sin(run(kernel, per_shard, *qkv)))

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))(q, k, v)

  want, got = loss("xla", PerShard()), loss("splash", per_shard)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-5), want, got)


def test_long_rows_are_cut_into_parts_of_queries(monkeypatch):
  monkeypatch.setattr("sedd_jax.models.attention._MOST_QUERIES", 6)
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (1, 16, 2, 8)) for key in keys)
  visibility = Visibility(CAUSAL, jnp.asarray(SEGMENTS))
  parts = attention(q, k, v, visibility)
  monkeypatch.undo()
  np.testing.assert_allclose(parts, attention(q, k, v, visibility), atol=1e-6)


def test_a_mesh_gives_the_same_stats(x64):
  process = Absorbing(9)
  network = small_network(process, heads=4, dtype="float64")
  params = jax.tree.map(lambda p: p.astype("float64"), random_params(network))
  x, x0 = (np.tile(z, (4, 1)) for z in tokens_of(process))
  segments, total = np.tile(SEGMENTS, (4, 1)), jnp.linspace(0.2, 2.0, 4)

  def stats(network, params):
    batch = Batch.of(x0)._replace(segments=segments)
    return jax.jit(lambda p: network.stats_fn(p, batch)(x, x0, total))(params)

  mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
  on_mesh = dataclasses.replace(network, placement=OnMesh(mesh))
  placed = jax.device_put(params, tree_shardings(mesh, params, network.table))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13)
  jax.tree.map(close, stats(network, params), stats(on_mesh, placed))


# Noise of each token.


@pytest.mark.parametrize("process", [Absorbing(9), Uniform(9)], ids=str)
def test_a_table_of_noise_is_the_noise_of_each_token(process, x64):
  """Documents that do not see each other may have noise of their own: then a row with a table is
  each document with its noise."""
  network = small_network(process, dtype="float64")
  params = jax.tree.map(lambda p: p.astype("float64"), random_params(network))
  x, x0 = tokens_of(process)
  totals = jnp.array([[0.2, 1.3, 4.0]])
  stats_fn = network.stats_fn(params, Batch.of(x0)._replace(segments=SEGMENTS))
  got = stats_fn(x, x0, Levels(totals, jnp.asarray(SEGMENTS)))
  alone = [
    network.score_stats(params, x[:, d], x0[:, d], totals[:, i]) for i, d in enumerate(DOCUMENTS)
  ]
  want = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *alone)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)


def test_a_table_of_one_entry_is_one_number_a_row():
  network = small_network(Absorbing(9))
  params, total = random_params(network), jnp.array([0.6])
  x, x0 = tokens_of(Absorbing(9))
  table = Levels(total[:, None], jnp.zeros(x.shape, jnp.int32))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    network.score_stats(params, x, x0, table),
    network.score_stats(params, x, x0, total),
  )


def test_conditioning_is_computed_once_for_each_entry_of_a_table():
  """Never [B, L, 6 D]: the largest array of a long row stays that of the MLP."""
  network = small_network(Absorbing(9), width=32, blocks=1)
  params, length = random_params(network), 640
  x = jnp.zeros((1, length), jnp.int32)
  table = Levels(jnp.ones((1, 4)), jnp.zeros((1, length), jnp.int32))
  jaxpr = jax.make_jaxpr(lambda p: network.read(p, x, table))(params)

  def shapes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from shapes(inner)

  assert not [s for s in shapes(jaxpr.jaxpr) if length in s and s[-1] == 6 * 32]
  assert [s for s in shapes(jaxpr.jaxpr) if s[-1] == 6 * 32]
