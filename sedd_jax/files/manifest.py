"""The manifest of a folder: what tells a whole one from a damaged one.

No file system notices a flipped bit in a saved array. The manifest holds size and SHA-256 of every
file. It is the last file that a save writes: a folder without one is not whole.
"""

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sedd_jax.files.whole import sync, write_text

FILE = "manifest.json"

_VERSION = 1
_THREADS = min(8, os.cpu_count() or 1)  # hashlib lets go of the interpreter's lock.


def write_manifest(folder: Path) -> None:
  """Brings all files of a folder to the disk, then writes size and hash of each."""
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(_synced, paths)
  files = {str(path.relative_to(folder)): entry for path, entry in zip(paths, found, strict=True)}
  manifest = {"version": _VERSION, "files": files, "sha256": hash_of(files)}
  write_text(folder / FILE, json.dumps(manifest))
  for part in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
    sync(part)


def faults(folder: Path) -> list[str]:
  """What is wrong with a folder, one text for each file, naming it; empty if it is whole.

  Files that the manifest does not name are not looked at.
  """
  try:
    manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
    wanted = {str(name): (entry["size"], entry["sha256"]) for name, entry in _entries(manifest)}
  except FileNotFoundError:
    if not folder.is_dir():
      return ["the folder is missing"]
    return [f"{FILE} is missing" if any(folder.iterdir()) else "the folder is empty"]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return [f"{FILE} is damaged ({type(error).__name__})"]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda name: _fault(folder, name, *wanted[name]), wanted)
  return [fault for fault in found if fault]


def digest(folder: Path) -> str:
  """The SHA-256 that a folder's manifest has of its list of files."""
  return json.loads((folder / FILE).read_text(encoding="utf-8"))["sha256"]


def sha256_of(path: Path) -> str:
  """The SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
  """The SHA-256 of a value, as JSON with sorted keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _entries(manifest):
  files = manifest["files"]
  if manifest["version"] != _VERSION or manifest["sha256"] != hash_of(files):
    raise ValueError("another version, or other bytes than were written")
  return files.items()


def _synced(path: Path) -> dict[str, int | str]:
  sync(path)
  return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _fault(folder: Path, name: str, size: int, sha256: str) -> str | None:
  path = folder / name
  try:
    if (found := path.stat().st_size) != size:
      return f"{name} has {found:,} bytes, not {size:,}"
    if sha256_of(path) != sha256:
      return f"{name} holds other bytes than were saved (SHA-256)"
  except FileNotFoundError:
    return f"{name} is missing"
  except OSError as error:
    return f"{name} cannot be read ({error.strerror})"
  return None
