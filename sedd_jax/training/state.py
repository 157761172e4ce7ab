"""All that a training run carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sedd_jax.models import Params, Transformer


@flax.struct.dataclass
class TrainState:
  """Arrays only: a checkpoint, an abstract shape and a sharding have the same structure.

  Attributes:
    step: int32[], updates made.
    params: nested dict of float32 arrays, tables padded.
    ema: moving average of params.
    opt_state: the optimizer's state.
    key: the run's PRNG key. It never advances: the keys of a step are made of (key, step).
  """

  step: jax.Array
  params: Params
  ema: Params
  opt_state: Any
  key: jax.Array


def create_state(
  key: jax.Array, network: Transformer, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  key_init, key_run = jax.random.split(key)
  params = network.init(key_init)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # A copy: donated buffers must not be shared.
    ema=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
    key=key_run,
  )
