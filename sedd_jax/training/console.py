"""What a user sees while a run goes: a live line on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# On a pipe or a file, a line at most this often, in seconds.
_PLAIN_INTERVAL = 15.0


class RunConsole:
  """Progress of a run from step `first` to `last`; a context manager. Only `lead` speaks."""

  def __init__(self, first: int, last: int, *, lead: bool = True):
    self._console = Console(highlight=False, soft_wrap=True, emoji=False, quiet=not lead)
    self._first, self._last = first, last
    self._started = self._printed = time.monotonic()
    self._progress = Progress(
      TextColumn("step {task.completed}/{task.total}"),
      BarColumn(bar_width=None),
      TextColumn("{task.fields[loss]:.3f} bits/char  {task.fields[rate]:,.0f} tok/s"),
      TimeRemainingColumn(),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._progress.add_task(
      "train", total=last, completed=first, loss=float("nan"), rate=0.0
    )

  def __enter__(self) -> "RunConsole":
    self._progress.start()
    return self

  def __exit__(self, *exception) -> None:
    self._progress.stop()

  def say(self, text: str = "") -> None:
    """Prints text above the live line."""
    self._console.print(text, markup=False)

  def update(self, step: int, loss: float, tokens_per_second: float) -> None:
    """Moves the live line.

    Args:
      step: updates made.
      loss: bits per character.
    """
    self._progress.update(self._task, completed=step, loss=loss, rate=tokens_per_second)
    now = time.monotonic()
    if not self._console.is_terminal and (
      now - self._printed >= _PLAIN_INTERVAL or step == self._last
    ):
      self._printed = now
      done = max(step - self._first, 1)
      left = (now - self._started) / done * (self._last - step)
      self.say(
        f"step {step}/{self._last}  {loss:.3f} bits/char  {tokens_per_second:,.0f} tok/s  "
        f"{left / 60:.1f} min left"
      )
