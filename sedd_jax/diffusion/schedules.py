"""Step schedules: the times of sampling steps from t = 1 to almost 0."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import clock
from sedd_jax.ranges import check

# The last time before the denoising step, which removes the rest; the original's choice.
END_TIME = 1e-5
# Compiled programs hold this many times, or the next power of two: one serves all shorter lists.
_FEWEST_TIMES = 4_097
# More steps would be too close for float32 times, and their list would take much memory.
MOST_STEPS = 1_000_000


class Schedule(Protocol):
  """Sets the time of each sampling step."""

  @property
  def end(self) -> float:
    """The last time before the denoising step."""
    ...

  @property
  def needs_error(self) -> bool:
    """Whether the sampler must estimate its error."""
    ...

  def start(self, batch: int) -> Any:
    """The schedule's state at t = 1, a tree of arrays."""
    ...

  def next(self, t: jax.Array, step: jax.Array, pace: Any, noise: Noise) -> jax.Array:
    """float[B], the next time of each sequence; t is float[B], step int32[] from 0."""
    ...

  def update(self, pace: Any, error: jax.Array | None) -> Any:
    """The schedule's state after a step; error is the sampler's estimate float[B], or None."""
    ...


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Times:
  """The same times for every sequence.

  As a pytree its only leaf is an array of the times, so a function that is compiled for one number
  of steps serves others. The array is padded with the last time.

  Attributes:
    times: start at 1 and fall; the last is above 0.

  Raises:
    ValueError: the times do not start at 1 and fall, or are too close for float32.
  """

  needs_error = False

  times: tuple[float, ...]

  def __post_init__(self):
    falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
    if len(self.times) < 2 or self.times[0] != 1.0 or not falling or not self.times[-1] > 0.0:
      shown = ", ".join(f"{t:g}" for t in self.times[:6])
      raise ValueError(f"schedule: times {shown} must start at 1 and fall, and end above 0")
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
    times = jnp.asarray(self.times, t.dtype)
    return jnp.broadcast_to(times[jnp.minimum(step + 1, self.num_steps)], t.shape)

  def update(self, pace, error):
    del error
    return pace

  def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
    size = max(_FEWEST_TIMES, 1 << (len(self.times) - 1).bit_length())
    times = np.asarray(self.times, np.float64)
    return (np.pad(times, (0, size - len(times)), mode="edge"),), None

  @classmethod
  def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "Times":
    times = object.__new__(cls)  # A leaf may be a tracer, which cannot be checked.
    times.__dict__["times"] = leaves[0]
    return times


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Adaptive:
  """Step lengths set from the sampler's estimate of its error.

  A first-order step of length h, in the `clock` of `numerics.py`, has a mean error of c h^2. The
  next length is sqrt(tolerance / c), with c averaged over earlier steps: a single error is as
  random as the tokens it depends on. Steps are never rejected.

  Attributes:
    tolerance: mean error of a step: the expected number of tokens that the first-order and the
      second-order step would draw differently.
    first: length of the first step.

  Raises:
    ValueError: a field lies outside [1e-12, 1e12].
  """

  needs_error = True

  tolerance: float = 0.1
  first: float = 0.03

  def __post_init__(self):
    for name in ("tolerance", "first"):
      check(f"schedule adaptive: {name}", getattr(self, name), 1e-12, 1e12)

  @property
  def end(self) -> float:
    return END_TIME

  def start(self, batch):
    return jnp.full(batch, self.tolerance / self.first**2, jnp.result_type(float))

  def next(self, t, step, pace, noise):
    # clock is its own inverse.
    t_next = noise.time(clock(clock(noise.total(t)) + self._length(pace)))
    least = jnp.nextafter(t, jnp.zeros_like(t))  # Even the shortest step lowers t.
    return jnp.maximum(jnp.minimum(t_next, least), END_TIME)

  def update(self, pace, error):
    # After a step without error the next is 12 % longer.
    return 0.8 * pace + 0.2 * error / self._length(pace) ** 2

  def _length(self, pace):
    return jnp.sqrt(self.tolerance / pace)


def even_times(num_steps: int, noise: Noise, *, by: str = "time") -> Times:
  """Times of num_steps steps, evenly spaced in one of three measures.

  Args:
    num_steps: N, from 1 to `MOST_STEPS`.
    noise: the noise schedule.
    by: `time` (t itself, the original's choice), `noise` (total noise), or `tokens` (the expected
      share of tokens that are masked or redrawn, 1 - exp(-total)). Under log-linear noise `tokens`
      equals `time`.

  Raises:
    ValueError: num_steps is out of range, or `by` is unknown.
  """
  check("num_steps", num_steps, 1, MOST_STEPS)
  if by not in ("time", "noise", "tokens"):
    raise ValueError(f"schedule {by!r} must be 'time', 'noise' or 'tokens'")
  u = np.linspace(0.0, 1.0, num_steps + 1)
  if by == "time":
    return Times((*(1.0 - (1.0 - END_TIME) * u[:-1]).tolist(), END_TIME))
  with jax.ensure_compile_time_eval():  # A compiled function may call this.
    first, last = np.asarray(noise.total(np.array([1.0, END_TIME])), np.float64)
    if by == "noise":
      total = first + (last - first) * u
    else:
      total = -np.log1p(np.expm1(-first) * (1.0 - u) + np.expm1(-last) * u)
    times = np.asarray(noise.time(total), np.float64)
  return Times((1.0, *times[1:-1].tolist(), END_TIME))
