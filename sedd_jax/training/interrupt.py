"""Ctrl-C and SIGTERM: finish the step, save, leave. A second one leaves at once."""

import os
import signal

import jax

from sedd_jax.parallel import processes


class Interrupt:
  """A context manager that records the first signal; the next one has its usual effect.

  With several processes JAX's preemption service catches SIGTERM instead: one process that gets it
  stops all, at the same step. A second SIGTERM is then ignored.
  """

  _SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self):
    self._signal: signal.Signals | None = None
    self._previous = {}
    self._alone = jax.process_count() == 1

  def stop(self, step: int) -> signal.Signals | None:
    """The signal that stops the run after this step, or None. Call it once per step."""
    return self._signal if self._alone else processes.agreed_stop(step)

  def __enter__(self) -> "Interrupt":
    if self._alone:
      self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
    return self

  def __exit__(self, *exception) -> None:
    self._restore()

  def _note(self, number: int, frame) -> None:
    del frame
    self._signal = signal.Signals(number)
    self._restore()
    # Not print: a handler may run in the middle of another print.
    os.write(
      2, f"\n{self._signal.name}: saving after this step; press again to exit at once\n".encode()
    )

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
