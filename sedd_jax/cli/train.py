"""sedd train: trains a model, or resumes a run."""

import functools
import os
import signal
import sys

import jax
from absl import flags

import sedd_jax
from sedd_jax.cli import app, distributed, path_flags
from sedd_jax.cli.config import config_faults, define_config
from sedd_jax.studies.autophagy import run_loop
from sedd_jax.studies.loop import Loop
from sedd_jax.training.loop import train
from sedd_jax.training.operations import Operations

USAGE = """Trains a model. The same command resumes a run that was stopped.

  sedd train --config=quickstart --workdir=runs/quickstart
  sedd train --config=openwebtext:small,absorb --workdir=DIR \\
    --config.data.files='owt/*.jsonl.xz' --config.train.batch_size=256

Ctrl-C or SIGTERM saves and exits with 130 or 143; a second one leaves at once, without a save.
Other exit codes: 0, the last step is done; 2, something to put right first (flags, files, a full
disk, a loss that is not finite, a run directory in use); 1, another process or machine failed, and
the same command may go on. docs/reliability.md says what survives what.

With several processes the same command runs on each: on TPU slices, under srun and mpirun they find
each other; elsewhere give --coordinator_address, --num_processes and --process_id (or the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID). SIGTERM or Ctrl-C to one of them saves
on all, and all exit with 143. When one is lost the others stop within twice --heartbeat_timeout.
"""
_CONFIG = define_config()
_WORKDIR = path_flags.define_path("workdir", None, "Run directory: a new one, or one to resume.")
_CACHE = path_flags.define_path(
  "compilation_cache", None, "Folder that keeps compiled programs. It must be yours alone to write."
)
_PROFILE = flags.DEFINE_string(
  "profile_steps", None, "A..B: profile these steps for TensorBoard, into the run directory."
)
_HANG = flags.DEFINE_float(
  "hang_seconds", 900.0, "Print all stacks after so long without a finished step; 0 for never."
)


def main() -> int:
  config, folder = app.require(USAGE, _CONFIG, _WORKDIR)
  loop = Loop.from_config(config.to_dict())
  operations = Operations(profile_steps=_range(_PROFILE.value), hang_seconds=_HANG.value)
  if _CACHE.value:
    jax.config.update("jax_compilation_cache_dir", str(_CACHE.value.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  distributed.join()
  if loop.generations.count:
    return run_loop(loop, folder, operations, functools.partial(print, flush=True))
  return train(loop.experiment, folder, operations, load=sedd_jax.load)


def _range(text: str | None) -> tuple[int, int] | None:
  if text is None:
    return None
  first, dots, last = text.partition("..")
  if not dots or not first.isdigit() or not last.isdigit():
    raise ValueError(f"--profile_steps={text} must be A..B, for example 20..25")
  return int(first), int(last)


def _leave(code: int) -> None:
  """After an error. A second Ctrl-C waits neither for other processes nor for a save."""
  distributed.leave(code)
  if code == 128 + signal.SIGINT:
    sys.stdout.flush()
    os._exit(code)


def run() -> None:
  app.run(main, USAGE, on_error=_leave, check=config_faults)


if __name__ == "__main__":
  run()
