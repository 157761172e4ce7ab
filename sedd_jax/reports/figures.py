"""Which charts a report has, and what they show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sedd_jax.reports.chart import COLOURS, Chart, Dot, Dots, Point, Series
from sedd_jax.reports.numbers import cell, number, with_error
from sedd_jax.reports.report import Report, groups
from sedd_jax.reports.result import MODEL_FIELDS, STDERR, Result
from sedd_jax.reports.run import Run
from sedd_jax.reports.tables import heading
from sedd_jax.studies.grades import REAL

_STRICT = "heldout_bits_per_char_strict"
# Means of the training loss along a curve.
_MOST_MEANS = 60
# Where a report has no runs, models have colours in turn.
NO_KINDS: Mapping[str, int] = {}
# Runs whose losses still tell themselves apart.
_MOST_LOSSES = 8
# Fields of rows by what a frontier shows, the first that is there.
_QUALITY = ("perplexity", "generative_perplexity", "mean_sequence_perplexity", "mauve")
_ENTROPY = ("token_entropy", "unigram_entropy", "entropy")
_CALLS = ("calls", "network_calls", "nfe", "steps")
# Settings along which a frontier runs.
_SWEPT = ("temperature", "top_p", "top_k", "steps")
# What a likelihood is compared by, and its unit.
_LIKELIHOOD = (
  ("bits_per_char", "bits per character"),
  ("bits_per_char_strict", "bits per character, strict bound"),
  ("perplexity", "perplexity per token"),
  ("nats_per_token", "nats per token"),
)


def kinds_of(runs: Sequence[Run]) -> dict[str, int]:
  """The number of each run's colour, by its group and by its name."""
  order = groups(runs)
  of_group = {group: kind for kind, group in enumerate(order)}
  return {run.name: of_group[run.group] for run in runs} | of_group


def run_figures(report: Report) -> list[Chart | Dots]:
  """The curves of all runs in one chart, and their bounds."""
  kinds = kinds_of(report.runs)
  runs = [(kinds[run.group], run) for run in report.runs]
  levels = _entropies(report.runs)
  with_loss = len(runs) <= _MOST_LOSSES
  curves = [series for kind, run in runs for series in _curves(run, kind, with_loss)]
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
        note=("Thin: training loss, means along the run. " if with_loss else "")
        + "Marks: strict bound on held-out text, averaged weights, ± two standard errors.",
      )
    )
  rows: dict[str, list[Dot]] = {}
  for kind, run in runs:
    if run.bound and _is(run.bound["bits_per_char_strict"]):
      rows.setdefault(run.group, []).extend(_bounds(run, kind))
  if rows:
    figures.append(
      Dots(
        title="Held-out bounds",
        x_label="bits per character",
        rows=list(rows.items()),
        levels=levels,
        note="Filled: strict bound; hollow: that of the paper, without the ends of the "
        "integral. Bars: two standard errors either way. Left is better.",
      )
    )
  return figures


def result_figures(result: Result, kinds: Mapping[str, int] = NO_KINDS) -> list[Chart | Dots]:
  """What can be drawn of an evaluation: a frontier, or its values with errors.

  Args:
    result: one, or several that were joined.
    kinds: of runs by their names and groups, whose colours models of the same name take.
  """
  rows = result.points or result.rows
  if result.kind == "likelihood":
    return _likelihood_figures(result, rows, kinds)
  quality = _first(rows, _QUALITY)
  if quality is None:
    return []
  diversity, cost = _first(rows, _ENTROPY), _first(rows, _CALLS)
  found = [
    _frontier(result, rows, (across, quality), title, swept, kinds)
    for across, title, swept in (
      (diversity, "Quality against diversity", _SWEPT),
      (cost, "Quality against cost", _SWEPT[::-1]),
    )
    if across is not None
  ]
  return [chart for chart in found if chart is not None]


def _curves(run: Run, kind: int, with_loss: bool) -> list[Series]:
  loss = [
    (line["step"], line["train_bits_per_char"])
    for line in run.metrics
    if _is(line.get("train_bits_per_char"))
  ]
  found = []
  if with_loss and len(loss) > 1:
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
    found.append(Series(name=run.group, kind=kind, points=bounds))
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
  title = f"{run.name}, strict: {with_error(strict, stderr)}"
  dots = [Dot(kind=kind, x=strict, stderr=stderr, title=title)]
  if not run.exact and _is(run.bound["bits_per_char_paper"]):
    paper, stderr = run.bound["bits_per_char_paper"], run.bound["bits_per_char_paper_stderr"]
    title = f"{run.name}, paper: {with_error(paper, stderr)}"
    dots.append(Dot(kind=kind, x=paper, stderr=stderr, title=title, hollow=True))
  return dots


def _entropies(runs: Sequence[Run]) -> list[tuple[str, float]]:
  """Entropies of the held-out text, where all runs have the same."""
  levels = []
  for name in ("unigram", "bigram"):
    values = {run.median(f"heldout_{name}_bits_per_char") for run in runs if run.bound}
    if len(values) == 1 and (value := values.pop()) is not None:
      levels.append((f"{name} entropy", value))
  return levels


def _likelihood_figures(
  result: Result, rows: Sequence[Mapping[str, Any]], known: Mapping[str, int]
) -> list[Chart | Dots]:
  """A name for each text, and below it a value for each model."""
  metric = _first(rows, [name for name, _ in _LIKELIHOOD], least=1)
  if metric is None:
    return []
  having = [row for row in rows if _is(row.get(metric))]
  models = list(dict.fromkeys(_model(row) for row in having))
  kinds = _kinds(models, known)
  texts: dict[str, list[Dot]] = {}
  for row in having:
    kind, stderr = kinds[models.index(_model(row))], _stderr(row, metric)
    words = [str(row[name]) for name in _words(rows) if name not in MODEL_FIELDS and row.get(name)]
    name = ", ".join(words) or str(row.get("set", result.name))
    said = f"{name}, {_model(row)}: {with_error(row[metric], stderr)}"
    texts.setdefault(name, []).append(Dot(kind=kind, x=row[metric], stderr=stderr, title=said))
  return [
    Dots(
      title="Likelihood",
      x_label=dict(_LIKELIHOOD)[metric],
      rows=list(texts.items()),
      names=[] if models == [""] else list(zip(kinds, models, strict=True)),
      note=f"{result.name}. Bars: two standard errors either way. Left is better.",
    )
  ]


def _frontier(
  result: Result,
  rows: Sequence[Mapping[str, Any]],
  axes: tuple[str, str],
  title: str,
  swept: Sequence[str],
  known: Mapping[str, int],
) -> Chart | None:
  """Lines along one setting each, or None where nothing varies.

  Args:
    axes: the fields across and up.
    swept: settings along which a line may run, the first that varies is taken.
  """
  across, quality = axes
  logs = {across: across in _CALLS, quality: "perplexity" in quality}

  def drawn(row: Mapping[str, Any], name: str) -> bool:
    return _is(row.get(name)) and (row[name] > 0 or not logs[name])

  placed = [row for row in rows if drawn(row, across) and drawn(row, quality)]
  if len({row[across] for row in placed}) < 2:
    return None
  lines = _lines([row for row in placed if _model(row) != REAL], rows, swept)
  kinds = _kinds([_model(line[0]) for _, _, line in lines], known)
  series = [
    Series(name=name, kind=kind, points=[_point(row, name, axes, along) for row in line])
    for kind, (name, along, line) in zip(kinds, lines, strict=True)
  ]
  real = [row for row in rows if _model(row) == REAL and drawn(row, quality)]
  if points := [_point(row, REAL, axes, None) for row in real if row in placed]:
    series.append(Series(name=REAL, kind=COLOURS - 1, points=points))
  along = dict.fromkeys(heading(name) for _, name, _ in lines if name is not None)
  note = f"{result.title}. Bars: two standard errors either way."
  note += f" Beside the marks: {', '.join(along)}." if along else ""
  if across in _ENTROPY and logs[quality]:
    note += " A low perplexity counts for something at the entropy of real text only."
  return Chart(
    title=title,
    x_label=_named_axis(across, logs[across]),
    y_label=_named_axis(quality, logs[quality]),
    series=series,
    levels=[(REAL, row[quality]) for row in real if row not in placed],
    log_x=logs[across],
    log_y=logs[quality],
    note=note,
  )


def _lines(
  rows: Sequence[Mapping[str, Any]], of: Sequence[Mapping[str, Any]], swept: Sequence[str]
) -> list[tuple[str, str | None, list[Mapping[str, Any]]]]:
  """(name, the setting along which it runs, its rows) of each line: rows with the same words, cut
  further by the settings that vary among them beside one."""
  words = _words(of)
  same: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
  for row in rows:
    # A sampler may be called as its model is.
    said = tuple(dict.fromkeys(str(row[word]) for word in words if row.get(word) is not None))
    same.setdefault(said, []).append(row)
  found = []
  for said, group in same.items():
    varying = [name for name in swept if len({row.get(name) for row in group}) > 1]
    along = varying[0] if varying else None
    # Settings that go with the one along the line make no lines of their own.
    others = [name for name in varying[1:] if not _follows(group, name, along)]
    cuts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(group, key=lambda row: _number(row.get(along or ""))):
      beside = tuple(f"{heading(name)} {cell(row.get(name))}" for name in others)
      cuts.setdefault(beside, []).append(row)
    found += [(", ".join([*said, *beside]), along, line) for beside, line in cuts.items()]
  return found


def _point(row: Mapping[str, Any], name: str, axes: tuple[str, str], along: str | None) -> Point:
  across, quality = axes
  stderr = _stderr(row, quality)
  label = "" if along is None else cell(row.get(along))
  said = f"{name or 'samples'}: {heading(quality)} {with_error(row[quality], stderr)}, "
  said += f"{heading(across)} {number(row[across])}"
  said += f", {heading(along)} {label}" if along else ""
  return Point(x=row[across], y=row[quality], stderr=stderr, label=label, title=said)


def _kinds(models: Sequence[str], known: Mapping[str, int]) -> list[int]:
  """Colours: those of runs where each line is of another one of them, else in turn."""
  if len(set(models)) == len(models) and set(models) <= set(known):
    return [known[model] for model in models]
  return list(range(len(models)))


def _follows(rows: Sequence[Mapping[str, Any]], name: str, along: str | None) -> bool:
  """Whether each value of one setting comes with one value of the other."""
  pairs = {(row.get(along or ""), row.get(name)) for row in rows}
  return len(pairs) == len({first for first, _ in pairs})


def _number(value: Any) -> float:
  return float(value) if _is(value) else math.inf


def _words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Fields of words that tell series apart; a verdict is an outcome and tells nothing."""
  return [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if all(isinstance(row.get(name), str | None) for row in rows)
    and len({row.get(name) for row in rows}) > 1
    and name not in ("verdict", "word", "text", "sha256", "reasons")
  ]


def _model(row: Mapping[str, Any]) -> str:
  """What gives a row its colour, where it is named."""
  return next((str(row[name]) for name in MODEL_FIELDS if row.get(name) is not None), "")


def _first(rows: Sequence[Mapping[str, Any]], names: Sequence[str], least: int = 2) -> str | None:
  """The first of some fields that so many rows have a number of."""
  return next((name for name in names if sum(_is(row.get(name)) for row in rows) >= least), None)


def _named_axis(name: str, log: bool) -> str:
  said = "calls of the network" if name in _CALLS[:3] else heading(name)
  said += ", nats" if name in _ENTROPY else ""
  return f"{said} (log scale)" if log else said


def _stderr(row: Mapping[str, Any], name: str) -> float:
  value = row.get(name + STDERR)
  return float(value) if _is(value) and value is not None else 0.0


def _is(value: Any) -> bool:
  """Whether it is a finite number."""
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
