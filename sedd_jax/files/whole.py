"""Files and folders that appear whole or not at all: written beside their name, then renamed."""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"

_LEFT = re.compile(r".+\.[0-9a-f]{8}" + re.escape(PARTIAL))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """A path beside a file or folder, to write it to: at the end it takes the place of the target.

  What was written is on disk before the rename, so a kill or a crash leaves the old file or the
  new one. After an error the target is as it was, and what was written is gone. Files have the
  modes that `open` gives: those of temporary files, which some libraries write, do not stay.

  Args:
    path: the target: a file, which is replaced, or a folder, which is not there or empty.
  """
  partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
  try:
    yield partial
    _set_modes(partial, path)
    for part in (partial, *partial.rglob("*")):
      sync(part)
    os.replace(partial, path)
  finally:
    remove(partial)


def sweep(*folders: Path) -> None:
  """Removes what killed writes have left in folders, which the caller has locked."""
  for folder in folders:
    for path in folder.glob(f"*{PARTIAL}"):
      if _LEFT.fullmatch(path.name):
        remove(path)


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file, whole or not at all."""
  with whole(path) as partial:
    partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
  """Writes a UTF-8 text file, whole or not at all."""
  write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
  """Writes an indented JSON file, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
  """Brings a file, or the names in a folder, to the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def remove(path: Path) -> None:
  """Removes a file or a folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _set_modes(partial: Path, target: Path) -> None:
  """Gives files the modes that `open(target, "w")` would: that of the file it replaces, else what
  the folder that was made for them says of the umask."""
  if partial.is_dir():
    mode = stat.S_IMODE(partial.stat().st_mode) & 0o666
    for file in partial.rglob("*"):
      if file.is_file() and not file.is_symlink():
        file.chmod(mode)
  elif target.is_file():
    partial.chmod(stat.S_IMODE(target.stat().st_mode))
