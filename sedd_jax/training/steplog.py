"""Reading and logging the metrics of each step without making the devices wait."""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from sedd_jax.training.actions import Action
from sedd_jax.training.nonfinite import NonfiniteSteps
from sedd_jax.training.operations import Clock
from sedd_jax.training.optimizer import learning_rate
from sedd_jax.training.run import Run


class StepLog:
  """The metrics of steps: each step's are read while the next step runs.

  Args:
    run: the run that makes the steps.

  Attributes:
    clock: speed of the steps.
  """

  def __init__(self, run: Run):
    self._run = run
    self.clock = Clock(run.program)
    self._rates = learning_rate(run.experiment.optimizer, run.last)
    self._nonfinite = NonfiniteSteps(
      run.program, run.batches, run.progress, run.workdir, run.console.say
    )
    dataset = run.dataset
    self._to_bits = 1.0 / (math.log(2.0) * dataset.chars_per_token * dataset.tokens_per_row)
    self._log = Action(every=run.experiment.report.log_every, call=self._write_line, at_end=True)
    self._waiting: tuple[int, Mapping[str, Any]] | None = None  # Step and metrics, on the device.

  def add(self, step: int, values: Mapping[str, Any]) -> None:
    """Reads the metrics of the step before; those of this step wait, on the device.

    Raises:
      FloatingPointError: see `read`.
    """
    self.read()
    self._waiting = (step, values)

  def read(self) -> None:
    """Reads the metrics that wait, if any, and logs them where a line is due.

    Raises:
      FloatingPointError: loss or gradient are not finite, and no more steps may be skipped.
    """
    if self._waiting is None:
      return
    (step, values), self._waiting = self._waiting, None
    run = self._run
    run.say_failed_save()
    run.watchdog.alive()
    if not self._nonfinite.passes(step, values):
      return
    loss = float(values["loss"])
    run.progress.add_loss(loss)
    speed = self.clock.read(step)
    run.console.update(step, loss * self._to_bits, speed.get("tokens_per_second", 0.0))
    if step == run.first + 1:
      self._write_first(step)
    if self._log.due(step, run.last):
      self._log.call(step, values, speed)

  def _write_first(self, step: int) -> None:
    """Logs how long the first step took to come. By now the next one has been handed over."""
    seconds = time.monotonic() - self._run.began
    self._run.metrics.write(step, {"seconds_to_first_step": seconds})
    self._run.console.say(f"first step after {seconds:.1f} s")

  def _write_line(self, step: int, values: Mapping[str, Any], speed: dict[str, float]) -> None:
    """Logs training metrics: the mean loss since the last line, all else of this step."""
    run, last = self._run, float(values["loss"])
    mean = run.progress.take_mean_loss()
    updates = step - 1 - run.progress.skipped_steps  # Made before this step's.
    line = {
      "train_bits_per_char": mean * self._to_bits,
      "loss_nats_per_sequence": mean,
      "last_train_bits_per_char": last * self._to_bits,
      "last_loss_nats_per_sequence": last,
      "grad_norm": float(values["grad_norm"]),
      "learning_rate": float(np.asarray(self._rates(updates))),
    }
    if run.experiment.train.skip_nonfinite:
      line["skipped_steps"] = run.progress.skipped_steps
    if run.experiment.data.on_fault == "skip":
      line["input_faults"] = run.dataset.faults.count
    run.metrics.write(step, line | speed | run.feed.waits())
