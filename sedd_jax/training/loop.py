"""The training loop, top to bottom. There is one.

Every process runs all of it; process 0 alone writes files and prints. On a first read skip to the
banner `Loop`.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data import Dataset, Tokenizer, from_json, load_dataset
from sedd_jax.data.faults import describe
from sedd_jax.data.rows import spread
from sedd_jax.evaluation.bounds import BoundEstimator, evaluation_report
from sedd_jax.evaluation.entropies import heldout_entropies
from sedd_jax.models import Params
from sedd_jax.parallel import processes
from sedd_jax.parallel.mesh import batch_multiple
from sedd_jax.training import curve, rundir
from sedd_jax.training.checkpoints import FOLDER, Checkpoints, check_room, load_meta, room_note
from sedd_jax.training.console import RunConsole
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.feed import Feed
from sedd_jax.training.initial import Beginning, Load
from sedd_jax.training.interrupt import Interrupt
from sedd_jax.training.lock import FolderLock
from sedd_jax.training.metrics import FILE as METRICS
from sedd_jax.training.metrics import metrics_writer, read_metrics
from sedd_jax.training.nonfinite import NonfiniteSteps
from sedd_jax.training.operations import Clock, Operations, Profile, Watchdog
from sedd_jax.training.optimizer import learning_rate
from sedd_jax.training.program import Program, mesh_of
from sedd_jax.training.startup import startup_report
from sedd_jax.training.state import TrainState

_REPORT_SEED = 0
_EVALUATION_TOKENS = 8192
# The bound at the end takes so many times the draws of those on the way.
_FINAL_PASSES = 4


def train(
  experiment: Experiment,
  workdir: Path,
  operations: Operations = Operations(),
  load: Load | None = None,
  tokenizer: Tokenizer | None = None,
) -> int:
  """Runs an experiment, or goes on with it where its last checkpoint is.

  Args:
    experiment: what to run.
    workdir: the run directory; made if it is not there. All processes must see the same one.
    operations: how to watch it.
    load: reads the model that `init_from` names: `sedd_jax.load`.
    tokenizer: of a new run, where it is not to be made from its text.

  Returns:
    0 when the last step is done; 128 + the signal's number when one ended the run after a save.

  Raises:
    FileExistsError, FileNotFoundError, ValueError: config, corpus or directory cannot be used, or
      no checkpoint is whole.
    BlockingIOError: another process trains in the directory.
    FloatingPointError: loss, gradient or state are not finite; the message names the step.
    OSError: the directory cannot be written to, or the last state could not be saved.
  """
  # ------------------------------------------------------------------------- Run directory and data
  began = time.monotonic()
  workdir = workdir.absolute()
  num_steps = experiment.train.steps
  batch_size = experiment.train.batch_size
  lead = processes.is_lead()
  mesh = mesh_of(experiment)
  before = rundir.find_run(workdir, experiment)
  beginning = Beginning(experiment, load)
  if (own := rundir.read_json(workdir, rundir.TOKENIZER)) is not None:
    tokenizer = from_json(own)
  dataset = load_dataset(
    experiment.data,
    expected=rundir.read_json(workdir, rundir.CORPUS),
    tokenizer=tokenizer or beginning.tokenizer(),
  )
  if before is None:
    beginning.check(dataset.tokenizer)
  program = Program(experiment=experiment, mesh=mesh, vocab_size=dataset.tokenizer.vocab_size)
  meta = {
    "config": dataclasses.asdict(experiment),
    "corpus": dataset.identity,
    "tokenizer": dataset.tokenizer.to_json(),
  }
  processes.barrier("all have looked at the run directory")
  with contextlib.ExitStack() as stack:
    if lead:
      stack.enter_context(FolderLock(workdir, _say))
      rundir.find_run(workdir, experiment)  # Nobody can change it any more.
      check_room(workdir, program.bytes())
      if note := room_note(workdir, program.bytes(), experiment.checkpoint.at_once(num_steps)):
        _say(note)
      rundir.write_run(workdir, meta)
    processes.barrier("the run directory is written")
    rundir.check_shared(workdir, meta)

    # ---------------------------------------------------------------------------------------- State
    batches = dataset.batches(batch_size, experiment.seed)
    rates = learning_rate(experiment.optimizer, num_steps)
    reporter = Reporter(program, dataset)
    to_bits = 1.0 / (math.log(2.0) * dataset.chars_per_token * dataset.tokens_per_row)
    watchdog = stack.enter_context(Watchdog(operations.hang_seconds))
    checkpoints = stack.enter_context(
      Checkpoints(
        workdir,
        program.network,
        keep_last=experiment.checkpoint.keep_last,
        keep_every=experiment.checkpoint.keep_every,
      )
    )
    first = checkpoints.resume(_say) or 0
    stored = load_meta(workdir, first) if first else {}
    state: TrainState
    if first:
      rundir.check_meta(workdir, first, stored, meta)
      state = checkpoints.load_state(first, program.state)
      origin = f"going on from the checkpoint of step {first}"
    else:
      state, origin = beginning.create(program, dataset.tokenizer)
    console = stack.enter_context(RunConsole(first, num_steps, lead=lead))
    metrics = stack.enter_context(metrics_writer(workdir, first + 1, console.say, lead=lead))
    interrupt = Interrupt()
    clock = Clock(program)
    profile = stack.enter_context(Profile(operations.profile_steps, workdir, lead=lead))
    feed = stack.enter_context(Feed(batches, program.batch.tokens.sharding, first))
    nonfinite = NonfiniteSteps(
      workdir,
      batches,
      program.gradient_leaves,
      seed=experiment.seed,
      most=experiment.train.skip_nonfinite,
      count=stored.get("skipped_steps", 0),
      say=console.say,
      lead=lead,
    )
    waiting: tuple[int, Any] | None = None  # Metrics of the step before, read while this one runs.

    def read_waiting() -> None:
      nonlocal waiting
      if waiting is None:
        return
      (done, values), waiting = waiting, None
      if lost := checkpoints.failure():
        console.say(lost)
      watchdog.alive()
      if not nonfinite.passes(done, values):
        return
      loss = float(values["loss"])
      speed = clock.read(done)
      console.update(done, loss * to_bits, speed.get("tokens_per_second", 0.0))
      if done == first + 1:  # Read like all metrics, once the next step has been handed over.
        seconds = time.monotonic() - began
        metrics.write(done, {"seconds_to_first_step": seconds})
        console.say(f"first step after {seconds:.1f} s")
      if _due(done, experiment.report.log_every, num_steps):
        line = {
          "train_bits_per_char": loss * to_bits,
          "loss_nats_per_sequence": loss,
          "grad_norm": float(values["grad_norm"]),
          "learning_rate": float(np.asarray(rates(done - 1 - nonfinite.count))),
        }
        if experiment.train.skip_nonfinite:
          line["skipped_steps"] = nonfinite.count
        if experiment.data.on_fault == "skip":
          line["input_faults"] = dataset.faults.count
        metrics.write(done, line | speed | feed.waits())

    def save() -> None:
      checkpoints.wait()
      if lost := checkpoints.failure():  # Of the save before.
        console.say(lost)
      checkpoints.save(state, meta | {"skipped_steps": nonfinite.count})

    def unsaved() -> str | None:
      """Why the last state is not on disk, on all processes, or None if it is."""
      checkpoints.wait()
      lost = checkpoints.failure()
      return (lost or "see process 0") if processes.of_lead(int(lost is not None)) else None

    # ----------------------------------------------------------------------------------------- Loop
    console.say(startup_report(program, dataset))
    if left_out := describe(dataset.faults.count, dataset.faults.first):
      console.say(left_out)
    if missed := profile.missed(first, num_steps):
      console.say(missed)
    if before and not first:
      console.say("no checkpoint yet: starting from the beginning")
    if origin:
      console.say(origin)
    if before and before.train.steps != num_steps and experiment.optimizer.schedule == "cosine":
      console.say(
        f"train.steps was {before.train.steps} and is {num_steps}: the cosine schedule is another, "
        "and the learning rate jumps to it"
      )
    stop = None
    with interrupt:
      for step in range(first + 1, num_steps + 1):
        batch = feed.next()
        profile.before(step)
        state, values = program.step(state, batch)
        profile.after(step, values)
        read_waiting()
        waiting = (step, values)
        # First what must not be lost: a notice may leave half a minute.
        stop = interrupt.stop(step)
        if stop or _due(step, experiment.checkpoint.every, num_steps):
          read_waiting()
          save()
          clock.pause()
        if stop or step == num_steps:
          break
        if _due(step, experiment.report.evaluate_every):
          read_waiting()
          line = reporter.evaluate(state.average)
          metrics.write(step, line)
          console.say(reporter.describe(step, line))
          clock.pause()
        if _due(step, experiment.report.preview_every):
          read_waiting()
          text = reporter.samples(state.average, 1)[0]
          if lead:
            with _told(console.say):
              rundir.write_text(workdir / rundir.SAMPLES / f"step_{step:08d}.txt", text + "\n")
          console.say(f"step {step} sample: {_one_line(text)}")
          clock.pause()
      read_waiting()
      profile.stop()
      lost = unsaved()

    # --------------------------------------------------------------------------------------- Report
    watchdog.alive()
    if stop:
      if lost:
        raise OSError(f"{stop.name}: {lost}")
      if lead:
        with _told(console.say):
          _draw(workdir, int(state.step), reporter)
      console.say(
        f"{stop.name}: saved step {int(state.step)} in {workdir}. "
        "The same command goes on from there."
      )
      processes.barrier("all is written")
      return 128 + stop
    if first >= num_steps:
      console.say(f"step {first} was the last; a larger --config.train.steps would go on")
    line = reporter.evaluate_fully(state.average)
    metrics.write(int(state.step), line)
    texts = reporter.samples(state.average, experiment.report.samples)
    if lead:
      with _told(console.say):
        _write_report(workdir, int(state.step), line, texts)
        _draw(workdir, int(state.step), reporter)
    console.show("".join(f"\n[sample {i}]\n{text}\n" for i, text in enumerate(texts)))
    exact = program.objective.exact
    console.say(_closing_text(workdir, line, exact))
    steps = "" if exact else " --steps=64"  # As many as tokens.
    console.show(f"\nNext: sedd sample --checkpoint={_shown(workdir)} --num=4{steps} --seed=0")
    if lost:  # A report takes a while: there may be room now.
      console.say(lost)
      save()
      if lost := unsaved():
        raise OSError(lost)
    # A process that ends waits for the others no longer than a heartbeat, and then ends them.
    processes.barrier("all is written")
  return 0


class Reporter:
  """Held-out bounds and samples of a run.

  Args:
    program: the run.
    dataset: its text.
  """

  def __init__(self, program: Program, dataset: Dataset):
    report = program.experiment.report
    self._dataset = dataset
    self._exact = program.objective.exact
    self._one_document = program.experiment.data.packing == "pad"
    count = len(dataset.heldout_rows)
    self._rows = dataset.heldout_rows
    self._few = spread(count, report.evaluate_blocks)
    self._many = spread(count, report.final_blocks)
    self._estimator = BoundEstimator(
      program.objective.estimator(report.evaluate_times),
      batch_size=max(1, _EVALUATION_TOKENS // self._rows.shape[1]),
      mesh=program.mesh,
    )
    self._draw = program.previews(report.preview_steps)
    self._multiple = batch_multiple(program.mesh)
    self.entropies = heldout_entropies(dataset)

  def evaluate(self, params: Params) -> dict[str, float]:
    """The held-out bound from few draws, as metrics."""
    return self._metrics(params, self._few, passes=1)

  def evaluate_fully(self, params: Params) -> dict[str, float]:
    """The held-out bound of more blocks, from more draws."""
    return self._metrics(params, self._many, passes=_FINAL_PASSES)

  def samples(self, params: Params, count: int) -> list[str]:
    """Texts of one block each."""
    drawn = -(-count // self._multiple) * self._multiple
    tokens = np.asarray(self._draw(params, np.arange(drawn, dtype=np.int32)))
    return [self._text(row) for row in tokens[:count]]

  def _text(self, row: np.ndarray) -> str:
    """A document, where a row holds one, or else all of the row."""
    tokenizer = self._dataset.tokenizer
    ends = np.flatnonzero(row == tokenizer.eos_id)
    return tokenizer.decode(row[: ends[0]] if len(ends) and self._one_document else row)

  def describe(self, step: int, line: dict[str, float]) -> str:
    """One line about a bound."""
    found = f"{line['heldout_bits_per_char_strict']:.3f}"
    if self._exact:
      what = "cross entropy"
    else:
      what, found = "bound", f"{found} ± {line['heldout_bits_per_char_strict_stderr']:.3f}"
    return f"step {step} held-out {what} {found} bits/char (bigram {self.entropies['bigram']:.3f})"

  def _metrics(self, params: Params, numbers: np.ndarray, passes: int) -> dict[str, float]:
    bound = self._estimator.bound(
      params,
      self._rows[numbers],
      chars_per_block=self._rows.characters(numbers) / len(numbers),
      seed=_REPORT_SEED,
      passes=passes,
    )
    report = evaluation_report(bound, self.entropies)
    return {f"heldout_{name}": value for name, value in report.items()}


def _due(step: int, every: int, last: int | None = None) -> bool:
  return step == last or (every > 0 and step % every == 0)


def _say(text: str) -> None:
  """For what comes before there is a console."""
  print(text, flush=True)


@contextlib.contextmanager
def _told(say: Callable[[str], None]) -> Iterator[None]:
  """Says what cannot be written instead of ending a run."""
  try:
    yield
  except OSError as error:
    say(f"not written: {error}")


def _one_line(text: str) -> str:
  return " ".join(text.split())[:200]


def _write_report(workdir: Path, step: int, line: dict[str, float], texts: list[str]) -> None:
  samples = "\n".join(f"--- sample {i}\n{text}" for i, text in enumerate(texts))
  rundir.write_text(workdir / rundir.SAMPLES / f"final_{step:08d}.txt", samples + "\n")
  rundir.write_json(workdir / rundir.EVALUATION, {"step": step, **line})


def _draw(workdir: Path, step: int, reporter: Reporter) -> None:
  title = f"{workdir.name}, step {step}"
  curve.draw_curve(workdir / curve.FILE, read_metrics(workdir), reporter.entropies, title)


def _closing_text(workdir: Path, line: dict[str, float], exact: bool) -> str:
  strict, bigram = line["heldout_bits_per_char_strict"], line["heldout_bigram_bits_per_char"]
  side = "below" if strict < bigram else "above"
  what = "cross entropy" if exact else "strict bound"
  bounds = f"""\
  bound (strict)   {strict:.3f} ± {line["heldout_bits_per_char_strict_stderr"]:.3f}
  bound (paper)    {line["heldout_bits_per_char_paper"]:.3f} \
± {line["heldout_bits_per_char_paper_stderr"]:.3f}"""
  return f"""\
Held-out text, bits per character (lower is better):
{f"  {what}    {strict:.3f}" if exact else bounds}
  bigram entropy   {bigram:.3f}
  unigram entropy  {line["heldout_unigram_bits_per_char"]:.3f}
The {what} is {abs(bigram - strict):.3f} {side} the bigram entropy.

{_shown(workdir)}/
  {curve.FILE}  {METRICS}  tensorboard/  evaluation.json
  {rundir.SAMPLES}/  {FOLDER}/  {rundir.CONFIG}  {rundir.VERSIONS}"""


def _shown(workdir: Path) -> str:
  """The run directory as a user would type it."""
  return os.path.relpath(workdir) if workdir.is_relative_to(Path.cwd()) else str(workdir)
