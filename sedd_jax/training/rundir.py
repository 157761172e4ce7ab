"""The run directory: what identifies a run, and the refusal to touch another one's."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
VERSIONS = "versions.json"
SAMPLES = "samples"

# Sections and fields in which a resumed run may differ from its start.
_MAY_CHANGE = ("report.", "checkpoint.", "mesh.", "train.steps", "train.accumulation")


def open_run(workdir: Path, config: Mapping[str, Any]) -> None:
  """Makes a run directory, or opens that of the same run.

  Raises:
    FileExistsError: the directory holds something that is not a run.
    ValueError: it holds a run with another config; the message lists the differences.
    OSError: it cannot be written.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / CONFIG
  if file.is_file():
    _check_same(json.loads(file.read_text(encoding="utf-8")), config, workdir)
  elif any(workdir.iterdir()):
    raise FileExistsError(
      f"--workdir={workdir} is not empty and holds no run of ours: choose a new directory"
    )
  (workdir / SAMPLES).mkdir(exist_ok=True)
  write_json(workdir / VERSIONS, versions())
  write_json(file, config)


def read_config(workdir: Path) -> dict[str, Any]:
  """The resolved config of a run.

  Raises:
    FileNotFoundError: the directory holds no run.
  """
  file = workdir / CONFIG
  if not file.is_file():
    raise FileNotFoundError(f"{workdir} holds no run: there is no {CONFIG} in it")
  return json.loads(file.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file at once: a kill leaves the old file or the new one."""
  write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
  """Writes a text file at once."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)


def versions() -> dict[str, str]:
  """Versions of what a run depends on, and the commit of the checkout if there is one."""
  packages = ("sedd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
  found = {"python": platform.python_version()}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "not installed"
  git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
  try:
    found["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    found["commit"] = "unknown"
  return found


def _check_same(stored: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> None:
  old, new = dict(_flat(stored)), dict(_flat(json.loads(json.dumps(config))))
  changed = [
    f"  config.{key}: {old.get(key)!r} -> {new.get(key)!r}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and not key.startswith(_MAY_CHANGE)
  ]
  if changed:
    raise ValueError(
      f"{workdir} holds a run with another config:\n"
      + "\n".join(changed)
      + "\nResume it with its own config, or choose a new --workdir."
    )


def _flat(config: Mapping[str, Any], prefix: str = ""):
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value
