"""The run directory: the files that identify a run, and checks that they are this run's."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from sedd_jax.data.tokenizers import from_json, same_tokenizer
from sedd_jax.files import lock
from sedd_jax.files.whole import PARTIAL, write_json
from sedd_jax.training.experiment import Experiment

CONFIG = "config.json"
CORPUS = "corpus.json"
TOKENIZER = "tokenizer.json"
VERSIONS = "versions.json"
EVALUATION = "evaluation.json"
SAMPLES = "samples"

_SHARED_SECONDS = 60.0
# Number of differences that a message lists: a tokenizer has thousands of entries.
_SHOWN = 20
# Sections and fields that may change when a run is resumed.
_MAY_CHANGE = (
  "label",
  "report.",
  "checkpoint.",
  "mesh.",
  "train.steps",
  "train.accumulation",
  "train.skip_nonfinite",
  # The text is compared by its hash: it may be moved or prepared.
  "data.files",
  "data.heldout_files",
  "data.on_fault",
  "model.remat",
  "model.attention",
)


def find_run(workdir: Path, experiment: Experiment) -> Experiment | None:
  """The experiment that a directory holds already, or None if it holds none. Writes nothing.

  Raises:
    FileExistsError: the directory holds something that is not a run.
    ValueError: it holds a run with another config; the message lists the differences.
  """
  file = workdir / CONFIG
  if file.is_file():
    stored = Experiment.from_config(read_json(workdir, CONFIG))
    _check_same(stored, experiment, workdir)
    return stored
  if workdir.is_dir() and any(
    path.suffix != PARTIAL and path.name != lock.FILE for path in workdir.iterdir()
  ):
    raise FileExistsError(
      f"--workdir={workdir} is not empty and holds no run of ours: choose a new directory"
    )
  return None


def read_json(workdir: Path, name: str) -> Any:
  """The object in a JSON file of a run, or None if there is no such file.

  Raises:
    ValueError: it is damaged.
  """
  file = workdir / name
  try:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if file.is_file() and not isinstance(found, dict):
      raise ValueError(f"it holds {found!r:.20}, not named fields")
    return found
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}): bring it back from a copy; checkpoints hold its content too"
    ) from error


def write_run(workdir: Path, meta: Mapping[str, Any]) -> None:
  """Writes the files that identify a run. The config is first: it marks the directory as a run."""
  (workdir / SAMPLES).mkdir(parents=True, exist_ok=True)
  write_json(workdir / CONFIG, meta["config"], sort_keys=True)
  write_json(workdir / CORPUS, meta["corpus"], sort_keys=True)
  write_json(workdir / TOKENIZER, meta["tokenizer"], sort_keys=True)
  write_json(workdir / VERSIONS, versions(), sort_keys=True)


def check_meta(
  workdir: Path, step: int, stored: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
  """Checks that a checkpoint was made with the config, corpus and tokenizer of this run.

  Args:
    step: of the checkpoint.
    stored: config, corpus and tokenizer stored beside it.
    meta: those of this run.

  Raises:
    ValueError: they differ; the message lists all differences.
  """
  changed = [
    line
    for name in ("config", "corpus", "tokenizer")
    if name != "tokenizer" or not _same_tokens(stored[name], meta[name])
    for line in _differences(name, stored[name], json.loads(json.dumps(meta[name])))
    if not line.startswith("  corpus.name:")
  ]
  if changed:
    raise ValueError(
      f"the checkpoint of step {step} in {workdir} was made with something else than runs now:\n"
      + _shortened(changed)
      + f"\nBring {CONFIG}, {CORPUS} and {TOKENIZER} back as they were, or choose a new --workdir."
    )


def check_shared(workdir: Path, meta: Mapping[str, Any]) -> None:
  """Checks that this process runs what process 0 has written down.

  Waits up to a minute for the files: network file systems may show old content for a while.

  Raises:
    FileNotFoundError: what process 0 wrote is not there.
    ValueError: config, corpus or tokenizer of this process differ; the message names which.
  """
  # Through JSON, which turns tuples into lists.
  mine = {
    CONFIG: json.loads(json.dumps(meta["config"])),
    CORPUS: json.loads(json.dumps(meta["corpus"])),
    TOKENIZER: json.loads(json.dumps(meta["tokenizer"])),
  }
  deadline = time.monotonic() + _SHARED_SECONDS
  while others := _others(written := {name: read_json(workdir, name) for name in mine}, mine):
    if time.monotonic() > deadline:
      break
    time.sleep(1.0)
  if None in written.values():
    raise FileNotFoundError(
      f"--workdir={workdir}: process 0 has written the run's files, and process "
      f"{jax.process_index()} does not see them. All processes need the same directory: a shared "
      "file system or a mounted bucket"
    )
  if others:
    raise ValueError(
      f"process {jax.process_index()} does not run what process 0 runs: {', '.join(others)} in "
      f"{workdir} differ from what it was given. All processes need the same flags and text"
    )


def _others(written: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
  """The files whose content is not what this process has."""
  return [
    name
    for name in mine
    if written[name] != mine[name]
    and not (name == TOKENIZER and written[name] and _same_tokens(written[name], mine[name]))
  ]


def _same_tokens(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Whether two descriptions are of one tokenizer. Older versions wrote them otherwise."""
  return one == other or same_tokenizer(from_json(one), from_json(other))


def versions() -> dict[str, str]:
  """Versions of the packages that a run depends on, and the commit of the checkout, if any."""
  packages = ("sedd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
  result = {"python": platform.python_version()}
  for package in packages:
    try:
      result[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      result[package] = "not installed"
  result["commit"] = _commit()
  return result


def _commit() -> str:
  """The commit of this project's checkout, with `-dirty` if files differ from it."""
  root = Path(__file__).resolve().parents[2]

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

  try:
    # The package may be installed inside another repository: that one's commit is meaningless.
    if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
      return "unknown"
    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


def _check_same(stored: Experiment, wanted: Experiment, workdir: Path) -> None:
  old, new = dataclasses.asdict(stored), dataclasses.asdict(wanted)
  if changed := list(_differences("config", old, new)):
    raise ValueError(
      f"{workdir} holds a run with another config:\n"
      + "\n".join(changed)
      + "\nResume it with its own config, or choose a new --workdir."
    )


def _differences(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
  """One line for each field that differs, except config fields that may change."""
  before, after = dict(_flat(old)), dict(_flat(new))
  for key in sorted(before.keys() | after.keys()):
    was, now = before.get(key, "nothing"), after.get(key, "nothing")
    # A field that an older version did not store had its present default.
    may = name == "config" and (key.startswith(_MAY_CHANGE) or "nothing" in (was, now))
    if was != now and not may:
      yield f"  {name}.{key}: {was!r} -> {now!r}"


def _flat(value: Mapping[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  items = value.items() if isinstance(value, Mapping) else enumerate(value)
  for key, inner in items:
    if isinstance(inner, Mapping | list | tuple):
      yield from _flat(list(inner) if isinstance(inner, tuple) else inner, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", inner


def _shortened(lines: list[str]) -> str:
  more = [f"  and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
  return "\n".join([*lines[:_SHOWN], *more])
