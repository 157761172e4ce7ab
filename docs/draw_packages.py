"""Draws the picture of the packages in docs/architecture.md from the imports.

python docs/draw_packages.py
"""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "sedd_jax"
PAGE = REPOSITORY / "docs" / "architecture.md"

_BEGIN, _END = "```mermaid\n", "```\n"


def main() -> None:
  """Writes the picture into the page."""
  PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_picture(page: str) -> str:
  """The page with the picture as the imports are now."""
  before, rest = page.split(_BEGIN, 1)
  _, after = rest.split(_END, 1)
  return f"{before}{_BEGIN}{picture(reduced(imports()))}{_END}{after}"


def imports() -> dict[str, set[str]]:
  """For each package or module directly under sedd_jax, those that it imports."""
  names = sorted(path.stem for path in PACKAGE.iterdir() if _is_code(path))
  graph = {name: set() for name in names if not name.startswith("__")}
  for name in graph:
    files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").is_file() else []
    for file in files or (PACKAGE / name).rglob("*.py"):
      graph[name] |= set(_imported(file)) & graph.keys() - {name}
  return graph


def _is_code(path: Path) -> bool:
  return path.suffix == ".py" or (path / "__init__.py").is_file()


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
  """The graph without imports that a path of other imports implies.

  Raises:
    graphlib.CycleError: packages import each other in a circle.
  """
  below: dict[str, set[str]] = {}  # All that a package imports, directly or not.
  for name in graphlib.TopologicalSorter(graph).static_order():
    below[name] = graph[name].union(*(below[other] for other in graph[name]))
  return {
    name: {other for other in others if not any(other in below[step] for step in others)}
    for name, others in graph.items()
  }


def picture(graph: Mapping[str, set[str]]) -> str:
  """Mermaid text of a graph."""
  lines = [f"  {name} --> {other}" for name in sorted(graph) for other in sorted(graph[name])]
  return "\n".join(["graph TD", *lines, ""])


def _imported(file: Path) -> Iterator[str]:
  """The first name under sedd_jax of each import in a file."""
  for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      first, _, rest = name.partition(".")
      if first == "sedd_jax" and rest:
        yield rest.split(".")[0]


if __name__ == "__main__":
  main()
