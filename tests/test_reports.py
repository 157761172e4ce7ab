"""sedd report: what it finds, what it shows, what it does not touch, and the page in a browser."""

import dataclasses
import html.parser
import json
import re

import pytest
from support.browser import Page, find_chromium
from support.command import sedd
from support.experiments import TINY

from sedd_jax.data import Chars
from sedd_jax.reports.chart import Chart, Dot, Dots, Point, Series, draw, draw_dots
from sedd_jax.reports.figures import result_figures, run_figures
from sedd_jax.reports.markdown import markdown_of
from sedd_jax.reports.numbers import NOTHING, cell, number, with_error
from sedd_jax.reports.page import page_of
from sedd_jax.reports.report import collect, differing
from sedd_jax.reports.result import joined
from sedd_jax.reports.tables import (
  plain,
  result_table,
  run_table,
  seeds_table,
  settings_table,
)
from sedd_jax.reports.write import write_report
from sedd_jax.studies.samples import REAL

NASTY = '</pre><script>alert("x")</script> & | `` <b>'
WHEN = {"made": 1.7e9, "version": "1.2.3"}


def bound(step, strict, stderr=0.02):
  return {
    "step": step,
    "heldout_bits_per_char_strict": strict,
    "heldout_bits_per_char_strict_stderr": stderr,
    "heldout_bits_per_char_paper": strict - 0.01,
    "heldout_bits_per_char_paper_stderr": stderr,
    "heldout_bigram_bits_per_char": 3.5,
    "heldout_unigram_bits_per_char": 4.75,
  }


def make_run(workdir, *, saved=(4, 8), strict=3.25, samples=("One text.", "Another."), **changes):
  """A run directory as training leaves it, without weights."""
  experiment = dataclasses.replace(TINY, **changes)
  workdir.mkdir(parents=True)
  files = {
    "config.json": dataclasses.asdict(experiment),
    "corpus.json": {"name": "text", "sha256": "0" * 64, "characters": 1000},
    "tokenizer.json": Chars("abc").to_json(),
    "versions.json": {"jax": "0"},
  }
  if saved[-1:] == (8,):
    files["evaluation.json"] = bound(8, strict)
  for name, value in files.items():
    (workdir / name).write_text(json.dumps(value))
  for step in saved:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
  last = max(saved, default=2)
  lines = [
    {"step": s, "time": 1.0, "train_bits_per_char": 6 - s / 4, "tokens_per_second": 100.0 * s}
    for s in range(2, last + 1, 2)
  ]
  lines += [{"time": 1.0, **bound(s, strict + (8 - s) / 8)} for s in range(4, last + 1, 4)]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (workdir / "samples").mkdir()
  if samples:
    text = "".join(f"--- sample {i}\n{text}\n" for i, text in enumerate(samples))
    (workdir / "samples" / f"final_{last:08d}.txt").write_text(text)
  return workdir


def make_result(folder, kind, rows, **more):
  folder.mkdir(parents=True)
  found = {"kind": kind, "rows": rows, "settings": {"judge": "gpt2", "seed": 0}, **more}
  (folder / "evaluation.json").write_text(json.dumps(found))
  return folder


def frontier():
  return [
    {
      "model": model,
      "temperature": t,
      "calls": calls,
      "perplexity": base / t,
      "perplexity_stderr": 2.0,
      "token_entropy": 5 - t / 2,
      "verdict": "degenerate" if t > 1 else "like text",
      "samples": 64,
    }
    for model, base in (("absorbing", 80.0), ("uniform", 95.0))
    for t, calls in ((0.8, 16), (1.0, 64), (1.2, 256))
  ]


@pytest.fixture
def found(tmp_path):
  """Two runs, one that is broken and one that has only begun, and evaluations of three kinds."""
  runs = tmp_path / "runs"
  make_run(runs / "a")
  make_run(runs / "b", strict=3.5, seed=7, samples=(NASTY,))
  make_run(runs / "begun", saved=(), samples=())
  broken = make_run(runs / "broken")
  (broken / "config.json").write_text('{"train": ')
  (broken / "metrics.jsonl").write_text("[1]\n")
  make_result(tmp_path / "evaluations" / "frontier", "frontier", frontier())
  rows = [
    {"model": m, "set": s, "bits_per_char": v, "bits_per_char_stderr": 0.01, "sha256": "ab" * 32}
    for m, v in (("a", 1.5), ("b", 1.6))
    for s in ("wikitext2", "lambada")
  ]
  make_result(runs / "a" / "likelihood", "likelihood", rows, settings={"protocol": NASTY})
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
  """As `sedd evaluate --frontier` writes it: steps along one line, temperatures along the other."""
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


# Charts.


def test_a_chart_shows_its_numbers_where_they_are():
  points = [Point(x=0, y=1.0, stderr=0.25), Point(x=10, y=3.0)]
  svg = draw(
    Chart(title="t", x_label="x", y_label="y", series=[Series(name="s", kind=0, points=points)])
  )
  marks = [tuple(map(float, m)) for m in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
  ticks = re.findall(r'class="tick( end)?" x="([\d.]+)" y="([\d.]+)">([\d.]+)<', svg)
  down = {float(text): float(y) - 4 for end, _, y, text in ticks if end}
  across = {float(text): float(x) for end, x, _, text in ticks if not end}
  scale = (down[1.0] - down[3.0]) / 2
  assert marks[0] == pytest.approx((across[0.0], down[1.0]), abs=0.2)
  assert marks[1] == pytest.approx((across[10.0], down[3.0]), abs=0.2)
  ((top, bottom),) = re.findall(r'class="bar" [^>]*y1="([\d.]+)" y2="([\d.]+)"', svg)
  assert abs(float(top) - float(bottom)) == pytest.approx(4 * 0.25 * scale, abs=0.3)


def test_logarithmic_axes_and_values_that_do_not_vary():
  points = [Point(x=x, y=y) for x, y in ((1, 10.0), (10, 100.0), (100, 1000.0))]
  svg = draw(
    Chart(
      title="t", x_label="x", y_label="y", log_x=True, log_y=True,
      series=[Series(name="s", kind=0, points=points)],
    )
  )  # fmt: skip
  xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
  assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
  level = [Series(name="s", kind=11, points=[Point(x=1, y=2.0)])]
  assert "NaN" not in draw(Chart(title="t", x_label="x", y_label="y", series=level))
  dots = Dots(title="t", x_label="x", rows=[("n" * 200, [Dot(kind=0, x=0.0)])])
  assert "nan" not in draw_dots(dots)
  assert "n" * 60 not in draw_dots(dots), "long names are shortened"


def test_which_charts_there_are(report):
  training, bounds = run_figures(report)
  assert [s.name for s in training.series if s.name] == ["a", "b"]
  assert dict(training.levels) == {"unigram entropy": 4.75, "bigram entropy": 3.5}
  assert [(name, [dot.x for dot in row]) for name, row in bounds.rows] == [
    ("a", [3.25, 3.24]),
    ("b", [3.5, 3.49]),
  ]
  (likelihood,) = result_figures(report.results[0])
  assert [name for name, _ in likelihood.rows] == ["wikitext2", "lambada"]
  assert [name for _, name in likelihood.names] == ["a", "b"]
  diversity, cost = result_figures(report.results[1])
  assert [s.name for s in diversity.series] == ["absorbing", "uniform"]
  first = diversity.series[0].points[0]
  assert (first.x, first.y, first.label) == (4.6, 100.0, "0.8")
  assert [p.x for p in cost.series[1].points] == [16, 64, 256]


# The page.


class Tags(html.parser.HTMLParser):
  """Checks that elements end where they should, and notes what a browser would fetch or run."""

  void = ("meta", "link", "img", "br", "input", "line", "rect", "circle", "path")

  def __init__(self, text):
    super().__init__()
    self.open, self.fetched, self.scripts = [], [], 0
    self.feed(text)
    assert self.open == [], "elements are left open"

  def handle_starttag(self, tag, attrs):
    self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
    self.fetched += [value for name, value in attrs if name in ("src", "href", "style")]
    if tag not in self.void:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.fetched += [value for name, value in attrs if name in ("src", "href", "style")]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_fetches_nothing_runs_nothing_and_escapes_all(report):
  page = page_of(report, **WHEN)
  tags = Tags(page.replace("<!doctype html>", ""))
  assert (tags.fetched, tags.scripts) == ([], 0)
  assert "alert(&quot;x&quot;)" in page
  assert "<b>Missing" not in page
  assert page.count("{{") == 0
  for text in ("3.250 ± 0.020", "Another.", "1.500 ± 0.010", "it has no checkpoint yet", "1.2.3"):
    assert text in page


def test_a_name_is_only_text(tmp_path):
  make_run(tmp_path / "<img src=x onerror=alert(1)>")
  report = collect([tmp_path])
  tags = Tags(page_of(report, **WHEN).replace("<!doctype html>", ""))
  assert (tags.fetched, tags.scripts) == ([], 0)
  assert "<img" not in markdown_of(report, **WHEN).replace("\\<img", "")


def test_generations_are_shown_as_texts(tmp_path):
  rows = [{"sampler": "tweedie", "text": "once\nupon", "tokens": [1] * 9}, {"text": NASTY}]
  report = collect([make_result(tmp_path / "g", "generations", rows)])
  page = page_of(report, **WHEN)
  assert "<h3>tweedie</h3><pre>\nonce\nupon</pre>" in page
  assert "alert(&quot;x&quot;)" in page
  assert result_table(report.results[0]).columns == ("sampler",)


def colours(style, dark):
  """The palette of the page by day or by night."""
  day, night = re.findall(r":root \{([^}]*)\}", style)
  return dict(re.findall(r"--([\w-]+): (#\w{6})", night if dark else day))


def contrast(one, other):
  def luminance(colour):
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["day", "night"])
def test_all_of_the_page_can_be_seen(report, dark):
  palette = colours(page_of(report, **WHEN), dark)
  for text in ("ink", "quiet", "accent"):
    for ground in ("desk", "paper", "soft"):
      assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
  assert contrast(palette["warn"], palette["warn-ground"]) >= 4.5
  for mark in ("axis", *(f"c{i}" for i in range(8))):
    assert contrast(palette[mark], palette["paper"]) >= 3, mark


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  program = find_chromium()
  if program is None:
    pytest.skip("no Chromium here to look at the page with")
  page = Page(program, tmp_path_factory.mktemp("profile"))
  yield page
  page.close()


CUT_OFF = """
  [...document.querySelectorAll("svg.chart")].flatMap((svg) => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((text) => {
      const box = text.getBoundingClientRect();
      const beside = box.left < frame.left - 1 || box.right > frame.right + 1;
      return beside || box.bottom > frame.bottom + 1;
    }).map((text) => text.textContent);
  })"""
OVERLAPPING = """
  [...document.querySelectorAll("svg.chart")].flatMap((svg) => {
    const ticks = [...svg.querySelectorAll(".tick, .label")];
    const boxes = ticks.map((tick) => [tick.textContent, tick.getBoundingClientRect()]);
    const meet = (a, b) => a.left < b.right && b.left < a.right
      && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
    return boxes.flatMap(([name, box], i) =>
      boxes.slice(i + 1).filter((other) => meet(box, other[1])).map((other) => [name, other[0]]));
  })"""


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_in_a_browser(browser, report, tmp_path, width):
  path = tmp_path / "report.html"
  write_report(report, path, **WHEN)
  browser.open(path, width=width)
  assert browser.errors == []
  assert browser.requests == [path.as_uri()]
  assert browser.run("document.documentElement.scrollWidth") <= width, "no scrolling to the side"
  assert browser.run("document.querySelectorAll('svg.chart').length") == 5
  # Styles hold: a series has its colour, the first sample is read as it was written.
  stroke = browser.run("getComputedStyle(document.querySelector('.s1.line')).stroke")
  assert stroke == "rgb(194, 78, 0)"
  assert browser.run("document.querySelectorAll('.samples pre')[0].textContent") == "One text."
  texts = browser.run("[...document.querySelectorAll('pre')].map((pre) => pre.textContent)")
  assert NASTY in texts
  assert browser.run(CUT_OFF) == []
  assert browser.run(OVERLAPPING) == []


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
