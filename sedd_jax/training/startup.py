"""What a run says of itself before its first step."""

import jax

from sedd_jax.data import Dataset
from sedd_jax.parallel.mesh import batch_multiple
from sedd_jax.training.program import Program


def startup_report(program: Program, dataset: Dataset) -> str:
  """Devices, mesh, sizes and shares of a run, a few lines."""
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
