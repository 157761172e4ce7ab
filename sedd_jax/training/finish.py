"""What a run does after its last step: the final report, or the message of an interrupted run."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from sedd_jax.files.paths import command
from sedd_jax.files.whole import write_json, write_text
from sedd_jax.parallel import processes
from sedd_jax.training import curve, rundir
from sedd_jax.training.checkpoints import FOLDER
from sedd_jax.training.console import report_write_errors
from sedd_jax.training.metrics import FILE as METRICS
from sedd_jax.training.metrics import metrics_faults, read_metrics
from sedd_jax.training.run import Run


def finish_interrupted(run: Run, stop: signal.Signals, unsaved: str | None) -> int:
  """The exit code of a run that a signal ended; draws its curve and tells how to go on.

  Args:
    stop: the signal.
    unsaved: why the last state is not on disk, or None if it is.

  Raises:
    OSError: the last state is not on disk.
  """
  if unsaved:
    raise OSError(f"{stop.name}: {unsaved}")
  if run.lead:
    with report_write_errors(run.console.say):
      _draw_curve(run)
  run.console.say(
    f"{stop.name}: saved step {int(run.state.step)} in {run.workdir}. "
    "The same command goes on from there."
  )
  processes.barrier("all is written")
  return 128 + stop


def finish_completed(run: Run, unsaved: str | None) -> int:
  """The exit code of a run that has made all its steps; evaluates it, writes and prints the report.

  Args:
    unsaved: why the last state is not on disk, or None if it is. It is then saved again after the
      report.

  Raises:
    OSError: the last state could not be saved then either.
  """
  console = run.console
  if run.first >= run.last:
    console.say(f"step {run.first} was the last; a larger --config.train.steps would go on")
  with console.waiting("final bound") as on_progress:
    bound = run.reporter.evaluate_fully(run.state.average, on_progress)
  run.metrics.write(int(run.state.step), bound)
  texts = run.reporter.samples(run.state.average, run.experiment.report.samples)
  words = run.reporter.known_words(texts)
  if run.lead:
    with report_write_errors(console.say):
      _write_report(run, bound | words, texts)
      _draw_curve(run)
  console.show("".join(f"\n[sample {i}]\n{text}\n" for i, text in enumerate(texts)))
  exact = run.program.objective.exact
  console.say(_closing_text(run.workdir, bound | words, exact))
  steps = [] if exact else ["--steps=64"]  # An autoregressive model has one step per token.
  checkpoint = f"--checkpoint={_shown(run.workdir)}"
  console.show(f"\nNext: {command('sedd', 'sample', checkpoint, '--num=4', *steps, '--seed=0')}")
  if unsaved:  # The report takes a while: there may be room now.
    console.say(unsaved)
    run.save()
    if unsaved := run.unsaved():
      raise OSError(unsaved)
  # A process that ends waits for the others only as long as a heartbeat, and then ends them.
  processes.barrier("all is written")
  return 0


def _write_report(run: Run, bound: Mapping[str, float], texts: Sequence[str]) -> None:
  """Writes the final samples and the final bound."""
  step = int(run.state.step)
  samples = "\n".join(f"--- sample {i}\n{text}" for i, text in enumerate(texts))
  write_text(run.workdir / rundir.SAMPLES / f"final_{step:08d}.txt", samples + "\n")
  write_json(run.workdir / rundir.EVALUATION, {"step": step, **bound}, sort_keys=True)


def _draw_curve(run: Run) -> None:
  title = f"{run.workdir.name}, step {int(run.state.step)}"
  for fault in metrics_faults(run.workdir):
    run.console.say(fault)
  entropies = dict(run.reporter.entropies)
  curve.draw_curve(run.workdir / curve.FILE, read_metrics(run.workdir), entropies, title)


def _closing_text(workdir: Path, bound: Mapping[str, float], exact: bool) -> str:
  """The bounds and the files of a finished run.

  Args:
    exact: whether the bound is the negative log likelihood itself.
  """
  strict, bigram = bound["heldout_bits_per_char_strict"], bound["heldout_bigram_bits_per_char"]
  side = "below" if strict < bigram else "above"
  name = "cross entropy" if exact else "strict bound"
  bounds = f"""\
  bound (strict)   {strict:.3f} ± {bound["heldout_bits_per_char_strict_stderr"]:.3f}
  bound (paper)    {bound["heldout_bits_per_char_paper"]:.3f} \
± {bound["heldout_bits_per_char_paper_stderr"]:.3f}"""
  return f"""\
Held-out text, bits per character (lower is better):
{f"  {name}    {strict:.3f}" if exact else bounds}
  bigram entropy   {bigram:.3f}
  unigram entropy  {bound["heldout_unigram_bits_per_char"]:.3f}
The {name} is {abs(bigram - strict):.3f} {side} the bigram entropy.
{_words(bound)}
{_shown(workdir)}/
  {curve.FILE}  {METRICS}  tensorboard/  evaluation.json
  {rundir.SAMPLES}/  {FOLDER}/  {rundir.CONFIG}  {rundir.VERSIONS}"""


def _words(report: Mapping[str, float]) -> str:
  """A line about words, where both texts have some."""
  if not {"sample_known_words", "heldout_known_words"} <= report.keys():
    return ""
  return (
    f"Words that occur in the training text: {report['sample_known_words']:.0%} of the samples', "
    f"{report['heldout_known_words']:.0%} of the held-out text's.\n"
  )


def _shown(workdir: Path) -> str:
  """The run directory as a user would type it."""
  return os.path.relpath(workdir) if workdir.is_relative_to(Path.cwd()) else str(workdir)
