"""The results of an evaluation: a JSON file with rows of numbers (docs/quality.md)."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "evaluation.json"
# Kinds that have a heading of their own; others are shown like them.
TITLES = {
  "likelihood": "Likelihood",
  "quality": "Quality of samples",
  "frontier": "Quality against diversity and cost",
  "infilling": "Infilling",
  "generations": "Generations",
}
STDERR = "_stderr"
# Fields of rows and settings that name a model.
MODEL_FIELDS = ("label", "model", "run", "checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """One file.

  Attributes:
    name: unlike that of any other in the report.
    path: of the file.
    kind: what was evaluated: a key of `TITLES`, or another word.
    model: name of the run that was evaluated, or what else the settings call it.
    rows: objects of numbers and words; `x_stderr` is the standard error of `x`.
    settings: how it was made.
    points: further rows, for plots alone; `rows` are plotted where there are none.
    headline: sentences that sum it up.
  """

  name: str
  path: Path
  kind: str
  model: str
  rows: Sequence[Mapping[str, Any]]
  settings: Mapping[str, Any]
  points: Sequence[Mapping[str, Any]]
  headline: Sequence[str] = ()

  @property
  def title(self) -> str:
    return TITLES.get(self.kind, self.kind.capitalize())


def is_result(file: Path) -> bool:
  """Whether a file holds an evaluation, rather than the short one at the end of a run.

  Raises:
    ValueError: it is not JSON.
  """
  return "rows" in _object(file)


def read_result(file: Path, name: str) -> Result:
  """Reads an evaluation.

  Raises:
    ValueError: the file is damaged, or holds something else; the message names file and field.
    FileNotFoundError: there is no such file.
  """
  found = _object(file)
  kind, settings = found.get("kind"), found.get("settings") or {}
  if not isinstance(kind, str) or not kind:
    raise ValueError(f"{file}: kind={kind!r} must be a word, such as {', '.join(TITLES)}")
  if not isinstance(settings, Mapping):
    raise ValueError(f"{file}: settings must be an object, not {type(settings).__name__}")
  return Result(
    name=name,
    path=file,
    kind=kind,
    model=_model(settings) or name,
    rows=_objects(file, found, "rows"),
    settings=settings,
    points=_objects(file, found, "points"),
    headline=_headline(file, found),
  )


def joined(results: Sequence[Result]) -> list[Result]:
  """One result for each kind, with the rows of all: rows say their `model`, and the settings that
  are not the same in all results. A kind with one result is left as it is.
  """
  found = []
  for kind in sorted({result.kind for result in results}, key=_order):
    same = [result for result in results if result.kind == kind]
    found.append(same[0] if len(same) == 1 else _joined(same))
  return found


def _joined(results: Sequence[Result]) -> Result:
  names = dict.fromkeys(name for result in results for name in result.settings)
  values = {name: [result.settings.get(name) for result in results] for name in names}
  differ = [name for name, all_of in values.items() if all_of.count(all_of[0]) < len(all_of)]

  def rows(field: str) -> list[Mapping[str, Any]]:
    return [
      ({} if any(name in row for name in MODEL_FIELDS) else {"model": result.model})
      | {name: result.settings.get(name) for name in differ if name not in MODEL_FIELDS}
      | dict(row)
      for result in results
      for row in getattr(result, field)
    ]

  return dataclasses.replace(
    results[0],
    name=", ".join(dict.fromkeys(result.name for result in results)),
    rows=rows("rows"),
    points=rows("points"),
    settings={name: value for name, (value, *_) in values.items() if name not in differ},
    headline=list(dict.fromkeys(line for result in results for line in result.headline)),
  )


def _order(kind: str) -> tuple[int, str]:
  return (list(TITLES).index(kind) if kind in TITLES else len(TITLES)), kind


def _model(settings: Mapping[str, Any]) -> str:
  """The last part of the path or id of a model that settings name, or ""."""
  named = (settings.get(field) for field in MODEL_FIELDS)
  found = next((value for value in named if isinstance(value, str) and value), "")
  return found.rstrip("/").rsplit("/", 1)[-1]


def _object(file: Path) -> Mapping[str, Any]:
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is damaged: {error}") from error
  if not isinstance(found, Mapping):
    raise ValueError(f"{file} must hold an object, not {type(found).__name__}")
  return found


def _objects(file: Path, found: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
  rows = found.get(field) or []
  if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
    raise ValueError(f"{file}: {field} must be a list of objects")
  return rows


def _headline(file: Path, found: Mapping[str, Any]) -> list[str]:
  headline = found.get("headline") or []
  if not isinstance(headline, list) or not all(isinstance(line, str) for line in headline):
    raise ValueError(f"{file}: headline must be a list of sentences")
  return headline
