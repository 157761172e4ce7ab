"""sedd plan: what a run needs on an absent TPU slice."""

import dataclasses
import json
import sys
import warnings

import jax
from absl import flags

from sedd_jax.cli import app
from sedd_jax.cli.config import config_faults, define_config
from sedd_jax.data import vocab_size_of
from sedd_jax.planning import find_slice, plan_sampling, plan_training
from sedd_jax.planning.fit import fit, meshes
from sedd_jax.planning.progress import announced
from sedd_jax.reports.plans import plans_text
from sedd_jax.training.experiment import Experiment

USAGE = """Compiles a run's real training step for absent TPU chips.

  sedd plan --config=openwebtext:small,absorb --topology=v5e:4x4 --batch=128
  sedd plan --config=openwebtext:medium,absorb --topology=v5e:16x16 --json
  sedd plan --config=openwebtext:small,absorb --topology=v5e:4x4 --fit
  sedd plan --config=openwebtext:xl,absorb --topology=v5p:4x4x4 \\
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
  faults = [
    f"--{flag.name}={flag.value} must be at least {least}"
    for flag, least in ((_BATCH, 1), (_VOCAB, 2))
    if flag.value is not None and flag.value < least
  ]
  if _FIT.value and _COMPARE.value is not None:
    faults.append("--fit and --compare are two questions: ask one")
  if faults:
    raise ValueError("\n".join(faults))
  if _BATCH.value is not None:
    config.train.batch_size = _BATCH.value
  compared = None if _COMPARE.value is None else meshes(_COMPARE.value)
  # With libtpu installed jax would look for a TPU here, and wait for one.
  jax.config.update("jax_platforms", "cpu")
  # XLA drops some donated buffers and warns about each; that is no news in a plan.
  warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
  experiment = Experiment.from_config(config.to_dict())
  where = find_slice(topology)
  vocab_size = _VOCAB.value or vocab_size_of(experiment.data)
  planner = plan_sampling if _SAMPLE.value else plan_training
  plan = announced(planner, vocab_size, where, sys.stderr)
  if compared is not None:
    plans = [plan(dataclasses.replace(experiment, mesh=mesh)) for mesh in compared]
  else:
    plans = [fit(plan, experiment, len(where.devices)) if _FIT.value else plan(experiment)]
  if _JSON.value:
    rows = [one.to_json() for one in plans]
    print(json.dumps(rows[0] if compared is None else rows))
  else:
    print(plans_text(plans, where))
  return 0 if all(one.fits for one in plans) else 1


def run() -> None:
  app.run(main, USAGE, check=config_faults)


if __name__ == "__main__":
  run()
