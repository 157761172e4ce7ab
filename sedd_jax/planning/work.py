"""Costs of one instruction of a compiled program: operations and HBM traffic."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sedd_jax.planning.hlo import Computation, Instruction

# Products of [L, K] by [K, L] or [L, L] by [L, K] that splash attention computes for each head. Its
# backward kernels compute the logits and their gradient again. The fused backward kernel, which
# also computes dq, is called dkv too; it has dq as a fifth result, and may have a sixth to sum it.
_KERNELS = (("splash_mha_fwd", 2), ("splash_mha_dq", 3), ("splash_mha_dkv", 4))
_DKV_RESULTS = 4
# Instructions that move no data, or whose computations are counted by themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
  "after-all", "partition-id", "replica-id", "iota", "async-start", "async-update",
  "optimization-barrier",
}  # fmt: skip
# Custom calls of libtpu that move no data.
_BOOKKEEPING = {
  "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone",
  "ConcatBitcast",
}  # fmt: skip


def flops(instruction: Instruction, computation: Computation) -> float:
  """Operations of a matrix product, 2 for each multiplication and addition; else 0."""
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
  """Operations of a Pallas kernel of `models/attention.py`, recognized by its name; else 0.

  XLA does not know the work of these kernels. Queries are the first array of floats: [B, H, L, K],
  or [H, L, K] if B is 1.
  """
  products = next((n for name, n in _KERNELS if instruction.name.startswith(name)), 0)
  if not products:
    return 0.0
  if "dkv" in instruction.name and len(instruction.types) > _DKV_RESULTS:
    products += 1
  given = (array for name in instruction.operands for array in computation[name].types)
  queries = next(a.dims for a in given if len(a.dims) >= 3 and a.dtype in ("bf16", "f32"))
  *sequences, heads, length, width = queries
  return 2.0 * products * math.prod(sequences) * heads * length**2 * width


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
  """Operations of a convolution, as which TPUs run products. Padding and dilation do not count.

  Groups need no factor: the kernel has the input features of one feature group, and the result the
  batch of one batch group.
  """
  lhs, rhs = (computation[name].types[0].dims for name in instruction.operands[:2])
  out = instruction.types[0].dims
  lhs_labels, rhs_labels, out_labels = re.split(r"_|->", instruction.attribute("dim_labels") or "")
  given = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  fields = dict(part.split("=") for part in given.group(1).split()) if given else {}
  result = 2.0 * rhs[rhs_labels.index("i")]
  result *= out[out_labels.index("b")] * out[out_labels.index("f")]
  for label in sorted(filter(str.isdigit, lhs_labels)):
    i = int(label)

    def field(name: str, default: str, i: int = i) -> str:
      return fields[name].split("x")[i] if name in fields else default

    window = _Window(
      low=int(field("pad", "0_0").split("_")[0]),
      stride=int(field("stride", "1")),
      dilation=int(field("lhs_dilate", "1")),
      kernel_dilation=int(field("rhs_dilate", "1")),
    )
    size, kernel = lhs[lhs_labels.index(label)], rhs[rhs_labels.index(label)]
    result *= _valid_pairs(size, kernel, out[out_labels.index(label)], window)
  return result


class _Window(NamedTuple):
  """A convolution's window in one dimension; `low` is the padding before the first element."""

  low: int
  stride: int
  dilation: int
  kernel_dilation: int


@functools.cache
def _valid_pairs(size: int, kernel: int, out: int, window: _Window) -> int:
  """The number of pairs of output and kernel positions that read an input element."""
  low, stride, dilation, kernel_dilation = window
  end = (size - 1) * dilation
  places = (o * stride + k * kernel_dilation - low for o in range(out) for k in range(kernel))
  return sum(0 <= place <= end and place % dilation == 0 for place in places)


def hbm_bytes(
  instruction: Instruction, computation: Computation, computations: Mapping[str, Computation]
) -> float:
  """Bytes that an instruction outside fusions reads from HBM and writes to it.

  Of an operand that is sliced only the slice counts; of one that is updated in place only the
  update counts.
  """
  opcode = instruction.opcode.removesuffix("-start")
  if instruction.opcode in _FREE or opcode.endswith("-done"):
    return 0.0
  if opcode == "custom-call" and _target(instruction) in _BOOKKEEPING:
    return 0.0
  operands = [computation[name] for name in instruction.operands if name in computation]
  if opcode == "fusion":
    return _fusion_hbm(instruction, operands, computations)
  read = sum(array.bytes for one in operands for array in one.results if array.in_hbm)
  if opcode == "send":
    return read
  written = sum(array.bytes for array in instruction.results if array.in_hbm)
  if opcode in ("dynamic-slice", "slice", "gather"):
    made = sum(array.bytes for array in instruction.results)
    return written + min(read, made)
  if opcode in ("dynamic-update-slice", "scatter"):
    return min(written, _update_bytes(instruction, computation)) + min(
      read, _update_bytes(instruction, computation)
    )
  return read + written


def _target(instruction: Instruction) -> str:
  return (instruction.attribute("custom_call_target") or "").strip('"')


def _fusion_hbm(
  fusion: Instruction, operands: list[Instruction], computations: Mapping[str, Computation]
) -> float:
  inner = _called(fusion, computations)
  total = 0.0
  for one in inner.values():
    if one.opcode == "parameter":
      source = operands[int(one.literal)]
      whole = sum(array.bytes for array in source.results if array.in_hbm)
      total += whole and min(whole, _read(one, inner, computations, whole))
  made = list(_results(inner, computations))
  if len(made) != len(fusion.types):
    return total + sum(array.bytes for array in fusion.types if array.in_hbm)
  for array, written in zip(fusion.types, made, strict=True):
    total += min(array.bytes, written) if array.in_hbm else 0.0
  return total


def _read(
  source: Instruction, inner: Computation, computations: Mapping[str, Computation], whole: float
) -> float:
  """Bytes of an instruction's result that its users read."""
  if source.root:
    return whole
  read = 0.0
  for user in inner.values():
    if source.name not in user.operands:
      continue
    if user.opcode in ("dynamic-slice", "slice", "gather"):
      read += user.types[0].bytes
    elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == source.name:
      read += _update_bytes(user, inner)
    elif user.opcode in ("bitcast", "reshape"):
      read += _read(user, inner, computations, whole)
    elif user.opcode == "fusion":
      nested = _called(user, computations)
      for one in nested.values():
        if one.opcode == "parameter" and user.operands[int(one.literal)] == source.name:
          read += _read(one, nested, computations, whole)
    else:
      return whole
  return read


def _results(inner: Computation, computations: Mapping[str, Computation]) -> Iterator[float]:
  """Bytes that a fused computation writes, for each of its results."""
  root = next(one for one in inner.values() if one.root)
  for name in root.operands if root.opcode == "tuple" else [root.name]:
    result, scope = inner[name], inner
    while True:
      if result.opcode == "bitcast":
        result = scope[result.operands[0]]
      elif result.opcode == "fusion" and len(result.types) == 1:
        scope = _called(result, computations)
        result = next(one for one in scope.values() if one.root)
      else:
        break
    if result.opcode in ("dynamic-update-slice", "scatter"):
      yield _update_bytes(result, scope)
    else:
      yield sum(array.bytes for array in result.types)


def _called(fusion: Instruction, computations: Mapping[str, Computation]) -> Computation:
  (name,) = fusion.called("calls")
  return computations[name]


def _update_bytes(update: Instruction, computation: Computation) -> float:
  """Bytes of an update. The first third of a scatter's operands are the arrays to update."""
  place = 1 if update.opcode == "dynamic-update-slice" else 2 * (len(update.operands) // 3)
  return computation[update.operands[place]].types[0].bytes
