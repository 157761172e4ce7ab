"""What `data.files` names: parts with `;` between, each of them patterns with `,` between."""

import glob
import os
import stat
from pathlib import Path

from sedd_jax.files.paths import local_name, local_path, path_fault, split_paths

# Of a folder that `sedd prepare` made: the last file that it writes, and the first.
MANIFEST, PREPARATION = "manifest.json", "preparation.json"
TFDS, HUB, EMBEDDED = "tfds:", "hf:", "embedded"

_KINDS = (
  (stat.S_ISFIFO, "a pipe"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)


def parts_of(files: str) -> list[str]:
  """The parts of `data.files`. A `;` inside the name of an existing file does not cut."""
  return split_paths(files, ";")


def source_faults(files: str, name: str) -> list[str]:
  """A line for each name in `data.files` that can be no path on any machine.

  Args:
    files: empty, or in the notation of `data.files`.
    name: of the flag or field, for messages.
  """
  names = [text.strip() for part in files.split(";") for text in part.split(",")]
  bare = [text.removeprefix(TFDS).removeprefix(HUB) for text in names if text]
  return [fault for text in bare if (fault := path_fault(text, name))]


def is_prepared(path: str) -> bool:
  """Whether a part of `data.files` names a folder of shards, complete or not."""
  if path.startswith((TFDS, HUB)):
    return False
  folder = local_path(path, "data.files")
  return any(os.path.isfile(folder / name) for name in (MANIFEST, PREPARATION))


def files_of(patterns: str) -> list[Path]:
  """The files of comma-separated patterns, sorted within each. A file that exists is found by its
  name, whatever signs of a pattern are in it.

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: it names a folder or something else that is no file, or what `,` cannot join.
  """
  found: list[Path] = []
  for pattern in split_paths(patterns, ","):
    if pattern == EMBEDDED or pattern.startswith((TFDS, HUB)):
      raise ValueError(f"config.data: {patterns!r}: ',' joins files; write ';' around {pattern!r}")
    expanded = local_name(pattern, "data.files")
    if os.path.isdir(expanded):
      raise ValueError(_folder_fault(pattern, patterns))
    paths = [expanded] if os.path.lexists(expanded) else glob.glob(expanded, recursive=True)
    paths = sorted(path for path in paths if not os.path.isdir(path))
    if not paths:
      raise FileNotFoundError(f"config.data: no file matches {pattern!r} in {Path.cwd()}")
    found += [Path(path) for path in paths]
  for path in found:
    if fault := file_fault(path, "config.data"):
      raise ValueError(fault)
  return found


def file_fault(path: Path, name: str) -> str | None:
  """Why text cannot be read from a path, or None: it is a folder, a pipe, a socket or a device,
  and text is read twice and compared by its hash. What opens a missing file says so itself.

  Args:
    path: of the file.
    name: of the flag or field, for messages.
  """
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return None
  if stat.S_ISDIR(mode):
    return f"{name}: {path} is a folder, and a file is wanted"
  kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), None)
  return kind and (
    f"{name}: {path} is {kind}, and it is read more than once: write its text into a file, and "
    "name that"
  )


def _folder_fault(pattern: str, patterns: str) -> str:
  if is_prepared(pattern):
    return (
      f"config.data: {patterns!r}: {pattern!r} is a prepared folder, and ',' joins files: write "
      "';' around it"
    )
  return (
    f"config.data: {pattern!r} is a folder that sedd prepare did not make; name files in it: "
    f"'{pattern.rstrip('/')}/*.txt'"
  )
