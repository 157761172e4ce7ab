"""Watching a run: its speed, a profile of some steps, and what it does when it hangs."""

import dataclasses
import faulthandler
import math
import time
from pathlib import Path
from typing import Any

import jax

from sedd_jax.parallel.chips import device_flops
from sedd_jax.training.program import Program

_LONGEST_HANG = 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
  """How a run is watched; none of it changes what is computed.

  Attributes:
    profile_steps: first and last step of a profile for TensorBoard, or None.
    hang_seconds: after so long without a finished step every process prints the stacks of its
      threads, and again after as long; 0 for never.

  Raises:
    ValueError: a field is out of range.
  """

  profile_steps: tuple[int, int] | None = None
  hang_seconds: float = 0.0

  def __post_init__(self):
    if self.profile_steps and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
      first, last = self.profile_steps
      raise ValueError(f"--profile_steps={first}..{last} must be a range of steps from 1 on")
    if not 0 <= self.hang_seconds <= _LONGEST_HANG:
      raise ValueError(
        f"--hang_seconds={self.hang_seconds} must lie in [0, {_LONGEST_HANG}]; 0 for never"
      )


class Clock:
  """Speed since the last pause; the first step after one is not counted (compiling, evaluating).

  Args:
    program: what runs.
  """

  def __init__(self, program: Program):
    train, length = program.experiment.train, program.experiment.data.length
    self._tokens = train.batch_size * length
    device = program.mesh.devices.flat[0]
    peak = device_flops(device.device_kind)
    self._flops = 3 * program.forward_flops()
    self._peak = None if peak is None else peak * program.mesh.size
    self._start: tuple[int, float] | None = None
    self._last: dict[str, float] = {}

  def pause(self) -> None:
    """What comes next is not training."""
    self._start = None

  def read(self, step: int) -> dict[str, float]:
    """`step_seconds`, `tokens_per_second` and, where the device's peak is known, `mfu`: the
    model's own operations over the peak. Empty before the second step."""
    now = time.monotonic()
    if self._start is None:
      self._start = (step, now)
      return self._last
    first, began = self._start
    if now > began and step > first:
      seconds = (now - began) / (step - first)
      self._last = {"step_seconds": seconds, "tokens_per_second": self._tokens / seconds}
      if self._peak:
        self._last["mfu"] = self._flops / seconds / self._peak
    return self._last


class Profile:
  """Writes a profile of some steps into the run's TensorBoard directory; a context manager."""

  def __init__(self, steps: tuple[int, int] | None, workdir: Path, *, lead: bool):
    self._first, self._last = steps or (math.inf, math.inf)
    self._folder = workdir / "tensorboard"
    self._lead = lead
    self._running = False

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *exception) -> None:
    self.stop()

  def missed(self, first: int, last: int) -> str | None:
    """What to say where steps first + 1 to last will show nothing of the range."""
    if self._first == math.inf or (first < self._last and self._first <= last):
      return None
    return (
      f"--profile_steps={self._first}..{self._last}: this run makes steps {first + 1} to {last}"
    )

  def before(self, step: int) -> None:
    """Starts at the first step of the range, or at the first one that a resumed run makes."""
    if self._lead and not self._running and self._first <= step <= self._last:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, step: int, values: Any) -> None:
    """Ends with the last step of the range."""
    if step == self._last and self._running:
      jax.block_until_ready(values)
      self.stop()

  def stop(self) -> None:
    """Ends; for a run that ends inside the range."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


class Watchdog:
  """Prints the stacks of all threads when nothing has happened for long; a context manager.

  Python's own faulthandler does it, from a thread that needs no lock, so it also speaks when the
  main thread hangs in a collective that another process never joined.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds

  def __enter__(self) -> "Watchdog":
    self.alive()
    return self

  def __exit__(self, *exception) -> None:
    if self._seconds:
      faulthandler.cancel_dump_traceback_later()

  def alive(self) -> None:
    """Something has happened."""
    if self._seconds:
      # File descriptor 2: sys.stderr may be another object, without one.
      faulthandler.dump_traceback_later(self._seconds, repeat=True, file=2)
