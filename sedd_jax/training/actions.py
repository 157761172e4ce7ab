"""What a run does every so many steps: save, evaluate, draw a sample."""

import dataclasses
import functools
from collections.abc import Callable

from sedd_jax.files.whole import write_text
from sedd_jax.training import rundir
from sedd_jax.training.console import report_write_errors
from sedd_jax.training.run import Run

_PREVIEW_WIDTH = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
  """Something that happens every so many steps.

  Attributes:
    every: number of steps between two calls; 0 for never.
    call: does it; its first argument is the number of steps made.
    at_end: whether it happens after the last step. Where not, that step has the final report
      instead.
  """

  every: int
  call: Callable[..., None]
  at_end: bool = False

  def due(self, step: int, last: int) -> bool:
    """Whether it happens after a step of a run that ends with step `last`."""
    if step == last:
      return self.at_end
    return self.every > 0 and step % self.every == 0


def make_save(run: Run) -> Action:
  """The action that saves the state."""
  every = run.experiment.checkpoint.every
  return Action(every=every, call=lambda step: run.save(), at_end=True)


def make_reports(run: Run) -> list[Action]:
  """The actions that report on the state, in their order."""
  report = run.experiment.report
  return [
    Action(every=report.evaluate_every, call=functools.partial(_evaluate, run)),
    Action(every=report.preview_every, call=functools.partial(_preview, run)),
  ]


def _evaluate(run: Run, step: int) -> None:
  """Logs the bound on held-out text."""
  with run.console.waiting("held-out bound") as on_progress:
    line = run.reporter.evaluate(run.state.average, on_progress)
  run.metrics.write(step, line)
  run.console.say(run.reporter.describe(step, line))


def _preview(run: Run, step: int) -> None:
  """Writes one sample to a file and prints its beginning."""
  text = run.reporter.samples(run.state.average, 1)[0]
  if run.lead:
    with report_write_errors(run.console.say):
      write_text(run.workdir / rundir.SAMPLES / f"step_{step:08d}.txt", text + "\n")
  run.console.say(f"step {step} sample: {_one_line(text)}")


def _one_line(text: str) -> str:
  return " ".join(text.split())[:_PREVIEW_WIDTH]
