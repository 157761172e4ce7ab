"""Text files of a user: plain or compressed, by their suffix, in UTF-8.

All are opened here. A byte-order mark at the start of a file is no character of its text.
"""

import bz2
import codecs
import gzip
import lzma
import os
import stat
import sys
import zlib
from pathlib import Path
from typing import Any

from sedd_jax.files.pointers import pointer_fault

if sys.version_info >= (3, 14):
  from compression import zstd
else:
  from backports import zstd

_BLOCK = 2**20
# The longest window that zstd knows, 2 GiB, of `zstd --long=31`. A file takes what its own needs.
_ZSTD: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}


def _open_zstd(path: Path, mode: Any, **options: Any) -> Any:
  return zstd.open(path, mode, options=_ZSTD if "r" in mode else None, **options)


OPENERS: dict[str, Any] = {
  ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstd,
}  # fmt: skip
# What opening and reading a file raises that is damaged, or none of its kind.
UNREADABLE = (ValueError, EOFError, OSError, lzma.LZMAError, zlib.error, zstd.ZstdError)

_KINDS = (
  (stat.S_ISDIR, "a folder"),
  (stat.S_ISFIFO, "a pipe"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)


def open_any(path: Path, *, text: bool = False) -> Any:
  """Opens a plain or compressed file for reading.

  Args:
    path: its suffix says how it is compressed.
    text: decode UTF-8 without a byte-order mark, line ends as \\n; else bytes.
  """
  opener = OPENERS.get(path.suffix, open)
  return opener(path, "rt", encoding="utf-8-sig") if text else opener(path, "rb")


def read_text(path: Path, name: str) -> str:
  """The whole text of a file, line ends as \\n. It is read once, so a pipe will do.

  Args:
    path: of the file.
    name: of the flag that it is from, for messages.

  Raises:
    OSError: it cannot be read.
    ValueError: it is a folder, a socket or a device, or is not UTF-8; the message names the line.
  """
  if (kind := _kind(path)) not in (None, "a pipe"):
    raise ValueError(f"{name}: {path} is {kind}, and a text file is wanted")
  if not path.exists():
    raise FileNotFoundError(f"{name}: there is no file {path}")
  with open_any(path) as file:
    content = file.read()
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    lines = content[: error.start].count(b"\n")
    raise ValueError(f"{path}, {not_utf8(lines + 1, error)}") from error
  return text.replace("\r\n", "\n").replace("\r", "\n")


def file_fault(path: Path, name: str) -> str | None:
  """Why text cannot be read from a path, or None: it is a folder, a pipe, a socket or a device,
  and text is read twice and compared by its hash; or a Git LFS pointer. What opens a missing file
  says so itself.

  Args:
    path: of the file.
    name: of the flag or field, for messages.
  """
  match kind := _kind(path):
    case None:
      return pointer_fault(path) if path.is_file() else None
    case "a folder":
      return f"{name}: {path} is a folder, and a file is wanted"
  return (
    f"{name}: {path} is {kind}, and text is read more than once: write it into a file, and name "
    "that"
  )


def utf8_fault(path: Path) -> str | None:
  """Where a file is not UTF-8: its first such line and byte; None if all of it is."""
  decoder, lines = codecs.getincrementaldecoder("utf-8")(), 0
  with open_any(path) as file:
    while True:
      block = file.read(_BLOCK)
      try:
        decoder.decode(block, final=not block)
      except UnicodeDecodeError as error:
        return not_utf8(lines + error.object[: error.start].count(b"\n") + 1, error)
      if not block:
        return None
      lines += block.count(b"\n")


def not_utf8(line: int, error: UnicodeDecodeError) -> str:
  """What is wrong with a line, by its number from 1."""
  return (
    f"line {line} is not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason}). "
    "Convert the file, for example with iconv"
  )


def _kind(path: Path) -> str | None:
  """What a path is if it is no regular file; None also if there is nothing."""
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return None
  return next((kind for is_kind, kind in _KINDS if is_kind(mode)), None)
