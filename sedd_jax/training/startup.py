"""What a run prints before its first step."""

from collections.abc import Iterator

import jax

from sedd_jax.data import Dataset
from sedd_jax.data.faults import describe
from sedd_jax.parallel.mesh import batch_multiple
from sedd_jax.training.program import Program
from sedd_jax.training.run import Run


def startup_messages(run: Run) -> Iterator[str]:
  """All messages of an open run, in their order."""
  yield startup_report(run.program, run.dataset)
  faults = run.dataset.faults
  previous, schedule = run.previous, run.experiment.optimizer.schedule
  if left_out := describe(faults.count, faults.first):
    yield left_out
  yield from faults.notes
  if missed := run.profile.missed(run.first, run.last):
    yield missed
  if previous and not run.first:
    yield "no checkpoint yet: starting from the beginning"
  if run.origin:
    yield run.origin
  if previous and previous.train.steps != run.last and schedule == "cosine":
    yield (
      f"train.steps was {previous.train.steps} and is {run.last}: the cosine schedule is another, "
      "and the learning rate jumps to it"
    )


def startup_report(program: Program, dataset: Dataset) -> str:
  """Devices, mesh and sizes of a run, a few lines."""
  experiment, mesh = program.experiment, program.mesh
  train, length = experiment.train, experiment.data.length
  share = train.batch_size // batch_multiple(mesh) // train.accumulation
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  kind = mesh.devices.flat[0].device_kind
  rows = sum(map(len, dataset.train_rows))
  return f"""\
{program.network.num_parameters():,} parameters, {rows:,} training and \
{len(dataset.heldout_rows):,} held-out rows of {length} tokens
corpus: {dataset.identity["name"]}
{mesh.size} device(s) ({kind}), {jax.process_count()} process(es); mesh: {axes}
per device: {program.bytes_per_device() / 2**20:,.1f} MiB of parameters, averages and optimizer \
state, {share} sequence(s) of {train.batch_size} at a time ({train.accumulation} micro-batch(es))"""
