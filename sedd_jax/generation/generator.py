"""Generation with a score network: compiled once per sampler, with progress and frames."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import NO_LIMIT, Given, Sampling, State
from sedd_jax.models import Network, Params
from sedd_jax.parallel import MeshConfig, OnMesh, batch_sharding, make_mesh, tree_shardings


class Snapshot(NamedTuple):
  """The samples between two steps.

  Attributes:
    tokens: int32[B, L].
    times: float64[B].
    calls: network calls so far.
  """

  tokens: np.ndarray
  times: np.ndarray
  calls: int


# Called with (steps so far, share of the way from t = 1 to 0).
OnProgress = Callable[[int, float], None]
# Called before the first step and after each. What it raises ends the sampling.
OnSnapshot = Callable[[Snapshot], None]
# Number of progress reports.
_REPORTS = 50


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
  """Samples and their cost.

  Attributes:
    tokens: int32[B, L].
    given: bool[B, L], true at given tokens.
    steps: number of sampling steps without the denoising step.
    calls: number of network calls.
    seconds: wall time, including compilation.
    frames: int32[K, B, L], the tokens before the first step and after each; empty unless recorded.
    times: float64[K, B], the time t of each frame.
    calls_by_frame: int[K], network calls up to each frame.
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
    """The first num samples."""
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
    devices: the samples are split over them; each holds all parameters.
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
    on_snapshot: OnSnapshot | None = None,
  ) -> Generation:
    """The samples and their cost.

    The loop runs on the device. It returns to the host after every step if frames are recorded or
    watched, and occasionally for progress; the samples do not depend on that.

    Args:
      sampling: how to sample.
      keys: PRNG keys [B].
      given: tokens to keep.
      record: whether to keep the tokens after every step.
      on_progress: called occasionally.
      on_snapshot: called before the first step and after each; what it raises ends the sampling.
    """
    started = time.monotonic()
    count = len(keys)
    # Padded with copies of the last sample to the same number on each device.
    index = np.minimum(np.arange(-(-count // self._devices) * self._devices), count - 1)
    keys, given = jax.device_put((keys[index], jax.tree.map(lambda x: x[index], given)), self._rows)
    state = self._start(sampling, keys, given)
    frames, steps = [], 0
    stride = self._stride(sampling) if on_progress else NO_LIMIT
    stride = 1 if record or on_snapshot else stride

    def reached(state: State) -> None:
      if record:
        frames.append(state)
      if on_snapshot is not None:
        tokens, times = np.asarray(state.x)[:count], np.asarray(state.t, np.float64)[:count]
        on_snapshot(Snapshot(tokens, times, int(state.calls)))

    reached(state)
    while bool(np.any(np.asarray(state.t) > sampling.schedule.end)):
      until = min(steps + stride, NO_LIMIT)
      state = self._advance(sampling, self._params, keys, state, given, jnp.int32(until))
      steps = int(state.steps)
      reached(state)
      if on_progress is not None:
        on_progress(steps, 1.0 - float(np.max(np.asarray(state.t))))
    state = jax.block_until_ready(self._finish(sampling, self._params, keys, state, given))
    reached(state)
    if on_progress is not None:
      on_progress(steps, 1.0)
    batch, length = given.where.shape
    padded = Generation(
      tokens=np.asarray(state.x),
      given=np.asarray(given.where),
      steps=steps,
      calls=int(state.calls),
      seconds=time.monotonic() - started,
      frames=np.array([frame.x for frame in frames], np.int32).reshape(-1, batch, length),
      times=np.array([frame.t for frame in frames], np.float64).reshape(-1, batch),
      calls_by_frame=np.array([frame.calls for frame in frames], np.int64),
    )
    return padded.first(count)

  @staticmethod
  def _stride(sampling: Sampling) -> int:
    steps = 0 if sampling.sampler.sets_times else getattr(sampling.schedule, "num_steps", 0)
    return max(8, steps // _REPORTS)  # The device waits for the host at each report.

  @functools.cached_property
  def _start(self):
    return jax.jit(Sampling.start)

  @functools.cached_property
  def _advance(self):
    @jax.jit
    def advance(
      sampling: Sampling, params: Params, keys: jax.Array, state: State, given: Given, until
    ):
      return sampling.advance(self._network.scores(params), keys, state, given, until)

    return advance

  @functools.cached_property
  def _finish(self):
    @jax.jit
    def finish(sampling: Sampling, params: Params, keys: jax.Array, state: State, given: Given):
      return sampling.finish(self._network.scores(params), keys, state, given)

    return finish
