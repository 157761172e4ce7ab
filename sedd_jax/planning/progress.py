"""Progress of compilations, which take from seconds to minutes."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from sedd_jax.planning.plan import Plan
from sedd_jax.planning.slices import Slice
from sedd_jax.training.experiment import Experiment

Planner = Callable[[Experiment, int, Slice], Plan]


def announced(
  planner: Planner, vocab_size: int, where: Slice, stream: TextIO
) -> Callable[[Experiment], Plan]:
  """The planner as a function of an experiment; it writes a line to stream for each plan."""

  def plan(experiment: Experiment) -> Plan:
    train, mesh = experiment.train, dataclasses.asdict(experiment.mesh)
    stream.write(
      f"compiling for {where.name} with {mesh_text(mesh)}: batch {train.batch_size}, accumulation "
      f"{train.accumulation}, remat {experiment.model.remat} ... "
    )
    stream.flush()
    start = time.monotonic()
    try:
      found = planner(experiment, vocab_size, where)
    except Exception:
      stream.write("failed\n")
      raise
    verdict = "fits" if found.fits else "does not fit"
    size = size_text(found.bytes_per_chip)
    stream.write(f"{time.monotonic() - start:.0f} s: {size} per chip, {verdict}\n")
    return found

  return plan


def mesh_text(mesh: Mapping[str, int]) -> str:
  """The mesh as text, without axes of size 1: `fsdp=4,tensor=2`."""
  sizes = {name: size for name, size in mesh.items() if size != 1} or mesh
  return ",".join(f"{name}={size}" for name, size in sizes.items())


def size_text(value: float) -> str:
  """A number of bytes as text, in GiB or MiB."""
  return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
