"""A report as Markdown: its tables and samples, for a repository or an issue."""

import re

from sedd_jax.reports.page import lead, title
from sedd_jax.reports.report import Report
from sedd_jax.reports.result import joined
from sedd_jax.reports.tables import Table, result_table, run_table, seeds_table, settings_table

MARK = "<!-- sedd report -->"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def markdown_of(report: Report, *, made: float, version: str) -> str:
  """The document; arguments as of `page_of`."""
  parts = [MARK, f"# {_text(title(report))}", _text(lead(report, made))]
  if report.problems:
    parts.append("## What could not be read, or is not there yet")
    parts.append(
      "\n".join(
        f"- {_text(f'{name}: {fault}' if name else fault)}" for name, fault in report.problems
      )
    )
  if report.runs:
    parts.append(_table(run_table(report)))
    parts += [_table(t) for t in (seeds_table(report), settings_table(report)) if t]
  for result in joined(report.results):
    parts.append(_table(result_table(result)))
    if result.headline:
      parts.append("\n".join(f"- {_text(line)}" for line in result.headline))
  if any(run.samples for run in report.runs):
    parts.append("## Samples")
  for run in report.runs:
    if run.samples:
      parts.append(f"### {_text(run.name)}\n\n{_fenced(run.samples[0])}")
  parts.append(f"Written by sedd report, sedd\\_jax {_text(version)}.")
  return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
  if not table.columns:
    return f"## {_text(table.title)}\n\nNo numbers."
  lines = [
    table.columns,
    tuple("--:" if numeric else "---" for numeric in table.numeric),
    *(tuple(map(_text, row)) for row in table.rows),
  ]
  body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  note = f"\n\n{_text(table.note)}" if table.note else ""
  return f"## {_text(table.title)}\n\n{body}{note}"


def _fenced(text: str) -> str:
  """A block of code, whatever the text holds."""
  fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
  return f"{fence}\n{text}\n{fence}"


def _text(text: str) -> str:
  """Text in one line that is nothing but text in Markdown."""
  return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
