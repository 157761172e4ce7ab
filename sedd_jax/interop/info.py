"""The description of a folder: a run, a checkpoint, an export, or weights of PyTorch code.

Only small files are read, no weights; nothing is written.
"""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sedd_jax.data import from_json
from sedd_jax.files.paths import local_path
from sedd_jax.files.pointers import check_no_pointer
from sedd_jax.interop import gpt2, mdlm
from sedd_jax.interop.exported import FORMAT, read_tokenizer
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.load import CONFIG
from sedd_jax.interop.original import ROTARY, is_run_layout
from sedd_jax.interop.radd import is_radd
from sedd_jax.interop.weights import PICKLE, SAFETENSORS, has_weights, weight_files
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import FOLDER
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.metrics import FILE as METRICS
from sedd_jax.training.metrics import read_metrics

_STRICT = "heldout_bits_per_char_strict"
_PAPER = "heldout_bits_per_char_paper"


def describe(path: Path) -> dict[str, Any]:
  """What is known of a folder, as values of JSON; unknown values are None.

  Args:
    path: a run directory, its `checkpoints` or one of them, an export, or weights in a layout that
      `sedd_jax.load` reads. A hub id is none of these: nothing is downloaded.

  Returns:
    `kind` (`run`, `checkpoint`, `export`, or the layout's name), `path`, `parameters`, `config`,
    `bytes`, and what else such a folder has.

  Raises:
    FileNotFoundError: it is none of these.
    ValueError: a file is damaged; the message names it.
  """
  path = local_path(path, "path")
  if not path.is_dir():
    raise FileNotFoundError(f"{path} is no folder: give a run, a checkpoint, an export or weights")
  if path.name.isdigit() and path.parent.name == FOLDER and _is_run(path.parent.parent):
    run = _run(path.parent.parent)
    found = run | {"kind": "checkpoint", "step": int(path.name), "bytes": _size(path)}
  elif path.name == FOLDER and _is_run(path.parent):
    found = _run(path.parent)
  elif is_run_layout(path):
    config = Fields.from_yaml(path / ".hydra" / "config.yaml")
    found = {"kind": "run of the original code", "parameters": None, "config": dict(config.values)}
  elif _is_run(path):
    found = _run(path)
  elif (path / CONFIG).is_file() and has_weights(path):
    found = _weights(path)
  else:
    raise FileNotFoundError(
      f"{path} is nothing that is known here: neither a run ({rundir.CONFIG} and {FOLDER}/), nor "
      f"{CONFIG} with {SAFETENSORS} or {PICKLE}, nor .hydra/config.yaml with checkpoints-meta/"
    )
  return {"kind": "", "path": str(path), "bytes": _size(path)} | found


def kept_steps(workdir: Path) -> list[int]:
  """Steps of a run's checkpoints, in order, without one that is being written."""
  folder = workdir / FOLDER
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(int(step.name) for step in found if step.name.isdigit())


def _is_run(path: Path) -> bool:
  file = path / rundir.CONFIG
  return (
    file.is_file() and not has_weights(path) and Fields.from_json(file).get("train") is not None
  )


def _run(workdir: Path) -> dict[str, Any]:
  try:
    return _described(workdir)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{workdir}: a file of this run is damaged: {error!r}") from error


def _described(workdir: Path) -> dict[str, Any]:
  config = Fields.from_json(workdir / rundir.CONFIG)
  steps, total = kept_steps(workdir), config.integer("train", "steps")
  lines = read_metrics(workdir) if (workdir / METRICS).is_file() else []
  tokenizer, file = _json(workdir, rundir.TOKENIZER), str(workdir / rundir.TOKENIZER)
  vocab_size = None if tokenizer is None else from_json(tokenizer, file).vocab_size
  parameters, faults = _parameters(config, vocab_size)
  return {
    "kind": "run",
    "step": steps[-1] if steps else None,
    "steps": total,
    "finished": bool(steps) and steps[-1] >= total,
    "checkpoints": steps,
    "parameters": parameters,
    "config": dict(config.values),
    "config_faults": faults,
    "corpus": _json(workdir, rundir.CORPUS),
    "tokenizer": None if tokenizer is None else tokenizer["kind"],
    "vocab_size": vocab_size,
    "length": config.integer("data", "length"),
    "bound": _bound(workdir, lines),
    "last": _last(lines),
    "versions": _json(workdir, rundir.VERSIONS),
  }


def _json(workdir: Path, name: str) -> dict[str, Any] | None:
  file = workdir / name
  return dict(Fields.from_json(file).values) if file.is_file() else None


def _parameters(config: Fields, vocab_size: int | None) -> tuple[int | None, list[str]]:
  """The number of parameters, and the errors of a config that another version wrote."""
  try:
    experiment = Experiment.from_config(config.values)
  except ValueError as error:
    return None, str(error).split("\n")
  if vocab_size is None:
    return None, []
  return experiment.make_objective(vocab_size).network.num_parameters(), []


def _bound(workdir: Path, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
  """The newest held-out bound: the final one if there is one, else one from training."""
  final = _final(workdir)
  made = [line for line in lines if _STRICT in line] + ([] if final is None else [final])
  if not made:
    return None
  newest = max(made, key=lambda line: line["step"])
  whole = final is not None and final["step"] == newest["step"]
  return {
    "step": newest["step"],
    "bits_per_char_strict": newest[_STRICT],
    "bits_per_char_strict_stderr": newest[f"{_STRICT}_stderr"],
    "bits_per_char_paper": newest[_PAPER],
    "bits_per_char_paper_stderr": newest[f"{_PAPER}_stderr"],
    "at_end": whole,
  }


def _final(workdir: Path) -> Mapping[str, Any] | None:
  """The report at the end of a run, or None."""
  file = workdir / rundir.EVALUATION
  if not file.is_file():
    return None
  report = Fields.from_json(file)
  report.integer("step")
  for name in (_STRICT, _PAPER):
    report.number(name)
    report.number(f"{name}_stderr")
  return report.values


def _last(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
  """The latest value of each metric of training."""
  names = ("train_bits_per_char", "tokens_per_second", "step_seconds", "mfu")
  latest = {name: line[name] for line in lines for name in names if name in line}
  return {"step": lines[-1]["step"], "time": lines[-1]["time"], **latest} if lines else None


def _weights(folder: Path) -> dict[str, Any]:
  config = Fields.from_json(folder / CONFIG)
  found = {"parameters": _counted(folder), "config": dict(config.values)}
  if config.get("format") == FORMAT:
    tokenizer = read_tokenizer(folder)
    info = config.get("info") or {}
    return found | {
      "kind": "export",
      "step": info.get("step"),
      "corpus": info.get("corpus"),
      "origin": info.get("origin"),
      "tokenizer": None if tokenizer is None else tokenizer.to_json()["kind"],
      "vocab_size": config.integer("vocab_size"),
      "length": config.integer("length"),
    }
  names = {mdlm.MODEL_TYPE: "MDLM", gpt2.MODEL_TYPE: "GPT-2"}
  if gpt2.is_gpt2(config):
    return found | {"kind": "weights of GPT-2"}
  if (model_type := config.get("model_type")) is not None:
    if model_type not in names:
      known = f"{' or '.join(map(repr, names))}, or of SEDD or RADD"
      raise config.wrong(model_type, known, "model_type")
    return found | {"kind": f"weights of {names[model_type]}"}
  return found | {"kind": "weights of RADD" if is_radd(config) else "weights of the original code"}


def _counted(folder: Path) -> int | None:
  """The number of parameters in safetensors files, from their headers; None for pickles.

  Raises:
    ValueError: a file is damaged, or a Git LFS pointer.
  """
  files = weight_files(folder)
  return None if files[0].suffix == ".bin" else sum(map(_counted_in, files))


def _counted_in(file: Path) -> int:
  check_no_pointer(file)
  try:
    with safe_open(file, "numpy") as opened:
      names = [name for name in opened.keys() if ROTARY not in name]  # noqa: SIM118
      return sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
  except SafetensorError as error:
    raise ValueError(f"{file} is not a whole safetensors file ({error})") from error


def _size(folder: Path) -> int:
  """Bytes of all files below a folder. One that a run removes meanwhile does not count."""
  total = 0
  for here, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):
        total += os.stat(os.path.join(here, name)).st_size
  return total
