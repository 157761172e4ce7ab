"""The manifest of a checkpoint: what tells a whole one from a damaged one.

Neither the file system nor Orbax notices a flipped bit in a saved array. The manifest holds size
and SHA-256 of every file, and is the last file that a save writes.
"""

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path

FILE = "manifest.json"

_VERSION = 1
_THREADS = min(8, os.cpu_count() or 1)  # hashlib lets go of the interpreter's lock.


def write_manifest(folder: Path) -> None:
  """Brings all files of a folder to the disk, and then writes down what they are."""
  paths = _files(folder)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda path: _describe(path, flush=True), paths)
  files = {str(path.relative_to(folder)): entry for path, entry in zip(paths, found, strict=True)}
  with (folder / FILE).open("x", encoding="utf-8") as file:
    json.dump({"version": _VERSION, "files": files, "sha256": _digest(files)}, file)
    file.flush()
    os.fsync(file.fileno())
  for part in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
    flush_folder(part)


def faults(folder: Path) -> list[str]:
  """What is wrong with a folder, one text for each file, naming it; empty if it is whole.

  Files that the manifest does not know are none of its business.
  """
  try:
    manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
    wanted = {str(name): (entry["size"], entry["sha256"]) for name, entry in _entries(manifest)}
  except FileNotFoundError:
    return [f"{FILE} is missing" if any(folder.iterdir()) else "the folder is empty"]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return [f"{FILE} is damaged ({type(error).__name__})"]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda name: _fault(folder, name, *wanted[name]), wanted)
  return [fault for fault in found if fault]


def flush_folder(folder: Path) -> None:
  """Brings the names in a folder to the disk."""
  number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def _entries(manifest):
  files = manifest["files"]
  if manifest["version"] != _VERSION or manifest["sha256"] != _digest(files):
    raise ValueError("another version, or other bytes than were written")
  return files.items()


def _digest(files) -> str:
  """Of the manifest itself."""
  return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path, *, flush: bool = False) -> dict[str, int | str]:
  with path.open("rb") as file:
    if flush:
      os.fsync(file.fileno())
    return {
      "size": os.fstat(file.fileno()).st_size,
      "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
    }


def _fault(folder: Path, name: str, size: int, sha256: str) -> str | None:
  path = folder / name
  try:
    if (found := path.stat().st_size) != size:
      return f"{name} has {found:,} bytes, not {size:,}"
    if _describe(path)["sha256"] != sha256:
      return f"{name} holds other bytes than were saved (SHA-256)"
  except FileNotFoundError:
    return f"{name} is missing"
  except OSError as error:
    return f"{name} cannot be read ({error.strerror})"
  return None
