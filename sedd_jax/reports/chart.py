"""Charts as SVG that takes its colours from the page, for light and dark mode.

Colours and fonts are set by class, since the page's policy forbids inline styles. Series differ in
colour, in the form of their marks and in dashes.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

# In units of the drawing, of which a page shows 360 to 700 pixels.
_WIDTH, _HEIGHT = 470, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 43
# Colours of the page's palette, and forms of marks.
COLOURS = 8
_DASHES = 3
# Height of a line with a name, and of one with a value.
_NAME, _LINE = 17, 13
_LABEL_CHARACTERS = 58


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """A mark.

  Attributes:
    x: where.
    y: how much.
    stderr: bars of two of them above and below.
    label: written beside the mark, or "".
    title: shown under the pointer.
  """

  x: float
  y: float
  stderr: float = 0.0
  label: str = ""
  title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """Points that belong together.

  Attributes:
    name: in the legend; "" for none.
    kind: number of its colour, mark and dash; the same for the same thing in all charts.
    points: in the order in which a line joins them.
    marks: whether points are marked.
    faint: a thin line behind all others.
  """

  name: str
  kind: int
  points: Sequence[Point]
  marks: bool = True
  faint: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
  """Curves over two axes.

  Attributes:
    title: above.
    note: below.
    x_label: with its unit.
    y_label: with its unit.
    series: what is drawn.
    levels: (name, y) of lines across.
    log_x: whether the axis is logarithmic.
    log_y: whether the axis is logarithmic.
    y_range: the visible range; all by default.
  """

  title: str
  x_label: str
  y_label: str
  series: Sequence[Series]
  note: str = ""
  levels: Sequence[tuple[str, float]] = ()
  log_x: bool = False
  log_y: bool = False
  y_range: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
  """A value on a line of its own.

  Attributes:
    kind: number of its colour and mark.
    x: the value.
    stderr: a bar of two of them either way.
    title: shown under the pointer.
    hollow: whether only its outline is drawn.
  """

  kind: int
  x: float
  stderr: float = 0.0
  title: str = ""
  hollow: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dots:
  """Values with their errors below names, one name below the other.

  Attributes:
    title: above.
    note: below.
    x_label: with its unit.
    rows: (name, values).
    names: of kinds, for the legend; none where the rows' names say it.
    levels: (name, x) of lines down.
  """

  title: str
  x_label: str
  rows: Sequence[tuple[str, Sequence[Dot]]]
  note: str = ""
  names: Sequence[tuple[int, str]] = ()
  levels: Sequence[tuple[str, float]] = ()


@dataclasses.dataclass(frozen=True)
class _Axis:
  """A map from values to positions in the drawing."""

  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
    return self.start + (value - low) / (high - low) * (self.end - self.start)

  def holds(self, value: float) -> bool:
    return self.low <= value <= self.high


def draw(chart: Chart) -> str:
  """The SVG of curves."""
  points = [p for series in chart.series for p in series.points]
  xs = [p.x for p in points]
  bars = [p.y + side * 2 * p.stderr for p in points for side in (-1, 1)]
  ys = [y for y in bars if not chart.log_y or y > 0] + [level for _, level in chart.levels]
  x_axis = _axis(xs, chart.log_x, _LEFT, _WIDTH - _RIGHT)
  y_axis = _axis(chart.y_range or ys, chart.log_y, _HEIGHT - _BOTTOM, _TOP)
  parts = [_grid(x_axis, y_axis, chart)]
  lines, names = _levels(chart, y_axis)
  parts += lines
  drawn = sorted(chart.series, key=lambda series: not series.faint)
  # A drawing inside the drawing ends at its edges.
  width, height = _WIDTH - _RIGHT - _LEFT, _HEIGHT - _BOTTOM - _TOP
  box = f'x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}"'
  inner = "".join(_line(series, x_axis, y_axis) for series in drawn)
  parts.append(f'<svg {box} viewBox="{_LEFT} {_TOP} {width} {height}">{inner}</svg>')
  parts += [_marks(series, x_axis, y_axis) for series in drawn]
  parts += [*names, *_labels(chart, x_axis, y_axis)]
  name = f"{chart.title}: {chart.y_label} over {chart.x_label}"
  return _svg(name, _HEIGHT, "".join(parts))


def draw_dots(dots: Dots) -> str:
  """The SVG of values below names."""
  heights = [_NAME + _LINE * len(row) for _, row in dots.rows]
  bottom = _TOP + sum(heights) + _NAME * bool(dots.levels)
  height = bottom + _BOTTOM
  values = [dot for _, row in dots.rows for dot in row]
  xs = [dot.x + side * 2 * dot.stderr for dot in values for side in (-1, 1)]
  axis = _axis([*xs, *(x for _, x in dots.levels)], False, 16, _WIDTH - 16)
  parts = []
  for tick, text in _ticks(axis):
    x = axis(tick)
    parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
    parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{text}</text>')
  parts.append(
    f'<text class="label" x="{_WIDTH / 2}" y="{height - 9}">{html.escape(dots.x_label)}</text>'
  )
  parts += _columns(dots, axis, bottom)
  y = float(_TOP)
  for (name, row), used in zip(dots.rows, heights, strict=True):
    if y > _TOP:
      parts.append(f'<line class="grid" x1="16" x2="{_WIDTH - 16}" y1="{y}" y2="{y}"/>')
    parts.append(f'<text class="name" x="16" y="{y + 13}">{html.escape(_short(name))}</text>')
    parts += [_dot(dot, axis, y + _NAME + _LINE * (i + 0.5)) for i, dot in enumerate(row)]
    y += used
  return _svg(f"{dots.title}: {dots.x_label}", height, "".join(parts))


def _columns(dots: Dots, axis: _Axis, bottom: float) -> list[str]:
  """Vertical lines, with their names at the bottom; names that would overlap are joined."""
  parts, names = [], []
  for name, level in sorted(dots.levels, key=lambda level: level[1]):
    x = axis(level)
    end = bottom - _NAME
    parts.append(f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{end}"/>')
    if names and x - names[-1][0] < 8.0 * len(name):
      names[-1] = (names[-1][0], f"{names[-1][1]}, {name}")
    else:
      names.append((x, name))
  for x, name in names:
    half = 4.0 * len(name)
    at = min(max(x, half + 2), _WIDTH - half - 2)
    parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom - 4}">{html.escape(name)}</text>')
  return parts


def _dot(dot: Dot, axis: _Axis, y: float) -> str:
  low, high = axis(dot.x - 2 * dot.stderr), axis(dot.x + 2 * dot.stderr)
  bar = f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
  return (
    f'<g class="s{dot.kind % COLOURS}{" hollow" if dot.hollow else ""}">'
    f"<title>{html.escape(dot.title)}</title>{bar if dot.stderr else ''}"
    f"{_mark(dot.kind, axis(dot.x), y)}</g>"
  )


def sign(kind: int) -> str:
  """The mark of a kind, for a legend."""
  dash = f" d{kind // COLOURS % _DASHES}" if kind >= COLOURS else ""
  return (
    f'<svg class="sign s{kind % COLOURS}" viewBox="0 0 24 12" aria-hidden="true">'
    f'<path class="line{dash}" d="M1 6H23"/>{_mark(kind, 12, 6)}</svg>'
  )


def _svg(name: str, height: float, inner: str) -> str:
  return (
    f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
    f'aria-label="{html.escape(name)}">{inner}</svg>'
  )


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> _Axis:
  """An axis with a margin beyond the values."""
  low, high = min(values), max(values)
  if log:
    room = (high / low) ** 0.06 if high > low else 1.5
    return _Axis(low / room, high * room, start, end, log=True)
  room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
  # No negative part of an axis for values that are none.
  return _Axis(max(low - room, 0.0) if low >= 0 else low - room, high + room, start, end)


def _ticks(axis: _Axis) -> list[tuple[float, str]]:
  if axis.log:
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    span = axis.high / axis.low
    steps = (1,) if span > 1e3 else (1, 2, 5) if span > 15 else (1, 1.5, 2, 3, 4, 5, 7)
    found = [step * 10.0**decade for decade in decades for step in steps]
    found = [tick for tick in found if axis.holds(tick)]
    if len(found) > 1:
      return [(tick, _tick_text(tick, tick)) for tick in found]
  rough = (axis.high - axis.low) / 5
  size = 10.0 ** math.floor(math.log10(rough))
  step = next(size * f for f in (1, 2, 5, 10) if size * f >= rough)
  first = math.ceil(axis.low / step - 1e-9)
  count = int((axis.high - first * step) / step + 1e-9) + 1
  return [((first + i) * step, _tick_text((first + i) * step, step)) for i in range(count)]


def _tick_text(value: float, step: float) -> str:
  if abs(value) >= 1e6:
    return f"{value / 1e6:g}M"
  if abs(value) >= 1e4:
    return f"{value / 1e3:g}k"
  places = max(0, -math.floor(math.log10(step) + 1e-9))
  return f"{value:,.{places}f}"


def _grid(x_axis: _Axis, y_axis: _Axis, chart: Chart) -> str:
  bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  parts = []
  for tick, text in _ticks(y_axis):
    y = y_axis(tick)
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
  parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
  for tick, text in _ticks(x_axis):
    x = x_axis(tick)
    parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
    parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{text}</text>')
  middle = (_TOP + bottom) / 2
  return "".join(parts) + (
    f'<text class="label" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 9}">'
    f"{html.escape(chart.x_label)}</text>"
    f'<text class="label" transform="translate(15 {middle}) rotate(-90)">'
    f"{html.escape(chart.y_label)}</text>"
  )


def _levels(chart: Chart, y_axis: _Axis) -> tuple[list[str], list[str]]:
  """Horizontal lines, and their names, which are drawn over the curves."""
  lines: list[str] = []
  names: list[str] = []
  before = -math.inf
  for name, level in sorted(chart.levels, key=lambda level: -level[1]):
    if not y_axis.holds(level):
      continue
    y = y_axis(level)
    # The name stands above its line, unless that of the line before stands there.
    text = y - 4 if y - 4 - before > 12 else y + 12
    before = text
    lines.append(
      f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    )
    names.append(
      f'<text class="tick end" x="{_WIDTH - _RIGHT}" y="{text:.1f}">{html.escape(name)}</text>'
    )
  return lines, names


def _line(series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
  """The line of a series; it may leave the visible range."""
  if len(series.points) < 2:
    return ""
  dash = f" d{series.kind // COLOURS % _DASHES}" if series.kind >= COLOURS else ""
  path = "L".join(f"{x_axis(p.x):.1f} {y_axis(p.y):.1f}" for p in series.points)
  name = "faint" if series.faint else "line"
  return f'<path class="s{series.kind % COLOURS} {name}{dash}" d="M{path}"/>'


def _marks(series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
  """The visible marks of a series, with their error bars."""
  parts = []
  for p in series.points if series.marks else ():
    if not y_axis.holds(p.y):
      continue
    x, bar = x_axis(p.x), ""
    if p.stderr:
      ends = [p.y + side * 2 * p.stderr for side in (-1, 1)]
      low, high = (y_axis(min(max(end, y_axis.low), y_axis.high)) for end in ends)
      bar = f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    title = f"<title>{html.escape(p.title)}</title>" if p.title else ""
    parts.append(f"<g>{title}{bar}{_mark(series.kind, x, y_axis(p.y))}</g>")
  return f'<g class="s{series.kind % COLOURS}">{"".join(parts)}</g>' if parts else ""


def _labels(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> list[str]:
  """Names of single points, if they overlap no other name and no mark."""
  marks = [
    (x_axis(p.x), y_axis(p.y)) for series in chart.series if series.marks for p in series.points
  ]
  taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
  parts = []
  for series in chart.series:
    for p in series.points:
      if not p.label:
        continue
      x, y, width = x_axis(p.x), y_axis(p.y), 6.2 * len(p.label)
      choices = ((x + 8, y - 4), (x + 8, y + 12), (x - 8 - width, y - 4), (x - 8 - width, y + 12))
      for left, base in choices:
        box = (left, base - 9, left + width, base + 2)
        inside = (
          box[0] > _LEFT and box[2] < _WIDTH - 2 and box[1] > _TOP and box[3] < _HEIGHT - _BOTTOM
        )
        if inside and not any(_meet(box, other) for other in taken):
          taken.append(box)
          parts.append(
            f'<text class="point" x="{left:.1f}" y="{base:.1f}">{html.escape(p.label)}</text>'
          )
          break
  return parts


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
  return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _mark(kind: int, x: float, y: float) -> str:
  forms: tuple[Callable[[], str], ...] = (
    lambda: f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.8"/>',
    lambda: f'<rect class="mark" x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>',
    lambda: f'<path class="mark" d="M{x:.1f} {y - 4.6:.1f}l4.4 7.8h-8.8z"/>',
    lambda: f'<path class="mark" d="M{x:.1f} {y - 4.8:.1f}l4.6 4.8l-4.6 4.8l-4.6 -4.8z"/>',
    lambda: f'<path class="mark" d="M{x:.1f} {y + 4.6:.1f}l4.4 -7.8h-8.8z"/>',
  )
  return forms[kind % len(forms)]()


def _short(name: str) -> str:
  """A name shortened to its line: of a long one, its two ends."""
  if len(name) <= _LABEL_CHARACTERS:
    return name
  half = _LABEL_CHARACTERS // 2 - 1
  return f"{name[:half]} … {name[-half:]}"
