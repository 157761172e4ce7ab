"""Reads a compiled program: what it computes, moves and sends, counted through its loops.

XLA's own cost analysis counts the body of a loop once. This counts it as often as it runs, which
needs the program's text: every computation, who calls it, and the bounds of each loop.

On a first read skip to `Costs` and `costs`.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2}
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
# Products of [L, K] by [K, L] or [L, L] by [L, K] that splash attention makes for each head. Its
# backward kernels make the logits again.
_KERNELS = (("splash_mha_fwd", 2), ("splash_mha_dq", 3), ("splash_mha_dkv", 4))
# Instructions that only name what exists, or whose parts are counted where they are called.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
  "after-all", "partition-id", "replica-id", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
  """An array type. `in_hbm` is false in faster memory (memory space S(1) and up)."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    if self.dtype in ("token", "opaque"):
      return 0
    bits = re.search(r"\d+", self.dtype)
    each = _BYTES.get(self.dtype, int(bits.group()) // 8 if bits else 0)
    return self.size * each


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  types: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str
  root: bool

  def called(self, *keys: str) -> list[str]:
    """Names of computations that attributes point to."""
    found = []
    for key in keys:
      for names in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
        found += re.findall(r"%([\w.\-]+)", names)
    return found

  def attribute(self, key: str) -> str | None:
    match = re.search(rf"\b{key}=([^\s,]+)", self.attributes)
    return match.group(1) if match else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One exchange between devices.

  Attributes:
    kind: `all-gather`, `all-reduce`, ...
    axes: mesh axes it runs over, joined by `+`.
    bytes: what a device sends in one execution.
    largest: bytes of the largest array it makes on a device.
    shapes: dims of the arrays it makes.
    runs: executions in one step.
  """

  kind: str
  axes: str
  bytes: float
  largest: float
  shapes: tuple[tuple[int, ...], ...]
  runs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
  """What one device does in one execution of a program.

  Attributes:
    flops: of matrix products, 2 for each multiplication and addition.
    hbm_bytes: read from and written to HBM, by operands and results that live there; an estimate:
      what a fused slice leaves out is left out, reuse between instructions is not known.
    collectives: every exchange.
  """

  flops: float
  hbm_bytes: float
  collectives: tuple[Collective, ...]

  def collective_bytes(self) -> dict[str, dict[str, float]]:
    """Bytes that a device sends, by kind and mesh axes."""
    table: dict[str, dict[str, float]] = {}
    for one in self.collectives:
      row = table.setdefault(one.kind, {})
      row[one.axes] = row.get(one.axes, 0) + one.bytes * one.runs
    return table


def costs(text: str, axes: Mapping[str, int]) -> Costs:
  """Costs of a compiled program.

  Args:
    text: `compiled.as_text()`.
    axes: names and sizes of the mesh's axes, outermost first.

  Raises:
    ValueError: the text holds no entry computation, or a loop whose bounds cannot be read.
  """
  computations, entry = parse(text)
  runs = _runs(computations, entry)
  fused = {
    name
    for computation in computations.values()
    for instruction in computation.values()
    if instruction.opcode == "fusion"
    for name in instruction.called("calls")
  }
  flops = hbm = 0.0
  exchanges: dict[object, Collective] = {}
  for name, times in runs.items():
    computation = computations[name]
    for instruction in computation.values():
      flops += times * _flops(instruction, computation)
      if name not in fused:
        hbm += times * _hbm(instruction, computation, computations)
      kind = instruction.opcode.removesuffix("-start")
      if kind in _COLLECTIVES:
        # XLA spreads one gather over several fusions; they share a chain.
        chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
        key = (
          (chain.group(1), instruction.attribute("channel_id")) if chain else (name, instruction)
        )
        exchanges[key] = _collective(kind, instruction, computation, axes, times)
  return Costs(flops=flops, hbm_bytes=hbm, collectives=tuple(exchanges.values()))


# --- Parsing


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """All computations of a module, and the name of its entry."""
  computations: dict[str, Computation] = {}
  current: Computation = {}
  entry = None
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if head and not line.startswith(" "):
      current = computations.setdefault(head.group(2), {})
      entry = head.group(2) if head.group(1) else entry
    elif " = " in line and line.startswith(" "):
      instruction = _instruction(line)
      current[instruction.name] = instruction
  if entry is None:
    raise ValueError("no entry computation: this is not the text of a compiled program")
  return computations, entry


def _instruction(line: str) -> Instruction:
  left, right = line.strip().split(" = ", 1)
  end = _closing(right, 0) if right.startswith("(") else right.index(" ")
  types, rest = right[:end], right[end:].strip()
  opening = rest.index("(")
  end = _closing(rest, opening)
  inside = rest[opening + 1 : end - 1]
  return Instruction(
    name=left.removeprefix("ROOT ").removeprefix("%"),
    types=_arrays(types),
    opcode=rest[:opening],
    operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
    literal=inside,
    attributes=rest[end:],
    root=left.startswith("ROOT "),
  )


def _closing(text: str, start: int) -> int:
  """The place after the bracket that closes the one at start."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i + 1
  raise ValueError(f"unbalanced brackets in {text[:200]!r}")


def _arrays(text: str) -> tuple[Array, ...]:
  return tuple(
    Array(
      dtype=dtype,
      dims=tuple(int(n) for n in dims.split(",") if n),
      in_hbm=not re.search(r"S\([1-9]\)", layout or ""),
    )
    for dtype, dims, layout in _ARRAY.findall(text)
  )


# --- Call graph


def _runs(computations: Mapping[str, Computation], entry: str) -> dict[str, int]:
  """How often each computation runs."""
  runs: dict[str, int] = collections.Counter()

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for instruction in computations[name].values():
      if instruction.opcode == "while":
        trips = _trips(instruction, computations[name], computations)
        for body in instruction.called("body"):
          visit(body, times * trips)
      elif instruction.opcode in ("fusion", "call", "async-start", "conditional"):
        keys = ("calls", "to_apply", "branch_computations", "true_computation", "false_computation")
        for called in instruction.called(*keys):
          visit(called, times)

  visit(entry, 1)
  return dict(runs)


def _trips(loop: Instruction, caller: Computation, computations: Mapping[str, Computation]) -> int:
  """Iterations of a counted loop: i = first; while i < last; i += step."""
  known = re.search(r'known_trip_count[^}]*"n":"?(\d+)', loop.attributes)
  if known:
    return int(known.group(1))
  (condition,), (body,) = loop.called("condition"), loop.called("body")
  test = _inlined_root(computations[condition], computations)
  if test is None or test[0].opcode != "compare" or test[0].attribute("direction") != "LT":
    raise ValueError(f"loop {loop.name}: its end cannot be read from {condition}")
  compare, scope = test
  counter, last = compare.operands
  index = _tuple_index(scope, counter)
  first = _constant(caller, _element(caller, loop.operands[0], index))
  step = _step(computations[body], index, computations)
  end = _constant(scope, last)
  if index is None or first is None or end is None or step is None:
    raise ValueError(f"loop {loop.name}: bounds {first}, {end}, step {step} cannot be read")
  return max(0, -(-(end - first) // step))


def _inlined_root(
  computation: Computation, computations: Mapping[str, Computation]
) -> tuple[Instruction, Computation] | None:
  root = next((one for one in computation.values() if one.root), None)
  if root is None:
    return None
  if root.opcode == "fusion":
    # A fused comparison: its parameters are the fusion's operands.
    (called,) = root.called("calls")
    return _inlined_root(_bound(computations[called], root, computation), computations)
  return root, computation


def _bound(inner: Computation, call: Instruction, outer: Computation) -> Computation:
  """A fused computation with its parameters replaced by what is passed to it."""
  scope = dict(outer)
  for instruction in inner.values():
    if instruction.opcode == "parameter":
      passed = outer[call.operands[int(instruction.literal)]]
      instruction = dataclasses.replace(passed, name=instruction.name, root=False)
    scope[instruction.name] = instruction
  return {
    name: dataclasses.replace(one, root=one.root and name in inner) for name, one in scope.items()
  }


def _tuple_index(scope: Computation, name: str) -> int | None:
  instruction = scope[name]
  while instruction.opcode in ("copy", "bitcast", "convert"):
    instruction = scope[instruction.operands[0]]
  if instruction.opcode != "get-tuple-element":
    return None
  index = instruction.attribute("index")
  return None if index is None else int(index)


def _element(scope: Computation, name: str, index: int | None) -> str | None:
  made = scope[name]
  return made.operands[index] if made.opcode == "tuple" and index is not None else None


def _constant(scope: Computation, name: str | None) -> int | None:
  if name is None:
    return None
  instruction = scope[name]
  while instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
    instruction = scope[instruction.operands[0]]
  is_number = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal)
  return int(instruction.literal) if is_number else None


def _step(
  body: Computation, index: int | None, computations: Mapping[str, Computation]
) -> int | None:
  root = next(one for one in body.values() if one.root)
  if root.opcode != "tuple" or index is None:
    return None
  return _increment(body, root.operands[index], index, computations)


def _increment(
  scope: Computation, name: str, index: int, computations: Mapping[str, Computation]
) -> int | None:
  """What is added to element `index` of the loop's state to make `name`."""
  instruction = scope[name]
  match instruction.opcode:
    case "copy" | "bitcast":
      return _increment(scope, instruction.operands[0], index, computations)
    case "get-tuple-element" if instruction.operands:
      source = scope[instruction.operands[0]]
      if source.opcode == "fusion":
        inner, root = _fused(source, scope, computations)
        part = root.operands[int(instruction.attribute("index") or 0)]
        return _increment(inner, part, index, computations)
      return 0 if instruction.attribute("index") == str(index) else None
    case "fusion":
      inner, root = _fused(instruction, scope, computations)
      return _increment(inner, root.name, index, computations)
    case "add":
      for one, other in (instruction.operands, instruction.operands[::-1]):
        added = _constant(scope, other)
        before = _increment(scope, one, index, computations)
        if added is not None and before is not None:
          return before + added
  return None


def _fused(
  fusion: Instruction, scope: Computation, computations: Mapping[str, Computation]
) -> tuple[Computation, Instruction]:
  (called,) = fusion.called("calls")
  inner = _bound(computations[called], fusion, scope)
  return inner, next(inner[one.name] for one in computations[called].values() if one.root)


# --- Counts


def _flops(instruction: Instruction, computation: Computation) -> float:
  if instruction.opcode == "dot":
    lhs = computation[instruction.operands[0]].types[0]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    contracted = [lhs.dims[int(i)] for i in axes.group(1).split(",") if i] if axes else []
    return 2.0 * instruction.types[0].size * math.prod(contracted)
  if instruction.opcode == "convolution":
    return _convolution_flops(instruction, computation)
  if instruction.opcode == "custom-call":
    return _kernel_flops(instruction, computation)
  return 0.0


def _kernel_flops(instruction: Instruction, computation: Computation) -> float:
  """Pallas kernels are opaque to XLA; those of `models/attention.py` are known by their names."""
  products = next((n for name, n in _KERNELS if instruction.name.startswith(name)), 0)
  given = (array for name in instruction.operands for array in computation[name].types)
  queries = (
    next((array.dims for array in given if len(array.dims) == 4), None) if products else None
  )
  if queries is None:
    return 0.0
  batch, heads, length, width = queries
  return 2.0 * products * batch * heads * length**2 * width


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
  """TPUs run products as convolutions; padding and dilation hold no work."""
  lhs, rhs = (computation[name].types[0].dims for name in instruction.operands[:2])
  out = instruction.types[0].dims
  labels = instruction.attribute("dim_labels") or ""
  lhs_labels, rhs_labels, out_labels = re.split(r"_|->", labels)
  window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
  flops = 2.0 * rhs[rhs_labels.index("i")]
  flops *= out[out_labels.index("b")] * out[out_labels.index("f")]
  for label in sorted(filter(str.isdigit, lhs_labels)):
    i = int(label)

    def field(name: str, default: str, i: int = i) -> str:
      return fields[name].split("x")[i] if name in fields else default

    low = int(field("pad", "0_0").split("_")[0])
    flops *= _valid_pairs(
      lhs[lhs_labels.index(label)],
      rhs[rhs_labels.index(label)],
      out[out_labels.index(label)],
      low,
      int(field("stride", "1")),
      int(field("lhs_dilate", "1")),
      int(field("rhs_dilate", "1")),
    )
  return flops / int(instruction.attribute("batch_group_count") or 1)


@functools.cache
def _valid_pairs(
  size: int, kernel: int, out: int, low: int, stride: int, dilation: int, kernel_dilation: int
) -> int:
  """Pairs of output and kernel places along one dimension that meet an input element."""
  end = (size - 1) * dilation
  places = (o * stride + k * kernel_dilation - low for o in range(out) for k in range(kernel))
  return sum(0 <= place <= end and place % dilation == 0 for place in places)


def _hbm(
  instruction: Instruction, computation: Computation, computations: Mapping[str, Computation]
) -> float:
  """Bytes that an instruction reads from and writes to HBM."""
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith("-done"):
    return 0.0
  results = sum(array.bytes for array in instruction.types if array.in_hbm)
  operands = [computation[name] for name in instruction.operands if name in computation]
  if opcode in ("dynamic-slice", "slice", "gather"):
    return 2.0 * results
  if opcode == "dynamic-update-slice":
    return 2.0 * _update_bytes(instruction, computation)
  if opcode.endswith("-start"):
    # Its type lists operand and result, and no more moves than the larger of them, twice.
    return 2.0 * max((array.bytes for array in instruction.types if array.in_hbm), default=0.0)
  if opcode != "fusion":
    return results + sum(array.bytes for one in operands for array in one.types if array.in_hbm)
  (called,) = instruction.called("calls")
  inner = computations[called]
  return _fusion_hbm(instruction, operands, inner)


def _fusion_hbm(fusion: Instruction, operands: Sequence[Instruction], inner: Computation) -> float:
  """As above; of a sliced operand only the slices count, of one updated in place the update."""
  users: dict[str, list[Instruction]] = collections.defaultdict(list)
  for one in inner.values():
    for name in one.operands:
      users[name].append(one)
  total = 0.0
  for one in inner.values():
    if one.opcode != "parameter":
      continue
    source = operands[int(one.literal)]
    whole = sum(array.bytes for array in source.types if array.in_hbm)
    total += whole and min(whole, _read(one, users, inner, whole))
  for result in _results(inner):
    array = result.types[0] if result.types else None
    written = array.bytes if array else 0.0
    if result.opcode == "dynamic-update-slice":
      written = _update_bytes(result, inner)
    total += written if any(one.in_hbm for one in fusion.types) else 0.0
  return total


def _read(
  parameter: Instruction, users: Mapping[str, list[Instruction]], inner: Computation, whole: float
) -> float:
  read = 0.0
  for user in users[parameter.name]:
    if user.opcode in ("dynamic-slice", "slice", "gather"):
      read += user.types[0].bytes
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
      read += _update_bytes(user, inner)
    elif user.opcode in ("bitcast", "reshape"):
      read += _read(user, users, inner, whole)
    else:
      return whole
  return read


def _results(inner: Computation) -> Iterator[Instruction]:
  root = next(one for one in inner.values() if one.root)
  for name in root.operands if root.opcode == "tuple" else [root.name]:
    result = inner[name]
    while result.opcode == "bitcast":
      result = inner[result.operands[0]]
    yield result


def _update_bytes(update: Instruction, computation: Computation) -> float:
  return computation[update.operands[1]].types[0].bytes


# --- Collectives


def _collective(
  kind: str, instruction: Instruction, computation: Computation, axes: Mapping[str, int], runs: int
) -> Collective:
  groups = _groups(instruction.attributes, math.prod(axes.values()))
  made = [array for array in instruction.types if array.size > 1 or len(instruction.types) == 1]
  if instruction.opcode.endswith("-start") and len(made) > 1:
    made = made[len(made) // 2 :]  # Operands come first.
  given = sum(
    array.bytes
    for name in instruction.operands
    if name in computation
    for array in computation[name].types
  )
  result = sum(array.bytes for array in made)
  n = max(len(groups[0]), 1) if groups else math.prod(axes.values())
  share = (n - 1) / n
  sent = {
    "all-gather": result * share,
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
