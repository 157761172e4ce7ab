"""Optimizer, step and moving average: against the original, and the same on any split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import golden_network, random_params, small_network

from sedd_jax.batch import Batch
from sedd_jax.diffusion import Absorbing, Geometric, LogLinear, Uniform
from sedd_jax.interop.original import tensors_from_params
from sedd_jax.models import Network
from sedd_jax.models.placement import Placement
from sedd_jax.models.score_transformer import dropout
from sedd_jax.parallel import (
  MeshConfig,
  OnMesh,
  batch_sharding,
  make_mesh,
  tree_shardings,
)
from sedd_jax.training.objectives import ScoreEntropy
from sedd_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from sedd_jax.training.state import TrainState, create_state
from sedd_jax.training.step import apply_gradient, loss_and_grad, train_step


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_updates_and_average_equal_the_original(golden, x64, name):
  arrays, steps = golden(f"model_{name}.npz"), golden(f"train_{name}.npz")
  network, params = golden_network(arrays, name, "float64")
  optimizer = make_optimizer(
    OptimizerConfig(
      learning_rate=float(steps["lr"]),
      warmup=int(steps["warmup"]),
      b1=float(steps["beta1"]),
      b2=float(steps["beta2"]),
      eps=float(steps["eps"]),
      weight_decay=float(steps["weight_decay"]),
      clip=float(steps["grad_clip"]),
    ),
    num_steps=100,
  )
  state = TrainState(
    step=jnp.int32(0),
    params=params,
    ema=params,
    opt_state=optimizer.init(params),
    key=jax.random.key(0),
  )
  noise = LogLinear() if name == "absorb" else Geometric()

  def objective(params, xt, x0, t):
    total = noise.total(t)
    stats = network.score_stats(params, xt, x0, total)
    entropy = network.process.score_entropy_from_stats(stats, xt, x0, total[:, None])
    return jnp.mean(noise.rate(t) * entropy.sum(-1))

  gradient = jax.jit(jax.value_and_grad(objective))
  apply = jax.jit(
    functools.partial(apply_gradient, optimizer=optimizer, ema=float(steps["ema_decay"]))
  )
  accumulation = int(steps["accum"])
  for i in range(len(steps["x0"])):
    micro = [
      gradient(state.params, steps["xt"][i, a], steps["x0"][i, a], steps["t"][i, a])
      for a in range(accumulation)
    ]
    loss, grad = jax.tree.map(lambda *xs: sum(xs) / accumulation, *micro)
    np.testing.assert_allclose(loss, steps["loss"][i], rtol=1e-6)
    state = apply(state, grad)
  for prefix, tree in (("final/", state.params), ("ema/", state.ema)):
    for key, got in tensors_from_params(network, network.unpad(tree)).items():
      np.testing.assert_allclose(got, steps[prefix + key], atol=1e-9, rtol=1e-6, err_msg=key)


def test_learning_rate_warms_up_from_the_first_step_and_follows_the_cosine():
  constant = learning_rate(OptimizerConfig(learning_rate=2.0, warmup=4), 10)
  np.testing.assert_allclose([constant(i) for i in range(6)], [0.5, 1, 1.5, 2, 2, 2])
  cosine = learning_rate(OptimizerConfig(learning_rate=2.0, warmup=4, schedule="cosine"), 10)
  want = [0.5, 1, 1.5, 2, *(1 + np.cos(np.pi * np.arange(1, 7) / 6))]
  np.testing.assert_allclose([cosine(i) for i in range(10)], want, atol=1e-6)


def test_weight_decay_spares_biases_norms_and_embeddings():
  network = small_network(Absorbing(10))
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup=0, weight_decay=0.5), 10)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  for path, update in jax.tree.leaves_with_path(updates):
    want = -0.05 if path[-1].key == "kernel" else 0.0
    np.testing.assert_allclose(update, want, rtol=1e-6)


@pytest.mark.parametrize(
  "process",
  [pytest.param(Absorbing(10), marks=pytest.mark.slow), Uniform(10)],
  ids=["absorbing", "uniform"],
)
def test_loss_and_gradient_are_the_same_for_any_accumulation(process):
  network = small_network(process, dropout=0.3)
  objective = ScoreEntropy(network=network, noise=LogLinear())
  params = random_params(network, scale=0.05)
  batch = Batch.of(jax.random.randint(jax.random.key(1), (8, 6), 0, 10))

  def run(accumulation):
    return jax.jit(functools.partial(loss_and_grad, objective, accumulation=accumulation))(
      params, batch, jax.random.key(2), jnp.int32(3)
    )

  loss, grad = run(1)
  for accumulation in (2, 8):
    other_loss, other_grad = run(accumulation)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(grad), jax.tree.leaves(other_grad), strict=True):
      assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)


@pytest.mark.parametrize(
  ("remat", "unroll"),
  [
    ("narrow", 2),
    pytest.param("dots", 1, marks=pytest.mark.slow),
    pytest.param("full", 1, marks=pytest.mark.slow),
    ("full", 3),
  ],
)
def test_loss_and_gradient_are_the_same_for_any_rematerialisation(remat, unroll):
  """Dropout on: what is made again is what was there. 3 blocks unrolled by 2 leave one over."""
  batch = Batch.of(jax.random.randint(jax.random.key(1), (4, 6), 0, 10))

  def run(**changes):
    network = small_network(Absorbing(10), blocks=3, dropout=0.3, **changes)
    objective = ScoreEntropy(network=network, noise=LogLinear())
    params = random_params(network, scale=0.05)
    return jax.jit(functools.partial(loss_and_grad, objective, accumulation=1))(
      params, batch, jax.random.key(2), jnp.int32(3)
    )

  loss, grad = run(remat="none")
  other_loss, other_grad = run(remat=remat, unroll=unroll)
  np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
  for one, other in zip(jax.tree.leaves(grad), jax.tree.leaves(other_grad), strict=True):
    assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("width", [512, 33])
@pytest.mark.parametrize("wide", [False, True])  # Random words are 32 bits with float64 too.
def test_dropout_keeps_its_share_and_the_mean(rate, width, wide):
  with jax.enable_x64(wide):
    dropout_keeps_its_share_and_the_mean(rate, width)


def test_a_rate_close_to_one_has_a_finite_gradient():
  keys = jax.random.split(jax.random.key(0), 2)
  grad = jax.grad(lambda z: jnp.sum(dropout(z, 0.999999, keys)))(jnp.ones((2, 3, 4)))
  assert np.all(np.isfinite(grad))


def dropout_keeps_its_share_and_the_mean(rate, width):
  sequences, length = 16, 256
  keys = jax.random.split(jax.random.key(0), sequences)
  ones = jnp.ones((sequences, length, width))
  dropped = np.asarray(dropout(ones, rate, keys))
  kept, count = dropped != 0.0, dropped.size
  error = np.sqrt(rate * (1.0 - rate) / count)
  assert abs(kept.mean() - (1.0 - rate)) < 4 * error
  # Each of the two that share a random word, by itself and against the other.
  half = width // 2
  first, second = kept[..., :half], kept[..., -half:]
  for part in (first, second):
    assert abs(part.mean() - (1.0 - rate)) < 4 * error * np.sqrt(2.1)
  agreement = rate**2 + (1.0 - rate) ** 2
  error_of_pairs = np.sqrt(agreement * (1.0 - agreement) / first.size)
  assert abs((first == second).mean() - agreement) < 4 * error_of_pairs
  # The mean is that of the input: what is kept grows by the share that is kept, to 2^-16.
  np.testing.assert_allclose(dropped[kept], 1.0 / (1.0 - rate), rtol=2e-5)
  assert abs(dropped.mean() - 1.0) < 4 * error / (1.0 - rate)
  np.testing.assert_array_equal(dropout(ones, rate, None), ones)


@pytest.mark.parametrize(
  "axes",
  [
    pytest.param(dict(fsdp=4, replica=1), marks=pytest.mark.slow),
    dict(fsdp=2, tensor=2, replica=1),
  ],
  ids=str,
)
def test_three_steps_are_the_same_on_any_mesh(axes):
  """Dropout on; one device against four, for the whole state."""
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup=2), 10)
  noise, process = LogLinear(), Absorbing(10)
  batches = jax.random.randint(jax.random.key(1), (3, 8, 6), 0, 10)

  def run(mesh):
    placement = OnMesh(mesh) if mesh else Placement()
    config = small_network(process, dropout=0.3).config
    network = Network(config=config, process=process, placement=placement)
    create = functools.partial(create_state, network=network, optimizer=optimizer)
    key = jax.random.key(0)
    shapes = jax.eval_shape(create, key)
    shardings = tree_shardings(mesh, shapes, network.table) if mesh else None
    state = jax.jit(create, out_shardings=shardings)(key)
    step = jax.jit(
      functools.partial(
        train_step,
        objective=ScoreEntropy(network=network, noise=noise),
        optimizer=optimizer,
        ema=0.99,
      )
    )
    losses = []
    for batch in map(Batch.of, batches):
      batch = jax.device_put(batch, batch_sharding(mesh)) if mesh else batch
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
    return losses, state

  losses, state = run(make_mesh(MeshConfig(**axes)))
  want_losses, want = run(None)
  np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, want.params)
  if axes.get("fsdp", 1) > 1:
    kernel = state.params["blocks"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size, "the kernel is not sharded"


def test_mesh_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"mesh\.fsdp=3.*4 devices"):
    make_mesh(MeshConfig(fsdp=3))


def test_run_key_never_advances_and_step_counts():
  network = small_network(Absorbing(10))
  optimizer = make_optimizer(OptimizerConfig(), 10)
  create = functools.partial(create_state, network=network, optimizer=optimizer)
  state = jax.jit(create)(jax.random.key(0))
  objective = ScoreEntropy(network=network, noise=LogLinear())
  step = functools.partial(train_step, objective=objective, optimizer=optimizer, ema=0.99)
  after, _ = jax.jit(step)(state, Batch.of(jnp.zeros((2, 6), jnp.int32)))
  assert int(after.step) == 1
  assert (jax.random.key_data(after.key) == jax.random.key_data(state.key)).all()
