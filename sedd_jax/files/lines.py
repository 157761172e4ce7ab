"""Files of lines that grow until they are whole, and that a killed run continues."""

import os
from collections.abc import Iterator
from pathlib import Path

_PART = ".part"


class GrowingFile:
  """A file of lines beside its name, as `NAME.part`, until it is whole.

  Attributes:
    whole: whether the file has its name; then it is only read.
    path: where it is now.
    file: open.
  """

  def __init__(self, path: Path):
    self._name, self.whole = path, path.exists()
    self.path = path if self.whole else path.with_name(path.name + _PART)
    self.file = self.path.open("rb" if self.whole else "a+b")

  def lines(self) -> Iterator[bytes]:
    """The lines that are there. Read to the end, this cuts off one that a kill left incomplete."""
    end = 0
    self.file.seek(0)
    for line in self.file:
      if not line.endswith(b"\n"):
        break
      end += len(line)
      yield line
    if not self.whole:
      self.file.truncate(end)
      self.file.seek(end)

  def append(self, *lines: str) -> None:
    """Adds lines, given without their ends; on disk when it returns."""
    self.file.write("".join(line + "\n" for line in lines).encode())
    self.file.flush()
    os.fsync(self.file.fileno())

  def finish(self) -> None:
    """Gives the whole file its name; a file of that name is replaced."""
    os.replace(self.path, self._name)
    self.whole, self.path = True, self._name

  def finish_new(self) -> None:
    """Gives the whole file its name.

    Raises:
      FileExistsError: another file has that name; ours stays `NAME.part`.
    """
    os.link(self.path, self._name)  # Unlike a rename, never takes another file's place.
    self.path.unlink()
    self.whole, self.path = True, self._name
