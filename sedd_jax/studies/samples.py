"""Grades of files of samples: `sedd evaluate --samples`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.diffusion.categorical import PRECISION
from sedd_jax.studies.jury import Jury, common_length, cut

REAL = "held-out text"


def grade_files(files: Sequence[Path], jury: Jury, length: int | None) -> dict[str, Any]:
  """One row for each file, and one for real text.

  Args:
    files: JSON Lines with `text`, as `sedd sample --out` writes them; or .txt, one sample a line.
    jury: judges them.
    length: tokens of the judge's that all are cut to; shorter ones are left out, and counted. None:
      that of the shortest.

  Returns:
    `kind`, `settings` and `rows`, for JSON.

  Raises:
    ValueError: a file cannot be used; the message names it.
    FileNotFoundError: there is no such file.
  """
  read = {name: read_samples(file) for name, file in zip(_names(files), files, strict=True)}
  tokens = {name: jury.tokens([one["text"] for one in lines]) for name, lines in read.items()}
  used = common_length([row for rows in tokens.values() for row in rows], length)
  grader = jury.grader(used)
  rows = [{"label": REAL, **grader.of_real_text()}]
  for name, lines in read.items():
    samples = cut(tokens[name], used, name)
    rows.append({
      "label": name,
      **how_made(lines),
      **grader(samples),
      "left_out": len(lines) - len(samples),
    })  # fmt: skip
  settings = {**jury.said(), "length": used, "files": [str(file) for file in files]}
  return {"kind": "quality", "settings": settings, "rows": rows}


def read_samples(file: Path) -> Sequence[Mapping[str, Any]]:
  """Objects with `text`, and what else the file says of each.

  Raises:
    ValueError: a line is no such object, or there is none.
    FileNotFoundError: there is no such file.
  """
  lines = file.read_text(encoding="utf-8").split("\n")
  if file.suffix == ".txt":
    found = [{"text": line} for line in lines if line.strip()]
  else:
    found = [_parsed(file, i, line) for i, line in enumerate(lines, 1) if line.strip()]
  if not found:
    raise ValueError(f"{file} holds no sample")
  return found


def how_made(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What the lines of a file agree on of how they were made."""
  said = {}
  settings = [line.get("settings") for line in lines]
  if settings[0] and all(one == settings[0] for one in settings):
    said = {
      name: settings[0][name]
      for name in ("sampler", "steps", "temperature", "top_k", "top_p")
      if name in settings[0]
    }
    said["precision"] = PRECISION  # Of whatever this package has sampled.
  calls = {line.get("calls") for line in lines}
  if len(calls) == 1 and None not in calls:
    said["calls"] = calls.pop()
  return said


def _parsed(file: Path, number: int, line: str) -> Mapping[str, Any]:
  try:
    found = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{file}, line {number}: {error}") from None
  if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
    raise ValueError(
      f"{file}, line {number} must be an object with a text, as sedd sample --out writes it; "
      "samples of a model without a tokenizer have none: sample with --tokenizer"
    )
  return found


def _names(files: Sequence[Path]) -> list[str]:
  """A name for each file, unlike the others."""
  names = [file.stem for file in files]
  return [str(file) if names.count(file.stem) > 1 else file.stem for file in files]
