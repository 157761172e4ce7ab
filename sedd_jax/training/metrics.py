"""Metrics of a run: one JSON object a line, and TensorBoard events."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import gethostname
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

FILE = "metrics.jsonl"

_proto: Any = event_pb2  # Its classes are made at run time.


class MetricsWriter:
  """Appends metrics to a run directory. An error in writing is reported and stops nothing.

  A run that is killed and resumed writes some steps twice; `read_metrics` keeps the later line.
  """

  def __init__(self, workdir: Path, first_step: int, say: Callable[[str], None] = print):
    """Args:
    workdir: the run directory.
    first_step: TensorBoard hides earlier events from this step on.
    say: prints an error in writing, once for all lines that are lost in a row.
    """
    self._say, self._losing = say, False
    path = workdir / FILE
    cut_short = path.is_file() and not path.read_bytes().endswith(b"\n")
    self._file = path.open("ab", buffering=0)
    self._events: _Events | None = None
    if cut_short:
      self._append(b"\n")
    try:
      self._events = _Events(workdir / "tensorboard", first_step)
    except OSError as error:
      self._say(f"no TensorBoard events: {error.strerror}")

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()
    self._close_events()

  def _close_events(self) -> None:
    if self._events is not None:
      self._events.close()
      self._events = None

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one line: step, Unix time, and the values."""
    line = {"step": step, "time": round(time.time(), 3), **values}
    try:
      self._append(json.dumps(line).encode() + b"\n")
      self._losing = False
    except OSError as error:
      if not self._losing:
        self._say(f"step {step}: {FILE} cannot be written to, metrics are lost: {error.strerror}")
      self._losing = True
    try:
      if self._events is not None:
        self._events.write(step, values)
    except OSError as error:
      # The state of the file is unknown now, and metrics.jsonl is enough to go on.
      self._close_events()
      self._say(f"step {step}: TensorBoard events end here until a restart: {error.strerror}")

  def _append(self, data: bytes) -> None:
    """Brings all of it to the disk, or nothing."""
    end = os.fstat(self._file.fileno()).st_size
    try:
      if self._file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      os.fsync(self._file.fileno())  # A mounted bucket uploads no earlier.
    except OSError:
      self._file.truncate(end)
      raise


class _Events:
  """A TensorBoard file. tensorboardX's own writer hangs when its thread dies of a full disk."""

  def __init__(self, folder: Path, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    self._file = RecordWriter(str(folder / f"events.out.tfevents.{now:.0f}.{gethostname()}"))
    start = _proto.SessionLog(status=_proto.SessionLog.START)
    for event in (
      _proto.Event(wall_time=now, file_version="brain.Event:2"),
      _proto.Event(wall_time=now, step=first_step, session_log=start),
    ):
      self._file.write(event.SerializeToString())
    self._file.flush()

  def write(self, step: int, values: dict[str, float]) -> None:
    now = time.time()
    for name, value in values.items():
      event = _proto.Event(wall_time=now, step=step, summary=scalar(name, value))
      self._file.write(event.SerializeToString())
    self._file.flush()

  def close(self) -> None:
    with contextlib.suppress(OSError):  # What could not be written is not written now.
      self._file.close()


class NoMetrics:
  """Writes nothing: the writer of all processes but process 0."""

  def __enter__(self) -> "NoMetrics":
    return self

  def __exit__(self, *exception) -> None:
    pass

  def write(self, step: int, values: dict[str, float]) -> None:
    pass


def metrics_writer(
  workdir: Path, first_step: int, say: Callable[[str], None], *, lead: bool
) -> MetricsWriter | NoMetrics:
  """A `MetricsWriter` for process 0, a `NoMetrics` for the others."""
  return MetricsWriter(workdir, first_step, say) if lead else NoMetrics()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """All lines in the order of their steps.

  Of lines with the same step and keys only the last is kept. Damaged lines are skipped.
  """
  kept: dict[tuple[int, tuple[str, ...]], dict[str, Any]] = {}
  for line in _lines(workdir):
    if not isinstance(line, str):
      kept[line["step"], tuple(sorted(line))] = line
  return sorted(kept.values(), key=lambda line: line["step"])


def metrics_faults(workdir: Path) -> list[str]:
  """A sentence for each damaged line; one that a kill cut short is none."""
  return [line for line in _lines(workdir) if isinstance(line, str)]


def _lines(workdir: Path) -> Iterator[dict[str, Any] | str]:
  """The values of each line, or what is wrong with it."""
  path = workdir / FILE
  for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
    try:
      values = json.loads(line.decode())
    except UnicodeDecodeError:
      yield f"{path}, line {number} is not UTF-8 and is left out"
      continue
    except json.JSONDecodeError:
      if line and not line.startswith(b"{"):
        yield f"{path}, line {number} is no JSON object and is left out"
      continue
    if isinstance(values, dict) and isinstance(values.get("step"), int) and _all_numbers(values):
      yield values
    else:
      yield f"{path}, line {number} is no object of numbers with a step and is left out"


def _all_numbers(values: dict[str, Any]) -> bool:
  return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values.values())
