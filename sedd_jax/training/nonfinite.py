"""Steps whose loss or gradient is not finite: they are reported, and skipped or end the run."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data import Batches
from sedd_jax.files.whole import write_json
from sedd_jax.parallel import processes
from sedd_jax.training.program import Program
from sedd_jax.training.progress import Progress

FOLDER = "nonfinite"


class NonfiniteSteps:
  """Checks each step's loss and gradient, and counts those that are not finite.

  Args:
    program: the run's programs; its experiment says how many such steps may be skipped.
    batches: the training text by step.
    progress: holds the count.
    workdir: the run directory; each such step gets a file under `nonfinite/`, from process 0.
    say: prints a message about each.
  """

  def __init__(
    self,
    program: Program,
    batches: Batches,
    progress: Progress,
    workdir: Path,
    say: Callable[[str], None],
  ):
    self._leaves = program.gradient_leaves
    self._seed, self._most = program.experiment.seed, program.experiment.train.skip_nonfinite
    self._batches, self._progress = batches, progress
    self._workdir, self._say, self._lead = workdir, say, processes.is_lead()

  def passes(self, step: int, values: Mapping[str, Any]) -> bool:
    """Whether loss and gradient of a step are finite.

    Args:
      step: its number, from 1 on.
      values: its metrics.

    Raises:
      FloatingPointError: they are not, and no more steps may be skipped; the message names the
        arrays.
    """
    loss, norm = float(values["loss"]), float(values["grad_norm"])
    if math.isfinite(loss) and math.isfinite(norm):
      return True
    norms = np.asarray(values["leaf_norms"])
    bad = [name for name, good in zip(self._leaves, np.isfinite(norms), strict=True) if not good]
    text = f"step {step}: the loss is {loss} and the norm of its gradient {norm}"
    if bad:
      text += (
        f"; {len(bad)} of {len(self._leaves)} arrays of the gradient are not finite: "
        f"{', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}"
      )
    self._progress.skipped_steps += 1
    if self._lead:
      text += f". {self._write(step, loss, norm, bad)}"
    count = self._progress.skipped_steps
    if count > self._most:
      raise FloatingPointError(
        f"{text}. The run stops ({self._most} such steps may be skipped: "
        "--config.train.skip_nonfinite). Its checkpoints are kept; the newest may be near "
        "divergence too. A lower --config.optimizer.learning_rate may help."
      )
    self._say(f"{text}. Skipped, {count} of at most {self._most}")
    return False

  def _write(self, step: int, loss: float, norm: float, bad: list[str]) -> str:
    """Writes the file that replays the step; returns a sentence that names it."""
    file = self._workdir / FOLDER / f"step_{step:08d}.json"
    number = step - 1  # Batches count from 0.
    batch = self._batches[number]
    content = {
      "step": step,
      "seed": self._seed,
      "batch": number,
      "loss": str(loss),
      "grad_norm": str(norm),
      "not_finite": bad,
      "indices": self._batches.indices(number),
      **{name: x.tolist() for name, x in batch._asdict().items() if x is not None},
    }
    try:
      file.parent.mkdir(exist_ok=True)
      write_json(file, content, sort_keys=True)
    except OSError as error:
      return f"Its batch could not be written to {file}: {error.strerror}"
    return f"Its batch is in {file}"
