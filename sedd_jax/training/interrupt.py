"""Ctrl-C and SIGTERM: finish the step, save, leave. A second one leaves at once."""

import os
import signal


class Interrupt:
  """A context manager that notes the first signal and gives the next its usual effect.

  Attributes:
    signal: the signal that came, or None.
  """

  _SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self):
    self.signal: signal.Signals | None = None
    self._previous = {}

  def __enter__(self) -> "Interrupt":
    self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
    return self

  def __exit__(self, *exception) -> None:
    self._restore()

  def _note(self, number: int, frame) -> None:
    del frame
    self.signal = signal.Signals(number)
    self._restore()
    # Not print: a handler may run in the middle of another print.
    os.write(2, f"\n{self.signal.name}: saving after this step; again to leave at once\n".encode())

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
