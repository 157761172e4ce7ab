"""All that a training run carries from step to step."""

from collections.abc import Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sedd_jax.models import Params, Transformer
from sedd_jax.models.layers import flat, nested


@flax.struct.dataclass
class TrainState:
  """Arrays only: a checkpoint, an abstract shape and a sharding have the same structure.

  Attributes:
    step: int32[], updates made.
    params: weights that are trained: nested dict of float32 arrays, tables padded.
    ema: moving average of params.
    opt_state: the optimizer's state.
    key: the run's PRNG key. It never advances: the keys of a step are made of (key, step).
    held: weights that stay as they are: no gradient, moments or average, and a run saves them once.
      They are an argument of the compiled step, no constant in it.
  """

  step: jax.Array
  params: Params
  ema: Params
  opt_state: Any
  key: jax.Array
  held: Params = flax.struct.field(default_factory=dict)

  @property
  def weights(self) -> Params:
    """The network's parameters: trained and held ones together."""
    return merged(self.params, self.held)

  @property
  def average(self) -> Params:
    """The same with the moving average of those that are trained."""
    return merged(self.ema, self.held)


def merged(trained: Params, held: Params) -> Params:
  """Parameters from those that are trained and those that are held."""
  return nested(flat(trained) | flat(held)) if held else trained


def split(params: Params, held: Collection[str]) -> tuple[Params, Params]:
  """The inverse of `merged`: the parameters that are trained, and those held, by name."""
  named = flat(params)
  trained = {name: x for name, x in named.items() if name not in held}
  return nested(trained), nested({name: named[name] for name in named if name in held})


def create_state(
  key: jax.Array,
  network: Transformer,
  optimizer: optax.GradientTransformation,
  held: Collection[str] = (),
) -> TrainState:
  """The state before the first step.

  Args:
    held: names of the parameters that are not trained.
  """
  key_init, key_run = jax.random.split(key)
  params, held_params = split(network.init(key_init), held)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # A copy: donated buffers must not be shared.
    ema=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
    key=key_run,
    held=held_params,
  )
