"""Estimates of rows on disk: a file that grows batch by batch, and that a killed run goes on with.

G: independent estimates of each row.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.diffusion import Terms

_PART = ".part"
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

  The first line says what it is of; each further one holds the estimates of a row. The caller sees
  to it that no other process writes there.

  Args:
    path: the file.
    header: what it is of; must be the same when it is opened again.

  Attributes:
    there: what was in it when it was opened.
    whole: whether nothing is missing.

  Raises:
    ValueError: what is there is of something else, or is no such file.
  """

  def __init__(self, path: Path, header: Mapping[str, Any]):
    self._path, self._part = path, path.with_name(path.name + _PART)
    self._header = json.loads(json.dumps(header))
    self.whole = path.exists()
    self._file = (path if self.whole else self._part).open("rb" if self.whole else "a+b")
    try:
      self.there = self._read()
      self._count = len(self.there)
    except ValueError:
      self._file.close()
      raise

  def __enter__(self) -> "RowFile":
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()

  def append(self, estimates: Estimates) -> None:
    """Adds the estimates of the next rows; on disk when it returns."""
    count = len(estimates)
    self._write(
      *(
        {
          "row": self._count + i,
          **{name: getattr(estimates.terms, name)[:, i].tolist() for name in _NAMES},
          "seconds": estimates.seconds / count,
        }
        for i in range(count)
      )
    )
    self._count += count

  def finish(self) -> None:
    """Gives the whole file its name."""
    os.replace(self._part, self._path)
    self.whole = True

  def _write(self, *lines: Mapping[str, Any]) -> None:
    self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    self._file.flush()
    os.fsync(self._file.fileno())

  def _read(self) -> Estimates:
    """What is there; a line that a kill left incomplete is cut off."""
    self._file.seek(0)
    lines, end = [], 0
    for line in self._file:
      if not line.endswith(b"\n"):
        break
      lines.append(self._parsed(line))
      end += len(line)
    if not self.whole:
      self._file.truncate(end)
      self._file.seek(end)
      if not lines:
        self._write(self._header)
        lines = [self._header]
    if not lines or lines[0] != self._header:
      changed = [
        f"  {key}: {(lines[0] if lines else {}).get(key)!r} -> {value!r}"
        for key, value in self._header.items()
        if not lines or lines[0].get(key) != value
      ]
      raise ValueError(
        f"{self._file.name} holds estimates of something else:\n" + "\n".join(changed)
      )
    try:
      return self._joined(lines[1:])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"{self._file.name} is damaged: {error}") from error

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
    raise ValueError(f"{self._file.name} is no file of estimates: {line[:80]!r}")
