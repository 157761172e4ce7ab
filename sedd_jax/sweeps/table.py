"""The table of a sweep, from its run directories, best first."""

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from sedd_jax.sweeps.grid import text

DONE = "done"
SUBMITTED = "submitted"
_STRICT = "heldout_bits_per_char_strict"
_LOOP = "generations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A line of the table.

  Attributes:
    name: the run's name.
    overrides: the run's overrides.
    status: `done`; else `failed (code)`, `stopped (code)`, `no result` (it ended with 0),
      `submitted`, `unfinished` or `not started`.
    step: its last recorded step, or None; in a self-consuming loop that of the newest generation.
    steps: number of steps to train.
    strict: bits per character at the end, else from the latest evaluation, or None; in a loop that
      of the newest generation.
    stderr: the standard error of strict.
  """

  name: str
  overrides: Mapping[str, Any]
  status: str
  step: int | None
  steps: int
  strict: float | None
  stderr: float | None


def is_done(workdir: Path, steps: int) -> bool:
  """Whether a run has its final evaluation, or a loop its last generation."""
  evaluation = _read(workdir / "evaluation.json") or {}
  if evaluation.get("kind") == _LOOP:
    return len(evaluation["rows"]) > evaluation["settings"]["count"]
  return evaluation.get("step", -1) >= steps


def make_row(
  workdir: Path, overrides: Mapping[str, Any], steps: int, noted: int | str | None
) -> Row:
  """The line of one run.

  Args:
    workdir: its directory, which may not exist.
    overrides: the run's overrides.
    steps: number of steps to train.
    noted: exit code of its last start, or `SUBMITTED`, or None.
  """
  done = is_done(workdir, steps)
  evaluation = _read(workdir / "evaluation.json") or {}
  if evaluation.get("kind") == _LOOP:
    lines = [_last_generation(evaluation, steps)]
  else:
    lines = [evaluation] if done else _metrics(workdir)
  judged = [line for line in lines if _STRICT in line]
  last = judged[-1] if judged else {}
  step = lines[-1].get("step") if lines else None
  match noted:
    case _ if done:
      status = DONE
    case 130 | 143:
      status = f"stopped ({noted})"
    case 0:
      status = "no result"
    case int():
      status = f"failed ({noted})"
    case str():
      status = noted
    case None:
      status = "not started" if step is None else "unfinished"
  return Row(
    name=workdir.name,
    overrides=overrides,
    status=status,
    step=step,
    steps=steps,
    strict=last.get(_STRICT),
    stderr=last.get(f"{_STRICT}_stderr"),
  )


def _last_generation(report: Mapping[str, Any], steps: int) -> dict[str, Any]:
  """The newest generation of a loop as the evaluation of a run."""
  row = report["rows"][-1]
  name = _STRICT.removeprefix("heldout_")
  return {"step": steps, _STRICT: row[name], f"{_STRICT}_stderr": row[f"{name}_stderr"]}


def best_first(rows: Sequence[Row]) -> list[Row]:
  """Finished runs by strict bound, then unfinished runs by theirs; runs without a bound last."""

  def order(row: Row) -> tuple[bool, float]:
    known = row.strict is not None and not math.isnan(row.strict)
    return row.status != DONE, row.strict if known and row.strict is not None else math.inf

  return sorted(rows, key=order)


def cells(row: Row, keys: Sequence[str]) -> list[str]:
  """A row as text: overrides, status, step, strict bound."""
  bound = "" if row.strict is None else f"{row.strict:.4f}"
  if bound and row.stderr is not None:
    bound += f" ± {row.stderr:.4f}"
  step = "" if row.step is None else f"{row.step}/{row.steps}"
  return [*_values(row, keys), row.status, step, bound]


def render(rows: Sequence[Row]) -> Group:
  """The table to print, and a table of means if there are several seeds."""
  keys = _shown(rows)
  table = Table("#", *keys, "status", "step", "strict bound, bits/char")
  for rank, row in enumerate(best_first(rows), 1):
    table.add_row(str(rank), *cells(row, keys))
  return Group(table, *_means(rows, [key for key in keys if key != "seed"]))


def _means(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[Table]:
  """A table of means over finished runs that differ only in the seed, if there are any."""
  groups: dict[tuple[str, ...], list[float]] = {}
  for row in rows:
    if row.status == DONE and row.strict is not None and "seed" in row.overrides:
      groups.setdefault(tuple(_values(row, keys)), []).append(row.strict)
  if not any(len(bounds) > 1 for bounds in groups.values()):
    return
  table = Table(*keys, "seeds", "mean strict bound", "deviation between seeds")
  means = {values: statistics.fmean(bounds) for values, bounds in groups.items()}
  for values in sorted(means, key=lambda values: (math.isnan(means[values]), means[values])):
    bounds = groups[values]
    # A diverged run's bound is NaN, for which `stdev` raises an error.
    known = len(bounds) > 1 and math.isfinite(means[values])
    spread = f"{statistics.stdev(bounds):.4f}" if known else ""
    table.add_row(*values, str(len(bounds)), f"{means[values]:.4f}", spread)
  yield table


def to_csv(rows: Sequence[Row]) -> str:
  """The table as CSV with unrounded numbers, for other programs."""
  keys = _keys(rows)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(["name", *keys, "status", "step", "steps", "strict", "strict_stderr"])
  for row in best_first(rows):
    numbers = [row.step, row.steps, row.strict, row.stderr]
    writer.writerow([row.name, *_values(row, keys), row.status, *numbers])
  return out.getvalue()


def _keys(rows: Sequence[Row]) -> list[str]:
  return list(dict.fromkeys(key for row in rows for key in row.overrides))


def _shown(rows: Sequence[Row]) -> list[str]:
  """Keys of overrides to show; a label replaces keys in which runs of the same label agree."""
  keys = _keys(rows)
  if "label" not in keys:
    return keys
  by_label: dict[tuple[str, str], set[str]] = {}
  for row in rows:
    for key in keys:
      value = text(row.overrides[key]) if key in row.overrides else ""
      by_label.setdefault((text(row.overrides.get("label", "")), key), set()).add(value)
  differ = {key for (_, key), values in by_label.items() if len(values) > 1}
  return [key for key in keys if key == "label" or key in differ]


def _values(row: Row, keys: Sequence[str]) -> list[str]:
  return [text(row.overrides[key]) if key in row.overrides else "" for key in keys]


def _read(file: Path) -> dict[str, Any] | None:
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (FileNotFoundError, json.JSONDecodeError):
    return None


def _metrics(workdir: Path) -> list[dict[str, Any]]:
  """Lines of metrics in the order they were written, without damaged ones."""
  lines = []
  file = workdir / "metrics.jsonl"
  for line in file.read_bytes().split(b"\n") if file.is_file() else []:
    try:
      values = json.loads(line)
    except ValueError:  # Not JSON, or not UTF-8.
      continue
    if isinstance(values, dict) and isinstance(values.get("step"), int):
      lines.append(values)
  return lines
