"""Reverse steps against the original's numbers, and the exact law of the sampler on toys.

B: sequences, L: positions, N: enumerated sequences.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracle import random_toy
from support.processes import both, noises
from support.statistics import chi_square_p_value, total_variation

from sedd_jax.diffusion import (
  END_TIME,
  NO_LIMIT,
  Absorbing,
  Ancestral,
  Confidence,
  DenseScores,
  Euler,
  Geometric,
  Given,
  LogLinear,
  Row,
  Sampling,
  Trapezoidal,
  Tweedie,
  Uniform,
  even_times,
  nothing_given,
  sample,
)
from sedd_jax.models import Network, ScoreTransformerConfig
from sedd_jax.models.placement import Placement
from sedd_jax.parallel import MeshConfig, OnMesh, make_mesh, tree_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")
steps = pytest.mark.parametrize("step", [Tweedie(), Euler()], ids=str)


# The original's numbers.


def of_golden(arrays):
  """(process, noise, arrays of its group) for every group, sizes read from the arrays."""
  for prefix in sorted(k.removesuffix("euler_u") for k in arrays if k.endswith("euler_u")):
    group = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    size = group["score"].shape[-1]
    process = Absorbing(size - 1) if prefix.startswith("absorb") else Uniform(size)
    yield process, Geometric() if "geometric" in prefix else LogLinear(), group


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def step_probs(step, process, noise, log_score, x, t, t_next):
  """Probabilities of rows that each have a time of their own."""

  def law(log_score, x, t, t_next):
    row = Row(log_score, x, jnp.broadcast_to(noise.total(t), x.shape))
    return step.law(row, t, t_next, process=process, noise=noise)

  return jax.vmap(law)(log_score, x, t, t_next)


@functools.partial(jax.jit, static_argnums=0)
def denoise_probs(process, log_score, x, total):
  return process.denoise_probs(log_score, x, total)


def clipped(weight):
  """The law that the original draws from: its draw never picks a negative entry."""
  weight = np.maximum(weight, 0.0)
  return weight / weight.sum(-1, keepdims=True)


def golden_steps(arrays):
  """(our probabilities, group, name of the step) for every group and step."""
  for process, noise, g in of_golden(arrays):
    log_score, x, t = np.log(g["score"]), g["x"], g["t"][:, 0]
    for name, step in (("euler", Euler()), ("analytic", Tweedie())):
      yield step_probs(step, process, noise, log_score, x, t, t - g["step_size"]), g, name
    # The original drops the mask column here; ours is 0.
    width = g["denoise_probs"].shape[-1]
    yield denoise_probs(process, log_score, x, g["sigma"])[..., :width], g, "denoise"


def test_steps_match_the_original(golden, x64):
  for ours, g, name in golden_steps(golden("sampling.npz")):
    np.testing.assert_allclose(ours, clipped(g[f"{name}_probs"]), rtol=1e-7, atol=1e-7)


def test_draws_match_the_original(golden, x64):
  # Its draw is a race between exponentials; the uniforms are given.
  for ours, g, name in golden_steps(golden("sampling.npz")):
    race = np.asarray(ours) / (1e-10 - np.log(g[f"{name}_u"] + 1e-10))
    np.testing.assert_array_equal(race.argmax(-1), g[f"{name}_out"])


def test_noise_matches_that_of_the_original_samplers(golden, x64):
  for _, noise, g in of_golden(golden("sampling.npz")):
    np.testing.assert_allclose(noise.total(g["t"]), g["sigma"], rtol=1e-9)
    np.testing.assert_allclose(noise.rate(g["t"]), g["rate"], rtol=1e-9)


def sampling_of(process, noise, num_steps, step=Tweedie()):
  """Steps even in t."""
  schedule = even_times(num_steps, noise)
  return Sampling(process=process, noise=noise, sampler=step, schedule=schedule)


# The exact law of the sampler: one matrix over all sequences for each step.


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def step_matrix(toy, noise, step, t, t_next):
  """float[N, N]: from each sequence to each; positions move independently. No step: denoising."""
  x, size = jnp.asarray(toy.states), len(toy.states)
  z = toy.log_score_fn(x, jnp.broadcast_to(noise.total(t), (size,)))
  if step is None:
    p = toy.process.denoise_probs(z, x, noise.total(t))
  else:
    row = Row(z, x, jnp.broadcast_to(noise.total(t), x.shape))
    p = step.law(row, t, t_next, process=toy.process, noise=noise)
  matrix = p[:, 0]
  for i in range(1, toy.length):
    matrix = (matrix[:, :, None] * p[:, None, i]).reshape(size, -1)
  return matrix


@functools.cache
def sampler_law(toy, noise, step, num_steps, given=None):
  """float64[N]: the law of `sample`. given: a token or None for each position, to clamp."""
  states, size = toy.states, len(toy.states)
  with jax.enable_x64(True):
    times = np.linspace(1.0, END_TIME, num_steps + 1)
    moves = [step_matrix(toy, noise, step, *pair) for pair in itertools.pairwise(times)]
    moves.append(step_matrix(toy, noise, None, times[-1], times[-1]))
  p = np.full(size, 1 / size) if toy.process.mask_id is None else np.eye(size)[-1]
  tokens = states if given is None else clamp(states, given)
  for move in moves:
    p = np.bincount(toy.index(tokens), weights=p, minlength=size) @ np.asarray(move)
  return np.bincount(toy.index(tokens), weights=p, minlength=size)


def clamp(states, given):
  columns = [
    np.full(len(states), g) if g is not None else states[:, i] for i, g in enumerate(given)
  ]
  return np.stack(columns, axis=-1)


def posterior(toy, given):
  """float64[N]: the data law given some tokens."""
  p = toy.p_start * (clamp(toy.states, given) == toy.states).all(-1)
  return p / p.sum()


@both
@noises
@steps
@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_law_of_the_sampler_is_a_law_without_masks(process, noise, step, num_steps, x64):
  toy = random_toy(process)
  law = sampler_law(toy, noise, step, num_steps)
  np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-12)
  np.testing.assert_allclose(law[toy.clean].sum(), 1.0, rtol=1e-12)


@both
@noises
@steps
def test_samplers_converge_with_order_1(process, noise, step, x64):
  # At the exact score all that is left is that positions move independently within a step.
  toy = random_toy(process)
  counts = np.array([8, 16, 32, 64])
  errors = [total_variation(sampler_law(toy, noise, step, int(n)), toy.p_start) for n in counts]
  order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert 0.9 < order < 1.3
  assert 0.9 < np.log2(errors[-2] / errors[-1]) < 1.1
  assert errors[-1] < 0.011


@both
@noises
def test_tweedie_is_exact_for_one_token(process, noise, x64):
  # One position leaves nothing to move independently of: two steps are as good as many. What the
  # samplers' start costs remains (p_1 is not quite uniform), and rounding, times e^20 under
  # geometric noise.
  toy = random_toy(process, length=1)
  error = total_variation(sampler_law(toy, noise, Tweedie(), 2), toy.p_start)
  start = 0.0 if process.mask_id is not None else float(np.exp(-noise.total(1.0)))
  assert error < start + 1e-7


def test_euler_is_tweedie_for_absorbing_log_linear_noise(x64):
  # (t - s) rate / expm1(total) = (t - s) / t = expm1(total_t - total_s) / expm1(total_t).
  toy, noise = random_toy(Absorbing(3)), LogLinear()
  euler, tweedie = (sampler_law(toy, noise, step, 8) for step in (Euler(), Tweedie()))
  np.testing.assert_allclose(euler, tweedie, atol=1e-10)
  other = sampler_law(toy, Geometric(), Euler(), 8)
  assert total_variation(other, sampler_law(toy, Geometric(), Tweedie(), 8)) > 0.01


def drawn_counts(toy, noise, step, num_steps, given=None, draws=30_000):
  """int[N]: sequences that the jitted `sample` draws, in float32."""

  @jax.jit
  def run(keys):
    kept = None
    if given is not None:
      shape = (draws, toy.length)
      tokens = jnp.broadcast_to(jnp.array([0 if g is None else g for g in given]), shape)
      kept = Given(tokens, jnp.broadcast_to(jnp.array([g is not None for g in given]), shape))
    how = sampling_of(toy.process, noise, num_steps, step)
    return sample(DenseScores(toy.log_score_fn), keys, how, length=toy.length, given=kept).x

  x = np.asarray(run(jax.random.split(jax.random.key(0), draws)))
  return np.bincount(toy.index(x), minlength=len(toy.states))


@pytest.mark.parametrize(
  ("process", "step"), [(Absorbing(3), Tweedie()), (Uniform(3), Euler())], ids=str
)
def test_sample_draws_from_the_enumerated_law(process, step):
  toy, noise = random_toy(process), LogLinear()
  counts = drawn_counts(toy, noise, step, num_steps=4)
  assert chi_square_p_value(counts, sampler_law(toy, noise, step, 4)) > 1e-3
  # The test has the power to tell: the data law itself is rejected.
  p0 = np.where(sampler_law(toy, noise, step, 4) > 0, toy.p_start, 0.0)
  assert chi_square_p_value(counts, p0) < 1e-6


# Infilling.


@noises
@steps
@pytest.mark.parametrize("num_steps", [1, 5])
def test_infilling_one_token_is_exact_at_any_number_of_steps(noise, step, num_steps, x64):
  toy = random_toy(Absorbing(3), length=3)
  for given in ((None, 1, 2), (0, None, 0), (2, 2, None)):
    law = sampler_law(toy, noise, step, num_steps, given)
    np.testing.assert_allclose(law, posterior(toy, given), atol=1e-9)


@noises
def test_absorbing_infilling_converges_to_the_posterior(noise, x64):
  toy, given = random_toy(Absorbing(3), length=3), (1, None, None)
  errors = [
    total_variation(sampler_law(toy, noise, Tweedie(), n, given), posterior(toy, given))
    for n in (32, 64, 128)
  ]
  orders = np.log2(np.array(errors[:-1]) / errors[1:])
  np.testing.assert_allclose(orders, 1.0, atol=0.1)
  assert errors[-1] < 0.006


@noises
@pytest.mark.parametrize("given", [(1, None), (None, 2)])
def test_uniform_clamping_is_not_the_posterior(noise, given, x64):
  # The original's heuristic: the clamped chain has a limit, and it is another law: 0.05 away in
  # total variation given the first token and 0.02 given the second, however many steps are taken.
  toy = random_toy(Uniform(3))
  gaps = [
    total_variation(sampler_law(toy, noise, Tweedie(), n, given), posterior(toy, given))
    for n in (64, 256)
  ]
  assert abs(gaps[1] - gaps[0]) < 0.005  # It has settled,
  assert gaps[1] > 0.015  # elsewhere.


@both
def test_infilling_draws_from_the_law_of_the_clamped_chain(process):
  toy, noise, given = random_toy(process, length=3), LogLinear(), (None, 1, None)
  counts = drawn_counts(toy, noise, Tweedie(), 4, given)
  law = sampler_law(toy, noise, Tweedie(), 4, given)
  assert chi_square_p_value(counts, law) > 1e-3
  assert chi_square_p_value(counts, posterior(toy, given)) < 1e-6


def flat(process):
  """The exact log scores of data in which all sequences are as likely, float[B, L, S]."""

  def log_score_fn(x_BL, total_B):
    z_BLS = jnp.zeros((*x_BL.shape, process.num_states))
    if process.mask_id is None:
      return z_BLS
    return z_BLS - jnp.log(process.vocab_size * jnp.expm1(total_B))[:, None, None]

  return log_score_fn


@both
def test_infilling_keeps_what_is_given_and_leaves_no_mask(process, strict_keys):
  rng = np.random.default_rng(0)
  tokens, where = rng.integers(3, size=(5, 20)), rng.random((5, 20)) < 0.5
  seen = []
  noise = LogLinear()

  def log_score_fn(x_BL, total_B):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), x_BL)
    return flat(process)(x_BL, total_B)

  @jax.jit
  def infill(keys, tokens):
    given = Given(tokens, jnp.asarray(where))
    return sample(DenseScores(log_score_fn), keys, sampling_of(process, noise, 3), given=given).x

  x = np.asarray(infill(jax.random.split(jax.random.key(0), 5), jnp.asarray(tokens, jnp.int32)))
  jax.effects_barrier()
  assert len(seen) >= 3  # The last call is left out where no mask is left.
  for tokens_seen in (*seen, x):
    np.testing.assert_array_equal(tokens_seen[where], tokens[where])
  assert (x[~where] != tokens[~where]).any()
  assert x.dtype == jnp.int32
  assert set(np.unique(x[~where])) == {0, 1, 2}


def test_samples_are_int32_whatever_is_given(x64):
  given = Given(jnp.zeros((2, 3), jnp.int64), jnp.array([[True, False, False]] * 2))
  how, scores = sampling_of(Absorbing(3), LogLinear(), 1), DenseScores(flat(Absorbing(3)))
  run = jax.jit(lambda keys: sample(scores, keys, how, given=given).x)
  assert run(jax.random.split(jax.random.key(0), 2)).dtype == jnp.int32


# The loop.


def test_a_sample_depends_on_its_key_alone():
  # Uniform: its start is random too.
  toy, keys = random_toy(Uniform(3)), jax.random.split(jax.random.key(3), 12)
  how, scores = sampling_of(toy.process, LogLinear(), 4), DenseScores(toy.log_score_fn)
  run = jax.jit(lambda keys: sample(scores, keys, how, length=2).x)
  together = np.concatenate([run(three) for three in keys.reshape(4, 3)])
  alone = np.concatenate([run(one) for one in keys.reshape(12, 1)])
  np.testing.assert_array_equal(alone, together)
  assert len(np.unique(together, axis=0)) > 4


def test_the_network_is_called_once_a_step_and_once_more():
  process, num_steps, totals = Uniform(3), 5, []

  def log_score_fn(x_BL, total_B):
    jax.debug.callback(lambda total: totals.append(float(total)), total_B[0])
    return flat(process)(x_BL, total_B)

  how = sampling_of(process, LogLinear(), num_steps)
  run = jax.jit(lambda keys: sample(DenseScores(log_score_fn), keys, how, length=4))
  end = run(jax.random.split(jax.random.key(0), 2))
  jax.effects_barrier()
  expected = LogLinear().total(np.linspace(1.0, END_TIME, num_steps + 1).astype(np.float32))
  np.testing.assert_allclose(sorted(totals, reverse=True), expected, rtol=1e-4)
  assert (int(end.steps), int(end.calls)) == (num_steps, num_steps + 1)
  assert (end.t == 0).all()


def test_sampling_can_be_interrupted_after_any_step():
  toy, keys = random_toy(Uniform(3)), jax.random.split(jax.random.key(3), 8)
  how, scores = sampling_of(toy.process, Geometric(), 6), DenseScores(toy.log_score_fn)
  given = nothing_given(8, 2)
  advance = jax.jit(lambda state, until: how.advance(scores, keys, state, given, until))
  state = how.start(keys, given)
  for until in (1, 2, 5, NO_LIMIT):
    state = advance(state, until)
    assert int(state.steps) == min(until, 6)
  whole = jax.jit(lambda: sample(scores, keys, how, length=2).x)()
  np.testing.assert_array_equal(how.finish(scores, keys, state, given).x, whole)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_no_steps_are_refused(num_steps):
  with pytest.raises(ValueError, match=f"num_steps={num_steps}"):
    even_times(num_steps, LogLinear())


def test_samples_need_a_length():
  with pytest.raises(ValueError, match="length"):
    sample(None, jax.random.split(jax.random.key(0), 2), sampling_of(Uniform(3), LogLinear(), 1))


# Rows: the output layer where a token can change, and [B, L, S] nowhere.


def rows_network(process, mesh=None, dtype="float64", **shape):
  config = ScoreTransformerConfig(
    num_states=process.num_states,
    dropout=0.0,
    dtype=dtype,
    **(dict(width=16, blocks=1, heads=2, cond_dim=8) | shape),
  )
  network = Network(
    config=config,
    process=process,
    # Random raw scores would add up to so much that the first step lifts every mask.
    parameterization="score" if process.mask_id is None else "conditional",
    placement=OnMesh(mesh) if mesh else Placement(),
  )
  params = jax.tree.map(
    lambda x: (x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)).astype(dtype),
    network.init(jax.random.key(0)),
  )
  return network, params


def run_rows(scores, keys, network, length=6, num_steps=5, step=Tweedie()):
  how = sampling_of(network.process, LogLinear(), num_steps, step)
  end = sample(scores, keys, how, length=length)
  return jnp.where(end.calls > 3, end.x, -1)  # With fewer calls there were no partly needed rows.


by_rows = pytest.mark.parametrize(
  ("process", "step"),
  [
    (Absorbing(3), Tweedie()),
    (Uniform(3), Trapezoidal()),  # Compares two calls, row by row.
    pytest.param(Absorbing(3), Trapezoidal(), marks=pytest.mark.slow),
    pytest.param(Absorbing(3), Ancestral(), marks=pytest.mark.slow),  # Rows that turn alone.
    (Absorbing(3), Confidence()),  # Rules that return more than a token.
  ],
  ids=str,
)


@by_rows
def test_rows_in_tiles_sample_what_dense_rows_do(process, step, x64):
  network, params = rows_network(process)
  keys = jax.random.split(jax.random.key(2), 64)
  dense = DenseScores(functools.partial(network.log_score, params))
  want = jax.jit(lambda keys: run_rows(dense, keys, network, step=step))(keys)
  got = jax.jit(lambda keys: run_rows(network.scores(params), keys, network, step=step))(keys)
  np.testing.assert_array_equal(got, want)
  assert len(np.unique(got, axis=0)) > 15
  assert (want >= 0).all()


@pytest.mark.parametrize(
  ("process", "step", "length"),
  [
    (Absorbing(3), Tweedie(), 6),  # Tensor shares the positions,
    pytest.param(Absorbing(3), Tweedie(), 5, marks=pytest.mark.slow),  # and cannot.
    pytest.param(Uniform(3), Trapezoidal(), 6, marks=pytest.mark.slow),
    (Absorbing(3), Confidence(), 6),
  ],
  ids=str,
)
def test_rows_on_a_mesh_sample_what_one_device_does(process, step, length, x64):
  one, params = rows_network(process)
  keys = jax.random.split(jax.random.key(2), 8)
  want = jax.jit(lambda keys: run_rows(one.scores(params), keys, one, length, step=step))(keys)
  assert (want >= 0).all()
  mesh = make_mesh(MeshConfig(replica=1, fsdp=2, tensor=2))
  network, _ = rows_network(process, mesh)
  placed = jax.device_put(params, tree_shardings(mesh, params, network.table))
  run = jax.jit(
    lambda params, keys: run_rows(network.scores(params), keys, network, length, step=step)
  )
  np.testing.assert_array_equal(jax.block_until_ready(run(placed, keys)), want)


def test_sampling_holds_no_scores_of_all_positions():
  network, params = rows_network(Absorbing(5000), dtype="float32")
  keys = jax.random.split(jax.random.key(2), 16)

  def text(scores):
    run = jax.jit(lambda keys: run_rows(scores, keys, network, length=128))
    return run.lower(keys).compile().as_text()

  def largest(text):
    return max(
      np.prod([int(n) for n in dims.split(",")])
      for dims in re.findall(r"\b(?:f|u|s|pred)\d*\[([\d,]+)\]", text)
    )

  dense = DenseScores(functools.partial(network.log_score, params))
  assert largest(text(dense)) >= 16 * 128 * 5000
  assert largest(text(network.scores(params))) <= 16 * 128 * 5000 / 8


@pytest.mark.slow
def test_kernels_are_cast_once_and_scores_stay_the_same():
  network, params = rows_network(Absorbing(20), dtype="bfloat16")
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  scores = network.scores(params)
  kernels = [
    x for path, x in jax.tree.leaves_with_path(scores.params) if path[-1].key == "kernel"
    and path[-2].key not in ("noise_in", "noise_out")
  ]  # fmt: skip
  assert {x.dtype for x in kernels} == {jnp.dtype(jnp.bfloat16)}
  x, total = jnp.array([[20, 3, 20, 20]]), jnp.array([0.7])
  seen = jax.jit(scores.call)(x, total)
  np.testing.assert_array_equal(seen, jax.jit(network.read)(params, x, total))
