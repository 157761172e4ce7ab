"""A parser for the text of compiled programs (HLO), and the number of runs of each part.

XLA's own cost analysis counts the body of a loop once. To count every iteration we read the text:
all computations, their callers, and the bounds of each loop.

Begin with `parse` and `runs`.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array type. `in_hbm` is false for other memory spaces (S(1) and up)."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Its size in bytes, without the padding of its layout."""
    if self.dtype == "pred":
      return self.size
    bits = re.search(r"\d+", self.dtype)
    return self.size * int(bits.group()) / 8 if bits else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the program.
    types: types of its result; several for a tuple.
    opcode: `dot`, `fusion`, `all-gather-start`, ...
    operands: names of its operands.
    literal: the text in its parentheses.
    attributes: the text after them.
    root: whether its result is that of the computation.
  """

  name: str
  types: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str
  root: bool

  @functools.cached_property
  def results(self) -> tuple[Array, ...]:
    """The types of its results. Types of asynchronous starts also list operands and a context."""
    if not self.opcode.endswith("-start") or self.opcode == "all-reduce-start":
      return self.types
    if self.opcode == "copy-start":
      return self.types[:1]
    listed = self.types
    while len(listed) > 2 and listed[-1].size == 1:
      listed = listed[:-1]
    return listed[-(len(listed) // 2) :] if len(listed) % 2 == 0 else listed[-1:]

  def called(self, *keys: str) -> list[str]:
    """Names of the computations in the attributes of these keys."""
    found = []
    for key in keys:
      for names in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
        found += re.findall(r"%([\w.\-]+)", names)
    return found

  def attribute(self, key: str) -> str | None:
    """The text of an attribute; None if there is none."""
    match = re.search(rf"\b{key}=([^\s,]+)", self.attributes)
    return match.group(1) if match else None


Computation = dict[str, Instruction]


# --- Parsing


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """All computations of a module, and the name of its entry computation."""
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
  for computation in computations.values():
    _spell_elements(computation)
  return computations, entry


def _spell_elements(computation: Computation) -> None:
  """Adds an instruction for each element `%x#2` of a tuple, which some compilers write in short."""
  for name in {name for one in computation.values() for name in one.operands if "#" in name}:
    source, _, index = name.rpartition("#")
    if source in computation:
      computation[name] = Instruction(
        name=name,
        types=computation[source].types[int(index) :][:1],
        opcode="get-tuple-element",
        operands=(source,),
        literal=f"%{source}",
        attributes=f", index={index}",
        root=False,
      )


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
    operands=tuple(re.findall(r"%([\w.\-#]+)", inside)),
    literal=inside,
    attributes=rest[end:],
    root=left.startswith("ROOT "),
  )


def _closing(text: str, start: int) -> int:
  """The index after the parenthesis that closes the one at start."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i + 1
  raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


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


def fused(computations: Mapping[str, Computation]) -> set[str]:
  """Names of computations inside fusions; their intermediate results are not in HBM."""
  return {
    name
    for computation in computations.values()
    for instruction in computation.values()
    if instruction.opcode == "fusion"
    for name in instruction.called("calls")
  }


def runs(
  computations: Mapping[str, Computation], entry: str, open_trips: int | None = None
) -> dict[str, int]:
  """The number of runs of each computation. All branches of a conditional count as run.

  Args:
    computations: from `parse`.
    entry: name of the entry computation.
    open_trips: iterations to assume for a loop whose bounds are not in the text.

  Raises:
    ValueError: a loop's bounds are not in the text, and open_trips is None.
  """
  runs: dict[str, int] = collections.Counter()

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for instruction in computations[name].values():
      if instruction.opcode == "while":
        trips = _trips(instruction, computations[name], computations, open_trips)
        for body in instruction.called("body"):
          visit(body, times * trips)
      elif instruction.opcode in ("fusion", "call", "async-start", "conditional"):
        keys = ("calls", "to_apply", "branch_computations", "true_computation", "false_computation")
        for called in instruction.called(*keys):
          visit(called, times)

  visit(entry, 1)
  return dict(runs)


def _trips(
  loop: Instruction,
  caller: Computation,
  computations: Mapping[str, Computation],
  open_trips: int | None,
) -> int:
  """The number of iterations of a loop: i = first; while i < end; i += step."""
  known = re.search(r'known_trip_count[^}]*"n":"?(\d+)', loop.attributes)
  if known:
    return int(known.group(1))
  (condition,), (body,) = loop.called("condition"), loop.called("body")
  test = _inlined_root(computations[condition], computations)
  if test is None or test[0].opcode != "compare":
    raise ValueError(f"loop {loop.name}: its end cannot be read from {condition}")
  compare, scope = test
  counter, last = compare.operands
  index = _tuple_index(scope, counter)
  first = _constant(caller, _element(caller, loop.operands[0], index))
  step = _step(computations[body], index, computations)
  end, fixed = _constant(scope, last), _tuple_index(scope, last)
  if end is None and _step(computations[body], fixed, computations) == 0:
    end = _constant(caller, _element(caller, loop.operands[0], fixed))
  beyond = {"LT": 0, "GT": 0, "NE": 0, "LE": 1, "GE": -1}.get(compare.attribute("direction") or "")
  if index is None or first is None or end is None or not step or beyond is None:
    if open_trips is not None:
      return open_trips
    raise ValueError(f"loop {loop.name}: bounds {first}, {end}, step {step} cannot be read")
  return max(0, -(-(end + beyond - first) // step))


def _inlined_root(
  computation: Computation, computations: Mapping[str, Computation]
) -> tuple[Instruction, Computation] | None:
  """The root of a computation, inside fusions too, and its scope; None if there is no root."""
  root = next((one for one in computation.values() if one.root), None)
  if root is None:
    return None
  if root.opcode == "fusion":
    (called,) = root.called("calls")
    return _inlined_root(_bound(computations[called], root, computation), computations)
  return root, computation


def _bound(inner: Computation, call: Instruction, outer: Computation) -> Computation:
  """A fused computation with its parameters replaced by the operands of the fusion."""
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
  """The index of the tuple element that name is a copy of; None if it is no such element."""
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
  """The integer constant that name is a copy of; None if it is no integer constant."""
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
  """The change of an element of the loop's state in an iteration; None if it is not constant."""
  root = next(one for one in body.values() if one.root)
  if root.opcode != "tuple" or index is None:
    return None
  return _increment(body, root.operands[index], index, computations)


def _increment(
  scope: Computation, name: str, index: int, computations: Mapping[str, Computation]
) -> int | None:
  """The difference between `name` and element `index` of the loop's state, if it is constant."""
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
