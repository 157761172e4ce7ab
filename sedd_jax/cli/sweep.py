"""sedd sweep: one config with many overrides, on any launcher, with a table of results."""

import os
import shlex
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from sedd_jax.cli import app, path_flags
from sedd_jax.cli.config import define_config, load_module
from sedd_jax.files.shipped import config_file, launchers
from sedd_jax.sweeps.grid import grid
from sedd_jax.sweeps.runs import BACKENDS, Run, launch_command, make_runs, make_spec
from sedd_jax.sweeps.state import State
from sedd_jax.sweeps.sweep import Sweep, start
from sedd_jax.sweeps.table import render

USAGE = f"""Trains one config with many overrides. The same command resumes a stopped sweep:
finished runs are skipped, the others are started again.

  sedd sweep --config=quickstart --root=runs/sweep \\
    --sweep='model.width=64,128;seed=1..3' --config.train.steps=200
  sedd sweep --config=text8 --root=runs/lr --config.data.files=text8.gz
  sedd sweep --root=runs/lr --table

Without --sweep the points come from the config file's `sweep()`, which yields dicts of overrides,
{{"optimizer.learning_rate": 3e-4, "seed": 1}}. --config.KEY=VALUE applies to all runs. --dry-run
shows the commands of unfinished runs.

Backends: `local` (--parallel at a time; with --processes, by local.sh), `slurm` (sbatch
slurm.sbatch), `tpu_vm` (tpu_vm.sh resume, one run after another on one slice; from a checkout,
which it copies there), `xpk` (xpk.sh workload), `print` (prints the commands). --launch_args holds
their options; each script has --help. slurm and xpk only submit: --table shows the progress of the
runs. --root is a path on a file system that this machine and the training machines share.

The launch scripts lie in {launchers()}

ROOT/NAME is the directory of a run, ROOT/logs/NAME.log its output, ROOT/sweep.json the sweep,
ROOT/results.csv the table. Exit codes: 0; 1 if a run failed; 2 for an error before the first run
starts; 130 after Ctrl-C, on which the runs save and end.

In a checkout `python launch/sweep.py` is the same.
"""
_CONFIG = define_config()
_ROOT = path_flags.define_path("root", None, "Directory of the sweep.")
_SWEEP = flags.DEFINE_string("sweep", None, "key=value,value;key=a..b, instead of sweep().")
_BACKEND = flags.DEFINE_enum("backend", "local", BACKENDS, "Where the runs run.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Local runs at a time.", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("processes", 0, "Processes of a local run.", lower_bound=0)
_LAUNCH_ARGS = flags.DEFINE_string("launch_args", "", "Options of the launch script or of sbatch.")
_COMMAND = flags.DEFINE_string("command", "sedd train", "The trainer.")
_TABLE = flags.DEFINE_bool("table", False, "Only print the table.")
_RESUBMIT = flags.DEFINE_bool("resubmit", False, "Submit unfinished submitted runs again.")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "Print the commands; run and write nothing.")
_console = Console(highlight=False, markup=False, soft_wrap=True)


def main() -> int:
  """The exit code.

  Raises:
    ValueError: an error in flags, config, sweep or root; nothing was started.
  """
  (root,) = app.require(USAGE, _ROOT)
  state = State(root)
  if _TABLE.value:
    _console.print(render(state.rows()))
    return 0
  sweep = _planned(state)
  state.check(sweep.spec)
  if _BACKEND.value == "print":
    print("\n".join(map(shlex.join, sweep.commands.values())))
    return 0
  if _DRY_RUN.value:
    for name in state.left(sweep.runs, _RESUBMIT.value)[0]:
      print(shlex.join(sweep.commands[name]))
    return 0
  return start(sweep, _RESUBMIT.value, _console.print)


def _planned(state: State) -> Sweep:
  app.require(USAGE, _CONFIG)
  flag = flags.FLAGS["config"]
  config, named = _CONFIG.value.to_dict(), config_flags.get_config_filename(flag)
  common = config_flags.get_override_values(flag)
  points = _generated(named) if _SWEEP.value is None else grid(_SWEEP.value, config)
  runs = make_runs(
    points,
    config=config,
    config_flag=named,
    common=common,
    root=state.root,
    program=shlex.split(_COMMAND.value),
  )
  return Sweep(
    state=state,
    spec=make_spec(runs, named, common),
    runs=runs,
    commands=_commands(runs, state.root),
    submits=_BACKEND.value in ("slurm", "xpk"),
    parallel=_PARALLEL.value,
  )


def _generated(named: str) -> list[dict[str, Any]]:
  """The points of the sweep() of a config file."""
  module = load_module(config_file(named)[0])
  if not hasattr(module, "sweep"):
    file = named.split(":", 1)[0]
    raise ValueError(f"{file} has no sweep(): give --sweep='key=value,value;key=a..b'")
  return [dict(point) for point in module.sweep()]


def _commands(runs: list[Run], root: Path) -> dict[str, list[str]]:
  """Name of a run -> the command that starts it."""
  backend, options = _BACKEND.value, shlex.split(_LAUNCH_ARGS.value)
  if backend not in ("local", "print"):
    if _PROCESSES.value or _PARALLEL.value > 1:
      raise ValueError("--processes and --parallel apply only to --backend=local")
  elif options and not _PROCESSES.value:
    raise ValueError("--launch_args needs --processes, or another --backend")
  folder = launchers()
  if backend == "tpu_vm" and not (folder / "tpu_vm.sh").is_file():
    raise ValueError("--backend=tpu_vm needs a checkout, which it copies to the slice")
  shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
  return {
    run.name: launch_command(
      backend, run, root=root, folder=shown, options=options, processes=_PROCESSES.value
    )
    for run in runs
  }


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
