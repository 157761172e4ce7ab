"""Standard output and error that no character and no closed pipe can stop."""

import os
import sys
from typing import Any, TextIO


class Stream:
  """A text stream that writes what its encoding lacks as backslash escapes, and goes on, writing
  nothing more, when its reader has gone (`| head`).

  Attributes:
    closed_by_reader: whether the reader has gone.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream
    self.closed_by_reader = False
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except BrokenPipeError:
      self._drop()
    return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except BrokenPipeError:
      self._drop()

  def _drop(self) -> None:
    self.closed_by_reader = True
    # What is left in the buffer goes nowhere, also when Python exits.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def protect() -> None:
  """Makes sys.stdout and sys.stderr such streams; does nothing the second time.

  One that is closed (`2>&-`) becomes one that goes nowhere.
  """
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:
      stream = open(os.devnull, "w")  # noqa: SIM115  Open until Python exits.
    if not isinstance(stream, Stream):
      setattr(sys, name, Stream(stream))


def reader_gone() -> bool:
  """Whether nobody reads standard output any more, so that printing on is in vain."""
  return getattr(sys.stdout, "closed_by_reader", False)


def is_unicode() -> bool:
  """Whether standard output can show all characters."""
  encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
  return encoding.startswith("utf")
