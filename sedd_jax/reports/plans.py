"""Plans as text for a terminal, side by side."""

import math
from collections.abc import Sequence

from sedd_jax.planning import Plan, Slice
from sedd_jax.planning.progress import mesh_text, size_text
from sedd_jax.reports.tables import Table, plain

# The order of rows, by how their names begin.
_ORDER = (
  "arguments", "temporaries", "code", "all of", "fits", "compiled", "the model", "sends", "compute",
  "HBM", "interconnect", "data center", "tokens/s", "MFU", "time", "chip-hours",
)  # fmt: skip


def plans_text(plans: Sequence[Plan], where: Slice) -> str:
  """Plans for one slice as a table, a column for each mesh."""
  first = plans[0]
  slices = f" in {where.slices} slices" if where.slices > 1 else ""
  accumulation = f" in {first.accumulation} micro-batches" if first.accumulation > 1 else ""
  what = "a training step" if first.what == "train" else "a sampling step and the denoising step"
  header = (
    f"{what} on {where.name}, {where.chips} chips{slices}: batch {first.batch} x "
    f"{first.length} tokens{accumulation}, remat {first.remat}, attention {first.attention} "
    f"({first.compiler}); planned, not run"
  )
  misfits = [f"does not fit: {plan.why_not}" for plan in plans if not plan.fits]
  largest = [_largest(plan) for plan in plans if plan.collectives]
  return "\n".join([header, plain(_table(plans)), *largest, *misfits])


def _table(plans: Sequence[Plan]) -> Table:
  columns = [_rows(plan) for plan in plans]
  # Exchanges differ between meshes: there is a row for each that any mesh has.
  names = list(dict.fromkeys(name for column in columns for name in column))
  names.sort(key=lambda name: next(i for i, key in enumerate(_ORDER) if name.startswith(key)))
  return Table(
    title="",
    columns=("mesh", *(mesh_text(plan.mesh) for plan in plans)),
    numeric=(False, *(True for _ in plans)),
    rows=tuple((name, *(column.get(name, "-") for column in columns)) for name in names),
  )


def _largest(plan: Plan) -> str:
  one = max(plan.collectives, key=lambda one: one.bytes * one.runs)
  shapes = ", ".join(map(str, map(list, one.shapes[:3]))) + ", ..." * (len(one.shapes) > 3)
  return (
    f"largest exchange with {mesh_text(plan.mesh)}: {size_text(one.bytes * one.runs)} in "
    f"{one.runs} runs, {one.kind} over {one.axes} of {shapes}"
  )


def _rows(plan: Plan) -> dict[str, str]:
  """Names and values of a plan's rows."""
  sent = {
    f"sends, {kind} over {axes}": size_text(value)
    for kind, row in plan.collective_bytes.items()
    for axes, value in row.items()
    if value
  }
  return {
    "arguments per chip": size_text(plan.argument_bytes_per_chip),
    "temporaries per chip": size_text(plan.temp_bytes_per_chip),
    "code per chip": size_text(plan.code_bytes_per_chip),
    f"all of them, of {plan.hbm_bytes / 2**30:g} GiB HBM": size_text(plan.bytes_per_chip),
    "fits": "yes" if plan.fits else "NO",
    "compiled operations per step": _number(plan.hlo_flops_per_step, ".3e"),
    "the model's own operations": _number(plan.model_flops_per_step, ".3e"),
    **sent,
    "compute roof": _milliseconds(plan.compute_seconds),
    "HBM roof (estimate)": _milliseconds(plan.hbm_seconds),
    "interconnect roof": _milliseconds(plan.ici_seconds),
    **({"data center network roof": _milliseconds(plan.dcn_seconds)} if plan.slices > 1 else {}),
    **(_training(plan) if plan.what == "train" else {"time, at least": _duration(plan.days_bound)}),
    "MFU at most": _number(plan.mfu_bound, ".1%"),
  }


def _training(plan: Plan) -> dict[str, str]:
  return {
    "tokens/s at most": _number(plan.tokens_per_second_bound, ",.0f"),
    f"time for {plan.steps:,} steps, at least": _duration(plan.days_bound),
    "chip-hours, at least": _number(plan.chip_hours_bound, ",.0f"),
  }


def _number(value: float, style: str) -> str:
  return "-" if math.isnan(value) else format(value, style)


def _milliseconds(seconds: float) -> str:
  return "-" if math.isnan(seconds) else f"{seconds * 1e3:.2f} ms"


def _duration(days: float) -> str:
  if math.isnan(days) or days >= 0.1:
    return _number(days, ".2f") + ("" if math.isnan(days) else " days")
  return f"{days * 86400:.3g} s"
