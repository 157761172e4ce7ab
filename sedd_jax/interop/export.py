"""A model as a folder to publish, in our layout or the original's."""

import json
import os
from pathlib import Path

import jax
import numpy as np

from sedd_jax.files.paths import local_path
from sedd_jax.files.whole import whole
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import Model
from sedd_jax.interop.card import model_card
from sedd_jax.interop.exported import TOKENIZER, exported_config
from sedd_jax.interop.load import load
from sedd_jax.interop.original import (
  ROTARY,
  original_config,
  rotary_frequencies,
  tensors_from_params,
)
from sedd_jax.interop.weights import DTYPES, Tensors, write_weights

LAYOUTS = ("sedd_jax", "original")


def export(
  model: Model | CausalModel,
  folder: str | os.PathLike[str],
  *,
  layout: str = "sedd_jax",
  weights: str = "float32",
) -> Path:
  """Writes a model: config.json, model.safetensors, README.md, and the tokenizer if it has one.

  The folder appears whole or not at all. The weights are without padding, and in float32 equal to
  the model's to the bit.

  Args:
    model: as `load` gives it; its weights are a run's moving average.
    folder: does not exist yet, or is empty.
    layout: `sedd_jax`, or `original`: what the PyTorch code loads.
    weights: their dtype on disk: `float32`, or `float16` or `bfloat16`, rounded to half the bytes.

  Returns:
    The folder.

  Raises:
    ValueError: the layout or dtype is unknown, cannot hold the model (none holds an autoregressive
      one), or weights are not finite.
    FileExistsError: the folder exists and is not empty, or is a file.
  """
  if isinstance(model, CausalModel):
    raise ValueError(
      "exports hold score networks; an autoregressive model is loaded from its run directory, and "
      "GPT-2's from its own folder"
    )
  folder = local_path(folder, "folder")
  _check_target(folder, layout, weights)
  config = exported_config(model) if layout == "sedd_jax" else original_config(model)
  target = folder.resolve()  # A link to an empty folder stays a link.
  target.parent.mkdir(parents=True, exist_ok=True)
  with whole(target) as partial:
    partial.mkdir()
    write_weights(partial, _tensors(model, layout), weights)
    _write_json(partial / "config.json", config)
    if model.tokenizer is not None:
      _write_json(partial / TOKENIZER, model.tokenizer.to_json())
    (partial / "README.md").write_text(model_card(model, layout, weights), encoding="utf-8")
  return folder


def convert(
  path_or_hub_id: str | os.PathLike[str],
  folder: str | os.PathLike[str],
  *,
  layout: str = "sedd_jax",
  weights: str = "float32",
  tokenizer: str | None = None,
  tokenizer_eos: str = "",
) -> Path:
  """`load`, then `export`; a target that `export` would refuse is refused before anything is read.

  Args:
    path_or_hub_id, tokenizer, tokenizer_eos: as `load` takes them.
    folder, layout, weights: as `export` takes them.

  Returns:
    The folder.

  Raises:
    What the two raise.
  """
  _check_target(local_path(folder, "folder"), layout, weights)
  model = load(os.fspath(path_or_hub_id), tokenizer=tokenizer, tokenizer_eos=tokenizer_eos)
  return export(model, folder, layout=layout, weights=weights)


def _check_target(path: Path, layout: str, weights: str) -> None:
  if layout not in LAYOUTS:
    raise ValueError(f"layout={layout!r} must be {' or '.join(map(repr, LAYOUTS))}")
  if weights not in DTYPES:
    raise ValueError(f"weights={weights!r} must be {' or '.join(map(repr, DTYPES))}")
  if path.is_dir():
    if any(path.iterdir()):
      raise FileExistsError(f"{path} is not empty: choose a new folder, nothing is overwritten")
  elif path.exists() or path.is_symlink():
    raise FileExistsError(f"{path} is a file: choose a new folder, nothing is overwritten")


def _tensors(model: Model, layout: str) -> Tensors:
  network = model.network
  tensors = tensors_from_params(network, jax.device_get(network.unpad(model.params)))
  if layout == "original":
    tensors[ROTARY] = rotary_frequencies(network.config)
  return {name: np.asarray(x) for name, x in tensors.items()}


def _write_json(file: Path, value: object) -> None:
  text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
  file.write_text(text + "\n", encoding="utf-8")
