"""A report into a file. Nothing is overwritten but an older report."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from sedd_jax.files.paths import local_path
from sedd_jax.files.whole import whole
from sedd_jax.reports import markdown, page
from sedd_jax.reports.report import Report, differing
from sedd_jax.reports.run import Run

SUFFIXES = (".html", ".md", ".json")
_JSON_MARK = '"format": "sedd report"'
_VERSION = 1
# So far into a file its mark lies.
_HEAD = 2000


def check_report_path(path: Path) -> Path:
  """The path, of which `write_report` would complain if this does not: to be called before a long
  read.

  Raises:
    ValueError: the suffix is none of a report.
    FileNotFoundError: the folder does not exist.
    FileExistsError: there is a file that is no report.
  """
  path = local_path(path, "--out")
  if path.suffix not in SUFFIXES:
    raise ValueError(f"--out={path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
  if not path.absolute().parent.is_dir():
    raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")
  if os.path.lexists(path) and not _is_ours(path):
    raise FileExistsError(
      f"{path} exists and was not written by sedd report: choose another name, or remove it"
    )
  return path


def write_report(report: Report, path: Path, *, made: float, version: str) -> None:
  """Writes a report; the path's suffix says how. The file appears whole or not at all.

  Args:
    report: what was found.
    path: a new file, or an older report: `.html` is a page with charts, `.md` its tables and
      samples, `.json` all numbers.
    made: Unix time, in seconds.
    version: of sedd_jax.

  Raises:
    ValueError, FileNotFoundError, FileExistsError: as `check_report_path`.
  """
  path = check_report_path(path)
  match path.suffix:
    case ".html":
      text = page.page_of(report, made=made, version=version)
    case ".md":
      text = markdown.markdown_of(report, made=made, version=version)
    case _:
      text = json.dumps(report_json(report, made, version), indent=2, ensure_ascii=False) + "\n"
  with whole(path) as partial:
    partial.write_text(text, encoding="utf-8")
    check_report_path(path)  # Another file may have appeared meanwhile.


def report_json(report: Report, made: float, version: str) -> dict[str, Any]:
  """All that a report knows, as JSON holds it; the mark stands first."""
  return {
    "format": "sedd report",
    "format_version": _VERSION,
    "sedd_jax": version,
    "time": round(made, 3),
    "runs": [_run(run) for run in report.runs],
    "settings_that_differ": differing([run for run in report.runs if run.config]),
    "evaluations": [
      _plain(dataclasses.asdict(result) | {"path": str(result.path)}) for result in report.results
    ],
    "faults": list(report.faults),
  }


def _run(run: Run) -> dict[str, Any]:
  return {
    "name": run.name,
    "path": str(run.path),
    "state": run.state,
    "faults": list(run.faults),
    "tokens_per_second": run.median("tokens_per_second"),
    "found": _plain(dict(run.found)),
    "metrics": _plain(list(run.metrics)),
    "samples": list(run.samples),
    "samples_from": run.samples_from,
  }


def _plain(value: Any) -> Any:
  """The same without NaN and infinities, which JSON does not have."""
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _is_ours(path: Path) -> bool:
  if path.is_symlink() or not path.is_file():
    return False
  with path.open("rb") as file:
    head = file.read(_HEAD).decode(errors="replace")
  match path.suffix:
    case ".html":
      return page.MARK in head
    case ".md":
      return head.startswith(markdown.MARK)
    case _:
      return head.lstrip("{ \n").startswith(_JSON_MARK)
