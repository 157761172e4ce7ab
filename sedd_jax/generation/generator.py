"""Generation with a network: compiled once for each way of sampling, watched if one likes."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import NO_LIMIT, Given, Sampling, State
from sedd_jax.models import Network, Params
from sedd_jax.parallel import MeshConfig, OnMesh, batch_sharding, make_mesh, tree_shardings

# (steps made, share of the way from t = 1 to 0) to whatever.
OnProgress = Callable[[int, float], None]
# Progress is told this often on the way.
_TELLS = 50


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
  """Samples and what they took.

  Attributes:
    tokens: int32[B, L].
    given: bool[B, L], tokens that were given.
    steps: sampling steps made, the denoising step left out.
    calls: calls of the network.
    seconds: wall time, compilation included.
    frames: int32[K, B, L], the tokens before the first step and after each; empty if not asked for.
    times: float64[K, B], the time t of each frame.
    calls_by_frame: int[K], calls made by then.
  """

  tokens: np.ndarray
  given: np.ndarray
  steps: int
  calls: int
  seconds: float
  frames: np.ndarray
  times: np.ndarray
  calls_by_frame: np.ndarray

  def first(self, num: int) -> "Generation":
    """The first so many samples."""
    return dataclasses.replace(
      self,
      tokens=self.tokens[:num],
      given=self.given[:num],
      frames=self.frames[:, :num],
      times=self.times[:, :num],
    )


class Generator:
  """Runs the loop of `diffusion/sampling.py` with one network.

  Args:
    network: the score network.
    params: its parameters.
    devices: share the samples; each holds all parameters.
  """

  def __init__(self, network: Network, params: Params, devices: Sequence[Any]):
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=1), devices)
    self._network = dataclasses.replace(network, placement=OnMesh(mesh))
    self._params = jax.device_put(params, tree_shardings(mesh, params, network.table))
    self._rows, self._devices = batch_sharding(mesh), len(devices)

  def __call__(
    self,
    sampling: Sampling,
    keys: jax.Array,
    given: Given,
    *,
    record: bool = False,
    on_progress: OnProgress | None = None,
  ) -> Generation:
    """Samples.

    The loop runs on the device; it comes back after every step if frames are recorded, and now and
    then if progress is told. That changes nothing about the samples.

    Args:
      sampling: how.
      keys: PRNG keys [B].
      given: tokens to keep.
      record: whether to keep the tokens after every step.
      on_progress: called now and then.
    """
    started = time.monotonic()
    asked = len(keys)
    # As many for each device: what is missing are copies of the last sample.
    index = np.minimum(np.arange(-(-asked // self._devices) * self._devices), asked - 1)
    keys, given = jax.device_put((keys[index], jax.tree.map(lambda x: x[index], given)), self._rows)
    state = self._start(sampling, keys, given)
    frames = [state]
    stride = 1 if record else self._stride(sampling) if on_progress else NO_LIMIT
    made = 0
    while bool(np.any(np.asarray(state.t) > sampling.schedule.end)):
      until = min(made + stride, NO_LIMIT)
      state = self._advance(sampling, self._params, keys, state, given, jnp.int32(until))
      made = int(state.steps)
      frames.append(state)
      if on_progress is not None:
        on_progress(made, 1.0 - float(np.max(np.asarray(state.t))))
    state = jax.block_until_ready(self._finish(sampling, self._params, keys, state, given))
    frames = [*frames, state] if record else []
    if on_progress is not None:
      on_progress(made, 1.0)
    batch, length = given.where.shape
    whole = Generation(
      tokens=np.asarray(state.x),
      given=np.asarray(given.where),
      steps=made,
      calls=int(state.calls),
      seconds=time.monotonic() - started,
      frames=np.array([one.x for one in frames], np.int32).reshape(-1, batch, length),
      times=np.array([one.t for one in frames], np.float64).reshape(-1, batch),
      calls_by_frame=np.array([one.calls for one in frames], np.int64),
    )
    return whole.first(asked)

  @staticmethod
  def _stride(sampling: Sampling) -> int:
    steps = 0 if sampling.sampler.sets_times else getattr(sampling.schedule, "num_steps", 0)
    return max(8, steps // _TELLS)  # Each time the device waits for us.

  @functools.cached_property
  def _start(self):
    return jax.jit(Sampling.start, static_argnums=0)

  @functools.cached_property
  def _advance(self):
    @functools.partial(jax.jit, static_argnums=0)
    def advance(
      sampling: Sampling, params: Params, keys: jax.Array, state: State, given: Given, until
    ):
      return sampling.advance(self._network.scores(params), keys, state, given, until)

    return advance

  @functools.cached_property
  def _finish(self):
    @functools.partial(jax.jit, static_argnums=0)
    def finish(sampling: Sampling, params: Params, keys: jax.Array, state: State, given: Given):
      return sampling.finish(self._network.scores(params), keys, state, given)

    return finish
