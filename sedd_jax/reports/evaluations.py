"""Evaluations as text for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sedd_jax.reports.result import Result
from sedd_jax.reports.tables import Table, plain, result_table

_FIGURES = {
  "published": "the mean over times in [1e-3, 1], as the literature reports",
  "strict": "a true upper bound (docs/math.md, section 6)",
}
_NO_ENDS = "all of the bound, since this estimator has no ends to leave out"
_SUITE_COLUMNS = (
  "set", "perplexity", "bits/char", "nats/token", "tokens", "chunks", "seconds", "they are",
)  # fmt: skip
# Fields of a grade that a terminal shows, and those that identify its row.
_GRADE_FIELDS = (
  "prompt", "label", "sampler", "steps", "temperature", "calls", "perplexity", "perplexity_stderr",
  "nats_above_baseline", "nats_from_gap", "accuracy", "token_entropy", "distinct_2", "repetition",
  "mauve", "verdict",
)  # fmt: skip
_ROW_NAMES = ("prompt", "label", "sampler", "steps", "temperature")


def heldout_text(report: Mapping[str, Any]) -> str:
  """The report of `studies.heldout` as text."""

  def bound(name: str) -> str:
    value, stderr = report[f"bits_per_char_{name}"], report[f"bits_per_char_{name}_stderr"]
    return f"  bound ({name})".ljust(19) + f"{value:.4f} ± {stderr:.4f}"

  draws, error = f", {report['num_times']} draws each", "; ± one standard error of the estimate"
  bounds = f"{bound('strict')}\n{bound('paper')}"
  kind = "strict"
  if report["exact"]:
    draws = error = ""
    bounds, kind = f"  cross entropy    {report['bits_per_char_strict']:.4f}", "exact"
  return f"""step {report["step"]}: {report["blocks"]} held-out blocks{draws}
bits per character (lower is better{error})
{bounds}
  bigram entropy   {report["bigram_bits_per_char"]:.4f}
  unigram entropy  {report["unigram_bits_per_char"]:.4f}
perplexity per token ({kind})  {report["perplexity_per_token_strict"]:.3f}"""


def suite_text(report: Mapping[str, Any]) -> str:
  """The report of `studies.suites` as text."""
  rows = [
    (
      result["set"],
      f"{result['perplexity']:.3f} ± {result['perplexity_stderr']:.3f}",
      f"{result['bits_per_char']:.4f} ± {result['bits_per_char_stderr']:.4f}",
      f"{result['nats_per_token']:.4f} ± {result['nats_per_token_stderr']:.4f}",
      f"{result['tokens']:,}",
      f"{result['chunks']:,}",
      f"{result['seconds']:.1f}",
      result["status"],
    )
    for result in report["results"]
  ]
  step = "" if report["step"] is None else f", step {report['step']}"
  lines = [
    f"{report['suite']}, protocol {report['protocol']}: {report['checkpoint']}{step}",
    *_how(report),
    "",
    plain(_left_aligned(_SUITE_COLUMNS, rows)),
  ]
  if report["not_evaluated"]:
    lines.append(f"not evaluated: {', '.join(report['not_evaluated'])}")
  if other := [result["set"] for result in report["results"] if "DIFFER" in result["status"]]:
    lines.append(
      f"WARNING: the tokens of {', '.join(other)} are not those that this protocol makes of the "
      "published text: the text is another one, and the numbers are not comparable"
    )
  return "\n".join(lines)


def _how(report: Mapping[str, Any]) -> list[str]:
  """How the numbers of a suite were made, in lines."""
  if report["estimator"] == "exact":
    lines = [f"chunks of {report['length']} tokens; exact likelihood of an autoregressive model"]
    if not report.get("scores_first", True):
      lines.append("the first token of every chunk is not scored: this model has no law of it")
    return lines
  passes = "" if report["passes"] == 1 else f" x {report['passes']} passes"
  figure = report["results"][0]["figure"]
  has_ends = figure == "strict" or report["estimator"] == "times"
  meaning = _FIGURES[figure] if has_ends else _NO_ENDS
  return [
    f"chunks of {report['length']} tokens; {report['estimator']} ({report['time_sampling']}), "
    f"{report['num_times']} draws{passes} each; seed {report['seed']}",
    f"{figure}: {meaning}; ± one standard error of the Monte Carlo estimate",
  ]


def _left_aligned(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
  return Table(title="", columns=columns, numeric=(False,) * len(columns), rows=tuple(rows))


def grades_text(report: Mapping[str, Any]) -> str:
  """The report of `studies.grades`, `studies.frontier` or `studies.infilling` as text."""
  rows = [{name: row[name] for name in _GRADE_FIELDS if name in row} for row in report["rows"]]
  result = Result(
    name="", path=Path(), kind=report["kind"], model="", rows=rows, settings={}, points=[]
  )
  table = result_table(result)
  lines = [plain(table)]
  if table.note:
    lines.append(f"all: {table.note}")
  for row in report["rows"]:
    if row.get("reasons"):
      names = [str(row[name]) for name in _ROW_NAMES if row.get(name) is not None]
      lines.append(f"{' '.join(names)}: {row['reasons']}")
  return "\n".join([*lines, *report.get("headline", ())])
