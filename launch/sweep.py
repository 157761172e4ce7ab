"""A sweep: one config with many overrides, on any launcher, with a table of results."""

import importlib.util
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from sweep_grid import describe, grid
from sweep_processes import run_all
from sweep_runs import BACKENDS, Run, launch_command, make_runs, make_spec
from sweep_state import State
from sweep_table import DONE, SUBMITTED, render

from sedd_jax.cli import app, path_flags
from sedd_jax.cli.config import define_config
from sedd_jax.files.paths import local_name

USAGE = """Trains one config with many overrides. The same command resumes a stopped sweep: finished
runs are skipped, the others are started again.

  python launch/sweep.py --config=configs/quickstart.py --root=runs/sweep \\
    --sweep='model.width=64,128;seed=1..3' --config.train.steps=200
  python launch/sweep.py --config=configs/text8.py --root=runs/lr --config.data.files=text8.gz
  python launch/sweep.py --root=runs/lr --table

Without --sweep the points come from the config file's `sweep()`, which yields dicts of overrides,
{"optimizer.learning_rate": 3e-4, "seed": 1}. --config.KEY=VALUE applies to all runs. --dry-run
shows the commands of unfinished runs.

Backends: `local` (--parallel at a time; with --processes, by launch/local.sh), `slurm` (sbatch
launch/slurm.sbatch), `tpu_vm` (launch/tpu_vm.sh resume, one run after another on one slice), `xpk`
(launch/xpk.sh workload), `print` (prints the commands). --launch_args holds their options. slurm
and xpk only submit: --table shows the progress of the runs. --root is a path on a file system that
this machine and the training machines share.

ROOT/NAME is the directory of a run, ROOT/logs/NAME.log its output, ROOT/sweep.json the sweep,
ROOT/results.csv the table. Exit codes: 0; 1 if a run failed; 2 for an error before the first run
starts; 130 after Ctrl-C, on which the runs save and end.
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
  runs, spec = _plan(state.root)
  commands = _commands(runs, state.root)
  state.check(spec)
  if _BACKEND.value == "print":
    print("\n".join(map(shlex.join, commands.values())))
    return 0
  left, reasons = state.left(runs, _RESUBMIT.value)
  if _DRY_RUN.value:
    for name in left:
      print(shlex.join(commands[name]))
    return 0
  program = commands[runs[0].name][0]
  if shutil.which(program) is None:
    raise ValueError(f"there is no program {program!r} here; --command sets the trainer")

  about = {run.name: describe(run.overrides) for run in runs}
  submits = _BACKEND.value in ("slurm", "xpk")

  def started(name: str, log: Path) -> None:
    state.note(name, None)
    _console.print(f"{about[name]}: started, output in {log}")

  def ended(name: str, code: int) -> None:
    submitted = submits and code == 0
    state.note(name, SUBMITTED if submitted else code)
    see = f", see {state.root}/logs/{name}.log" if code else ""
    _console.print(f"{about[name]}: {SUBMITTED if submitted else f'exit code {code}'}{see}")

  state.start(spec, runs, commands)
  for name, reason in reasons.items():
    _console.print(f"{about[name]}: {reason}")
  code = run_all(
    {name: commands[name] for name in left},
    logs=state.root / "logs",
    parallel=_PARALLEL.value,
    started=started,
    ended=ended,
  )
  rows = state.rows()
  _console.print(render(rows))
  return code or int(any(row.status not in (DONE, SUBMITTED) for row in rows))


def _plan(root: Path) -> tuple[list[Run], dict[str, Any]]:
  app.require(USAGE, _CONFIG)
  flag = flags.FLAGS["config"]
  config, file = _CONFIG.value.to_dict(), config_flags.get_config_filename(flag)
  common = config_flags.get_override_values(flag)
  points = _generated(file) if _SWEEP.value is None else grid(_SWEEP.value, config)
  program = shlex.split(_COMMAND.value)
  runs = make_runs(
    points, config=config, config_flag=file, common=common, root=root, program=program
  )
  return runs, make_spec(runs, file, common)


def _generated(file: str) -> list[dict[str, Any]]:
  path = local_name(file, "--config").split(":", 1)[0]
  spec = importlib.util.spec_from_file_location("swept_config", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"--config={file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "sweep"):
    raise ValueError(f"{path} has no sweep(): give --sweep='key=value,value;key=a..b'")
  return [dict(point) for point in module.sweep()]


def _commands(runs: list[Run], root: Path) -> dict[str, list[str]]:
  backend, options = _BACKEND.value, shlex.split(_LAUNCH_ARGS.value)
  if backend not in ("local", "print"):
    if _PROCESSES.value or _PARALLEL.value > 1:
      raise ValueError("--processes and --parallel apply only to --backend=local")
  elif options and not _PROCESSES.value:
    raise ValueError("--launch_args needs --processes, or another --backend")
  folder = os.path.relpath(Path(__file__).parent)
  return {
    run.name: launch_command(
      backend, run, root=root, folder=folder, options=options, processes=_PROCESSES.value
    )
    for run in runs
  }


if __name__ == "__main__":
  app.run(main, USAGE)
