"""What `data.files` names: parts with `;` between, each of them patterns with `,` between."""

import contextlib
import glob
import os
from pathlib import Path

from sedd_jax.data.compression import file_fault
from sedd_jax.data.faults import Faults
from sedd_jax.files.paths import local_name, local_path, path_fault, split_paths

# Of a folder that `sedd prepare` made: the last file that it writes, and the first.
MANIFEST, PREPARATION = "manifest.json", "preparation.json"
TFDS, HUB, EMBEDDED = "tfds:", "hf:", "embedded"


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


def note_twice(files: str, heldout_files: str, faults: Faults, *, known: bool) -> None:
  """Notes text that comes twice. A file is the same under all its names; a prepared folder has a
  text of its own for each side.

  Args:
    files, heldout_files: as in `data`.
    faults: receives the notes.
    known: they are those of a run that was made before; else text that is trained on may not be
      held out too.

  Raises:
    ValueError: it is.
  """
  train, heldout = (_identities(text) for text in (files, heldout_files))
  for names in (names for side in (train, heldout) for names in side.values()):
    if len(names) > 1:
      faults.note("files named twice, whose text counts twice", names[1])
  shared = (heldout[key][0] for key in train.keys() & heldout.keys())
  both = sorted(name for name in shared if not is_prepared(name))
  if both and not known:
    raise ValueError(
      f"data.heldout_files: {', '.join(both[:3])} {'is' if len(both) == 1 else 'are'} among "
      "data.files too, and a bound on text that was trained on says nothing: take it out of one of "
      "them"
    )
  for name in both:
    faults.note("files both trained on and held out", name)


def _identities(files: str) -> dict[object, list[str]]:
  """The names of each text that is named, by what tells it from others."""
  found: dict[object, list[str]] = {}
  for part in parts_of(files) if files else []:
    if part == EMBEDDED or part.startswith((TFDS, HUB)):
      found.setdefault(part, []).append(part)
      continue
    # What is missing is named where it is read: a prepared folder may hold it.
    with contextlib.suppress(FileNotFoundError):
      for path in [local_path(part, "data.files")] if is_prepared(part) else files_of(part):
        status = path.stat()
        found.setdefault((status.st_dev, status.st_ino), []).append(str(path))
  return found


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
