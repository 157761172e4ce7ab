"""Metrics of a run: one JSON object a line, and TensorBoard events."""

import json
import os
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"


class MetricsWriter:
  """Appends metrics to a run directory.

  A run that is killed and resumed writes some steps twice; `read_metrics` keeps the later line.
  """

  def __init__(self, workdir: Path, first_step: int):
    """Args:
    workdir: the run directory.
    first_step: events from this step on that TensorBoard holds already are hidden.
    """
    path = workdir / FILE
    cut_short = path.is_file() and not path.read_bytes().endswith(b"\n")
    self._file = path.open("a", encoding="utf-8")
    if cut_short:
      self._file.write("\n")
    self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()
    self._events.close()

  def write(self, step: int, values: dict[str, float]) -> None:
    """One line: step, unix time, and the values."""
    line = {"step": step, "time": round(time.time(), 3), **values}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    os.fsync(self._file.fileno())  # A mounted bucket uploads no earlier.
    for name, value in values.items():
      self._events.add_scalar(name, value, step)


class _NoMetrics:
  """Of the processes that do not write."""

  def __enter__(self) -> "_NoMetrics":
    return self

  def __exit__(self, *exception) -> None:
    pass

  def write(self, step: int, values: dict[str, float]) -> None:
    pass


def metrics_writer(workdir: Path, first_step: int, *, lead: bool) -> "MetricsWriter | _NoMetrics":
  """A `MetricsWriter` for the process that writes; for the others, one that does not."""
  return MetricsWriter(workdir, first_step) if lead else _NoMetrics()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """All lines in the order of their steps, the last one of each kind and step.

  A line cut short by a kill is skipped.
  """
  kept: dict[tuple[int, tuple[str, ...]], dict[str, Any]] = {}
  for text in (workdir / FILE).read_text(encoding="utf-8").splitlines():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      continue
    kept[line["step"], tuple(sorted(line))] = line
  return sorted(kept.values(), key=lambda line: line["step"])
