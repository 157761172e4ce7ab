"""One training step: the only one, whatever the mesh and the accumulation.

B: global batch, L: positions, A: micro-batches.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from sedd_jax.batch import Batch
from sedd_jax.diffusion import example_keys, sample_times
from sedd_jax.models import Params
from sedd_jax.training.objectives import Objective
from sedd_jax.training.optimizer import update_ema
from sedd_jax.training.state import TrainState, merged


def loss_and_grad(
  objective: Objective,
  params: Params,
  batch: Batch,
  key: jax.Array,
  step: jax.Array,
  *,
  accumulation: int,
  held: Params | None = None,
) -> tuple[jax.Array, Params]:
  """The objective on one batch and its gradient.

  Seven arguments: everything that a loss depends on, and nothing is remembered between calls.
  Noise and times depend on (key, step, position in the batch): the result is the same, rounding
  apart, for any accumulation.

  Args:
    batch: B rows; B is a multiple of accumulation.
    key: the run's key.
    step: int[], updates made before.
    held: parameters beside params, which no gradient touches.

  Returns:
    float[] in nats per sequence, and a tree like params.
  """
  size = batch.tokens.shape[0]
  time_key = jax.random.fold_in(jax.random.fold_in(key, step), size)

  def mean_loss(params, batch, index):
    t = sample_times(time_key, index, size, sampling=objective.time_sampling)
    weights = merged(params, held or {})
    return jnp.mean(objective.per_example(weights, batch, t, example_keys(key, step, index)))

  if accumulation == 1:  # Adding to zeros would be two more passes over a tree like params.
    return jax.value_and_grad(mean_loss)(params, batch, jnp.arange(size, dtype=jnp.int32))

  def micro(carry, scanned):
    loss_and_grad = jax.value_and_grad(mean_loss)(params, *scanned)
    return jax.tree.map(lambda a, b: a + b / accumulation, carry, loss_and_grad), None

  # Micro-batch a takes the rows a, a + A, ...: each device finds its share in its own rows.
  rows = batch.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1))
  index = jnp.arange(size, dtype=jnp.int32).reshape(-1, accumulation).T
  loss_dtype = jax.tree.leaves(params)[0].dtype
  zero = (jnp.zeros((), loss_dtype), jax.tree.map(jnp.zeros_like, params))
  total, _ = jax.lax.scan(micro, zero, (rows, index))
  return total


def apply_gradient(
  state: TrainState, grad: Params, *, optimizer: optax.GradientTransformation, ema: float
) -> TrainState:
  """One update of parameters, moments and moving average."""
  updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  step = state.step + 1
  return dataclasses.replace(
    state,  # pyright: ignore[reportArgumentType]  (a dataclass that flax makes)
    step=step,
    params=params,
    ema=update_ema(state.ema, params, step, ema),
    opt_state=opt_state,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  ema: float,
  accumulation: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step on a global batch.

  Returns:
    The new state, and metrics: `loss` (float32[], nats per sequence, before the update),
    `grad_norm` (float32[], before clipping) and `leaf_norms` (float32[P], of the gradient of each
    leaf of params).
  """
  loss, grad = loss_and_grad(
    objective,
    state.params,
    batch,
    state.key,
    state.step,
    accumulation=accumulation,
    held=state.held,
  )
  new_state = apply_gradient(state, grad, optimizer=optimizer, ema=ema)
  return new_state, {
    "loss": loss,
    "grad_norm": optax.tree.norm(grad),
    # The same sums again, which XLA takes once.
    "leaf_norms": jnp.stack([optax.tree.norm(leaf) for leaf in jax.tree.leaves(grad)]),
  }


def skipping(step):
  """A train step that only counts where loss or gradient are not finite: nothing else changes.

  Args:
    step: (state, batch) to (state, metrics), as `train_step`.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    new, metrics = step(state, batch)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    kept = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    return dataclasses.replace(kept, step=new.step), metrics

  return train_step
