"""Writes a trace to a file."""

import os
from pathlib import Path

from sedd_jax.data import Tokenizer
from sedd_jax.files.paths import local_path
from sedd_jax.files.whole import whole
from sedd_jax.generation.traces.cells import Cells, cells_of
from sedd_jax.generation.traces.gif import gif_of
from sedd_jax.generation.traces.page import page_of
from sedd_jax.generation.traces.text import text_of
from sedd_jax.generation.traces.trace import Trace

SUFFIXES = (".html", ".gif", ".txt")


def write_trace(trace: Trace, path: Path, tokenizer: Tokenizer | None) -> None:
  """Writes a trace atomically, in the format of the path's suffix.

  Args:
    trace: the trace.
    path: a new file: `.html` is a page that replays all samples, `.gif` an animation of the first,
      `.txt` all frames one below the other.
    tokenizer: its `pieces` are shown; None shows token ids.

  Raises:
    ValueError: the suffix is unknown, or the tokenizer does not know a token.
    FileExistsError: the file exists.
    FileNotFoundError: the folder does not exist.
  """
  path = check_trace_path(path)
  content = _render(path.suffix, trace, cells_of(trace, tokenizer))
  with whole(path) as partial:
    partial.write_bytes(content)
    check_trace_path(path)  # A file that appeared meanwhile is not overwritten.


def check_trace_path(path: Path) -> Path:
  """The path, of which `write_trace` would complain if this does not; call it before a long run."""
  path = local_path(path, "--trace")
  if path.suffix not in SUFFIXES:
    raise ValueError(f"{path}: a trace is one of {', '.join(SUFFIXES)}, by the file's suffix")
  if not path.parent.is_dir():
    raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
  if os.path.lexists(path):
    raise FileExistsError(f"{path} exists already: choose another name for the trace")
  return path


def _render(suffix: str, trace: Trace, cells: Cells) -> bytes:
  match suffix:
    case ".html":
      return page_of(trace, cells).encode()
    case ".gif":
      return gif_of(trace, cells)
    case _:
      return text_of(trace, cells).encode()
