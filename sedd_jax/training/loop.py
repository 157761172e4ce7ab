"""The training loop. There is one, and every process runs all of it."""

import signal
from pathlib import Path

from sedd_jax.data import Tokenizer
from sedd_jax.training.actions import make_reports, make_save
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.finish import finish_completed, finish_interrupted
from sedd_jax.training.initialization import Load
from sedd_jax.training.interrupt import Interrupt
from sedd_jax.training.operations import Operations
from sedd_jax.training.run import Run, open_run
from sedd_jax.training.startup import startup_messages
from sedd_jax.training.steplog import StepLog


def train(
  experiment: Experiment,
  workdir: Path,
  operations: Operations = Operations(),
  load: Load | None = None,
  tokenizer: Tokenizer | None = None,
) -> int:
  """Runs an experiment, or goes on with it from its newest checkpoint.

  Args:
    experiment: what to run.
    workdir: the run directory; made if it is not there. All processes must see the same one.
    operations: how to watch it.
    load: loads the model that `init_from` names: `sedd_jax.load`.
    tokenizer: the tokenizer of a new run, where it is not to be made from its text.

  Returns:
    0 when the last step is done; 128 + the signal's number when one ended the run after a save.

  Raises:
    FileExistsError, FileNotFoundError, ValueError: config, corpus or directory cannot be used, or
      no checkpoint is whole.
    BlockingIOError: another process trains in the directory.
    FloatingPointError: loss, gradient or state are not finite; the message names the step.
    OSError: the directory cannot be written to, or the last state could not be saved.
  """
  with open_run(experiment, workdir, operations, load, tokenizer) as run:
    for text in startup_messages(run):
      run.console.say(text)
    with Interrupt() as interrupt:
      stop = make_steps(run, interrupt)
      unsaved = run.unsaved()
    run.watchdog.alive()
    if stop:
      return finish_interrupted(run, stop, unsaved)
    return finish_completed(run, unsaved)


def make_steps(run: Run, interrupt: Interrupt) -> signal.Signals | None:
  """Makes the steps that are left. Returns the signal that ended them early, or None.

  The last state has been handed to the checkpoints by then, and all metrics have been read.
  """
  log, save = StepLog(run), make_save(run)
  actions = [save, *make_reports(run)]
  stop = None
  for step in range(run.first + 1, run.last + 1):
    batch = run.feed.next()
    run.profile.before(step)
    run.state, metrics = run.program.step(run.state, batch)
    run.profile.after(step, metrics)
    log.add(step, metrics)  # Reads those of the step before, while this one runs.

    stop = interrupt.stop(step)
    # Saving comes first: after a preemption notice only half a minute may be left.
    for action in [save] if stop else [a for a in actions if a.due(step, run.last)]:
      log.read()
      action.call(step)
      log.clock.pause()
    if stop:
      break
  log.read()
  run.profile.stop()
  return stop
