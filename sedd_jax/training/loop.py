"""The training loop, top to bottom. There is one.

On a first read skip to the banner `Loop`.
"""

import dataclasses
import functools
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sedd_jax.data import Batches, Dataset, check_same, load_dataset
from sedd_jax.diffusion import sample
from sedd_jax.evaluation.bounds import BoundEstimator, evaluation_report
from sedd_jax.evaluation.entropies import bigram_bits, unigram_bits
from sedd_jax.models import Network, Params
from sedd_jax.parallel import batch_sharding, constrain_activations, make_mesh, tree_shardings
from sedd_jax.parallel.mesh import check_batch
from sedd_jax.training import curve, rundir
from sedd_jax.training.checkpoints import FOLDER, Checkpoints
from sedd_jax.training.console import RunConsole
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.interrupt import Interrupt
from sedd_jax.training.metrics import FILE as METRICS
from sedd_jax.training.metrics import MetricsWriter, read_metrics
from sedd_jax.training.optimizer import learning_rate, make_optimizer
from sedd_jax.training.state import TrainState, create_state
from sedd_jax.training.step import Objective, train_step

# Of held-out bounds and samples: fixed, so that runs and steps compare on the same noise.
_REPORT_SEED = 0
_EVALUATION_TOKENS = 8192
# The bound at the end takes so many times the draws of those on the way.
_FINAL_PASSES = 4


def train(experiment: Experiment, workdir: Path) -> int:
  """Runs an experiment, or goes on with it where its last checkpoint is.

  Args:
    experiment: what to run.
    workdir: the run directory; made if it is not there.

  Returns:
    0 when the last step is done; 128 + the signal's number when one ended the run after a save.

  Raises:
    FileExistsError, FileNotFoundError, ValueError: config, corpus or directory cannot be used.
    FloatingPointError: the loss is not finite; the message names the step.
  """
  # ---------------------------------------------------------------------------------- Run directory
  workdir = workdir.absolute()
  num_steps = experiment.train.steps
  batch_size = experiment.train.batch_size
  mesh = make_mesh(experiment.mesh)
  check_batch(mesh, batch_size, experiment.train.accumulation)
  dataset = load_dataset(experiment.data)
  config = dataclasses.asdict(experiment)
  rundir.open_run(workdir, config)
  checkpoints = Checkpoints(
    workdir,
    keep_last=experiment.checkpoint.keep_last,
    keep_every=experiment.checkpoint.keep_every,
  )

  # ------------------------------------------------------------------------------ Network and state
  network = experiment.network(dataset.tokenizer.vocab_size, constrain_activations(mesh))
  noise = experiment.diffusion.make_noise()
  optimizer = make_optimizer(experiment.optimizer, num_steps)
  create = functools.partial(create_state, network=network, optimizer=optimizer)
  key = jax.random.key(experiment.seed)
  shardings = tree_shardings(mesh, jax.eval_shape(create, key))
  state: TrainState = jax.jit(create, out_shardings=shardings)(key)
  first = checkpoints.latest_step()
  if first is not None:
    check_same(checkpoints.load_meta(first)["corpus"], dataset.identity)
    state = checkpoints.load_state(first, network, state)
  first = first or 0
  meta = {
    "config": config,
    "tokenizer": dataset.tokenizer.to_json(),
    "corpus": dataset.identity,
  }

  # -------------------------------------------------------------------------------------- Functions
  step_fn = jax.jit(
    functools.partial(
      train_step,
      objective=Objective(
        network=network, noise=noise, time_sampling=experiment.diffusion.time_sampling
      ),
      optimizer=optimizer,
      ema=experiment.optimizer.ema,
      accumulation=experiment.train.accumulation,
    ),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  batches = Batches(dataset.train_blocks, batch_size, experiment.seed)
  sharding = batch_sharding(mesh)
  rates = learning_rate(experiment.optimizer, num_steps)
  reporter = Reporter(experiment, network, dataset)
  to_bits = 1.0 / (math.log(2.0) * dataset.chars_per_token * experiment.data.length)
  tokens_per_step = batch_size * experiment.data.length

  # ------------------------------------------------------------------------------------------- Loop
  metrics = MetricsWriter(workdir)
  waiting: tuple[int, Any] | None = None  # Metrics of the step before, read while this one runs.
  clock = _Clock()
  with Interrupt() as interrupt, RunConsole(first, num_steps) as console:

    def read_waiting() -> None:
      nonlocal waiting
      if waiting is None:
        return
      (done, values), waiting = waiting, None
      loss = float(values["loss"])
      if not math.isfinite(loss):
        raise FloatingPointError(
          f"the loss of step {done} is {loss}. The run stops; the checkpoint of step "
          f"{checkpoints.latest_step()} is kept. A lower --config.optimizer.learning_rate may help."
        )
      rate = tokens_per_step * clock.steps_per_second(done)
      console.update(done, loss * to_bits, rate)
      if _due(done, experiment.report.log_every, num_steps):
        metrics.write(
          done,
          {
            "train_bits_per_char": loss * to_bits,
            "loss_nats_per_sequence": loss,
            "grad_norm": float(values["grad_norm"]),
            "learning_rate": float(np.asarray(rates(done - 1))),
            "tokens_per_second": rate,
          },
        )

    console.say(
      f"{network.num_parameters():,} parameters, {len(dataset.train_blocks):,} training and "
      f"{len(dataset.heldout_blocks):,} held-out blocks of {experiment.data.length} tokens from "
      f"the {dataset.identity['name']}; {jax.device_count()} {jax.default_backend()} device(s)"
    )
    if first:
      console.say(f"going on from the checkpoint of step {first}")
    for step in range(first + 1, num_steps + 1):
      batch = jax.device_put(batches[step - 1], sharding)
      state, values = step_fn(state, batch)
      read_waiting()
      waiting = (step, values)
      if _due(step, experiment.report.evaluate_every) and step < num_steps:
        read_waiting()
        line = reporter.evaluate(state.ema)
        metrics.write(step, line)
        console.say(reporter.describe(step, line))
        clock.pause()
      if _due(step, experiment.report.preview_every) and step < num_steps:
        read_waiting()
        text = reporter.samples(state.ema, 1)[0]
        rundir.write_text(workdir / rundir.SAMPLES / f"step_{step:08d}.txt", text + "\n")
        console.say(f"step {step} sample: {_one_line(text)}")
        clock.pause()
      if _due(step, experiment.checkpoint.every, num_steps) or interrupt.signal:
        read_waiting()
        checkpoints.save(state, network, meta)
        clock.pause()
      if interrupt.signal:
        break
    read_waiting()
    checkpoints.close()

    # --------------------------------------------------------------------------------------- Report
    if interrupt.signal:
      metrics.close()
      console.say(
        f"{interrupt.signal.name}: saved step {int(state.step)} in {workdir}. "
        "The same command goes on from there."
      )
      return 128 + interrupt.signal
    if first >= num_steps:
      console.say(f"step {first} was the last; a larger --config.train.steps would go on")
    line = reporter.evaluate_fully(state.ema)
    metrics.write(int(state.step), line)
    metrics.close()
    texts = reporter.samples(state.ema, experiment.report.samples)
    _write_report(workdir, int(state.step), line, texts, reporter)
    console.say(_closing_text(workdir, line, texts))
  return 0


class Reporter:
  """Held-out bounds and samples of a run.

  Args:
    experiment: the run.
    network: its network.
    dataset: its text.
  """

  def __init__(self, experiment: Experiment, network: Network, dataset: Dataset):
    report, noise = experiment.report, experiment.diffusion.make_noise()
    self._dataset = dataset
    self._blocks = dataset.heldout_blocks
    self._some_blocks = self._blocks[: report.evaluate_blocks]
    length = self._blocks.shape[1]
    self._chars_per_block = dataset.chars_per_token * length
    self._estimator = BoundEstimator(
      network,
      noise,
      num_times=report.evaluate_times,
      batch_size=max(1, _EVALUATION_TOKENS // length),
    )
    vocab = dataset.tokenizer.vocab_size
    per_char = 1.0 / dataset.chars_per_token
    self.entropies = {
      "unigram": unigram_bits(dataset.train, dataset.heldout, vocab) * per_char,
      "bigram": bigram_bits(dataset.train, dataset.heldout, vocab) * per_char,
    }

    @jax.jit
    def draw(params: Params, keys: jax.Array) -> jax.Array:
      return sample(
        functools.partial(network.log_score, params),
        keys,
        length=length,
        num_steps=report.preview_steps,
        process=network.process,
        noise=noise,
      )

    self._draw = draw

  def evaluate(self, params: Params) -> dict[str, float]:
    """The held-out bound from few draws, as metrics."""
    return self._metrics(params, self._some_blocks, passes=1)

  def evaluate_fully(self, params: Params) -> dict[str, float]:
    """The held-out bound of all blocks, from more draws."""
    return self._metrics(params, self._blocks, passes=_FINAL_PASSES)

  def samples(self, params: Params, count: int) -> list[str]:
    """Texts of one block each."""
    key = jax.random.key(_REPORT_SEED)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(count))
    return [self._dataset.tokenizer.decode(row) for row in np.asarray(self._draw(params, keys))]

  def describe(self, step: int, line: dict[str, float]) -> str:
    """One line about a bound."""
    return (
      f"step {step} held-out bound {line['heldout_bits_per_char_strict']:.3f} "
      f"± {line['heldout_bits_per_char_strict_stderr']:.3f} bits/char "
      f"(bigram {self.entropies['bigram']:.3f})"
    )

  def _metrics(self, params: Params, blocks: np.ndarray, passes: int) -> dict[str, float]:
    bound = self._estimator.bound(
      params,
      blocks,
      chars_per_block=self._chars_per_block,
      seed=_REPORT_SEED,
      passes=passes,
    )
    report = evaluation_report(bound, self.entropies["unigram"], self.entropies["bigram"])
    return {f"heldout_{name}": value for name, value in report.items()}


class _Clock:
  """Steps per second since the last pause; the first step after one is not counted (compiling,
  evaluating)."""

  def __init__(self):
    self._start: tuple[int, float] | None = None
    self._last = 0.0

  def pause(self) -> None:
    self._start = None

  def steps_per_second(self, step: int) -> float:
    now = time.monotonic()
    if self._start is None:
      self._start = (step, now)
      return self._last
    first, began = self._start
    if now > began:
      self._last = (step - first) / (now - began)
    return self._last


def _due(step: int, every: int, last: int | None = None) -> bool:
  return step == last or (every > 0 and step % every == 0)


def _one_line(text: str) -> str:
  return " ".join(text.split())[:200]


def _write_report(
  workdir: Path, step: int, line: dict[str, float], texts: list[str], reporter: Reporter
) -> None:
  samples = "\n".join(f"--- sample {i}\n{text}" for i, text in enumerate(texts))
  rundir.write_text(workdir / rundir.SAMPLES / f"final_{step:08d}.txt", samples + "\n")
  rundir.write_json(workdir / "evaluation.json", {"step": step, **line})
  title = f"{workdir.name}: {line['heldout_bits_per_char_strict']:.3f} bits/char at step {step}"
  curve.draw_curve(workdir / curve.FILE, read_metrics(workdir), reporter.entropies, title)


def _closing_text(workdir: Path, line: dict[str, float], texts: list[str]) -> str:
  shown = os.path.relpath(workdir) if workdir.is_relative_to(Path.cwd()) else str(workdir)
  samples = "\n\n".join(f"[sample {i}]\n{text}" for i, text in enumerate(texts))
  strict, bigram = line["heldout_bits_per_char_strict"], line["heldout_bigram_bits_per_char"]
  return f"""
{samples}

Held-out text, bits per character (lower is better):
  bound (strict)   {strict:.3f} ± {line["heldout_bits_per_char_strict_stderr"]:.3f}
  bound (paper)    {line["heldout_bits_per_char_paper"]:.3f} \
± {line["heldout_bits_per_char_paper_stderr"]:.3f}
  bigram entropy   {bigram:.3f}   ({bigram - strict:+.3f} above the strict bound)
  unigram entropy  {line["heldout_unigram_bits_per_char"]:.3f}

{shown}/
  {curve.FILE}  {METRICS}  tensorboard/  evaluation.json
  {rundir.SAMPLES}/  {FOLDER}/  {rundir.CONFIG}  {rundir.VERSIONS}

Next: sedd sample --checkpoint={shown} --num=4 --steps=64 --seed=0"""
