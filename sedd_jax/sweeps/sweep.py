"""A sweep from its first run to its table."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.sweeps.grid import describe
from sedd_jax.sweeps.processes import run_all
from sedd_jax.sweeps.runs import Run
from sedd_jax.sweeps.state import State
from sedd_jax.sweeps.table import DONE, SUBMITTED, render


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """A sweep that can be started.

  Attributes:
    state: its directory.
    spec: what must not change on resume.
    runs: its runs.
    commands: name of a run -> the command that starts it.
    submits: whether those commands only submit, to a queue.
    parallel: number of commands at a time.
  """

  state: State
  spec: Mapping[str, Any]
  runs: Sequence[Run]
  commands: Mapping[str, list[str]]
  submits: bool
  parallel: int


def start(sweep: Sweep, resubmit: bool, show: Callable[[Any], None]) -> int:
  """The exit code, after the runs that were left and the table.

  Args:
    sweep: the sweep.
    resubmit: also starts runs that were submitted and have no result.
    show: prints a line, or a table.

  Raises:
    ValueError: there is no such launcher; nothing was started.
  """
  state = sweep.state
  left, reasons = state.left(sweep.runs, resubmit)
  program = sweep.commands[sweep.runs[0].name][0]
  if shutil.which(program) is None:
    raise ValueError(f"there is no program {program!r} here; --command sets the trainer")
  about = {run.name: describe(run.overrides) for run in sweep.runs}

  def started(name: str, log: Path) -> None:
    state.note(name, None)
    show(f"{about[name]}: started, output in {log}")

  def ended(name: str, code: int) -> None:
    submitted = sweep.submits and code == 0
    state.note(name, SUBMITTED if submitted else code)
    see = f", see {state.root}/logs/{name}.log" if code else ""
    show(f"{about[name]}: {SUBMITTED if submitted else f'exit code {code}'}{see}")

  state.start(sweep.spec, sweep.runs, sweep.commands)
  for name, reason in reasons.items():
    show(f"{about[name]}: {reason}")
  code = run_all(
    {name: sweep.commands[name] for name in left},
    logs=state.root / "logs",
    parallel=sweep.parallel,
    started=started,
    ended=ended,
  )
  rows = state.rows()
  show(render(rows))
  return code or int(any(row.status not in (DONE, SUBMITTED) for row in rows))
