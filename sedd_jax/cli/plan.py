"""sedd plan: what a run needs on a TPU slice, before there is one."""

import dataclasses
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from sedd_jax.cli import app
from sedd_jax.cli.config import config_faults, define_config
from sedd_jax.data import vocab_size_of
from sedd_jax.planning import Plan, Slice, find_slice, plan_sampling, plan_training
from sedd_jax.planning.fit import fit, meshes
from sedd_jax.training.experiment import Experiment

USAGE = """Compiles a run's real training step for TPU chips that are not here.

  sedd plan --config=configs/openwebtext.py:small,absorb --topology=v5e:4x4 --batch=128
  sedd plan --config=configs/openwebtext.py:medium,absorb --topology=v5e:16x16 --json
  sedd plan --config=configs/openwebtext.py:small,absorb --topology=v5e:4x4 --fit
  sedd plan --config=configs/openwebtext.py:xl,absorb --topology=v5p:4x4x4 \\
    --compare='fsdp=64;fsdp=16,tensor=4;replica=4,fsdp=16'

Needs PyPI's libtpu (pip install libtpu) and no TPU. Exits with 0 if the program fits, with 1 if it
does not, and with 2 if it cannot be planned. The mesh is the config's, as in training: several
slices need --config.mesh.replica. A compilation takes from 20 seconds to some minutes; --fit makes
about six.
"""
_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "Generation and shape: v5e:4x4, v5p:4x4x4, 2xv5e:16x16 for two slices."
)
_BATCH = flags.DEFINE_integer("batch", None, "Global batch instead of the config's.")
_VOCAB = flags.DEFINE_integer(
  "vocab_size", None, "Real tokens, where the tokenizer needs a corpus."
)
_SAMPLE = flags.DEFINE_bool(
  "sample", False, "A sampling step and the denoising step, not training."
)
_FIT = flags.DEFINE_bool(
  "fit", False, "Find the largest batch per chip, and the least remat for it."
)
_COMPARE = flags.DEFINE_string("compare", None, "Meshes side by side: 'fsdp=16;fsdp=4,tensor=4'.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object (a list for --compare).")


def main() -> int:
  config, topology = app.require(USAGE, _CONFIG, _TOPOLOGY)
  if _FIT.value and _COMPARE.value is not None:
    raise ValueError("--fit and --compare are two questions: ask one")
  for name, value, least in (("batch", _BATCH.value, 1), ("vocab_size", _VOCAB.value, 2)):
    if value is not None and value < least:
      raise ValueError(f"--{name}={value} must be at least {least}")
  if _BATCH.value is not None:
    config.train.batch_size = _BATCH.value
  candidates = None if _COMPARE.value is None else meshes(_COMPARE.value)
  # With libtpu installed jax would look for a TPU here, and wait for one.
  jax.config.update("jax_platforms", "cpu")
  # XLA drops a donated buffer here and there; it says so when it plans, and that is no news.
  warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
  experiment = Experiment.from_config(config.to_dict())
  where = find_slice(topology)
  vocab_size = _VOCAB.value or vocab_size_of(experiment.data)
  make = functools.partial(_make, vocab_size=vocab_size, where=where)
  if candidates is not None:
    plans = [make(dataclasses.replace(experiment, mesh=mesh)) for mesh in candidates]
  elif _FIT.value:
    plans = [fit(make, experiment, len(where.devices))]
  else:
    plans = [make(experiment)]
  if _JSON.value:
    rows = [_jsonable(dataclasses.asdict(plan)) for plan in plans]
    print(json.dumps(rows[0] if candidates is None else rows))
  else:
    print(_report(plans, where))
  return 0 if all(plan.fits for plan in plans) else 1


def _make(experiment: Experiment, *, vocab_size: int, where: Slice) -> Plan:
  """One plan; says on stderr what is compiled, since that takes from seconds to minutes."""
  what = plan_sampling if _SAMPLE.value else plan_training
  train, mesh = experiment.train, dataclasses.asdict(experiment.mesh)
  print(
    f"compiling for {where.name} with {_sizes(mesh)}: batch {train.batch_size}, accumulation "
    f"{train.accumulation}, remat {experiment.model.remat} ... ",
    end="",
    file=sys.stderr,
    flush=True,
  )
  start = time.monotonic()
  try:
    plan = what(experiment, vocab_size, where)
  except Exception:
    print("failed", file=sys.stderr)
    raise
  verdict = "fits" if plan.fits else "does not fit"
  print(
    f"{time.monotonic() - start:.0f} s: {_size(plan.bytes_per_chip)} per chip, {verdict}",
    file=sys.stderr,
  )
  return plan


def _jsonable(value: Any) -> Any:
  """What is not known is null."""
  match value:
    case dict():
      return {name: _jsonable(one) for name, one in value.items()}
    case list() | tuple():
      return [_jsonable(one) for one in value]
    case float() if math.isnan(value):
      return None
  return value


def _report(plans: list[Plan], where: Slice) -> str:
  first = plans[0]
  slices = f" in {where.slices} slices" if where.slices > 1 else ""
  accumulation = f" in {first.accumulation} micro-batches" if first.accumulation > 1 else ""
  what = "a training step" if first.what == "train" else "a sampling step and the denoising step"
  header = (
    f"{what} on {where.name}, {where.chips} chips{slices}: batch {first.batch} x "
    f"{first.length} tokens{accumulation}, remat {first.remat}, attention {first.attention} "
    f"({first.compiler}); planned, not run"
  )
  columns = [_rows(plan) for plan in plans]
  # Exchanges differ between meshes: a row for each that any of them has.
  names = list(dict.fromkeys(name for column in columns for name in column))
  names.sort(key=lambda name: next(i for i, key in enumerate(_ORDER) if name.startswith(key)))
  width = max(map(len, names))
  widths = [max(map(len, column.values())) for column in columns]
  lines = [
    f"{name:<{width}}  "
    + "  ".join(f"{column.get(name, '-'):>{w}}" for column, w in zip(columns, widths, strict=True))
    for name in names
  ]
  misfits = [f"does not fit: {plan.why_not}" for plan in plans if not plan.fits]
  largest = [_largest(plan) for plan in plans if plan.collectives]
  return "\n".join([header, *lines, *largest, *misfits])


def _largest(plan: Plan) -> str:
  one = max(plan.collectives, key=lambda one: one.bytes * one.runs)
  shapes = ", ".join(map(str, map(list, one.shapes[:3]))) + ", ..." * (len(one.shapes) > 3)
  return (
    f"largest exchange with {_sizes(plan.mesh)}: {_size(one.bytes * one.runs)} in {one.runs} runs, "
    f"{one.kind} over {one.axes} of {shapes}"
  )


def _sizes(mesh: Mapping[str, int]) -> str:
  sizes = {name: size for name, size in mesh.items() if size != 1} or mesh
  return ",".join(f"{name}={size}" for name, size in sizes.items())


# The order of rows, by how their names begin.
_ORDER = (
  "mesh", "arguments", "temporaries", "code", "all of", "fits", "compiled", "the model",
  "sends", "compute", "HBM", "interconnect", "data center", "tokens/s", "MFU", "time",
  "chip-hours",
)  # fmt: skip


def _rows(plan: Plan) -> dict[str, str]:
  """Names and values of a plan's rows."""
  sent = {
    f"sends, {kind} over {axes}": _size(value)
    for kind, row in plan.collective_bytes.items()
    for axes, value in row.items()
    if value
  }
  return {
    "mesh": _sizes(plan.mesh),
    "arguments per chip": _size(plan.argument_bytes_per_chip),
    "temporaries per chip": _size(plan.temp_bytes_per_chip),
    "code per chip": _size(plan.code_bytes_per_chip),
    f"all of them, of {plan.hbm_bytes / 2**30:g} GiB HBM": _size(plan.bytes_per_chip),
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


def _size(value: float) -> str:
  return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def _milliseconds(seconds: float) -> str:
  return "-" if math.isnan(seconds) else f"{seconds * 1e3:.2f} ms"


def _duration(days: float) -> str:
  if math.isnan(days) or days >= 0.1:
    return _number(days, ".2f") + ("" if math.isnan(days) else " days")
  return f"{days * 86400:.3g} s"


def run() -> None:
  app.run(main, USAGE, check=config_faults)


if __name__ == "__main__":
  run()
