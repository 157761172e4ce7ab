"""Numbers as they are read: as many digits as are known."""

import math
import re
from typing import Any

NOTHING = "—"
# Of which the first digits tell enough.
_HASH = re.compile(r"[0-9a-f]{40,128}")


def with_error(value: float | None, stderr: float | None) -> str:
  """`4.567 ± 0.031`: two digits of the error, and the value to the same place.

  An error below the seventh digit of the value is none: `4.5671`.
  """
  if value is None or not math.isfinite(value):
    return NOTHING if value is None else str(value)
  if stderr is None or not math.isfinite(stderr) or stderr <= abs(value) * 1e-7:
    return number(value)
  places = max(0, 1 - math.floor(math.log10(stderr)))
  return f"{value:,.{places}f} ± {stderr:,.{places}f}"


def number(value: float) -> str:
  """Five digits: `12,345`, `0.12346`, `1.2346e-07`."""
  if not math.isfinite(value):
    return str(value)
  if value == int(value) and abs(value) < 1e15:
    return f"{int(value):,}"
  if abs(value) >= 1e4:
    return f"{value:,.0f}"
  return f"{value:.5g}"


def cell(value: Any) -> str:
  """Any plain value of a JSON file."""
  match value:
    case None:
      return NOTHING
    case bool():
      return "yes" if value else "no"
    case int():
      return f"{value:,}"
    case float():
      return number(value)
    case list() | tuple():
      return ", ".join(map(cell, value)) or "none"
    case str() if _HASH.fullmatch(value):
      return f"{value[:12]}…"
    case _:
      return str(value) or "none"
