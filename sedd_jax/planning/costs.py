"""Costs of a compiled program on one device: operations, HBM traffic and communication."""

import dataclasses
from collections.abc import Mapping

from sedd_jax.planning import hlo, work
from sedd_jax.planning.exchanges import Collective, collectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
  """The work of one device in one execution of a program; loops count all their iterations.

  Attributes:
    flops: operations of matrix products: 2 for each multiplication and addition.
    hbm_bytes: bytes read from and written to HBM. This is an estimate: it assumes that each
      instruction reads its operands once and that layouts have no padding.
    collectives: all exchanges with other devices.
  """

  flops: float
  hbm_bytes: float
  collectives: tuple[Collective, ...]

  def collective_bytes(self) -> dict[str, dict[str, float]]:
    """The bytes that a device sends, by kind and mesh axes."""
    table: dict[str, dict[str, float]] = {}
    for one in self.collectives:
      row = table.setdefault(one.kind, {})
      row[one.axes] = row.get(one.axes, 0) + one.bytes * one.runs
    return table


def costs(
  text: str, axes: Mapping[str, int], slices: int = 1, open_trips: int | None = None
) -> Costs:
  """The costs of a compiled program. All branches of a conditional count.

  Args:
    text: `compiled.as_text()`.
    axes: names and sizes of the mesh's axes, outermost first.
    slices: number of TPU slices, which divide the outermost axis.
    open_trips: iterations to assume for a loop whose bounds are not in the text.

  Raises:
    ValueError: the text has no entry computation; or it has a loop whose bounds are not in it, and
      open_trips is None.
  """
  computations, entry = hlo.parse(text)
  runs = hlo.runs(computations, entry, open_trips)
  fused = hlo.fused(computations)
  flops = hbm_bytes = 0.0
  for name, times in runs.items():
    computation = computations[name]
    for instruction in computation.values():
      flops += times * work.flops(instruction, computation)
      if name not in fused:
        hbm_bytes += times * work.hbm_bytes(instruction, computation, computations)
  return Costs(
    flops=flops,
    hbm_bytes=hbm_bytes,
    collectives=collectives(computations, runs, fused, axes, slices),
  )
