"""What a user sees of a run: a live line on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# A pipe or a file gets a progress line at most this often, in seconds.
_PLAIN_INTERVAL = 15.0
# A terminal with fewer columns has no room for the whole live line.
_NARROW = 72


class RunConsole:
  """Progress of a run from step `first` to `last`; a context manager.

  A terminal gets long lines wrapped between words; a pipe or a file gets them as they are.

  Args:
    first: steps made before.
    last: the step that ends the run.
    lead: whether this process prints at all.
  """

  def __init__(self, first: int, last: int, *, lead: bool = True):
    self._console = Console(highlight=False, emoji=False, quiet=not lead)
    self._first, self._last = first, last
    self._started = self._printed = time.monotonic()
    steps = TextColumn("{task.description}")
    loss = TextColumn("{task.fields[loss]}")
    rate = TextColumn("{task.fields[rate]}")
    narrow = self._console.width < _NARROW
    middle = (loss,) if narrow else (BarColumn(bar_width=None), loss, rate)
    self._progress = Progress(
      steps,
      *middle,
      TimeRemainingColumn(compact=narrow),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._progress.add_task(
      f"{first}/{last}", total=last, completed=first, loss="compiling", rate=""
    )

  def __enter__(self) -> "RunConsole":
    self._progress.start()
    return self

  def __exit__(self, *exception) -> None:
    self._progress.stop()

  def say(self, text: str = "") -> None:
    """Prints text above the live line."""
    self._console.print(text, markup=False, soft_wrap=not self._console.is_terminal)

  def show(self, text: str) -> None:
    """Prints text above the live line unwrapped: samples, and commands to copy."""
    self._console.out(text, highlight=False)

  def update(self, step: int, loss: float, tokens_per_second: float) -> None:
    """Moves the live line.

    Args:
      step: updates made.
      loss: bits per character.
    """
    shown = f"{loss:.3f} bits/char"
    self._progress.update(
      self._task,
      description=f"{step}/{self._last}",
      completed=step,
      loss=shown,
      rate=f"{tokens_per_second:,.0f} tok/s",
    )
    now = time.monotonic()
    if not self._console.is_terminal and (
      now - self._printed >= _PLAIN_INTERVAL or step == self._last
    ):
      self._printed = now
      done = max(step - self._first, 1)
      left = (now - self._started) / done * (self._last - step)
      self.say(
        f"step {step}/{self._last}  {shown}  {tokens_per_second:,.0f} tok/s  "
        f"{left / 60:.1f} min left"
      )

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[Callable[[float], None]]:
    """Yields a function that shows how far something has come, given its share of the way.

    A terminal gets a bar with the time left; a pipe or a file a line now and then.

    Args:
      what: takes a while.
    """
    task = self._progress.add_task(what, total=1.0, loss="", rate="")
    began = printed = time.monotonic()

    def show(share: float) -> None:
      nonlocal printed
      self._progress.update(task, completed=share)
      now = time.monotonic()
      if not self._console.is_terminal and now - printed >= _PLAIN_INTERVAL and share < 1.0:
        printed = now
        left = (now - began) * (1.0 - share) / max(share, 1e-9)
        self.say(f"{what}: {share:.0%} done, {left / 60:.1f} min left")

    try:
      yield show
    finally:
      self._progress.remove_task(task)


@contextlib.contextmanager
def report_write_errors(say: Callable[[str], None]) -> Iterator[None]:
  """Reports a file that could not be written, and lets the run go on."""
  try:
    yield
  except OSError as error:
    say(f"not written: {error}")
