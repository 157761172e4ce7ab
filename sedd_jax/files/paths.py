"""Paths that a user names in a flag, a config field or a call."""

import os
import re
from pathlib import Path

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | os.PathLike[str], name: str) -> Path:
  """The path, with ~ and ~user expanded.

  Args:
    path: as the user wrote it.
    name: of the flag, field or argument, for messages.

  Raises:
    ValueError: the path is empty, is an address such as gs://..., names an unknown ~user or has a
      NUL character.
  """
  text = os.fspath(path)
  if not text.strip():
    raise ValueError(f"{name}={text!r} is empty: it must name a file or folder")
  if _SCHEME.match(text):
    raise ValueError(
      f"{name}={text!r} is an address; only local paths can be read and written. Copy the files "
      "with your bucket's own tool, or mount it, and name the local folder"
    )
  if "\0" in text:
    raise ValueError(f"{name}={text!r} has a NUL character, which no path can have")
  try:
    return Path(text).expanduser()
  except RuntimeError as error:
    raise ValueError(f"{name}={text!r}: {error}") from error
