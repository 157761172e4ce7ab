"""Steps whose loss or gradient is not finite: named, written down, skipped or the end of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data import Batches
from sedd_jax.training import rundir

FOLDER = "nonfinite"


class NonfiniteSteps:
  """What a run knows of its steps without a finite loss or gradient.

  Args:
    workdir: the run directory; each such step gets a file under `nonfinite/`.
    batches: by step.
    leaves: paths of the parameters, in the order of the metric `leaf_norms`.
    seed: of the run.
    most: so many are skipped; the next one stops the run.
    count: how many there were before the run was resumed.
    say: told of each.
    lead: whether this process writes.

  Attributes:
    count: how many there were.
  """

  def __init__(
    self,
    workdir: Path,
    batches: Batches,
    leaves: Sequence[str],
    *,
    seed: int,
    most: int,
    count: int,
    say: Callable[[str], None],
    lead: bool,
  ):
    self._workdir, self._batches, self._leaves = workdir, batches, leaves
    self._seed, self._most, self._say, self._lead = seed, most, say, lead
    self.count = count

  def passes(self, step: int, values: Mapping[str, Any]) -> bool:
    """Whether loss and gradient of a step are finite.

    Args:
      step: its number, from 1 on.
      values: its metrics.

    Raises:
      FloatingPointError: they are not, and no more may be skipped; the message names what was not.
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
    self.count += 1
    if self._lead:
      text += f". {self._write(step, loss, norm, bad)}"
    if self.count > self._most:
      raise FloatingPointError(
        f"{text}. The run stops ({self._most} such steps may be skipped: "
        "--config.train.skip_nonfinite). Its checkpoints are kept; the newest may be near "
        "divergence too. A lower --config.optimizer.learning_rate may help."
      )
    self._say(f"{text}. Skipped, {self.count} of at most {self._most}")
    return False

  def _write(self, step: int, loss: float, norm: float, bad: list[str]) -> str:
    """Writes down what replays the step; says where."""
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
      rundir.write_json(file, content)
    except OSError as error:
      return f"Its batch could not be written to {file}: {error.strerror}"
    return f"Its batch is in {file}"
