"""A trace into a file."""

import os
from pathlib import Path

from sedd_jax.data import Tokenizer
from sedd_jax.files.whole import whole
from sedd_jax.generation.traces.cells import Cells, cells_of
from sedd_jax.generation.traces.gif import gif_of
from sedd_jax.generation.traces.page import page_of
from sedd_jax.generation.traces.text import text_of
from sedd_jax.generation.traces.trace import Trace

SUFFIXES = (".html", ".gif", ".txt")


def write_trace(trace: Trace, path: Path, tokenizer: Tokenizer | None) -> None:
  """Writes a trace; the path's suffix says how. The file appears whole or not at all.

  Args:
    trace: the record.
    path: a new file: `.html` is a page to replay all samples, `.gif` a film of the first, `.txt`
      all frames one below the other.
    tokenizer: its `pieces` are shown; token ids where it is None.

  Raises:
    ValueError: the suffix is another one, or a token is not the tokenizer's.
    FileExistsError: there is a file already.
    FileNotFoundError: the folder does not exist.
  """
  check_trace_path(path)
  content = _render(path.suffix, trace, cells_of(trace, tokenizer))
  with whole(path) as partial:
    partial.write_bytes(content)
    check_trace_path(path)  # Another file may have appeared meanwhile.


def check_trace_path(path: Path) -> None:
  """Raises what `write_trace` would raise about the path: to be called before a long run."""
  if path.suffix not in SUFFIXES:
    raise ValueError(f"{path}: a trace is one of {', '.join(SUFFIXES)}, by the file's suffix")
  if not path.parent.is_dir():
    raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
  if os.path.lexists(path):
    raise FileExistsError(f"{path} exists already: choose another name for the trace")


def _render(suffix: str, trace: Trace, cells: Cells) -> bytes:
  match suffix:
    case ".html":
      return page_of(trace, cells).encode()
    case ".gif":
      return gif_of(trace, cells)
    case _:
      return text_of(trace, cells).encode()
