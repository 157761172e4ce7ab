"""A file with the estimates of rows, which grows batch by batch; a killed run continues it.

G: independent estimates of each row.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.diffusion import Terms
from sedd_jax.files.lines import GrowingFile

_NAMES = ("low", "main", "high")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimates:
  """Estimates of the first rows of a set.

  Attributes:
    terms: float64[G, n] each, in nats.
    seconds: that they took.
  """

  terms: Terms
  seconds: float

  def __len__(self) -> int:
    return self.terms.main.shape[1]


class RowFile:
  """A JSON Lines file, beside its name as `NAME.part` until it is whole; a context manager.

  The first line is the header; each further one holds the estimates of a row. The caller holds a
  lock on the folder.

  Args:
    path: the file.
    header: what the estimates depend on; must be the same when it is opened again.

  Attributes:
    there: the estimates it held when it was opened.

  Raises:
    ValueError: the file has another header, or is no such file.
  """

  def __init__(self, path: Path, header: Mapping[str, Any]):
    self._header = json.loads(json.dumps(header))
    self._lines = GrowingFile(path)
    try:
      self.there = self._read()
      self._count = len(self.there)
    except ValueError:
      self._lines.file.close()
      raise

  def __enter__(self) -> "RowFile":
    return self

  def __exit__(self, *exception) -> None:
    self._lines.file.close()

  @property
  def whole(self) -> bool:
    """Whether no row is missing."""
    return self._lines.whole

  def append(self, estimates: Estimates) -> None:
    """Adds the estimates of the next rows; on disk when it returns."""
    count = len(estimates)
    rows = (
      {
        "row": self._count + i,
        **{name: getattr(estimates.terms, name)[:, i].tolist() for name in _NAMES},
        "seconds": estimates.seconds / count,
      }
      for i in range(count)
    )
    self._lines.append(*map(json.dumps, rows))
    self._count += count

  def finish(self) -> None:
    """Gives the whole file its name."""
    self._lines.finish()

  def _read(self) -> Estimates:
    """The estimates in the file; a new file gets its header."""
    lines = [self._parsed(line) for line in self._lines.lines()]
    if not lines and not self.whole:
      self._lines.append(json.dumps(self._header))
      lines = [self._header]
    if not lines or lines[0] != self._header:
      changed = [
        f"  {key}: {(lines[0] if lines else {}).get(key)!r} -> {value!r}"
        for key, value in self._header.items()
        if not lines or lines[0].get(key) != value
      ]
      raise ValueError(
        f"{self._lines.path} holds estimates of something else:\n" + "\n".join(changed)
      )
    try:
      return self._joined(lines[1:])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"{self._lines.path} is damaged: {error}") from error

  @staticmethod
  def _joined(rows: list[Any]) -> Estimates:
    if [row["row"] for row in rows] != list(range(len(rows))):
      raise ValueError("its rows are not 0, 1, 2, ...")
    columns: list[Any] = [np.zeros((0, 0)) for _ in _NAMES]
    if rows:
      columns = [np.array([row[name] for row in rows], np.float64).T for name in _NAMES]
    return Estimates(terms=Terms(*columns), seconds=sum(row["seconds"] for row in rows))

  def _parsed(self, line: bytes) -> Any:
    with contextlib.suppress(ValueError):
      if isinstance(found := json.loads(line), dict):
        return found
    raise ValueError(f"{self._lines.path} is no file of estimates: {line[:80]!r}")
