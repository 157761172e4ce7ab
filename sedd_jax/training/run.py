"""An open run: its directory, programs, text, state, and what watches it.

Every process opens it; process 0 alone writes files and prints.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sedd_jax.data import Batches, Dataset, Tokenizer, from_json, load_dataset
from sedd_jax.files.lock import FolderLock
from sedd_jax.files.paths import local_path
from sedd_jax.files.whole import sweep
from sedd_jax.parallel import processes
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import Checkpoints, check_room, load_meta, room_note
from sedd_jax.training.console import RunConsole
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.feed import Feed
from sedd_jax.training.initialization import Initialization, Load
from sedd_jax.training.metrics import MetricsWriter, NoMetrics, metrics_writer
from sedd_jax.training.operations import Operations, Profile, Watchdog
from sedd_jax.training.program import Program, mesh_of
from sedd_jax.training.progress import Progress
from sedd_jax.training.report import Reporter
from sedd_jax.training.state import TrainState


@dataclasses.dataclass(kw_only=True)
class Setup:
  """What is to run, before anything is written.

  Attributes:
    experiment: the run's config.
    workdir: the run directory, an absolute path.
    previous: the experiment that the directory holds already; None for a new run.
    initialization: makes the state of a new run.
    dataset: the run's text.
    program: the run's programs.
    meta: what identifies the run: config, corpus, tokenizer.
  """

  experiment: Experiment
  workdir: Path
  previous: Experiment | None
  initialization: Initialization
  dataset: Dataset
  program: Program
  meta: dict[str, Any]

  @property
  def last(self) -> int:
    """The step that ends the run."""
    return self.experiment.train.steps

  @property
  def lead(self) -> bool:
    """Whether this process writes files."""
    return processes.is_lead()


@dataclasses.dataclass(kw_only=True)
class Run(Setup):
  """An open run.

  Attributes, beside those of `Setup`:
    began: `time.monotonic()` when opening it began.
    first: number of steps made before; 0 for a new run.
    origin: a sentence on where the state comes from, or None for random weights.
    state: the train state after the last step made.
    progress: what is counted besides the train state.
    batches: the training text by step.
    feed: the same on its way to the devices, from step `first` on.
    profile: of some steps.
  """

  began: float
  first: int
  origin: str | None
  state: TrainState
  progress: Progress
  batches: Batches
  feed: Feed
  reporter: Reporter
  checkpoints: Checkpoints
  console: RunConsole
  metrics: MetricsWriter | NoMetrics
  watchdog: Watchdog
  profile: Profile

  def save(self) -> None:
    """Starts to save the state, after the save before it has ended.

    Raises:
      FloatingPointError: the state is not finite, and is not saved.
    """
    self.checkpoints.wait()
    self.say_failed_save()
    self.checkpoints.save(self.state, self.meta | dataclasses.asdict(self.progress))

  def say_failed_save(self) -> None:
    """Prints, once, why the last save failed, if it has."""
    if failure := self.checkpoints.failure():
      self.console.say(failure)

  def unsaved(self) -> str | None:
    """Why the last state is not on disk, on all processes, or None if it is. Waits for the save."""
    self.checkpoints.wait()
    failure = self.checkpoints.failure()
    failed = processes.of_lead(int(failure is not None))
    return (failure or "see process 0") if failed else None


@contextlib.contextmanager
def open_run(
  experiment: Experiment,
  workdir: Path,
  operations: Operations,
  load: Load | None,
  tokenizer: Tokenizer | None,
) -> Iterator[Run]:
  """Opens a new run, or one to go on with; all it holds is closed at the end.

  Args and Raises: as of `loop.train`.
  """
  began = time.monotonic()
  setup = _prepare(experiment, local_path(workdir, "workdir").absolute(), load, tokenizer)
  processes.barrier("all have looked at the run directory")
  with contextlib.ExitStack() as stack:
    if setup.lead:
      stack.enter_context(FolderLock(setup.workdir, _print))
      _claim(setup)
    processes.barrier("the run directory is written")
    rundir.check_shared(setup.workdir, setup.meta)
    yield _open(setup, operations, stack, began)


def _prepare(
  experiment: Experiment, workdir: Path, load: Load | None, tokenizer: Tokenizer | None
) -> Setup:
  """Reads and checks what is to run; writes nothing."""
  mesh = mesh_of(experiment)
  previous = rundir.find_run(workdir, experiment)
  initialization = Initialization(experiment, load)
  if (own := rundir.read_json(workdir, rundir.TOKENIZER)) is not None:
    tokenizer = from_json(own, str(workdir / rundir.TOKENIZER))
  dataset = load_dataset(
    experiment.data,
    expected=rundir.read_json(workdir, rundir.CORPUS),
    tokenizer=tokenizer or initialization.tokenizer(),
  )
  if previous is None:
    initialization.check(dataset.tokenizer)
  return Setup(
    experiment=experiment,
    workdir=workdir,
    previous=previous,
    initialization=initialization,
    dataset=dataset,
    program=Program(experiment=experiment, mesh=mesh, vocab_size=dataset.tokenizer.vocab_size),
    meta={
      "config": dataclasses.asdict(experiment),
      "corpus": dataset.identity,
      "tokenizer": dataset.tokenizer.to_json(),
    },
  )


def _claim(setup: Setup) -> None:
  """Writes what identifies the run into its directory, which this process has locked."""
  experiment, workdir = setup.experiment, setup.workdir
  rundir.find_run(workdir, experiment)  # Again: nobody else can change it any more.
  size = setup.program.bytes()
  check_room(workdir, size)
  if note := room_note(workdir, size, experiment.checkpoint.at_once(setup.last)):
    _print(note)
  sweep(workdir, workdir / rundir.SAMPLES)
  rundir.write_run(workdir, setup.meta)


def _open(setup: Setup, operations: Operations, stack: contextlib.ExitStack, began: float) -> Run:
  """Restores or makes the state and opens all else that a run needs.

  Args:
    stack: closes what is opened, in reverse order.
  """
  experiment, workdir, program = setup.experiment, setup.workdir, setup.program
  lead = setup.lead
  batches = setup.dataset.batches(experiment.train.batch_size, experiment.seed)
  reporter = Reporter(program, setup.dataset)
  watchdog = stack.enter_context(Watchdog(operations.hang_seconds))
  checkpoints = stack.enter_context(
    Checkpoints(
      workdir,
      program.network,
      keep_last=experiment.checkpoint.keep_last,
      keep_every=experiment.checkpoint.keep_every,
    )
  )
  first = checkpoints.resume(_print) or 0
  if first:
    stored = load_meta(workdir, first)
    rundir.check_meta(workdir, first, stored, setup.meta)
    progress = Progress.of_checkpoint(stored)
    state = checkpoints.load_state(first, program.state)
    origin = f"going on from the checkpoint of step {first}"
  else:
    progress = Progress()
    state, origin = setup.initialization.create(program, setup.dataset.tokenizer)
  console = stack.enter_context(RunConsole(first, setup.last, lead=lead))
  return Run(
    **vars(setup),
    began=began,
    first=first,
    origin=origin,
    state=state,
    progress=progress,
    batches=batches,
    reporter=reporter,
    checkpoints=checkpoints,
    console=console,
    metrics=stack.enter_context(metrics_writer(workdir, first + 1, console.say, lead=lead)),
    watchdog=watchdog,
    profile=stack.enter_context(Profile(operations.profile_steps, workdir, lead=lead)),
    feed=stack.enter_context(Feed(batches, program.batch.tokens.sharding, first)),
  )


def _print(text: str) -> None:
  """Prints before there is a console."""
  print(text, flush=True)
