"""Watching a run: its speed, a profile of some steps, stack traces when it hangs."""

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
  """How a run is watched. Nothing here changes what is computed.

  Attributes:
    profile_steps: first and last step of a profile for TensorBoard, or None.
    hang_seconds: time without a finished step after which every process prints the stacks of its
      threads, again and again; 0 for never.

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
  """Speed since the last pause. The first step after a pause is left out: it may compile.

  Args:
    program: the run's programs.
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
    """Stops the clock until the next step is read."""
    self._start = None

  def read(self, step: int) -> dict[str, float]:
    """`step_seconds`, `tokens_per_second` and, where the device's peak is known, `mfu`: operations
    of the model over the peak. Empty before the second step."""
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
    """A message if none of the steps first + 1 to last lies in the range, else None."""
    if self._first == math.inf or (first < self._last and self._first <= last):
      return None
    return (
      f"--profile_steps={self._first}..{self._last}: this run makes steps {first + 1} to {last}"
    )

  def before(self, step: int) -> None:
    """Starts the profile at the first step of the range that this run makes."""
    if self._lead and not self._running and self._first <= step <= self._last:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, step: int, values: Any) -> None:
    """Ends the profile after the last step of the range."""
    if step == self._last and self._running:
      jax.block_until_ready(values)
      self.stop()

  def stop(self) -> None:
    """Ends the profile, in a run that ends inside the range too."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


class Watchdog:
  """Prints the stacks of all threads when no step ends for long; a context manager.

  Python's faulthandler prints from a thread that needs no lock, so it works while the main thread
  hangs in a collective that another process never joined.
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
    """Starts the wait anew."""
    if self._seconds:
      # sys.stderr may have been replaced by an object without a file descriptor.
      faulthandler.dump_traceback_later(self._seconds, repeat=True, file=2)
