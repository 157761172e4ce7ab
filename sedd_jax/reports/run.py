"""What a report says of a run."""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.interop.info import describe
from sedd_jax.reports.numbers import NOTHING
from sedd_jax.training import rundir
from sedd_jax.training.metrics import FILE as METRICS
from sedd_jax.training.metrics import metrics_faults, read_metrics

_SAMPLE = re.compile(r"^--- sample \d+\n", re.MULTILINE)
_FINAL, _PREVIEW = "final_*.txt", "step_*.txt"
# What damaged files of any content raise.
_DAMAGE = (ValueError, OSError, KeyError, TypeError, AttributeError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run directory.

  Attributes:
    name: unlike that of any other run in the report: its label where no other has it.
    group: its label, which runs of other seeds share, or else its name.
    path: as it was given.
    faults: what could not be read, a sentence each.
    found: what `interop.info.describe` says; empty where that failed.
    metrics: lines of its metrics.jsonl.
    samples: texts, the last that were written.
    samples_from: the file that they are from, or None.
  """

  name: str
  group: str
  path: Path
  faults: Sequence[str]
  found: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  samples: Sequence[str]
  samples_from: str | None

  @property
  def config(self) -> Mapping[str, Any]:
    return self.found.get("config", {})

  @property
  def label(self) -> str:
    """What its config calls it, or ""."""
    return str(self.config.get("label") or "")

  @property
  def state(self) -> str:
    """`finished`, how far it has come, or `broken`."""
    if not self.found:
      return "broken"
    step, steps = self.found["step"], self.found["steps"]
    if self.found["finished"]:
      return "finished"
    last = max([step or 0, *(line["step"] for line in self.metrics)])
    return f"step {last:,} of {steps:,}"

  @property
  def steps(self) -> int | None:
    """That the newest checkpoint has made."""
    return self.found.get("step")

  @property
  def bound(self) -> Mapping[str, Any] | None:
    """The newest held-out bound, in bits per character."""
    return self.found.get("bound")

  @property
  def exact(self) -> bool:
    """Whether what stands for a bound is the likelihood itself, without a Monte Carlo error."""
    return self.config.get("objective") == "autoregressive"

  @property
  def method(self) -> str:
    """What kind of model it is."""
    if self.exact:
      return "autoregressive"
    diffusion, objective = self.config.get("diffusion"), self.config.get("objective")
    if not isinstance(diffusion, Mapping):
      return NOTHING
    said = [str(diffusion.get(name, NOTHING)) for name in ("process", "parameterization")]
    if objective not in (None, "score_entropy"):
      said.append(str(objective).replace("_", " "))
    return ", ".join(said)

  def median(self, key: str) -> float | None:
    """Of a key of the metrics, over all its lines."""
    values = [v for line in self.metrics if isinstance(v := line.get(key), int | float)]
    return statistics.median(values) if values else None


def read_run(path: Path, name: str) -> Run:
  """A run, read from its directory; a damaged or missing file is a fault of it, not an error."""
  faults: list[str] = []
  found: Mapping[str, Any] = {}
  metrics: Sequence[Mapping[str, Any]] = []
  samples, source = [], None
  try:
    found = describe(path)
    faults += [f"not known to this version: {fault}" for fault in found["config_faults"]]
  except _DAMAGE as error:
    faults.append(_said(error))
  try:
    metrics = read_metrics(path)
    faults += metrics_faults(path)
  except FileNotFoundError:
    faults.append(f"it has no {METRICS}: nothing was logged yet")
  except _DAMAGE as error:
    faults.append(f"{path / METRICS}: {_said(error)}")
  try:
    samples, source = _samples(path)
  except _DAMAGE as error:
    faults.append(f"{path / rundir.SAMPLES}: {_said(error)}")
  if found and not found["checkpoints"]:
    faults.append("it has no checkpoint yet")
  return Run(
    name=name,
    group=name,
    path=path,
    faults=faults,
    found=found,
    metrics=metrics,
    samples=samples,
    samples_from=source,
  )


def _samples(path: Path) -> tuple[list[str], str | None]:
  """Those at the end of the run, or else the last on the way."""
  folder = path / rundir.SAMPLES
  for pattern in (_FINAL, _PREVIEW):
    if files := sorted(folder.glob(pattern)):
      text = files[-1].read_text(encoding="utf-8")
      parts = _SAMPLE.split(text)[1:] if pattern == _FINAL else [text]
      return [part.removesuffix("\n") for part in parts], files[-1].name
  return [], None


def _said(error: Exception) -> str:
  """The message of an error, with its type if the message alone says nothing."""
  if isinstance(error, ValueError | OSError) and str(error):
    return str(error)
  return f"{type(error).__name__}: {error}"
