"""The folder of an evaluation: its settings, and its report when it is whole."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sedd_jax.files import lock
from sedd_jax.files.whole import PARTIAL, sweep, write_json

SETTINGS = "settings.json"
REPORT = "evaluation.json"


def open_folder(
  folder: Path,
  settings: Mapping[str, Any],
  completed: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda stored: stored,
) -> dict[str, Any] | None:
  """Starts an evaluation in a folder, or continues the one there.

  Args:
    folder: it exists, and the caller holds its lock.
    settings: all that the numbers depend on; written first.
    completed: adds to stored settings the defaults of fields that an older version did not have.

  Returns:
    The report if the evaluation is complete, else None.

  Raises:
    FileExistsError: the folder holds something else.
    ValueError: it holds an evaluation with other settings; the message names the differences.
  """
  settings = json.loads(json.dumps(settings))
  if (folder / SETTINGS).is_file():
    stored = json.loads(json.dumps(completed(_read(folder / SETTINGS))))
    changed = [
      f"  {key}: {stored.get(key)!r} -> {settings.get(key)!r}"
      for key in sorted(stored.keys() | settings.keys())
      if stored.get(key) != settings.get(key)
    ]
    if changed:
      raise ValueError(
        f"{folder} holds an evaluation with other settings:\n"
        + "\n".join(changed)
        + "\nGo on with those, or choose a new --out."
      )
    sweep(folder)
    return _read(folder / REPORT) if (folder / REPORT).is_file() else None
  if any(path.name != lock.FILE and path.suffix != PARTIAL for path in folder.iterdir()):
    raise FileExistsError(f"{folder} is not empty and holds no evaluation: choose a new --out")
  write_json(folder / SETTINGS, settings)
  return None


def close_folder(folder: Path, report: Mapping[str, Any]) -> None:
  """Writes the report, which marks the evaluation as complete."""
  write_json(folder / REPORT, report)


def _read(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
