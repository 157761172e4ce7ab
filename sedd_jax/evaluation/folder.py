"""The folder of an evaluation: its settings, and its report when it is whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
REPORT = "evaluation.json"
_PARTIAL = ".partial"


def open_folder(
  folder: Path, settings: Mapping[str, Any], *, allowed: str
) -> dict[str, Any] | None:
  """Starts an evaluation in a folder, or goes on with the one there.

  The caller sees to it that no other process works there.

  Args:
    folder: is there.
    settings: of all that the numbers depend on; written first.
    allowed: a file that may lie in a new folder, the lock.

  Returns:
    The report, where the evaluation is whole.

  Raises:
    FileExistsError: the folder holds something else.
    ValueError: it holds an evaluation with other settings; the message names the differences.
  """
  settings = json.loads(json.dumps(settings))
  if (folder / SETTINGS).is_file():
    stored = _read(folder / SETTINGS)
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
    return _read(folder / REPORT) if (folder / REPORT).is_file() else None
  if any(path.name != allowed and path.suffix != _PARTIAL for path in folder.iterdir()):
    raise FileExistsError(f"{folder} is not empty and holds no evaluation: choose a new --out")
  _write(folder / SETTINGS, settings)
  return None


def close_folder(folder: Path, report: Mapping[str, Any]) -> None:
  """Writes the report: the evaluation is whole."""
  _write(folder / REPORT, report)


def _write(path: Path, value: Mapping[str, Any]) -> None:
  partial = path.with_name(path.name + _PARTIAL)
  partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
  os.replace(partial, path)


def _read(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
