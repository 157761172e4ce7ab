"""Ctrl-C and SIGTERM: finish the step, save, leave. A second one leaves at once."""

import os
import signal

import jax

from sedd_jax.parallel import processes


class Interrupt:
  """A context manager that notes the first signal and gives the next its usual effect.

  With several processes a signal to any of them stops all, at the same step: JAX's preemption
  service catches SIGTERM, and Ctrl-C is passed on to it.
  """

  _SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self):
    self._signal: signal.Signals | None = None
    self._previous = {}
    self._alone = jax.process_count() == 1

  def stop(self, step: int) -> signal.Signals | None:
    """The signal to stop for after this step, or None. Call it once per step."""
    return self._signal if self._alone else processes.agreed_stop(step)

  def __enter__(self) -> "Interrupt":
    handlers = (
      dict.fromkeys(self._SIGNALS, self._note) if self._alone else {signal.SIGINT: self._pass_on}
    )
    self._previous = {number: signal.signal(number, f) for number, f in handlers.items()}
    return self

  def __exit__(self, *exception) -> None:
    self._restore()

  def _note(self, number: int, frame) -> None:
    del frame
    self._signal = signal.Signals(number)
    self._restore()
    self._say(self._signal.name)

  def _pass_on(self, number: int, frame) -> None:
    del frame
    self._restore()
    self._say(signal.Signals(number).name)
    os.kill(os.getpid(), signal.SIGTERM)

  def _say(self, name: str) -> None:
    # Not print: a handler may run in the middle of another print.
    os.write(2, f"\n{name}: saving after this step; again to leave at once\n".encode())

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
