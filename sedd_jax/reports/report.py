"""The content of a report: runs and evaluations below the given paths."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.files.paths import local_path
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.weights import has_weights
from sedd_jax.reports.result import FILE, Result, is_result, read_result
from sedd_jax.reports.run import Run, read_run
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import FOLDER
from sedd_jax.training.experiment import Experiment

# Of a run: large, and without evaluations.
_SKIPPED = (FOLDER, "tensorboard", rundir.SAMPLES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Runs and evaluations.

  Attributes:
    runs: in the order in which they were given.
    results: evaluations below them or given by themselves.
    faults: files that could not be read, a sentence each.
  """

  runs: Sequence[Run]
  results: Sequence[Result]
  faults: Sequence[str]

  @property
  def problems(self) -> list[tuple[str, str]]:
    """(what it is about, what is wrong), of runs and of files."""
    of_runs = [(run.name, fault) for run in self.runs for fault in run.faults]
    return of_runs + [("", fault) for fault in self.faults]


def collect(paths: Sequence[Path]) -> Report:
  """Reads all there is to report.

  Args:
    paths: run directories, folders of them, folders of evaluations, or their JSON files.

  Raises:
    FileNotFoundError: a path is not there, or nothing was found below any.
  """
  run_paths: list[Path] = []
  files: list[Path] = []
  paths = [local_path(path, "paths") for path in paths]
  for path in paths:
    if not path.exists():
      raise FileNotFoundError(f"{path} does not exist: give runs, or folders of evaluations")
    for found in _found(path):
      seen = run_paths if found.is_dir() else files
      if found.resolve() not in [other.resolve() for other in seen]:
        seen.append(found)
  results, faults = [], []
  for file, name in zip(files, _names([file.parent for file in files]), strict=True):
    try:
      if is_result(file):
        results.append(read_result(file, name))
      elif file in paths:
        faults.append(f"{file} holds no evaluation: an object with 'kind' and 'rows' is one")
    except (ValueError, OSError) as error:
      faults.append(str(error))
  runs = _labelled([read_run(*pair) for pair in zip(run_paths, _names(run_paths), strict=True)])
  results = [_owned(result, runs) for result in results]
  if not (runs or results or faults):
    named = ", ".join(map(str, paths))
    raise FileNotFoundError(f"no run and no {FILE} of an evaluation in {named}")
  return Report(runs=runs, results=results, faults=faults)


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """Fields of the configs that are not the same in all runs, by their dotted names; None in a run
  that does not have the field."""
  configs = [dict(_flat(_whole(run.config))) for run in runs]
  names = dict.fromkeys(name for config in configs for name in config)
  fields = {name: [config.get(name) for config in configs] for name in names}
  return {name: values for name, values in fields.items() if values.count(values[0]) < len(values)}


def groups(runs: Sequence[Run]) -> list[str]:
  """The groups of runs in their order: what has a colour of its own."""
  return list(dict.fromkeys(run.group for run in runs))


def _labelled(runs: Sequence[Run]) -> list[Run]:
  """The runs under the labels of their configs."""
  labels = [run.label for run in runs]
  return [
    dataclasses.replace(
      run,
      group=run.label,
      name=run.label if labels.count(run.label) == 1 else f"{run.label} ({run.name})",
    )
    if run.label
    else run
    for run in runs
  ]


def _owned(result: Result, runs: Sequence[Run]) -> Result:
  """The result with the name of the run below which it lies, or which its settings name."""
  named = result.settings.get("checkpoint")
  paths = [result.path.resolve(), *([Path(named).resolve()] if isinstance(named, str) else [])]
  for path in paths:
    for run in runs:
      if path.is_relative_to(run.path.resolve()):
        return dataclasses.replace(result, model=run.name)
  return result


def _whole(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """A config with all fields: what an older version did not store had today's default."""
  try:
    return dataclasses.asdict(Experiment.from_config(config))
  except ValueError:
    return config


def _found(path: Path) -> Iterator[Path]:
  """Run directories and JSON files at and below a path."""
  if path.is_file():
    yield path
    return
  for folder, subfolders, names in os.walk(path):
    here = Path(folder)
    if _is_run(here):
      yield here
      subfolders[:] = [name for name in subfolders if name not in _SKIPPED]
    subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    if FILE in names:
      yield here / FILE


def _is_run(folder: Path) -> bool:
  """Whether a folder is a run, perhaps a broken one."""
  file = folder / rundir.CONFIG
  if not file.is_file() or has_weights(folder):
    return False
  try:
    return Fields.from_json(file).get("train") is not None
  except ValueError:
    # Damaged: a run all the same where other files of one lie beside it.
    return (folder / FOLDER).is_dir() or (folder / rundir.CORPUS).is_file()


def _names(paths: Sequence[Path]) -> list[str]:
  """The last parts of each path, as many as tell all of them apart."""
  parts = [path.resolve().parts for path in paths]
  for count in range(1, max(map(len, parts), default=1) + 1):
    names = ["/".join(one[-count:]) for one in parts]
    if len(set(names)) == len(names):
      return names
  return [str(path) for path in paths]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, inner in value.items():
    if isinstance(inner, Mapping):
      yield from _flat(inner, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", inner
