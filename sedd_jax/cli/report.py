"""sedd report: runs and their evaluations side by side."""

import sys
import time

import jax

from sedd_jax.cli import app, path_flags
from sedd_jax.cli.text import wrap
from sedd_jax.reports.report import collect
from sedd_jax.reports.result import joined
from sedd_jax.reports.tables import Table, plain, result_table, run_table, seeds_table
from sedd_jax.reports.write import check_report_path, write_report
from sedd_jax.training.rundir import versions

USAGE = """Compares runs and what was evaluated of them: a table here, and a page with --out.

  sedd report runs/*
  sedd report runs/* --out=report.html
  sedd report runs/* evaluations/wikitext2 --out=report.md

It reads run directories, folders of them, and every evaluation.json below them or in other folders
(--out of sedd evaluate, grade, frontier and infilling). The page needs no network and no other
file; .md holds its tables and samples, .json all numbers. An older report of that name is replaced,
any other file is not. Nothing else is written, so it is safe while a run trains.
"""
_RUN = path_flags.define_each_path("run", None, "Run or folder; its name alone does too. Repeated.")
_OUT = path_flags.define_path("out", None, "File to write: .html, .md or .json.")


def main() -> None:
  (paths,) = app.require(USAGE, _RUN)
  out = _OUT.value
  if out is not None:
    check_report_path(out)
  # Shapes are counted and nothing is computed, so devices of a running training stay free.
  jax.config.update("jax_platforms", "cpu")
  report = collect(paths)
  if report.runs:
    _show(run_table(report))
  if table := seeds_table(report):
    print(f"\n{table.title}")
    _show(table)
  for result in joined(report.results):
    table = result_table(result)
    print(f"\n{table.title}")
    _show(table)
    for line in result.headline:
      print(wrap(line, sys.stdout))
  for name, fault in report.problems:
    print(wrap(f"{name}: {fault}" if name else fault, sys.stdout))
  if out is not None:
    write_report(report, out, made=time.time(), version=versions()["sedd-jax"])
    print(f"\nwrote {out}")


def _show(table: Table) -> None:
  if table.columns:
    print(plain(table))
  if table.note:
    print(wrap(table.note, sys.stdout))


def run() -> None:
  app.run(main, USAGE, takes="run")


if __name__ == "__main__":
  run()
