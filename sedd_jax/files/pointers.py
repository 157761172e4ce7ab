"""Git LFS pointers: small text files that stand where a large file should be."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(file: Path) -> None:
  """Checks that a file is its content and not a Git LFS pointer to it.

  Raises:
    ValueError: it is a pointer.
  """
  with file.open("rb") as opened:
    if opened.read(len(_START)) == _START:
      raise ValueError(
        f"{file} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
      )
