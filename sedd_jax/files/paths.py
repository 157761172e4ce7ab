"""Paths that a user names in a flag, a config field or a call, and commands that we print."""

import os
import re
import shlex
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
  found = Path(local_name(path, name))
  # A Path of "./~" is "~": absolute, so that it is not expanded when it comes here again.
  return found.absolute() if str(found).startswith("~") else found


def local_name(path: str | os.PathLike[str], name: str) -> str:
  """The path as text, with ~ and ~user expanded, and otherwise as the user wrote it.

  Args and Raises: as of `local_path`.
  """
  text = os.fspath(path)
  if fault := path_fault(text, name):
    raise ValueError(fault)
  if not text.startswith("~"):
    return text
  try:
    return str(Path(text).expanduser())
  except RuntimeError as error:
    raise ValueError(f"{name}={text!r}: {error}") from error


def path_fault(text: str, name: str) -> str | None:
  """Why a text can be no path on any machine, or None. Configs, which move between machines, are
  checked by this alone."""
  if not text.strip():
    return f"{name}={text!r} is empty: it must name a file or folder"
  if _SCHEME.match(text):
    return (
      f"{name}={text!r} is an address; only local paths can be read and written. It must be a path "
      "of a file system: mount the bucket (gcsfuse, or the CSI driver on GKE) and name the mounted "
      "folder, or copy the files"
    )
  if "\0" in text:
    return f"{name}={text!r} has a NUL character, which no path can have"
  return None


def split_paths(text: str, separator: str) -> list[str]:
  """The parts of a list, without white space around them.

  A separator inside the name of a file or folder that exists does not cut: of the parts that could
  begin at a place, the longest that exists is taken.
  """
  pieces, parts = text.split(separator), []
  while pieces:
    ends = (end for end in range(len(pieces), 1, -1) if _exists(separator.join(pieces[:end])))
    end = next(ends, 1)
    parts.append(separator.join(pieces[:end]).strip())
    del pieces[:end]
  return parts


def command(*words: str) -> str:
  """A command, or a part of one, as a user can paste it into a shell."""
  return shlex.join(words)


def _exists(text: str) -> bool:
  text = text.strip()
  if path_fault(text, "") is not None:
    return False
  try:
    return os.path.lexists(os.path.expanduser(text))
  except OSError:  # Too long for a name.
    return False
