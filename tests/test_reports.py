"""sedd report: what it finds, what it shows, and what it does not touch."""

import json
import re

import pytest
from support.command import sedd
from support.reports import NASTY, WHEN, frontier, make_folders, make_result, make_run

from sedd_jax.reports.figures import result_figures, run_figures
from sedd_jax.reports.markdown import markdown_of
from sedd_jax.reports.numbers import NOTHING, cell, number, with_error
from sedd_jax.reports.page import page_of
from sedd_jax.reports.report import collect, differing
from sedd_jax.reports.result import joined
from sedd_jax.reports.tables import plain, result_table, run_table, seeds_table, settings_table
from sedd_jax.reports.write import write_report
from sedd_jax.studies.grades import REAL


@pytest.fixture
def found(tmp_path):
  """The folder of `make_folders`."""
  make_folders(tmp_path)
  return tmp_path


@pytest.fixture
def report(found):
  return collect([found / "runs", found / "evaluations"])


# What is found.


def test_runs_and_evaluations_are_found_wherever_they_lie(found, report):
  assert [run.name for run in report.runs] == ["a", "b", "begun", "broken"]
  assert [(r.name, r.kind) for r in report.results] == [
    ("likelihood", "likelihood"),
    ("frontier", "frontier"),
  ]
  assert not report.faults
  again = collect(
    [found / "runs" / "a", found / "runs" / "a", found / "runs" / ".." / "runs" / "a"]
  )
  assert [run.name for run in again.runs] == ["a"]
  one = collect([found / "evaluations" / "frontier" / "evaluation.json"])
  assert [r.name for r in one.results] == ["frontier"]


def test_names_are_as_long_as_they_must_be(tmp_path):
  make_run(tmp_path / "x" / "small")
  make_run(tmp_path / "y" / "small")
  assert [run.name for run in collect([tmp_path]).runs] == ["x/small", "y/small"]


def test_states_and_faults(report):
  a, _, begun, broken = report.runs
  assert (a.state, a.faults, a.samples_from) == ("finished", [], "final_00000008.txt")
  assert list(a.samples) == ["One text.", "Another."]
  assert begun.state == "step 2 of 8"
  assert list(begun.faults) == ["it has no checkpoint yet"]
  assert broken.state == "broken"
  assert len(broken.faults) == 2
  assert "config.json is damaged" in broken.faults[0]
  assert "metrics.jsonl" in broken.faults[1]
  assert list(broken.samples), "what can be read is shown"


def test_files_that_hold_no_evaluation_are_named(found):
  folder = found / "evaluations" / "frontier"
  for text, message in (
    ('{"rows": [', "is damaged"),
    ('{"rows": 3, "kind": "quality"}', "rows must be a list of objects"),
    ('{"rows": []}', "kind=None must be a word"),
    ('{"rows": [], "kind": "x", "settings": 3}', "settings must be an object"),
    ("[]", "must hold an object"),
  ):
    (folder / "evaluation.json").write_text(text)
    faults = collect([folder]).faults
    assert len(faults) == 1
    assert message in faults[0]
    assert "frontier/evaluation.json" in faults[0]
  run = found / "runs" / "a"
  assert "holds no evaluation" in collect([run / "evaluation.json"]).faults[0]
  with pytest.raises(FileNotFoundError, match="no run and no evaluation"):
    collect([run / "samples"])
  with pytest.raises(FileNotFoundError, match="nothing does not exist"):
    collect([found / "nothing"])


# Tables.


def test_the_table_of_runs(report):
  table = run_table(report)
  rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
  assert rows["a"]["bound, bits/char"] == "3.250 ± 0.020"
  assert rows["a"]["paper bound"] == "3.240 ± 0.020"
  assert rows["a"]["tokens seen"] == "1,024"
  assert rows["a"]["tokens/s"] == "500"
  assert rows["a"]["parameters"] == f"{report.runs[0].found['parameters']:,}"
  assert rows["begun"]["bound, bits/char"] == rows["broken"]["steps"] == NOTHING
  assert "MFU" not in table.columns, "no run has one"
  assert all(len(line) == len(plain(table).split("\n")[0]) for line in plain(table).split("\n"))


def test_only_settings_that_differ_are_shown(report, found):
  assert differing(report.runs[:2]) == {"seed": [0, 7]}
  assert differing(report.runs[:1]) == {}
  config = json.loads((found / "runs" / "b" / "config.json").read_text())
  del config["seed"], config["objective"]
  (found / "runs" / "b" / "config.json").write_text(json.dumps(config))
  assert settings_table(collect([found / "runs" / "a", found / "runs" / "b"])) is None


def test_bounds_on_the_way_and_of_other_text_are_marked(tmp_path):
  make_run(tmp_path / "a")
  other = make_run(tmp_path / "b", saved=(4,))
  (other / "corpus.json").write_text(json.dumps({"name": "x", "sha256": "1" * 64}))
  table = run_table(collect([tmp_path]))
  assert "3.750 ± 0.020 *" in table.rows[1]
  assert "on the way" in table.note
  assert "do not compare" in table.note


def test_the_table_of_an_evaluation(report):
  likelihood, frontier = map(result_table, report.results)
  assert likelihood.columns == ("model", "set", "bits/char")
  assert likelihood.rows[0] == ("a", "wikitext2", "1.500 ± 0.010")
  assert f"sha256 {'ab' * 6}…" in likelihood.note
  assert "judge gpt2" in frontier.note
  assert "samples 64" in frontier.note, "what is the same in all rows stands below"
  assert frontier.columns[3:5] == ("perplexity", "token entropy")
  assert frontier.rows[0][3] == "100.0 ± 2.0"
  assert frontier.numeric == (False, True, True, True, True, False)


def test_numbers():
  assert with_error(4.5671, 0.0313) == "4.567 ± 0.031"
  assert with_error(1234.56, 12.3) == "1,235 ± 12"
  assert with_error(0.5, 0.00096) == "0.50000 ± 0.00096"
  assert with_error(3.85, 1e-9) == "3.85", "an error of rounding is none"
  assert with_error(2.0, float("nan")) == "2"
  assert with_error(None, 1.0) == NOTHING
  assert [number(x) for x in (1e6, 12345.6, 0.1234567, 1.23e-7)] == [
    "1,000,000", "12,346", "0.12346", "1.23e-07",
  ]  # fmt: skip
  assert [cell(x) for x in (None, True, [1, 2.5], "", "a" * 64)] == [
    NOTHING, "yes", "1, 2.5", "none", "aaaaaaaaaaaa…",
  ]  # fmt: skip


# Runs of one label, evaluations of one kind.


@pytest.fixture
def sweep(tmp_path):
  """Two labels with two seeds each, and a likelihood of each label's first run."""
  for i, (label, strict) in enumerate((("sedd", 3.0), ("mdlm", 3.3), ("sedd", 3.2), ("mdlm", 3.4))):
    run = make_run(tmp_path / f"run{i}", strict=strict, label=label, seed=i // 2)
    if i < 2:
      rows = [{"set": "wikitext2", "perplexity": 30.0 + i, "perplexity_stderr": 0.5}]
      settings = {"checkpoint": str(run), "protocol": "sedd", "num_times": 8 + i}
      make_result(run / "likelihood", "likelihood", rows, settings=settings)
  return collect([tmp_path])


def test_runs_of_one_label_are_one_group(sweep):
  assert [run.name for run in sweep.runs] == [
    "sedd (run0)", "mdlm (run1)", "sedd (run2)", "mdlm (run3)",
  ]  # fmt: skip
  table = seeds_table(sweep)
  assert table.rows[0] == ("sedd", "2", "3.1000", "0.1414")
  assert table.rows[1][:3] == ("mdlm", "2", "3.3500")
  settings = settings_table(sweep)
  assert settings.columns == ("setting", "sedd", "mdlm")
  assert settings.rows == (("seed", "0 / 1", "0 / 1"),)
  training, bounds = run_figures(sweep)
  assert {(s.name, s.kind) for s in training.series if s.name} == {("sedd", 0), ("mdlm", 1)}
  assert [(name, [dot.x for dot in row if not dot.hollow]) for name, row in bounds.rows] == [
    ("sedd", [3.0, 3.2]),
    ("mdlm", [3.3, 3.4]),
  ]
  assert page_of(sweep, **WHEN).count("</svg>sedd</li>") == 1, "one entry of the legend"


def test_evaluations_of_one_kind_are_one_table(sweep):
  (both,) = joined(sweep.results)
  table = result_table(both)
  assert table.columns == ("model", "num times", "perplexity")
  assert table.rows == (
    ("sedd (run0)", "8", "30.00 ± 0.50"),
    ("mdlm (run1)", "9", "31.00 ± 0.50"),
  )
  assert "protocol sedd" in table.note
  assert "set wikitext2" in table.note
  (dots,) = result_figures(both, {"mdlm (run1)": 0, "sedd (run0)": 1})
  assert [(name, [(dot.kind, dot.x) for dot in row]) for name, row in dots.rows] == [
    ("wikitext2", [(1, 30.0), (0, 31.0)])
  ]


def test_a_line_of_a_frontier_runs_along_one_setting(tmp_path):
  rows = [
    {"steps": s, "calls": s, "temperature": t, "perplexity": 1e3 / s / t, "token_entropy": 4 + t}
    for s in (64, 16)
    for t in (1.0, 0.5)
  ]
  report = collect([make_result(tmp_path / "f", "frontier", rows)])
  diversity, cost = result_figures(report.results[0])
  assert [(s.name, [p.label for p in s.points]) for s in diversity.series] == [
    ("steps 64", ["0.5", "1"]),
    ("steps 16", ["0.5", "1"]),
  ]
  assert [(s.name, [p.x for p in s.points]) for s in cost.series] == [
    ("temperature 1", [16, 64]),
    ("temperature 0.5", [16, 64]),
  ]


def test_a_run_that_diverged_is_shown(tmp_path):
  """Python writes NaN and Infinity into JSON, and reads them."""
  run = make_run(tmp_path / "run")
  make_run(tmp_path / "well")
  for name in ("metrics.jsonl", "evaluation.json"):
    text = (run / name).read_text()
    (run / name).write_text(re.sub(r'("(heldout_bits|train)[a-z_]*": )[-\d.]+', r"\1NaN", text))
  report = collect([tmp_path])
  assert "nan" in run_table(report).rows[0]
  page = page_of(report, **WHEN)
  assert "NaN" not in page
  assert page.count(">nan<") == 2
  path = tmp_path / "report.json"
  write_report(report, path, **WHEN)
  assert json.loads(path.read_text())["runs"][0]["found"]["bound"]["bits_per_char_strict"] is None


def test_a_frontier_with_a_baseline_and_real_text(tmp_path):
  """as `sedd frontier` writes it: steps along one line, temperatures along the other."""
  rows = [
    {"label": "sedd", "sampler": "tweedie", "steps": s, "temperature": 1.0, "calls": s + 1.0,
     "perplexity": 50.0 + 100 / s, "token_entropy": 4.0 - 1 / s, "verdict": "poor"}
    for s in (64, 16)
  ] + [
    {"label": "ar", "sampler": "cached", "steps": None, "temperature": t, "calls": 128.0,
     "perplexity": 40.0 * t, "token_entropy": 3 + t, "verdict": "like text"}
    for t in (1.0, 0.8)
  ]  # fmt: skip
  real = {"label": REAL, "calls": None, "perplexity": 35.0, "token_entropy": 4.1}
  said = ["sedd, tweedie: not as good as ar"]
  folder = make_result(tmp_path / "f", "frontier", [*rows, real], headline=said)
  report = collect([folder])
  diversity, cost = result_figures(report.results[0])
  assert [(s.name, [p.label for p in s.points]) for s in diversity.series] == [
    ("sedd, tweedie", ["16", "64"]),
    ("ar, cached", ["0.8", "1"]),
    (REAL, [""]),
  ]
  assert [s.name for s in cost.series] == ["sedd, tweedie", "ar, cached"]
  assert list(cost.levels) == [(REAL, 35.0)]
  assert "steps, temperature" in diversity.note
  for text in (page_of(report, **WHEN), markdown_of(report, **WHEN)):
    assert said[0] in text
  assert said[0] in sedd("report", folder).stdout
  found = json.loads((folder / "evaluation.json").read_text())
  (folder / "evaluation.json").write_text(json.dumps(found | {"headline": "x"}))
  assert "headline must be a list" in collect([folder]).faults[0]


# Files.


def test_markdown_holds_tables_and_samples(report):
  text = markdown_of(report, **WHEN)
  assert text.startswith("<!-- sedd report -->\n")
  assert "| a | finished | absorbing, scaled | 3.250 ± 0.020 |" in text
  assert f"```\n{NASTY}\n```" in text
  assert "\\<script\\>" in text, "in tables it is escaped"
  rows = [line for line in text.split("\n") if line.startswith("| ")]
  assert all(line.endswith(" |") for line in rows)


def test_a_fence_is_longer_than_what_it_holds(tmp_path):
  make_run(tmp_path / "a", samples=("```\ncode\n```` end",))
  assert "`````\n```\ncode\n```` end\n`````" in markdown_of(collect([tmp_path]), **WHEN)


def test_json_holds_all_numbers(report, tmp_path):
  path = tmp_path / "report.json"
  write_report(report, path, **WHEN)

  def strict(word):
    raise AssertionError(word)

  found = json.loads(path.read_text(), parse_constant=strict)
  assert [run["name"] for run in found["runs"]] == ["a", "b", "begun", "broken"]
  assert found["runs"][0]["found"]["bound"]["bits_per_char_strict"] == 3.25
  assert found["evaluations"][1]["rows"] == frontier()
  assert "seed" in found["settings_that_differ"]


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_only_an_older_report_is_replaced(report, tmp_path, suffix):
  path = tmp_path / f"report{suffix}"
  write_report(report, path, **WHEN)
  write_report(report, path, made=1.8e9, version="1.2.4")
  assert "1.2.4" in path.read_text().replace("\\", "")
  path.write_text("<html>mine</html>" if suffix == ".html" else '{"mine": 1}')
  with pytest.raises(FileExistsError, match="was not written by sedd report"):
    write_report(report, path, **WHEN)
  assert "mine" in path.read_text()
  assert not list(tmp_path.glob("*.partial"))


def test_the_command(found):
  out = found / "report.html"
  done = sedd("report", found / "runs" / "a", found / "runs" / "b", "--out", out)
  assert (done.returncode, done.stderr) == (0, "")
  assert "3.250 ± 0.020" in done.stdout
  assert "wrote" in done.stdout
  assert "\nLikelihood\nmodel" in done.stdout
  assert out.is_file()
  quiet = sedd("report", found / "runs")
  assert quiet.returncode == 0
  assert "begun: it has no checkpoint yet" in quiet.stdout
  for arguments, message in (
    ([], "--run is missing"),
    ([found / "runs", f"--out={found / 'report.pdf'}"], "must end in .html, .md or .json"),
    ([found / "runs", f"--out={found / 'no' / 'report.md'}"], "there is no folder"),
    ([found / "nowhere"], "does not exist"),
    ([found / "runs", "--outt=x"], "did you mean --out?"),
  ):
    done = sedd("report", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
