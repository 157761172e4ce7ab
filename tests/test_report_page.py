"""What sedd report draws: charts, and the page, in a browser too."""

import html.parser
import re

import pytest
from support.browser import Page, find_chromium
from support.reports import NASTY, WHEN, make_folders, make_result, make_run

from sedd_jax.reports.chart import Chart, Dot, Dots, Point, Series, draw, draw_dots
from sedd_jax.reports.figures import result_figures, run_figures
from sedd_jax.reports.markdown import markdown_of
from sedd_jax.reports.page import page_of
from sedd_jax.reports.report import collect
from sedd_jax.reports.tables import result_table
from sedd_jax.reports.write import write_report


@pytest.fixture
def report(tmp_path):
  """The report of `make_folders`."""
  make_folders(tmp_path)
  return collect([tmp_path / "runs", tmp_path / "evaluations"])


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
