"""Grades of files of samples: `sedd grade`."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.compression import file_fault, read_text
from sedd_jax.diffusion.categorical import PRECISION
from sedd_jax.files.paths import local_path
from sedd_jax.studies.setup import EvaluationSetup, common_length, cut
from sedd_jax.studies.study import Say, StudyConfig, in_folder

REAL = "held-out text"
# Settings of a sampler that its rows repeat.
_SAMPLING = ("sampler", "steps", "temperature", "top_k", "top_p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradeConfig(StudyConfig):
  """Settings of `grade`.

  Attributes, beside those of `StudyConfig`:
    samples: files: JSON Lines with `text`, as `sedd sample --out` writes them, or .txt with one
      sample a line.
  """

  samples: Sequence[str]

  @property
  def paths(self) -> list[Path]:
    return [local_path(name, "--samples") for name in self.samples]

  def faults(self) -> list[str]:
    faults = super().faults()
    if missing := [str(file) for file in self.paths if not os.path.lexists(file)]:
      faults.append(f"--samples: there is no file {', '.join(missing)}")
    files = [file.resolve() for file in self.paths]
    if twice := sorted({str(file) for file in files if files.count(file) > 1}):
      faults.append(f"--samples names {', '.join(twice)} twice")
    return faults + [fault for file in self.paths if (fault := file_fault(file, "--samples"))]


def grade(config: GradeConfig, say: Say) -> dict[str, Any]:
  """A row for each file, and one for real text.

  Returns:
    `kind`, `settings` and `rows`, for JSON.

  Raises:
    ValueError: a file cannot be used; the message names it.
  """
  setup = config.setup()
  hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in config.paths]
  settings = {"mode": "samples", "samples": dict(zip(config.samples, hashes, strict=True))}
  return in_folder(config, settings, setup, {}, lambda _: _graded(config, setup), say)


def _graded(config: GradeConfig, setup: EvaluationSetup) -> dict[str, Any]:
  files = config.paths
  read = {name: read_samples(file) for name, file in zip(_names(files), files, strict=True)}
  tokens = {
    name: _encoded(setup, file, lines)
    for (name, lines), file in zip(read.items(), files, strict=True)
  }
  used = _common_length(files, read, tokens, config.length)
  grader = setup.grader(used)
  rows = [{"label": REAL, **grader.of_real_text()}]
  for name, lines in read.items():
    samples = cut(tokens[name], used, name)
    rows.append({
      "label": name,
      **common_settings(lines),
      **grader(samples),
      "left_out": len(lines) - len(samples),
    })  # fmt: skip
  settings = {**setup.settings, "length": used, "files": [str(file) for file in files]}
  return {"kind": "quality", "settings": settings, "rows": rows}


def read_samples(file: Path) -> Sequence[Mapping[str, Any]]:
  """The samples of a file: objects with `text`, the `line` it is in, and what else the file stores
  of each.

  Raises:
    ValueError: a line is no such object or no text, or there is none; the message names it.
    FileNotFoundError: the file is missing.
  """
  lines = enumerate(read_text(file, "--samples").split("\n"), 1)
  if file.suffix == ".txt":
    samples = [{"text": line, "line": number} for number, line in lines if line.strip()]
  else:
    samples = [_parsed(file, number, line) for number, line in lines if line.strip()]
  if not samples:
    raise ValueError(f"{file} holds no sample")
  return samples


def common_settings(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The settings and calls of samples, where all lines of a file have the same."""
  common = {}
  settings = [line.get("settings") for line in lines]
  if settings[0] and all(other == settings[0] for other in settings):
    common = {name: settings[0][name] for name in _SAMPLING if name in settings[0]}
    common["precision"] = PRECISION  # Of everything this package samples.
  calls = {line.get("calls") for line in lines}
  if len(calls) == 1 and None not in calls:
    common["calls"] = calls.pop()
  return common


def _parsed(file: Path, number: int, line: str) -> Mapping[str, Any]:
  try:
    sample = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
  if not isinstance(sample, Mapping) or not isinstance(sample.get("text"), str):
    raise ValueError(
      f"{file}, line {number} must be an object with a text, as sedd sample --out writes it; "
      "samples of a model without a tokenizer have none: sample with --tokenizer"
    )
  try:
    sample["text"].encode()
  except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair.
    raise ValueError(f"{file}, line {number} has no Unicode text: {error.reason}") from None
  return {**sample, "line": number}


def _encoded(
  setup: EvaluationSetup, file: Path, samples: Sequence[Mapping[str, Any]]
) -> list[np.ndarray]:
  """The samples in the judge's tokens."""
  try:
    return setup.encode([sample["text"] for sample in samples])
  except ValueError:
    for sample in samples:  # Which of them is it?
      try:
        setup.encode([sample["text"]])
      except ValueError as error:
        raise ValueError(f"{file}, line {sample['line']}: {error}") from error
    raise


def _common_length(
  files: Sequence[Path],
  read: Mapping[str, Sequence[Mapping[str, Any]]],
  tokens: Mapping[str, Sequence[np.ndarray]],
  length: int | None,
) -> int:
  """`common_length` of all samples; its error names the shortest."""
  try:
    return common_length([row for rows in tokens.values() for row in rows], length)
  except ValueError as error:
    _, file, line = min(
      (len(row), str(file), sample["line"])
      for file, samples, rows in zip(files, read.values(), tokens.values(), strict=True)
      for sample, row in zip(samples, rows, strict=True)
    )
    where = "" if length is not None else f"{file}, line {line}: "
    raise ValueError(f"{where}{error}") from error


def _names(files: Sequence[Path]) -> list[str]:
  """A different name for each file."""
  names = [file.stem for file in files]
  return [str(file) if names.count(file.stem) > 1 else file.stem for file in files]
