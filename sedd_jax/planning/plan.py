"""Compiles the real programs of a run for an absent TPU slice, and reads off what they need.

The compiler is PyPI's libtpu on a CPU; no TPU and no network is used. Memory is what the compiler
assigned. Times are roofs: what peak figures allow if all else were free, so real steps are slower.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from sedd_jax.parallel import make_mesh
from sedd_jax.parallel.chips import TPUS, Chip
from sedd_jax.planning import hlo
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.flops import forward_flops
from sedd_jax.training.program import Program

_ABSENT_HOST = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  # One program may plan while another one does.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """Devices that are not there.

  Attributes:
    name: `v5e:16x16`, `2xv5e:16x16` for two slices.
    chip: its figures.
    chips: number of chips.
    slices: number of slices, joined by the data center network.
    devices: jax devices, one or two a chip.
  """

  name: str
  chip: Chip
  chips: int
  slices: int
  devices: tuple[Any, ...]

  @property
  def devices_per_chip(self) -> int:
    return len(self.devices) // self.chips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a program needs on each chip, and the least time that a run of it takes.

  Attributes:
    what: `train` or `sample`.
    topology: name of the slice.
    mesh: sizes of its axes.
    batch: sequences in a global batch.
    remat: the rematerialisation policy.
    attention: the attention kernel asked for.
    chips: number of chips.
    hbm_bytes: of one chip.
    argument_bytes_per_chip: parameters, optimizer state, batch.
    temp_bytes_per_chip: activations and everything else that comes and goes.
    code_bytes_per_chip: the program.
    bytes_per_chip: all of them.
    fits: whether they fit in hbm_bytes, by the compiler's word.
    why_not: its message where they do not.
    hlo_flops_per_step: matrix operations of all chips, counted through loops and remat.
    model_flops_per_step: those of the network itself, forward and backward.
    hbm_traffic_per_chip: bytes read and written in a step, an estimate.
    collective_bytes: bytes that a chip sends in a step, by kind and mesh axes.
    largest_gather_bytes: of the largest array that an all-gather makes on a device.
    compute_seconds, hbm_seconds, ici_seconds, dcn_seconds: the roofs; the last is 0 for one slice.
    seconds_bound: the largest of them.
    tokens_per_second_bound: tokens of a step over it.
    mfu_bound: model_flops_per_step over what the chips could do in that time.
    steps: of the config.
    days_bound: least time for them.
    chip_hours_bound: least chip hours for them.
  """

  what: str
  topology: str
  mesh: Mapping[str, int]
  batch: int
  remat: str
  attention: str
  chips: int
  hbm_bytes: int
  argument_bytes_per_chip: int
  temp_bytes_per_chip: int
  code_bytes_per_chip: int
  bytes_per_chip: int
  fits: bool
  why_not: str
  hlo_flops_per_step: float
  model_flops_per_step: float
  hbm_traffic_per_chip: float
  collective_bytes: Mapping[str, Mapping[str, float]]
  largest_gather_bytes: float
  compute_seconds: float
  hbm_seconds: float
  ici_seconds: float
  dcn_seconds: float
  seconds_bound: float
  tokens_per_second_bound: float
  mfu_bound: float
  steps: int
  days_bound: float
  chip_hours_bound: float


def find_slice(topology: str) -> Slice:
  """The devices of a topology.

  Args:
    topology: a generation and a shape, `v5e:16x16`; `2xv5e:16x16` is two such slices.

  Raises:
    ValueError: the name cannot be read, or libtpu does not know the shape.
    ImportError: libtpu is not installed.
  """
  match = re.fullmatch(r"(?:(\d+)x)?(v4|v5e|v5p|v6e|tpu7x):(\d+(?:x\d+){1,2})", topology)
  if not match or match.group(1) == "0":
    raise ValueError(
      f"--topology={topology}: must be a generation ({', '.join(TPUS)}) and a shape in chips, for "
      "example v5e:4x4, v5p:4x4x4, or 2xv5e:16x16 for two slices"
    )
  slices, generation = int(match.group(1) or 1), match.group(2)
  # What libtpu would ask of a TPU host; set before it is loaded.
  for name, value in _ABSENT_HOST.items():
    os.environ.setdefault(name, value)
  try:
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ImportError(
      "planning compiles with PyPI's libtpu, which is not installed: pip install libtpu"
    ) from error
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if generation == "v4":
    options["chip_config_name"] = "megacore"  # One device a chip, as runs have it.
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{generation}:{match.group(3)}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"--topology={topology}: libtpu refuses it: {_first_line(error)}") from error
  chips = {(getattr(d, "slice_index", 0), tuple(d.coords)) for d in found.devices}
  return Slice(
    name=topology,
    chip=TPUS[generation],
    chips=len(chips),
    slices=slices,
    devices=tuple(found.devices),
  )


def plan_training(experiment: Experiment, vocab_size: int, where: Slice) -> Plan:
  """Compiles the training step.

  Args:
    experiment: the run; its mesh must fit the slice.
    vocab_size: V, number of real tokens.

  Raises:
    ValueError: the mesh does not fit the slice, the model or the batch.
  """
  program = _program(experiment, vocab_size, where)
  lowered = program.step.lower(program.state, program.batch)
  flops = 3 * forward_flops(program.network, experiment.train.batch_size, experiment.data.length)
  return _plan("train", program, where, lowered, flops, experiment.train.steps)


def plan_sampling(experiment: Experiment, vocab_size: int, where: Slice) -> Plan:
  """Compiles one sampling step and the denoising step after it, for a batch of the same size.

  A sampler of n steps calls the network n + 1 times, this program twice: `steps` is 1.
  """
  program = _program(experiment, vocab_size, where)
  numbers = jax.ShapeDtypeStruct(
    (experiment.train.batch_size,), jnp.int32, sharding=program.batch.sharding
  )
  lowered = program.sampler(1).lower(program.state.ema, numbers)
  flops = 2 * forward_flops(program.network, experiment.train.batch_size, experiment.data.length)
  return _plan("sample", program, where, lowered, flops, 1)


def _program(experiment: Experiment, vocab_size: int, where: Slice) -> Program:
  mesh = make_mesh(experiment.mesh, where.devices)
  return Program(experiment=experiment, mesh=mesh, vocab_size=vocab_size)


def _plan(
  what: str, program: Program, where: Slice, lowered: Any, model_flops: float, steps: int
) -> Plan:
  experiment, chip = program.experiment, where.chip
  described = functools.partial(
    Plan,
    what=what,
    topology=where.name,
    mesh=dict(program.mesh.shape),
    batch=experiment.train.batch_size,
    remat=experiment.model.remat,
    attention=experiment.model.attention,
    chips=where.chips,
    hbm_bytes=chip.hbm_bytes,
    model_flops_per_step=model_flops,
    steps=steps,
  )
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return described(**_too_large(program, where, str(error)))
  memory, times = compiled.memory_analysis(), where.devices_per_chip
  arguments = (
    memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  )
  needed = arguments + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  costs = hlo.costs(compiled.as_text(), program.mesh.shape)
  sent = costs.collective_bytes()
  dcn = _across_slices(costs, program, where)
  inside = sum(sum(row.values()) for row in sent.values()) - dcn
  roofs: dict[str, Any] = {
    "compute_seconds": costs.flops * times / chip.flops,
    "hbm_seconds": costs.hbm_bytes * times / chip.hbm_bandwidth,
    "ici_seconds": inside * times / chip.ici_bandwidth,
    "dcn_seconds": dcn * times / chip.dcn_bandwidth if dcn and chip.dcn_bandwidth else 0.0,
  }
  bound = max(roofs.values())
  gathers = [one.largest for one in costs.collectives if one.kind == "all-gather"]
  return described(
    argument_bytes_per_chip=arguments * times,
    temp_bytes_per_chip=memory.temp_size_in_bytes * times,
    code_bytes_per_chip=memory.generated_code_size_in_bytes * times,
    bytes_per_chip=needed * times,
    fits=needed * times <= chip.hbm_bytes,
    why_not="" if needed * times <= chip.hbm_bytes else "more than the chip has",
    hlo_flops_per_step=costs.flops * len(where.devices),
    hbm_traffic_per_chip=costs.hbm_bytes * times,
    collective_bytes={
      kind: {axes: value * times for axes, value in row.items()} for kind, row in sent.items()
    },
    largest_gather_bytes=max(gathers, default=0.0),
    **roofs,
    seconds_bound=bound,
    tokens_per_second_bound=experiment.train.batch_size * experiment.data.length / bound,
    mfu_bound=model_flops / (bound * chip.flops * where.chips),
    days_bound=steps * bound / 86400,
    chip_hours_bound=steps * bound * where.chips / 3600,
  )


def _too_large(program: Program, where: Slice, message: str) -> Any:
  """The fields that are known when the compiler gave up; the rest are NaN."""
  arguments = program.bytes_per_device()
  used = re.search(r"Used ([\d.]+)([KMG]) of", message)
  scale = {"K": 2**10, "M": 2**20, "G": 2**30}
  needed = int(float(used.group(1)) * scale[used.group(2)]) if used else arguments
  times, unknown = where.devices_per_chip, float("nan")
  names = (
    "hlo_flops_per_step", "hbm_traffic_per_chip", "largest_gather_bytes", "compute_seconds",
    "hbm_seconds", "ici_seconds", "dcn_seconds", "seconds_bound", "tokens_per_second_bound",
    "mfu_bound", "days_bound", "chip_hours_bound",
  )  # fmt: skip
  return {
    "argument_bytes_per_chip": arguments * times,
    "temp_bytes_per_chip": (needed - arguments) * times,
    "code_bytes_per_chip": 0,
    "bytes_per_chip": needed * times,
    "fits": False,
    "why_not": _first_line(message),
    "collective_bytes": {},
    **dict.fromkeys(names, unknown),
  }


def _across_slices(costs: hlo.Costs, program: Program, where: Slice) -> float:
  """Bytes that a device sends over the data center network.

  Slices lie along replica; of what a ring over n replicas in k slices moves, the hops between
  slices carry k / n for each device.
  """
  if where.slices == 1:
    return 0.0
  replicas = program.mesh.shape["replica"]
  return sum(
    one.bytes * one.runs * where.slices / replicas
    for one in costs.collectives
    if "replica" in one.axes.split("+")
  )


def _first_line(error: object) -> str:
  return str(error).strip().splitlines()[0][:300]
