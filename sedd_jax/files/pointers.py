"""Git LFS pointers: small text files that stand where a large file should be."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"


def pointer_fault(file: Path) -> str | None:
  """What is wrong with a file that is a pointer; None of any other."""
  with file.open("rb") as opened:
    if opened.read(len(_START)) != _START:
      return None
  return f"{file} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"


def check_no_pointer(file: Path) -> None:
  """Checks that a file is its content and not a pointer to it.

  Raises:
    ValueError: it is a pointer.
  """
  if fault := pointer_fault(file):
    raise ValueError(fault)
