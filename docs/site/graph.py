"""MkDocs hook: draws a fence of `mermaid` that holds a graph when the site is built.

GitHub draws the same fence itself. Material's way fetches a script of 3 MB from elsewhere. Only
`graph TD` with lines `a --> b` is read, without circles: what docs/draw_packages.py writes.
"""

import graphlib
import itertools
import re
import statistics
from xml.sax.saxutils import escape

_COLUMN, _ROW, _WIDTH, _HEIGHT = 120, 64, 96, 28
_EDGE = re.compile(r"^\s*(\w+) --> (\w+)\s*$")
_HEAD = (
  '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6"'
  ' orient="auto"><path d="M0 0L6 3L0 6z" fill="currentColor"/></marker></defs>'
)


def on_config(config):
  """The configuration with the fence."""
  superfences = config.mdx_configs.setdefault("pymdownx.superfences", {})
  fence = {"name": "mermaid", "class": "graph", "format": _fence}
  superfences.setdefault("custom_fences", []).append(fence)
  return config


def _fence(
  source, language, css_class, options, md, **kwargs
) -> str:  # The signature is superfences'.
  """The fence as HTML."""
  del language, options, md, kwargs
  first, *lines = source.strip().splitlines()
  edges = [match.groups() for line in lines if (match := _EDGE.match(line))]
  if first != "graph TD" or len(edges) != len(lines):
    raise ValueError(f"not a graph of lines `a --> b`: {source[:80]!r}")
  return f'<div class="{css_class}">{svg(edges)}</div>'


def svg(edges: list[tuple[str, ...]]) -> str:
  """A picture of a graph without circles; arrows point down, each node below all that name it."""
  rows = _rows(edges)
  chains = [_chain(edge, rows) for edge in edges]
  columns = _columns(rows, chains)
  half = (max(map(abs, columns.values())) + 0.5) * _COLUMN
  arrows = [_arrow([(columns[node], node[1]) for node in chain]) for chain in chains]
  boxes = [_box(node, columns[node, row], row) for node, row in rows.items()]
  view = f"{-half} {-_ROW / 2} {2 * half} {(max(rows.values()) + 1) * _ROW}"
  return f'<svg viewBox="{view}" role="img">{_HEAD}{"".join(arrows + boxes)}</svg>'


def _rows(edges: list[tuple[str, ...]]) -> dict[str, int]:
  """The row of each node, from the top: one more than the lowest above it."""
  above: dict[str, set[str]] = {node: set() for edge in edges for node in edge}
  for upper, lower in edges:
    above[lower].add(upper)
  rows: dict[str, int] = {}
  for node in graphlib.TopologicalSorter(above).static_order():
    rows[node] = max((rows[upper] + 1 for upper in above[node]), default=0)
  return rows


def _chain(edge: tuple[str, ...], rows: dict[str, int]) -> list[tuple[str, int]]:
  """An edge as points, each a name and a row: its ends, and one in every row between."""
  upper, lower = edge
  between = [(f"{upper} --> {lower}", row) for row in range(rows[upper] + 1, rows[lower])]
  return [(upper, rows[upper]), *between, (lower, rows[lower])]


def _columns(
  rows: dict[str, int], chains: list[list[tuple[str, int]]]
) -> dict[tuple[str, int], float]:
  """The column of each point: side by side, ordered by the mean column of what is above."""
  points = dict.fromkeys([*rows.items(), *(point for chain in chains for point in chain)])
  above: dict[tuple[str, int], list[tuple[str, int]]] = {point: [] for point in points}
  for chain in chains:
    for upper, lower in itertools.pairwise(chain):
      above[lower].append(upper)
  columns: dict[tuple[str, int], float] = {}
  for row in range(max(rows.values()) + 1):
    means = {
      point: statistics.fmean(columns[upper] for upper in above[point]) if above[point] else 0
      for point in points
      if point[1] == row
    }
    for index, point in enumerate(sorted(means, key=lambda point: (means[point], point))):
      columns[point] = index - (len(means) - 1) / 2
  return columns


def _arrow(points: list[tuple[float, int]]) -> str:
  """A curve from the lower side of a box to the upper side of another, through points."""
  (column, row), *rest = points
  x, y = column * _COLUMN, row * _ROW + _HEIGHT / 2
  curve = f"M{x} {y}"
  for column, row in rest:
    end = column * _COLUMN
    bottom = row * _ROW - (_HEIGHT / 2 if (column, row) == rest[-1] else 0)
    curve += f"C{x} {(y + bottom) / 2} {end} {(y + bottom) / 2} {end} {bottom}"
    x, y = end, bottom
  return f'<path d="{curve}" fill="none" stroke="currentColor" marker-end="url(#tip)"/>'


def _box(node: str, column: float, row: int) -> str:
  """A node with its name."""
  x, y = column * _COLUMN, row * _ROW
  return (
    f'<rect x="{x - _WIDTH / 2}" y="{y - _HEIGHT / 2}" width="{_WIDTH}" height="{_HEIGHT}" rx="4"/>'
    f'<text x="{x}" y="{y + 5}" text-anchor="middle">{escape(node)}</text>'
  )
