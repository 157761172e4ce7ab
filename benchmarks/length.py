"""Time and memory of a training step's loss and gradient against length, one sequence per device.

With --topology=v5e:1x1 it compiles for absent TPUs with splash attention and reports only memory.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.ceilings import measure_ceilings
from benchmarks.inputs import disturbed_params, token_batches
from benchmarks.measure import Compiled, described, seconds_of
from benchmarks.options import Options, parser, read
from benchmarks.report import print_line
from benchmarks.work import training_work
from sedd_jax.parallel import make_mesh
from sedd_jax.planning.slices import find_slice
from sedd_jax.training.program import Program
from sedd_jax.training.step import loss_and_grad


def main() -> None:
  """Prints the line."""
  flags = parser("length", __doc__, repeats=3)
  flags.set_defaults(warmup=1)
  flags.add_argument("--shortest", type=int, default=512)
  flags.add_argument("--longest", type=int, help="2048 on CPU, else 16384")
  flags.add_argument("--topology", help="an absent TPU slice, for example v5e:1x1")
  flags.add_argument("--plot", type=Path, help="a .png to write")
  options = read(flags)
  given = options.flags
  where = find_slice(given.topology) if given.topology else None
  devices = where.devices if where else jax.devices()
  slow = jax.default_backend() == "cpu" and not where
  longest = given.longest or (2048 if slow else 16384)
  lengths = [given.shortest << i for i in range(32) if given.shortest << i <= longest]
  batch = given.batch or len(devices)
  options = _changed(options, train={"batch_size": batch})
  if where:
    options = _changed(options, model={"attention": "splash"})
  ceilings = None if where else measure_ceilings(options.experiment.model.dtype)
  best = ceilings.matmul_flops_per_second if ceilings else math.nan
  per_chip = where.devices_per_chip if where else 1

  temp, times, flops = [], [], []
  for length in lengths:
    print(f"length {length}", file=sys.stderr)
    program = Program(
      experiment=_changed(options, data={"length": length}).experiment,
      mesh=make_mesh(options.experiment.mesh, devices),
      vocab_size=options.vocab,
    )
    try:
      compiled = _compiled(program)
      temp.append(compiled.memory["temp"] * per_chip)
      if ceilings:
        times.append(_times(program, compiled, options))
      flops.append(training_work(program).flops_needed)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      print(f"length {length} does not fit: {str(error)[:300]}", file=sys.stderr)
      break
  done = lengths[: len(times if ceilings else temp)]
  medians = [statistics.median(seconds) for seconds in times]
  if given.plot:
    plot(given.plot, done, temp[: len(done)], medians)
  print_line(
    "length",
    [],
    lengths=done,
    seconds=medians or None,
    all_times=times or None,
    temp_bytes=temp[: len(done)],
    flops_needed=flops[: len(done)],
    share_of_matmul_ceiling=[
      need / seconds / best / len(devices) for need, seconds in zip(flops, medians, strict=False)
    ]
    or None,
    ceilings=dataclasses.asdict(ceilings) if ceilings else None,
    topology=where and {"name": where.name, "chips": where.chips, "compiler": where.compiler},
    **{k: v for k, v in described(options).items() if k != "length"},
  )


def _changed(options: Options, **sections: dict[str, Any]) -> Options:
  experiment = options.experiment
  changed = {k: dataclasses.replace(getattr(experiment, k), **v) for k, v in sections.items()}
  return dataclasses.replace(options, experiment=dataclasses.replace(experiment, **changed))


def _compiled(program: Program) -> Compiled:
  objective = program.score_entropy
  shardings = jax.tree.map(lambda x: x.sharding, program.state.params)
  jitted = jax.jit(
    lambda params, batch, key, step: loss_and_grad(
      objective, params, batch, key, step, accumulation=1
    ),
    out_shardings=(program.replicated, shardings),
  )
  state = program.state
  return Compiled(jitted, state.params, program.batch, state.key, state.step)


def _times(program: Program, compiled: Compiled, options: Options) -> list[float]:
  params, batch = disturbed_params(program), token_batches(program, 1)[0]
  state = program.state
  key = jax.device_put(jax.random.key(0), state.key.sharding)

  def call(i: int) -> float:
    step = jax.device_put(np.int32(i), state.step.sharding)
    return seconds_of(lambda: compiled.call(params, batch, key, step))

  every = [call(i) for i in range(options.flags.warmup + options.flags.repeats)]
  return every[options.flags.warmup :]


def plot(path: Path, lengths: Sequence[int], temp: Sequence[int], seconds: Sequence[float]) -> None:
  """Saves a plot of memory and, if measured, time, on logarithmic axes with a line of slope 1."""
  import matplotlib as mpl

  mpl.use("Agg")
  import matplotlib.pyplot as plt

  panels = [("temporary memory (MiB per device)", [x / 2**20 for x in temp])]
  panels += [("seconds", seconds)] if seconds else []
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4 * len(panels), 3.2), layout="constrained", squeeze=False
  )
  for axis, (name, values) in zip(axes[0], panels, strict=True):
    axis.set(xlabel="length (tokens)", ylabel=name)
    axis.plot(lengths, values, "o-")
    proportional = [values[0] * length / lengths[0] for length in lengths]
    axis.plot(lengths, proportional, "k--", linewidth=1, label="proportional to length")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.legend()
  figure.savefig(path, dpi=120)
  plt.close(figure)


if __name__ == "__main__":
  main()
