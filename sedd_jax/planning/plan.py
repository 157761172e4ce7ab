"""Plans: the memory and the least time of a run's programs on a TPU slice that is not attached.

The programs are the run's own, compiled by PyPI's libtpu on a CPU, without a TPU or a network.
Memory is what the compiler assigns. Times are lower bounds from peak rates: real steps are slower.
"""

import dataclasses
import functools
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.tiles import tile_shape, whole_tile_height
from sedd_jax.models.attention import choose
from sedd_jax.parallel import OnMesh, make_mesh
from sedd_jax.parallel.mesh import batch_multiple
from sedd_jax.planning.costs import costs
from sedd_jax.planning.exchanges import Collective
from sedd_jax.planning.slices import Slice, first_line
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.program import Program

# Compiler errors about HBM. Other memory (vmem) does not depend on batch and mesh.
_NO_ROOM = re.compile(r"RESOURCE_EXHAUSTED.*(memory space hbm|out of memory on HBM)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The memory of a program on each chip, and a lower bound of a run's time.

  Attributes:
    what: `train` or `sample`.
    topology: name of the slice.
    slices: number of TPU slices, joined by the data center network.
    mesh: sizes of the mesh's axes.
    batch: sequences in a global batch.
    length: tokens in a sequence.
    accumulation: number of micro-batches in a step.
    remat: the rematerialisation policy.
    attention: the attention kernel that runs.
    compiler: versions of jax and libtpu.
    chips: number of chips.
    hbm_bytes: HBM of one chip.
    argument_bytes_per_chip: parameters, optimizer state, batch, and results that reuse no argument.
    temp_bytes_per_chip: activations and other temporary arrays.
    code_bytes_per_chip: the program.
    bytes_per_chip: the sum of these.
    fits: whether the program fits into HBM.
    why_not: the reason if it does not, else empty.
    hlo_flops_per_step: matrix operations of all chips, with all iterations of loops and with
      rematerialisation; the output layer counts for the mean share of rows that need it.
    model_flops_per_step: matrix operations of the network alone, forward and backward, with the
      same share of rows.
    hbm_traffic_per_chip: bytes read and written in a step, an estimate.
    collective_bytes: bytes that a chip sends in a step, by kind and mesh axes.
    largest_gather_bytes: bytes of the largest result of an all-gather on a device.
    collectives: all exchanges of a device.
    compute_seconds, hbm_seconds, ici_seconds, dcn_seconds: least times of a step by peak rates of
      matrix units, HBM, interconnect and data center network. The last is 0 for one slice, and for
      chips whose data center network has no published rate.
    seconds_bound: the largest of them.
    tokens_per_second_bound: tokens of a step divided by seconds_bound.
    mfu_bound: model_flops_per_step divided by the operations that the chips can do in that time.
    steps: number of steps.
    days_bound: least time of all steps, in days.
    chip_hours_bound: least time of all steps, in chip hours.
  """

  what: str
  topology: str
  slices: int
  mesh: Mapping[str, int]
  batch: int
  length: int
  accumulation: int
  remat: str
  attention: str
  compiler: str
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
  collectives: tuple[Collective, ...]
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

  def to_json(self) -> dict[str, Any]:
    """All fields as JSON values; unknown numbers (NaN) are null."""
    return _jsonable(dataclasses.asdict(self))


def plan_training(experiment: Experiment, vocab_size: int, where: Slice) -> Plan:
  """The plan of a training step, which is compiled.

  Args:
    experiment: the run; its mesh must fit the slice.
    vocab_size: V, number of real tokens.
    where: from `find_slice`.

  Raises:
    ValueError: the mesh does not fit the slice, the model or the batch; or the compiler fails for
      a reason other than memory.
  """
  program = _program(experiment, vocab_size, where)
  lowered = program.step.lower(program.state, program.batch)
  flops = 3 * program.forward_flops()
  return _plan("train", program, where, lowered, flops, experiment.train.steps)


def plan_sampling(experiment: Experiment, vocab_size: int, where: Slice) -> Plan:
  """The plan of a sampling step followed by the denoising step, for a batch of the same size.

  A sampler of n steps calls the network n + 1 times, this program twice: `steps` is 1.
  The arguments are those of `plan_training`.
  """
  # Sampling has no micro-batches.
  train = dataclasses.replace(experiment.train, accumulation=1)
  experiment = dataclasses.replace(experiment, train=train)
  program = _program(experiment, vocab_size, where)
  numbers = jax.ShapeDtypeStruct(
    (experiment.train.batch_size,), jnp.int32, sharding=program.batch.tokens.sharding
  )
  lowered = program.sampling_step.lower(program.state.average, numbers)
  flops = 2 * program.forward_flops()
  return _plan("sample", program, where, lowered, flops, 1)


def _program(experiment: Experiment, vocab_size: int, where: Slice) -> Program:
  mesh = make_mesh(experiment.mesh, where.devices)
  return Program(experiment=experiment, mesh=mesh, vocab_size=vocab_size)


def row_tiles(program: Program, what: str) -> int:
  """Number of row tiles of the output layer: the mean over times, rounded up.

  Only the loops over these tiles have no bounds in the program's text. Devices along the axis
  tensor share the columns in training, and the positions in sampling if tensor divides the length.

  Args:
    program: the run.
    what: `train` or `sample`.
  """
  train, length = program.experiment.train, program.experiment.data.length
  tensor = program.mesh.shape["tensor"]
  rows = train.batch_size // train.accumulation // batch_multiple(program.mesh) * length
  if what == "sample":
    rows //= 1 if length % tensor else tensor
    height = whole_tile_height(rows)
  else:
    height, _ = tile_shape(rows, program.network.config.padded_states // tensor)
  return math.ceil(program.objective.head_share * rows / height)


def _plan(
  what: str, program: Program, where: Slice, lowered: Any, model_flops: float, steps: int
) -> Plan:
  experiment = program.experiment
  described = functools.partial(
    Plan,
    what=what,
    topology=where.name,
    slices=where.slices,
    mesh=dict(program.mesh.shape),
    batch=experiment.train.batch_size,
    length=experiment.data.length,
    accumulation=experiment.train.accumulation,
    remat=experiment.model.remat,
    attention=_attention(program),
    compiler=where.compiler,
    chips=where.chips,
    hbm_bytes=where.chip.hbm_bytes,
    model_flops_per_step=model_flops,
    steps=steps,
  )
  try:
    memory, text = compiled(lowered)
  except jax.errors.JaxRuntimeError as error:
    if _NO_ROOM.search(str(error)):
      return described(**_too_large(program, where, str(error)))
    raise ValueError(
      f"{where.compiler} cannot compile this for {where.name}: {first_line(error)}; another "
      "--config.model.attention, mesh, batch or libtpu may do"
    ) from error
  return described(
    **_memory(memory, where),
    **_times(what, text, program, where, model_flops=model_flops, steps=steps),
  )


def compiled(lowered: Any) -> tuple[Any, str]:
  """The compiler's memory analysis of a lowered program, and the text of the compiled program.

  The text comes from the compiler's own dump: `as_text()` fails on some programs for v6e and tpu7x
  ("async-update instruction should have 1 operands", libtpu 0.0.52).
  """
  with tempfile.TemporaryDirectory() as folder:
    program = lowered.compile(compiler_options={"xla_dump_to": folder})
    dumped = max(
      Path(folder).glob("*.after_optimizations.txt"), key=lambda p: p.stat().st_size, default=None
    )
    text = program.as_text() if dumped is None else dumped.read_text()
  return program.memory_analysis(), text


def _memory(memory: Any, where: Slice) -> dict[str, Any]:
  times = where.devices_per_chip
  arguments = (
    memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  )
  needed = arguments + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  fits = needed * times <= where.chip.hbm_bytes
  return {
    "argument_bytes_per_chip": arguments * times,
    "temp_bytes_per_chip": memory.temp_size_in_bytes * times,
    "code_bytes_per_chip": memory.generated_code_size_in_bytes * times,
    "bytes_per_chip": needed * times,
    "fits": fits,
    "why_not": "" if fits else "the program needs more HBM than the chip has",
  }


def _times(
  what: str, text: str, program: Program, where: Slice, *, model_flops: float, steps: int
) -> dict[str, Any]:
  """The fields of a plan that come from the program's text: costs and lower bounds of times."""
  chip, times, train = where.chip, where.devices_per_chip, program.experiment.train
  counted = costs(text, program.mesh.shape, where.slices, row_tiles(program, what))
  sent = [(one.between_slices, one.bytes * one.runs * times) for one in counted.collectives]
  dcn = sum(value for between, value in sent if between)
  roofs = {
    "compute_seconds": counted.flops * times / chip.flops,
    "hbm_seconds": counted.hbm_bytes * times / chip.hbm_bandwidth,
    "ici_seconds": sum(value for between, value in sent if not between) / chip.ici_bandwidth,
    "dcn_seconds": dcn / chip.dcn_bandwidth if chip.dcn_bandwidth else 0.0,
  }
  bound = max(roofs.values())
  gathers = [one.largest for one in counted.collectives if one.kind == "all-gather"]
  return {
    "hlo_flops_per_step": counted.flops * len(where.devices),
    "hbm_traffic_per_chip": counted.hbm_bytes * times,
    "collective_bytes": {
      kind: {axes: value * times for axes, value in row.items()}
      for kind, row in counted.collective_bytes().items()
    },
    "largest_gather_bytes": max(gathers, default=0.0),
    "collectives": counted.collectives,
    **roofs,
    "seconds_bound": bound,
    "tokens_per_second_bound": train.batch_size * program.experiment.data.length / bound,
    "mfu_bound": model_flops / (bound * chip.flops * where.chips),
    "days_bound": steps * bound / 86400,
    "chip_hours_bound": steps * bound * where.chips / 3600,
  }


def _too_large(program: Program, where: Slice, message: str) -> dict[str, Any]:
  """The fields of a plan whose program does not fit into HBM; unknown numbers are NaN."""
  arguments = program.bytes_per_device()
  size = re.search(r"Used ([\d.]+)([KMGT]?) of|temporaries \(([\d.]+)([KMGT]?)\)", message)
  number, unit = [group for group in size.groups() if group is not None] if size else ("0", "")
  scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  needed = max(arguments, int(float(number) * scale[unit]))
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
    "why_not": first_line(message),
    "collective_bytes": {},
    "collectives": (),
    **dict.fromkeys(names, unknown),
  }


def _attention(program: Program) -> str:
  """The attention kernel that runs; `auto` is resolved."""
  shape, train = program.network.config, program.experiment.train
  queries = jax.ShapeDtypeStruct(
    (
      train.batch_size // train.accumulation,
      program.experiment.data.length,
      shape.heads,
      shape.width // shape.heads,
    ),
    shape.dtype,
  )
  return choose(shape.attention, queries, OnMesh(program.mesh).per_shard)  # pyright: ignore[reportArgumentType]


def _jsonable(value: Any) -> Any:
  match value:
    case dict():
      return {name: _jsonable(inner) for name, inner in value.items()}
    case list() | tuple():
      return [_jsonable(inner) for inner in value]
    case float() if math.isnan(value):
      return None
  return value
