"""What the devices of a compiled program send to each other, and along which axes of the mesh."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence, Set

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
  """One exchange between devices.

  Attributes:
    kind: `all-gather`, `all-reduce`, ...
    axes: mesh axes it runs over, joined by `+`.
    between_slices: whether it crosses the data center network.
    bytes: what a device sends in one execution, at the least: each byte goes once to where it must.
    largest: bytes of the largest array it makes on a device.
    shapes: dims of the arrays it makes.
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
  """Every exchange of a program.

  Args:
    computations: of `hlo.parse`.
    runs: of `hlo.runs`.
    fused: of `hlo.fused`.
    axes: names and sizes of the mesh's axes, outermost first.
    slices: TPU slices, which divide the outermost axis.
  """
  found: dict[object, Collective] = {}
  for name, times in runs.items():
    computation = computations[name]
    for instruction in computation.values():
      kind = instruction.opcode.removesuffix("-start")
      # XLA spreads one gather over several fusions, which share a chain.
      chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
      channel = instruction.attribute("channel_id")
      key = (chain.group(1), channel) if chain else (name, instruction.name)
      if kind == "all-reduce" and name in fused and _only_sliced(instruction, computation):
        # So libtpu writes a reduce-scatter; each device keeps a part.
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
  # In a ring of n each device sends (n - 1) / n of the whole, and all-reduce does it twice.
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
  """Exchanges between slices leave XLA: a device hands an array to its host, which does the rest.

  The array is a device's own part, and its peers are the same devices of the other slices.
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
  """Without the numbers that stand beside arrays: contexts of asynchronous starts, scalar sums."""
  return [array for array in results if array.size > 1] or list(results)


def _only_sliced(instruction: Instruction, computation: Computation) -> bool:
  users = [one for one in computation.values() if instruction.name in one.operands]
  while len(users) == 1 and users[0].opcode == "bitcast":
    name = users[0].name
    users = [one for one in computation.values() if name in one.operands]
  return bool(users) and all(one.opcode == "dynamic-slice" for one in users)


def _groups(attributes: str, devices: int) -> list[list[int]]:
  """Groups of device places; pairs for a permute."""
  pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
  if pairs:
    return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs.group(1)) if a != b]
  listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
  if listed:
    found = re.findall(r"\{([\d,]*)\}", listed.group(1))
    return [[int(n) for n in group.split(",") if n] for group in found] or [list(range(devices))]
  counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
  if counted:
    shape, dims = _ints(counted.group(1)), _ints(counted.group(2))
    order = _ints(counted.group(3)) if counted.group(3) else list(range(len(dims)))
    flat = _transposed(dims, order)
    width = math.prod(shape[1:])
    return [flat[i : i + width] for i in range(0, len(flat), width)]
  named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\S*)\s*\{([^}]*)\}", attributes)
  if named:
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
    chosen = re.findall(r"'([^']+)'", named.group(2))
    names = list(sizes)
    order = [names.index(n) for n in names if n not in chosen] + [names.index(n) for n in chosen]
    flat = _transposed(list(sizes.values()), order)
    width = math.prod(sizes[name] for name in chosen)
    return [flat[i : i + width] for i in range(0, len(flat), width)]
  return [list(range(devices))]


def _ints(text: str) -> list[int]:
  return [int(n) for n in text.split(",")]


def _transposed(dims: Sequence[int], order: Sequence[int]) -> list[int]:
  """0, 1, ... as an array of dims, its axes in another order, flattened."""
  strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
  flat = [0]
  for axis in order:
    flat = [base + strides[axis] * i for base in flat for i in range(dims[axis])]
  return flat


def _axes_of(groups: Sequence[Sequence[int]], axes: Mapping[str, int]) -> str:
  """Mesh axes along which members of a group differ."""
  varying = set()
  sizes = list(axes.values())
  for group in groups:
    for member in group[1:]:
      for i, name in enumerate(axes):
        stride = math.prod(sizes[i + 1 :])
        if group[0] // stride % sizes[i] != member // stride % sizes[i]:
          varying.add(name)
  return "+".join(name for name in axes if name in varying) or "none"
