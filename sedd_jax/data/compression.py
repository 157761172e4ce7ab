"""Compressed text files, opened by their suffix."""

import bz2
import gzip
import lzma
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
  from compression import zstd
else:
  from backports import zstd

OPENERS: dict[str, Any] = {
  ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": zstd.open,
}  # fmt: skip
ZstdError = zstd.ZstdError


def open_any(path: Path, *, text: bool = False) -> Any:
  """Opens a plain or compressed file for reading.

  Args:
    path: its suffix says how it is compressed.
    text: decode UTF-8, line ends as \\n; else bytes.
  """
  opener = OPENERS.get(path.suffix, open)
  return opener(path, "rt", encoding="utf-8") if text else opener(path, "rb")
