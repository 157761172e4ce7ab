"""Step schedules: at which times sampling stops on its way from t = 1 to almost 0."""

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import clock

# Sampling ends here and the denoising step takes what noise is left; the original's choice.
END_TIME = 1e-5


class Schedule(Protocol):
  """The next time, from where sampling is."""

  @property
  def end(self) -> float:
    """The last time before the denoising step."""
    ...

  @property
  def needs_error(self) -> bool:
    """Whether the sampler must estimate its error."""
    ...

  def start(self, batch: int) -> Any:
    """What the schedule remembers at t = 1: a tree of arrays."""
    ...

  def next(self, t: jax.Array, step: jax.Array, pace: Any, noise: Noise) -> jax.Array:
    """float[B], the next time of each sequence; t is float[B], step int32[] from 0."""
    ...

  def update(self, pace: Any, error: jax.Array | None) -> Any:
    """What it remembers after a step whose error the sampler estimates as float[B], or None."""
    ...


@dataclasses.dataclass(frozen=True)
class Times:
  """The same times for every sequence.

  Attributes:
    times: falling from 1; the last is above 0.

  Raises:
    ValueError: they don't.
  """

  needs_error = False

  times: tuple[float, ...]

  def __post_init__(self):
    falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
    if len(self.times) < 2 or self.times[0] != 1.0 or not falling or not self.times[-1] > 0.0:
      shown = ", ".join(f"{t:g}" for t in self.times[:6])
      raise ValueError(f"schedule: times {shown} must start at 1 and fall, to a last one above 0")
    single = np.asarray(self.times, np.float32)
    if not (np.diff(single) < 0).all():
      raise ValueError(f"schedule: {len(self.times)} times are too close for float32")

  @property
  def end(self) -> float:
    return self.times[-1]

  @property
  def num_steps(self) -> int:
    return len(self.times) - 1

  def start(self, batch):
    del batch

  def next(self, t, step, pace, noise):
    times = jnp.asarray(np.asarray(self.times), t.dtype)
    return jnp.broadcast_to(times[jnp.minimum(step + 1, self.num_steps)], t.shape)

  def update(self, pace, error):
    del error
    return pace


@dataclasses.dataclass(frozen=True)
class Adaptive:
  """Steps as long as the sampler's own estimate of their error allows.

  A step of length h, in the clock of `numerics.py`, whose first-order part errs by e on average has
  e = c h^2. The next step is sqrt(tolerance / c), with c averaged over the steps before, for single
  errors are as random as the tokens that make them. No step is taken back: what was drawn stays.

  Attributes:
    tolerance: the error that a step may make on average: the expected number of tokens that the two
      orders would draw differently.
    first: length of the first step.

  Raises:
    ValueError: one is not positive.
  """

  needs_error = True

  tolerance: float = 0.1
  first: float = 0.03

  def __post_init__(self):
    for name in ("tolerance", "first"):
      if not 0.0 < getattr(self, name) < math.inf:
        raise ValueError(f"schedule adaptive: {name}={getattr(self, name)} must be positive")

  @property
  def end(self) -> float:
    return END_TIME

  def start(self, batch):
    return jnp.full(batch, self.tolerance / self.first**2, jnp.result_type(float))

  def next(self, t, step, pace, noise):
    t_next = noise.time(clock(clock(noise.total(t)) + self._length(pace)))  # Its own inverse.
    least = jnp.nextafter(t, jnp.zeros_like(t))  # However short, a step leads on.
    return jnp.maximum(jnp.minimum(t_next, least), END_TIME)

  def update(self, pace, error):
    # Without errors a step is 12 % longer than the one before.
    return 0.8 * pace + 0.2 * error / self._length(pace) ** 2

  def _length(self, pace):
    return jnp.sqrt(self.tolerance / pace)


def even_times(num_steps: int, noise: Noise, *, by: str = "time") -> Times:
  """num_steps steps, even in one of three measures.

  Args:
    num_steps: N >= 1.
    noise: the schedule whose noise is meant.
    by: `time` (t itself, the original's choice), `noise` (total noise), or `tokens` (the expected
      share of tokens that are masked or drawn anew, 1 - exp(-total)). Under log-linear noise the
      last is the same as the first.

  Raises:
    ValueError: num_steps < 1, or `by` is none of these.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps} must be at least 1")
  if by not in ("time", "noise", "tokens"):
    raise ValueError(f"schedule {by!r} must be 'time', 'noise' or 'tokens'")
  u = np.linspace(0.0, 1.0, num_steps + 1)
  if by == "time":
    return Times((*(1.0 - (1.0 - END_TIME) * u[:-1]).tolist(), END_TIME))
  with jax.ensure_compile_time_eval():  # Also where a compiled function calls this.
    first, last = np.asarray(noise.total(np.array([1.0, END_TIME])), np.float64)
    if by == "noise":
      total = first + (last - first) * u
    else:
      total = -np.log1p(np.expm1(-first) * (1.0 - u) + np.expm1(-last) * u)
    times = np.asarray(noise.time(total), np.float64)
  return Times((1.0, *times[1:-1].tolist(), END_TIME))
