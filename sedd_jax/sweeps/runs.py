"""The runs of a sweep and the commands that start them. Nothing here starts a process."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.sweeps.grid import describe, experiment, names, short_hash, text

BACKENDS = ("print", "local", "slurm", "tpu_vm", "xpk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run.

  Attributes:
    name: its directory below the sweep's.
    overrides: dotted field -> value.
    steps: number of training steps.
    command: the trainer's command.
  """

  name: str
  overrides: Mapping[str, Any]
  steps: int
  command: Sequence[str]


def make_runs(
  points: Sequence[Mapping[str, Any]],
  *,
  config: Mapping[str, Any],
  config_flag: str,
  common: Mapping[str, Any],
  root: Path,
  program: Sequence[str],
) -> list[Run]:
  """The checked runs of a sweep.

  Args:
    points: overrides of each run.
    config: nested dicts that include the common overrides.
    config_flag: the config file with its argument, as the trainer's flag.
    common: overrides that all runs share.
    root: directory of the sweep.
    program: the trainer, `sedd train`.

  Raises:
    ValueError: there is no run, a duplicate, or an invalid config.
  """
  if not points:
    raise ValueError("the sweep has no runs")
  runs = []
  for name, point in zip(names(points), points, strict=True):
    both = sorted(set(point) & set(common))
    if both:
      raise ValueError(f"{both[0]} is swept and given as --config.{both[0]} too")
    overrides = {**common, **point}
    command = [*program, f"--config={config_flag}", f"--workdir={root / name}"]
    command += [f"--config.{key}={text(value)}" for key, value in overrides.items()]
    steps = experiment(config, point).train.steps
    runs.append(Run(name=name, overrides=dict(point), steps=steps, command=command))
  return runs


def launch_command(
  backend: str, run: Run, *, root: Path, folder: str, options: Sequence[str], processes: int
) -> list[str]:
  """The command that starts a run on a backend.

  Args:
    backend: one of `BACKENDS`.
    run: the run.
    root: directory of the sweep; its name is part of job names.
    folder: folder of the launch scripts.
    options: options of the launch script, or of sbatch.
    processes: for launch/local.sh; 0 starts the trainer directly.
  """
  match backend:
    case "local" | "print" if processes:
      head = [f"{folder}/local.sh", f"--processes={processes}", *options]
    case "local" | "print":
      head = []
    case "slurm":
      # singleton: only one job of a name runs at a time, so a run is never in two jobs at once.
      job = f"--job-name={root.name}-{run.name}"
      head = ["sbatch", job, "--dependency=singleton", *options, f"{folder}/slurm.sbatch"]
    case "tpu_vm":
      # resume, not run: it survives preemptions, and detects a running or finished run.
      head = [f"{folder}/tpu_vm.sh", "resume", *options]
    case "xpk":
      head = [f"{folder}/xpk.sh", "workload", f"--workload={workload_name(root, run)}", *options]
    case _:
      raise ValueError(f"backend {backend!r} must be one of {', '.join(BACKENDS)}")
  return [*head, *run.command]


def workload_name(root: Path, run: Run) -> str:
  """A name of at most 28 of a-z, 0-9 and -, as Kubernetes requires; a hash makes it unique."""
  plain = re.sub(r"[^a-z0-9]+", "-", run.name.lower())[:16].strip("-")
  return f"s-{plain}-{short_hash([str(root), run.name])}"


def make_spec(runs: Sequence[Run], config_flag: str, common: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a sweep that must not change on resume, as JSON reads it back."""
  return json.loads(
    json.dumps(
      {
        "config": config_flag,
        "common": dict(common),
        "runs": {run.name: dict(run.overrides) for run in runs},
      }
    )
  )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The differences between two specs, one per line."""
  lines = []
  if old["config"] != new["config"]:
    lines.append(f"  --config: {old['config']} -> {new['config']}")
  for key in sorted(set(old["common"]) | set(new["common"])):
    was, now = old["common"].get(key, "(not given)"), new["common"].get(key, "(not given)")
    if was != now:
      lines.append(f"  --config.{key}: {text(was)} -> {text(now)}")
  for word, these, those in (("gone", old, new), ("new", new, old)):
    only = [point for name, point in these["runs"].items() if those["runs"].get(name) != point]
    lines += [f"  {word}: {describe(point)}" for point in only]
  return lines
