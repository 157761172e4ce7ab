"""Tables of a report, as text: a page, Markdown and a terminal show the same ones."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sedd_jax.reports.numbers import NOTHING, cell, with_error
from sedd_jax.reports.report import Report, differing, groups
from sedd_jax.reports.result import STDERR, Result
from sedd_jax.reports.run import Run

# What is longer than this is text to read, and stands in no table.
_LONGEST_CELL = 240
_UNITS = {"bits_per_char": "bits/char", "nats_per_token": "nats/token", "nats": "nats"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Cells of text.

  Attributes:
    title: above it.
    columns: headings.
    numeric: which columns hold numbers, that stand at the right.
    rows: as many cells as columns in each.
    note: below it, or "".
  """

  title: str
  columns: tuple[str, ...]
  numeric: tuple[bool, ...]
  rows: tuple[tuple[str, ...], ...]
  note: str = ""


def run_table(report: Report) -> Table:
  """All runs, one in each row."""
  runs = report.runs
  tokens = [_tokens(run) for run in runs]
  columns: list[tuple[str, bool, list[str]]] = [
    ("run", False, [run.name for run in runs]),
    ("state", False, [run.state for run in runs]),
    ("model", False, [run.method for run in runs]),
    ("bound, bits/char", True, [_bound(run) for run in runs]),
    ("paper bound", True, [_paper(run) for run in runs]),
    ("bigram entropy", True, [_heldout(run, "bigram") for run in runs]),
    ("steps", True, [cell(run.steps) for run in runs]),
    ("tokens seen", True, [cell(count) for count in tokens]),
    ("parameters", True, [cell(run.found.get("parameters")) for run in runs]),
    ("tokens/s", True, [_speed(run) for run in runs]),
    ("MFU", True, [_share(run.median("mfu")) for run in runs]),
  ]
  kept = [column for column in columns if any(text != NOTHING for text in column[2])]
  notes = [
    "Bound: strict upper bound on held-out text in bits per character, ± one Monte Carlo standard "
    "error, lower is better; the newest there is."
  ]
  if any(run.exact for run in runs):
    notes.append("Of an autoregressive model it is the likelihood itself, without that error.")
  if any(not run.bound["at_end"] for run in runs if run.bound):
    notes.append("*: on the way, from fewer blocks than at the end of a run.")
  texts = {str((run.found.get("corpus") or {}).get("sha256")) for run in runs if run.found}
  if len(texts) > 1:
    notes.append("These runs have different text: their bounds do not compare.")
  return Table(
    title="Runs",
    columns=tuple(name for name, _, _ in kept),
    numeric=tuple(numeric for _, numeric, _ in kept),
    rows=tuple(zip(*(texts for _, _, texts in kept), strict=True)),
    note=" ".join(notes),
  )


def seeds_table(report: Report) -> Table | None:
  """Means over the runs of each label, or None where no label has several."""
  rows = []
  for group in groups(report.runs):
    bounds = [
      run.bound["bits_per_char_strict"] for run in report.runs if run.group == group and run.bound
    ]
    if bounds:
      deviation = statistics.stdev(bounds) if len(bounds) > 1 else None
      shown = NOTHING if deviation is None else f"{deviation:.4f}"
      rows.append((group, cell(len(bounds)), f"{statistics.mean(bounds):.4f}", shown))
  if all(count == "1" for _, count, _, _ in rows):
    return None
  return Table(
    title="Means over runs of one label",
    columns=("label", "runs", "mean bound, bits/char", "deviation between runs"),
    numeric=(False, True, True, True),
    rows=tuple(rows),
    note="Strict bounds. The deviation is between runs: of seeds, where nothing else differs.",
  )


def settings_table(report: Report) -> Table | None:
  """The table of settings that differ between runs, or None if none does."""
  runs = [run for run in report.runs if run.config]
  fields = {name: values for name, values in differing(runs).items() if name != "label"}
  if not fields:
    return None
  names = groups(runs)

  def texts(values: Sequence[Any]) -> list[str]:
    """The values of each group."""
    of_group: dict[str, list[str]] = {name: [] for name in names}
    for run, value in zip(runs, values, strict=True):
      of_group[run.group].append(cell(value))
    return [" / ".join(dict.fromkeys(found)) for found in of_group.values()]

  return Table(
    title="Settings that differ",
    columns=("setting", *names),
    numeric=(False,) * (len(names) + 1),
    rows=tuple((name, *texts(values)) for name, values in fields.items()),
    note="All other settings are the same in these runs.",
  )


def result_table(result: Result) -> Table:
  """The rows of an evaluation; `x` and `x_stderr` share a cell."""
  names = dict.fromkeys(name for row in result.rows for name in row)
  errors = {name for name in names if name.removesuffix(STDERR) in names and name.endswith(STDERR)}
  shown = [name for name in names if name not in errors and _fits(result.rows, name)]
  fixed = []
  if len(result.rows) > 1:
    fixed = [name for name in shown if len({repr(row.get(name)) for row in result.rows}) == 1]
  columns = [name for name in shown if name not in fixed] or shown

  def text(row: Mapping[str, Any], name: str) -> str:
    value, stderr = row.get(name), row.get(name + STDERR)
    if _is_number(value) and _is_number(stderr):
      return with_error(value, stderr)
    return cell(value)

  same = {name: text(result.rows[0], name) for name in fixed if name not in columns}
  settings = {f"{k}": cell(v) for k, v in result.settings.items() if _is_plain(v)} | same
  return Table(
    title=result.title,
    columns=tuple(heading(name) for name in columns),
    numeric=tuple(
      all(_is_number(row[name]) for row in result.rows if row.get(name) is not None)
      for name in columns
    ),
    rows=tuple(tuple(text(row, name) for name in columns) for row in result.rows),
    note="; ".join(f"{heading(name)} {value}" for name, value in settings.items()),
  )


def heading(name: str) -> str:
  """A field's name as it is read, with its unit where the name tells it."""
  for ending, unit in _UNITS.items():
    if name == ending:
      return unit
    if name.startswith(f"{ending}_"):
      return f"{name.removeprefix(f'{ending}_').replace('_', ' ')}, {unit}"
    if name.endswith(f"_{ending}"):
      return f"{name.removesuffix(f'_{ending}').replace('_', ' ')}, {unit}"
  return name.replace("_", " ")


def plain(table: Table) -> str:
  """The table for a terminal, columns aligned."""
  lines = [table.columns, *table.rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

  def aligned(line: Sequence[str]) -> str:
    cells = (
      text.rjust(width) if numeric else text.ljust(width)
      for text, width, numeric in zip(line, widths, table.numeric, strict=True)
    )
    return "  ".join(cells).rstrip()

  return "\n".join(map(aligned, lines))


def _bound(run: Run) -> str:
  if run.bound is None:
    return NOTHING
  text = with_error(
    run.bound["bits_per_char_strict"], run.bound["bits_per_char_strict_stderr"]
  )  # fmt: skip
  return text if run.bound["at_end"] else f"{text} *"


def _paper(run: Run) -> str:
  if run.bound is None or run.exact:
    return NOTHING
  return with_error(run.bound["bits_per_char_paper"], run.bound["bits_per_char_paper_stderr"])


def _heldout(run: Run, name: str) -> str:
  value = run.median(f"heldout_{name}_bits_per_char")
  return NOTHING if value is None else f"{value:.3f}"


def _tokens(run: Run) -> int | None:
  """That the training has read."""
  batch = (run.config.get("train") or {}).get("batch_size")
  length = run.found.get("length")
  if run.steps is None or not isinstance(batch, int) or not isinstance(length, int):
    return None
  return run.steps * batch * length


def _speed(run: Run) -> str:
  value = run.median("tokens_per_second")
  return NOTHING if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
  return NOTHING if value is None else f"{value:.1%}"


def _fits(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
  """Whether a field's values are short enough for a table."""
  values = [row[name] for row in rows if row.get(name) is not None]
  return bool(values) and all(_is_plain(value) for value in values)


def _is_plain(value: Any) -> bool:
  if isinstance(value, str):
    return len(value) <= _LONGEST_CELL and "\n" not in value
  if isinstance(value, list):
    return len(value) <= 4 and all(_is_number(inner) for inner in value)
  return value is None or isinstance(value, int | float)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
