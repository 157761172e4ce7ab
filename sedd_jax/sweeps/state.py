"""The files of a sweep below its root: sweep.json and results.csv."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.files.whole import write_text
from sedd_jax.sweeps.runs import Run, differences
from sedd_jax.sweeps.table import SUBMITTED, Row, is_done, make_row, to_csv

FILE = "sweep.json"


class State:
  """A sweep's root directory.

  `noted` holds the exit code of a run's last start, or `SUBMITTED`.
  """

  def __init__(self, root: Path):
    """Reads the stored state; the first `save` creates a new root."""
    file = root / FILE
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    self.root = root
    self.spec: dict[str, Any] = stored.get("spec", {})
    self.noted: dict[str, int | str] = stored.get("noted", {})
    self._steps: dict[str, int] = stored.get("steps", {})
    self._commands: dict[str, str] = stored.get("commands", {})

  def check(self, spec: Mapping[str, Any]) -> None:
    """Checks that the root holds no other sweep.

    Raises:
      ValueError: it does; the message lists the differences.
    """
    lines = differences(self.spec, spec) if self.spec else []
    if lines:
      listed = "\n".join(lines)
      raise ValueError(f"{self.root} holds another sweep:\n{listed}\nChoose a new --root.")

  def left(self, runs: Sequence[Run], resubmit: bool) -> tuple[list[str], dict[str, str]]:
    """Names of the runs to start, and name -> reason for the others."""
    left, reasons = [], {}
    for run in runs:
      if is_done(self.root / run.name, run.steps):
        reasons[run.name] = "done"
      elif self.noted.get(run.name) == SUBMITTED and not resubmit:
        reasons[run.name] = "submitted before; --resubmit would submit it again"
      else:
        left.append(run.name)
    return left, reasons

  def start(
    self, spec: Mapping[str, Any], runs: Sequence[Run], commands: Mapping[str, Sequence[str]]
  ) -> None:
    """Writes the sweep before anything runs."""
    self.spec = dict(spec)
    self._steps = {run.name: run.steps for run in runs}
    self._commands |= {name: shlex.join(command) for name, command in commands.items()}
    self.save()

  def note(self, name: str, outcome: int | str | None) -> None:
    """Stores the outcome of a run; None when it starts."""
    self.noted.pop(name, None)
    if outcome is not None:
      self.noted[name] = outcome
    self.save()

  def save(self) -> None:
    state = {
      "spec": self.spec,
      "steps": self._steps,
      "commands": self._commands,
      "noted": self.noted,
    }
    self._write(FILE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")

  def rows(self) -> list[Row]:
    """The current table from the run directories, also written to results.csv.

    Raises:
      ValueError: there is no sweep.
    """
    if not self.spec:
      raise ValueError(f"--root={self.root} holds no sweep")
    rows = [
      make_row(self.root / name, point, self._steps[name], self.noted.get(name))
      for name, point in self.spec["runs"].items()
    ]
    self._write("results.csv", to_csv(rows))
    return rows

  def _write(self, name: str, content: str) -> None:
    self.root.mkdir(parents=True, exist_ok=True)
    write_text(self.root / name, content)
