"""A report as one page that needs no network, no script and no other file."""

import base64
import hashlib
import html
import importlib.resources
import re
import time
from collections.abc import Iterator, Mapping, Sequence

from sedd_jax.reports.chart import Chart, Dots, draw, draw_dots, sign
from sedd_jax.reports.figures import kinds_of, result_figures, run_figures
from sedd_jax.reports.report import Report, groups
from sedd_jax.reports.result import Result, joined
from sedd_jax.reports.run import Run
from sedd_jax.reports.tables import Table, result_table, run_table, seeds_table, settings_table

# How a page begins that a report was written into.
MARK = '<meta name="generator" content="sedd report">'
_BAD = ("degenerate", "broken", "poor")
_LONG = 40
# Samples that are there to be opened, after the first.
_MOST_SAMPLES = 8


def page_of(report: Report, *, made: float, version: str) -> str:
  """The page: `page.html` with the report filled in. All text in it is escaped.

  Args:
    made: Unix time, in seconds.
    version: of sedd_jax.
  """
  template = importlib.resources.files("sedd_jax.reports").joinpath("page.html").read_text("utf-8")
  style = template.split("<style>", 1)[1].split("</style>", 1)[0]
  fill = {
    "title": _text(title(report)),
    "lead": _text(lead(report, made)),
    "main": "\n".join(_sections(report)),
    "footer": _text(f"Written by sedd report, sedd_jax {version}."),
    "style_hash": "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
  }
  # In one pass, so that nothing in the data is taken for a place to fill.
  return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], template)


def title(report: Report) -> str:
  """What the report is about."""
  names = groups(report.runs) or [result.name for result in report.results]
  if not names:
    return "Report"
  if len(names) <= 2:
    return " and ".join(names)
  return f"{', '.join(names[:2])} and {len(names) - 2} more"


def lead(report: Report, made: float) -> str:
  """What was read, and when."""

  def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

  parts = [counted(len(report.runs), "run"), counted(len(report.results), "evaluation")]
  return f"{', '.join(parts)}. {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(made))}."


def _sections(report: Report) -> Iterator[str]:
  if report.problems:
    items = "".join(
      f"<li>{f'<b>{_text(name)}</b>: ' if name else ''}{_text(fault)}</li>"
      for name, fault in report.problems
    )
    heading = "What could not be read, or is not there yet"
    yield f'<section class="card problems"><h2>{heading}</h2><ul>{items}</ul></section>'
  if report.runs:
    yield _heading("Runs")
    yield f'<div class="card">{_table(run_table(report))}</div>'
    yield _pair(run_figures(report))
    if table := seeds_table(report):
      yield _heading(table.title)
      yield f'<div class="card">{_table(table)}</div>'
    if table := settings_table(report):
      yield _heading(table.title)
      yield f'<div class="card">{_table(table)}</div>'
  kinds = kinds_of(report.runs)
  for result in joined(report.results):
    yield _heading(result.title)
    yield from _result(result, kinds)
  shown = [(kinds[run.group], run) for run in report.runs if run.samples]
  if shown:
    yield _heading("Samples")
    yield f'<div class="samples">{"".join(_samples(run, kind) for kind, run in shown)}</div>'


def _result(result: Result, kinds: Mapping[str, int]) -> Iterator[str]:
  if result.headline:
    items = "".join(f"<li>{_text(line)}</li>" for line in result.headline)
    yield f'<div class="card"><ul class="headline">{items}</ul></div>'
  yield _pair(result_figures(result, kinds))
  table = result_table(result)
  if table.columns:
    yield f'<div class="card">{_table(table)}</div>'
  if texts := [_named_text(row) for row in result.rows if isinstance(row.get("text"), str)]:
    cards = "".join(
      f'<div class="card"><h3>{_text(name)}</h3><pre>\n{_text(text)}</pre></div>'
      for name, text in texts
    )
    yield f'<div class="samples">{cards}</div>'


def _named_text(row) -> tuple[str, str]:
  words = [
    str(value) for name, value in row.items() if name not in ("text", "tokens") and _small(value)
  ]
  return ", ".join(words) or "text", row["text"]


def _small(value: object) -> bool:
  return isinstance(value, str | int | float) and len(str(value)) <= _LONG


def _heading(text: str) -> str:
  return f"<h2>{_text(text)}</h2>"


def _pair(figures: Sequence[Chart | Dots]) -> str:
  if not figures:
    return ""
  return f'<div class="pair">{"".join(map(_figure, figures))}</div>'


def _figure(figure: Chart | Dots) -> str:
  if isinstance(figure, Dots):
    named, drawing = figure.names, draw_dots(figure)
  else:
    # Runs of one group share a name and a sign.
    named = dict.fromkeys((series.kind, series.name) for series in figure.series if series.name)
    drawing = draw(figure)
  items = "".join(f"<li>{sign(kind)}{_text(name)}</li>" for kind, name in named)
  legend = f'<ul class="legend">{items}</ul>' if items else ""
  note = f'<p class="note">{_text(figure.note)}</p>' if figure.note else ""
  return f'<div class="card"><h3>{_text(figure.title)}</h3>{legend}{drawing}{note}</div>'


def _table(table: Table) -> str:
  head = "".join(
    f'<th scope="col"{_class(numeric)}>{_text(name)}</th>'
    for name, numeric in zip(table.columns, table.numeric, strict=True)
  )
  body = "".join(
    f'<tr><th scope="row"{_class(False, row[0])}>{_text(row[0])}</th>'
    + "".join(
      f"<td{_class(numeric, cell)}>{_cell(cell)}</td>"
      for cell, numeric in zip(row[1:], table.numeric[1:], strict=True)
    )
    + "</tr>"
    for row in table.rows
  )
  note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}">'
    f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
  )


def _class(numeric: bool, cell: str = "") -> str:
  if numeric:
    return ' class="number"'
  return ' class="long"' if len(cell) > _LONG else ""


def _cell(cell: str) -> str:
  if cell in _BAD:
    return f'<span class="badge bad">{_text(cell)}</span>'
  if cell == "like text":
    return f'<span class="badge">{_text(cell)}</span>'
  return _text(cell)


def _samples(run: Run, kind: int) -> str:
  first, rest = run.samples[0], run.samples[1:_MOST_SAMPLES]
  more = ""
  if rest:
    texts = "".join(f"<pre>\n{_text(text)}</pre>" for text in rest)
    more = f"<details><summary>{len(rest)} more</summary>{texts}</details>"
  return (
    f'<div class="card"><h3>{sign(kind)}{_text(run.name)}</h3>'
    f'<p class="from">{_text(run.samples_from or "")}</p><pre>\n{_text(first)}</pre>{more}</div>'
  )


def _text(text: str) -> str:
  """Text that is nothing but text in a page."""
  return html.escape(text)
