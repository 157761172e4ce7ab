"""Communication between the devices of a compiled program: bytes, and axes of the mesh."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence, Set

import numpy as np

from sedd_jax.planning.hlo import Array, Computation, Instruction

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_MEGASCALE = "xla_megascale_runtime"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One communication operation between devices.

  Attributes:
    kind: `all-gather`, `all-reduce`, ...
    axes: names of the mesh axes it runs over, joined by `+`.
    between_slices: whether it uses the data center network.
    bytes: the least number of bytes that a device sends in one execution.
    largest: bytes of its largest result on a device.
    shapes: shapes of its results.
    runs: executions in one step.
  """

  kind: str
  axes: str
  between_slices: bool = False
  bytes: float
  largest: float
  shapes: tuple[tuple[int, ...], ...]
  runs: int


def collectives(
  computations: Mapping[str, Computation],
  runs: Mapping[str, int],
  fused: Set[str],
  axes: Mapping[str, int],
  slices: int,
) -> tuple[Collective, ...]:
  """All exchanges of a program.

  Args:
    computations: from `hlo.parse`.
    runs: from `hlo.runs`.
    fused: from `hlo.fused`.
    axes: names and sizes of the mesh's axes, outermost first.
    slices: number of TPU slices, which divide the outermost axis.
  """
  found: dict[object, Collective] = {}
  for name, times in runs.items():
    computation = computations[name]
    for instruction in computation.values():
      kind = instruction.opcode.removesuffix("-start")
      # XLA may split one gather into several fusions, which share a chain_id.
      chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
      channel = instruction.attribute("channel_id")
      key = (chain.group(1), channel) if chain else (name, instruction.name)
      if kind == "all-reduce" and name in fused and _only_sliced(instruction, computation):
        # This is how libtpu writes a reduce-scatter: each device keeps a part of the sum.
        kind = "reduce-scatter"
      if kind in KINDS:
        found[key] = _collective(kind, instruction, computation, axes, times)
      elif kind == "send" and _MEGASCALE in instruction.attributes:
        found[key] = _between_slices(instruction, axes, slices, times)
  return tuple(found.values())


def _collective(
  kind: str, instruction: Instruction, computation: Computation, axes: Mapping[str, int], runs: int
) -> Collective:
  groups = _groups(instruction.attributes, math.prod(axes.values()))
  made = _arrays(instruction.results)
  given = sum(
    array.bytes
    for name in instruction.operands
    if name in computation
    for array in computation[name].results
  )
  result = sum(array.bytes for array in made)
  n = max(len(group) for group in groups) if groups else 1
  # In a ring of n devices each sends (n - 1) / n of the array; an all-reduce does so twice.
  share = (n - 1) / n
  sent = {
    "all-reduce": 2 * result * share,
    "reduce-scatter": given * share,
    "collective-permute": result,
    "collective-broadcast": result,
  }.get(kind, result * share)
  return Collective(
    kind=kind,
    axes=_axes_of(groups, axes),
    bytes=sent,
    largest=max((array.bytes for array in made), default=0.0),
    shapes=tuple(array.dims for array in made),
    runs=runs,
  )


def _between_slices(
  send: Instruction, axes: Mapping[str, int], slices: int, runs: int
) -> Collective:
  """An exchange between slices. XLA only sends an array to the host, which does the rest.

  The array is the device's own part. The other members of its group are the devices at the same
  place in the other slices.
  """
  named = re.search(r'_xla_megascale_transfer_type="?(\w+)', send.attributes)
  kind = named.group(1).lower().replace("_", "-") if named else "send"
  array = send.types[0]
  share = (slices - 1) / slices
  sent = {"all-reduce": 2 * share, "reduce-scatter": share, "all-to-all": share}.get(
    kind, slices - 1 if kind == "all-gather" else 1
  )
  return Collective(
    kind=kind,
    axes=next(iter(axes)),
    between_slices=True,
    bytes=array.bytes * sent,
    largest=array.bytes,
    shapes=(array.dims,),
    runs=runs,
  )


def _arrays(results: Sequence[Array]) -> list[Array]:
  """The results without scalars, such as the contexts of asynchronous operations."""
  return [array for array in results if array.size > 1] or list(results)


def _only_sliced(instruction: Instruction, computation: Computation) -> bool:
  """Whether only dynamic slices use the result of an instruction."""
  users = [one for one in computation.values() if instruction.name in one.operands]
  while len(users) == 1 and users[0].opcode == "bitcast":
    name = users[0].name
    users = [one for one in computation.values() if name in one.operands]
  return bool(users) and all(one.opcode == "dynamic-slice" for one in users)


def _groups(attributes: str, devices: int) -> list[list[int]]:
  """The groups of devices that exchange data, by position in the mesh; pairs for a permute."""
  pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
  if pairs:
    return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs.group(1)) if a != b]
  listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
  if listed:
    found = re.findall(r"\{([\d,]*)\}", listed.group(1))
    return [[int(n) for n in group.split(",") if n] for group in found] or [list(range(devices))]
  counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
  if counted:
    shape, dims, order = ([int(i) for i in n.split(",")] if n else [] for n in counted.groups())
    return _transposed(dims, order or range(len(dims)), shape[0])
  named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\S*)\s*\{([^}]*)\}", attributes)
  if named:
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
    chosen = re.findall(r"'([^']+)'", named.group(2))
    names = list(sizes)
    order = [names.index(n) for n in names if n not in chosen] + [names.index(n) for n in chosen]
    count = math.prod(n for name, n in sizes.items() if name not in chosen)
    return _transposed(list(sizes.values()), order, count)
  return [list(range(devices))]


def _transposed(dims: Sequence[int], order: Sequence[int], groups: int) -> list[list[int]]:
  """0, 1, ... as an array of shape dims, its axes reordered, split into equal groups."""
  places = np.arange(math.prod(dims)).reshape(dims).transpose(order)
  return places.reshape(groups, -1).tolist()


def _axes_of(groups: Sequence[Sequence[int]], axes: Mapping[str, int]) -> str:
  """The mesh axes along which members of a group differ."""
  varying = set()
  for group in groups:
    coordinates = np.unravel_index(group, tuple(axes.values()))
    varying |= {name for name, x in zip(axes, coordinates, strict=True) if np.ptp(x)}
  return "+".join(name for name in axes if name in varying) or "none"
