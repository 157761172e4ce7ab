"""sedd plan: what a run needs on a TPU slice, before there is one."""

import dataclasses
import json
import math
import warnings
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from sedd_jax.cli import app
from sedd_jax.data import vocab_size_of
from sedd_jax.parallel import MeshConfig
from sedd_jax.planning import Plan, plan_sampling, plan_training
from sedd_jax.planning.fit import fit, meshes
from sedd_jax.planning.plan import Slice, find_slice
from sedd_jax.training.experiment import Experiment

USAGE = """Compiles a run's real training step for TPU chips that are not here.

  sedd plan --config=configs/openwebtext.py:small,absorb --topology=v5e:4x4 --batch=128
  sedd plan --config=configs/openwebtext.py:medium,absorb --topology=v5e:16x16 --json
  sedd plan --config=configs/openwebtext.py:small,absorb --topology=v5e:4x4 --fit
  sedd plan --config=configs/openwebtext.py:xl,absorb --topology=v5p:4x4x4 \\
    --compare='fsdp=64;fsdp=16,tensor=4;replica=4,fsdp=16'

Needs PyPI's libtpu (pip install libtpu) and no TPU. Exits with 1 if the program does not fit.
Without a mesh in the config, all chips of a slice are fsdp.
"""
_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :argument.")
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
  config, topology = _CONFIG.value, _TOPOLOGY.value
  if config is None or topology is None:
    missing = "--config" if config is None else "--topology"
    raise ValueError(f"{missing} is missing; for example\n{USAGE}")
  # With libtpu installed jax would look for a TPU here, and wait for one.
  jax.config.update("jax_platforms", "cpu")
  if _FIT.value and _COMPARE.value:
    raise ValueError("--fit and --compare are two questions: ask one")
  if _BATCH.value is not None:
    if _BATCH.value < 1:
      raise ValueError(f"--batch={_BATCH.value} must be at least 1")
    config.train.batch_size = _BATCH.value
  experiment = Experiment.from_config(config.to_dict())
  # XLA drops a donated buffer here and there; it says so when it plans, and that is no news.
  warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
  vocab_size = _VOCAB.value or vocab_size_of(experiment.data)
  where = find_slice(topology)
  if experiment.mesh == MeshConfig():
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(replica=where.slices, fsdp=-1))
  make = plan_sampling if _SAMPLE.value else plan_training
  if _COMPARE.value:
    plans = [
      make(dataclasses.replace(experiment, mesh=mesh), vocab_size, where)
      for mesh in meshes(_COMPARE.value)
    ]
  elif _FIT.value:
    plans = [fit(lambda candidate: make(candidate, vocab_size, where), experiment, where.chips)]
  else:
    plans = [make(experiment, vocab_size, where)]
  if _JSON.value:
    rows = [_jsonable(plan) for plan in plans]
    print(json.dumps(rows if _COMPARE.value else rows[0]))
  else:
    _print(plans, where)
  return 0 if all(plan.fits for plan in plans) else 1


def _jsonable(plan: Plan) -> dict[str, Any]:
  """A plan as JSON: what is not known is null."""
  return {
    name: None if isinstance(value, float) and math.isnan(value) else value
    for name, value in dataclasses.asdict(plan).items()
  }


def _print(plans: list[Plan], where: Slice) -> None:
  console = Console(highlight=False, soft_wrap=True, width=None)
  table = Table(box=None, pad_edge=False, show_header=len(plans) > 1)
  table.add_column("")
  for plan in plans:
    table.add_column(",".join(f"{k}={v}" for k, v in plan.mesh.items()), justify="right")
  for rows in zip(*map(_rows, plans), strict=True):
    table.add_row(rows[0][0], *(value for _, value in rows))
  first = plans[0]
  console.print(
    f"{first.what} on {where.name}: {where.chips} chips, batch {first.batch}, remat {first.remat}, "
    f"attention {first.attention}; planned, not run",
    markup=False,
  )
  console.print(table)
  for plan in plans:
    if not plan.fits:
      console.print(f"does not fit: {plan.why_not}", markup=False)


def _rows(plan: Plan) -> list[tuple[str, str]]:
  def gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"

  def milliseconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms"

  sent = [
    (f"sends, {kind}", ", ".join(f"{gib(n)} {axes}" for axes, n in sorted(row.items())) or "none")
    for kind in ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
    for row in [plan.collective_bytes.get(kind, {})]
  ]
  return [
    ("mesh", ", ".join(f"{k}={v}" for k, v in plan.mesh.items())),
    ("arguments per chip", gib(plan.argument_bytes_per_chip)),
    ("temporaries per chip", gib(plan.temp_bytes_per_chip)),
    ("code per chip", gib(plan.code_bytes_per_chip)),
    ("all, of HBM", f"{gib(plan.bytes_per_chip)} of {gib(plan.hbm_bytes)}"),
    ("fits", "yes" if plan.fits else "NO"),
    ("compiled operations per step", f"{plan.hlo_flops_per_step:.3e}"),
    ("the model's own operations", f"{plan.model_flops_per_step:.3e}"),
    *sent,
    ("compute roof", milliseconds(plan.compute_seconds)),
    ("HBM roof (estimate)", milliseconds(plan.hbm_seconds)),
    ("interconnect roof", milliseconds(plan.ici_seconds)),
    ("data center network roof", milliseconds(plan.dcn_seconds)),
    ("tokens/s at most", f"{plan.tokens_per_second_bound:,.0f}"),
    ("MFU at most", f"{plan.mfu_bound:.1%}"),
    (f"{plan.steps:,} steps, at least", f"{plan.days_bound:.2f} days"),
    ("", f"{plan.chip_hours_bound:,.0f} chip-hours"),
  ]


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
