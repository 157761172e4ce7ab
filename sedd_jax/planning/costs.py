"""Adds up a compiled program: what a device computes, moves and sends, counted through loops."""

import dataclasses
from collections.abc import Mapping

from sedd_jax.planning import hlo, work
from sedd_jax.planning.exchanges import Collective, collectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
  """What one device does in one execution of a program.

  Attributes:
    flops: of matrix products, 2 for each multiplication and addition.
    hbm_bytes: read from and written to HBM, by operands and results that live there; an estimate:
      each instruction reads its operands once, and layouts have no padding.
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


def costs(
  text: str, axes: Mapping[str, int], slices: int = 1, open_trips: int | None = None
) -> Costs:
  """Costs of a compiled program. Of a conditional every branch counts.

  Args:
    text: `compiled.as_text()`.
    axes: names and sizes of the mesh's axes, outermost first.
    slices: TPU slices, which divide the outermost axis.
    open_trips: iterations of a loop whose bounds the program does not tell.

  Raises:
    ValueError: the text holds no entry computation, or a loop whose bounds cannot be read though
      open_trips does not say what to take.
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
