"""Progress of tokenization on a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class TokenProgress:
  """A live line on a terminal, or a line every quarter of a minute; a context manager."""

  _INTERVAL = 15.0

  def __init__(self):
    console = Console(highlight=False, soft_wrap=True)
    self._console, self._last = console, time.monotonic()
    self._began, self._characters, self._tokens = time.monotonic(), 0, 0
    self._progress = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      TimeElapsedColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    # The size of the text is unknown until its end.
    self._task = self._progress.add_task("reading", total=None)

  def __enter__(self) -> "TokenProgress":
    self._progress.start()
    return self

  def __exit__(self, *exception) -> None:
    self._progress.stop()

  def advance(self, characters: int, tokens: int) -> None:
    """Adds to what is done."""
    self._characters += characters
    self._tokens += tokens
    now = time.monotonic()
    rate = self._tokens / max(now - self._began, 1e-9)
    line = (
      f"{self._characters / 1e6:,.0f} M characters  {self._tokens / 1e6:,.1f} M tokens  "
      f"{rate / 1e6:,.2f} M tok/s"
    )
    self._progress.update(self._task, description=line)
    if not self._console.is_terminal and now - self._last >= self._INTERVAL:
      self._last = now
      self._console.print(line)
