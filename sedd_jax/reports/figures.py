"""Which charts a report has, and what they show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sedd_jax.reports.chart import Chart, Dot, Dots, Point, Series
from sedd_jax.reports.numbers import number, with_error
from sedd_jax.reports.report import Report
from sedd_jax.reports.result import STDERR, Result
from sedd_jax.reports.run import Run
from sedd_jax.reports.tables import heading

_STRICT = "heldout_bits_per_char_strict"
# Means of the training loss along a curve.
_MOST_MEANS = 60
# Fields of rows by what a frontier shows, the first that is there.
_QUALITY = ("perplexity", "generative_perplexity", "mean_sequence_perplexity", "mauve")
_ENTROPY = ("token_entropy", "unigram_entropy", "entropy")
_CALLS = ("calls", "network_calls", "nfe", "steps")
_NAMED_BY = ("temperature", "top_p", "top_k", "steps")
# Fields that name a model.
_MODEL = ("model", "run", "checkpoint")
# What a likelihood is compared by, and its unit.
_LIKELIHOOD = (
  ("bits_per_char", "bits per character"),
  ("bits_per_char_strict", "bits per character, strict bound"),
  ("perplexity", "perplexity per token"),
  ("nats_per_token", "nats per token"),
)


def run_figures(report: Report) -> list[Chart | Dots]:
  """The curves of all runs in one chart, and their bounds."""
  runs = list(enumerate(report.runs))
  levels = _entropies(report.runs)
  curves = [series for kind, run in runs for series in _curves(run, kind)]
  figures: list[Chart | Dots] = []
  if curves:
    figures.append(
      Chart(
        title="Training",
        x_label="step",
        y_label="bits per character",
        series=curves,
        levels=levels,
        y_range=_sight(curves, levels),
        note="Thin: training loss, means along the run. Marks: strict bound on held-out text, "
        "averaged weights, ± two standard errors.",
      )
    )
  rows = [(run.name, _bounds(run, kind)) for kind, run in runs if run.bound]
  if rows:
    figures.append(
      Dots(
        title="Held-out bounds",
        x_label="bits per character",
        rows=rows,
        levels=levels,
        note="Filled: strict bound; hollow: that of the paper, without the ends of the "
        "integral. Bars: two standard errors either way. Left is better.",
      )
    )
  return figures


def result_figures(result: Result) -> list[Chart | Dots]:
  """What can be drawn of an evaluation: a frontier, or its values with errors."""
  rows = result.points or result.rows
  if result.kind == "likelihood":
    return _likelihood_figures(result, rows)
  quality = _first(rows, _QUALITY)
  figures: list[Chart | Dots] = []
  if quality is None or len(rows) < 2:
    return figures
  for across, title, log_x in (
    (_first(rows, _ENTROPY), "Quality against diversity", False),
    (_first(rows, _CALLS), "Quality against cost", True),
  ):
    if across is None or len({row[across] for row in rows if _is(row.get(across))}) < 2:
      continue
    series = _frontier(rows, across, quality)
    log_y = "perplexity" in quality
    series = [
      s
      for s in series
      if (not log_x or all(p.x > 0 for p in s.points))
      and (not log_y or all(p.y > 0 for p in s.points))
    ]
    if not series:
      continue
    figures.append(
      Chart(
        title=title,
        x_label=_with_unit(across),
        y_label=heading(quality) + (" (log scale)" if log_y else ""),
        series=series,
        log_x=log_x,
        log_y=log_y,
        note=_frontier_note(result, rows, across),
      )
    )
  return figures


def _curves(run: Run, kind: int) -> list[Series]:
  loss = [
    (line["step"], line["train_bits_per_char"])
    for line in run.metrics
    if _is(line.get("train_bits_per_char"))
  ]
  found = []
  if len(loss) > 1:
    means = [Point(x=x, y=y) for x, y in _means(loss)]
    found.append(Series(name="", kind=kind, points=means, marks=False, faint=True))
  bounds = [
    Point(
      x=line["step"],
      y=line[_STRICT],
      stderr=line.get(f"{_STRICT}{STDERR}", 0.0),
      title=f"{run.name}, step {line['step']:,}: "
      + with_error(line[_STRICT], line.get(f"{_STRICT}{STDERR}")),
    )
    for line in run.metrics
    if _is(line.get(_STRICT))
  ]
  if bounds:
    found.append(Series(name=run.name, kind=kind, points=bounds))
  return found


def _means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Means of neighbours, at most `_MOST_MEANS` of them."""
  size = math.ceil(len(points) / _MOST_MEANS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [
    (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
    for group in groups
  ]


def _sight(
  curves: Sequence[Series], levels: Sequence[tuple[str, float]]
) -> tuple[float, float] | None:
  """The range of bounds and entropies, and a little of the loss, which begins far above them."""
  values = [p.y for series in curves if not series.faint for p in series.points]
  values += [level for _, level in levels]
  if not values:
    return None
  loss = sorted(p.y for series in curves if series.faint for p in series.points)
  low = min([*values, *loss[len(loss) // 20 : len(loss) // 20 + 1]])
  high = max(values)
  high = max(high, min(high + 0.3 * (high - low), loss[-1])) if loss else high
  return low, high


def _bounds(run: Run, kind: int) -> list[Dot]:
  assert run.bound is not None
  strict, stderr = run.bound["bits_per_char_strict"], run.bound["bits_per_char_strict_stderr"]
  said = f"{run.name}, strict: {with_error(strict, stderr)}"
  dots = [Dot(kind=kind, x=strict, stderr=stderr, title=said)]
  if not run.exact:
    paper, stderr = run.bound["bits_per_char_paper"], run.bound["bits_per_char_paper_stderr"]
    said = f"{run.name}, paper: {with_error(paper, stderr)}"
    dots.append(Dot(kind=kind, x=paper, stderr=stderr, title=said, hollow=True))
  return dots


def _entropies(runs: Sequence[Run]) -> list[tuple[str, float]]:
  """Entropies of the held-out text, where all runs have the same."""
  levels = []
  for name in ("unigram", "bigram"):
    values = {run.median(f"heldout_{name}_bits_per_char") for run in runs if run.bound}
    if len(values) == 1 and (value := values.pop()) is not None:
      levels.append((f"{name} entropy", value))
  return levels


def _likelihood_figures(result: Result, rows: Sequence[Mapping[str, Any]]) -> list[Chart | Dots]:
  """A name for each text, and below it a value for each model."""
  metric = _first(rows, [name for name, _ in _LIKELIHOOD], least=1)
  if metric is None:
    return []
  having = [row for row in rows if _is(row.get(metric))]
  models = list(dict.fromkeys(_model(row) for row in having))
  groups: dict[str, list[Dot]] = {}
  for row in having:
    kind, stderr = models.index(_model(row)), _stderr(row, metric)
    words = [str(row[name]) for name in _words(rows) if name not in _MODEL and row.get(name)]
    name = ", ".join(words) or str(row.get("set", result.name))
    said = f"{name}, {_model(row)}: {with_error(row[metric], stderr)}"
    groups.setdefault(name, []).append(Dot(kind=kind, x=row[metric], stderr=stderr, title=said))
  return [
    Dots(
      title="Likelihood",
      x_label=dict(_LIKELIHOOD)[metric],
      rows=list(groups.items()),
      names=[] if models == [""] else list(enumerate(models)),
      note=f"{result.name}. Bars: two standard errors either way. Left is better.",
    )
  ]


def _frontier(rows: Sequence[Mapping[str, Any]], across: str, quality: str) -> list[Series]:
  """A series for each combination of words in the rows, joined in the order of the rows."""
  words = _words(rows)
  named_by = _swept(rows, across)
  series: dict[str, list[Point]] = {}
  for row in rows:
    if not (_is(row.get(across)) and _is(row.get(quality))):
      continue
    name = ", ".join(str(row[word]) for word in words if row.get(word) is not None)
    stderr = _stderr(row, quality)
    label = "" if named_by is None or not _is(row.get(named_by)) else number(row[named_by])
    at = f"{heading(across)} {number(row[across])}"
    said = f"{name or 'samples'}: {heading(quality)} {with_error(row[quality], stderr)}, {at}"
    if label:
      said += f", {heading(named_by or '')} {label}"
    points = series.setdefault(name, [])
    points.append(Point(x=row[across], y=row[quality], stderr=stderr, label=label, title=said))
  return [
    Series(name=name, kind=kind, points=points)
    for kind, (name, points) in enumerate(series.items())
  ]


def _frontier_note(result: Result, rows: Sequence[Mapping[str, Any]], across: str) -> str:
  note = f"{result.name}. Bars: two standard errors either way."
  if swept := _swept(rows, across):
    note += f" Beside the marks: {heading(swept)}."
  if across in _ENTROPY:
    note += " A low perplexity counts for something at the entropy of real text only."
  return note


def _words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Fields of words that tell series apart; a verdict is an outcome and tells nothing."""
  return [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if all(isinstance(row.get(name), str | None) for row in rows)
    and len({row.get(name) for row in rows}) > 1
    and name not in ("verdict", "word", "text", "sha256", "reasons")
  ]


def _swept(rows: Sequence[Mapping[str, Any]], across: str) -> str | None:
  """The setting that makes the points of a series, where one varies."""
  for name in _NAMED_BY:
    if name != across and len({row.get(name) for row in rows if _is(row.get(name))}) > 1:
      return name
  return None


def _model(row: Mapping[str, Any]) -> str:
  """What gives a row its colour, where it is named."""
  return next((str(row[name]) for name in _MODEL if row.get(name) is not None), "")


def _first(rows: Sequence[Mapping[str, Any]], names: Sequence[str], least: int = 2) -> str | None:
  """The first of some fields that so many rows have a number of."""
  return next((name for name in names if sum(_is(row.get(name)) for row in rows) >= least), None)


def _with_unit(name: str) -> str:
  if name in _ENTROPY:
    return f"{heading(name)}, nats"
  return "calls of the network (log scale)" if "calls" in name or name == "nfe" else (
    f"{heading(name)} (log scale)"
  )  # fmt: skip


def _stderr(row: Mapping[str, Any], name: str) -> float:
  value = row.get(name + STDERR)
  return float(value) if _is(value) and value is not None else 0.0


def _is(value: Any) -> bool:
  """Whether it is a finite number."""
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
