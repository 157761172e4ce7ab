"""Our own exported folders: a config.json with everything but the weights, and its reader.

config.json           format and version, process, noise, parameterization, shape, training
model.safetensors     float32, unpadded, under the original's names (`original.py`)
sedd_tokenizer.json   a tokenizer's `to_json`, where there is one; the name keeps it apart from
                      the tokenizer.json of other libraries, which this is not
README.md             the model card
"""

import dataclasses
from pathlib import Path
from typing import Any

from sedd_jax.data import Tokenizer, from_json
from sedd_jax.generation.model import Model
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.original import make_model
from sedd_jax.interop.weights import read_weights
from sedd_jax.training.experiment import DiffusionConfig, Experiment

FORMAT = "sedd_jax"
VERSION = 1
TOKENIZER = "sedd_tokenizer.json"

_DIFFUSION = ("process", "noise", "parameterization")
# The fields of the model's config that results depend on. Kernels and rematerialization are chosen
# where it runs.
_MODEL = (
  "width",
  "blocks",
  "heads",
  "cond_dim",
  "time_input",
  "dropout",
  "dtype",
  "pad_multiple",
)
# The entries of `Model.info` that are kept.
_INFO = ("origin", "step", "corpus", "evaluation")


def exported_config(model: Model) -> dict[str, Any]:
  """The config.json of a model."""
  network = model.network
  diffusion = DiffusionConfig.of(network.process, model.noise, network.parameterization)
  return {
    "format": FORMAT,
    "format_version": VERSION,
    "vocab_size": network.process.vocab_size,
    "length": model.length,
    "diffusion": {name: getattr(diffusion, name) for name in _DIFFUSION}
    | dataclasses.asdict(model.noise),
    "model": {name: getattr(network.config, name) for name in _MODEL},
    "info": {name: model.info[name] for name in _INFO if name in model.info},
  }


def load_exported(folder: Path, config: Fields, dtype: str | None) -> Model:
  """Reads an exported folder.

  Args:
    folder: with the weights.
    config: its config.json.
    dtype: compute dtype of the network; by default that of the exported model.

  Raises:
    ValueError: the version is unknown, a field is missing or wrong, the tokenizer is another
      model's, or tensors are missing, unknown or of the wrong shape.
  """
  version = config.require("format_version")
  if version != VERSION:
    raise config.wrong(version, f"{VERSION}; a newer sedd_jax wrote it", "format_version")
  experiment = _experiment(config)
  if dtype is not None:
    experiment = dataclasses.replace(
      experiment, model=dataclasses.replace(experiment.model, dtype=dtype)
    )
  network = experiment.network(config.integer("vocab_size"))
  noise, length = experiment.diffusion.make_noise(), config.integer("length")
  model = make_model(network, noise, length, read_weights(folder))
  model.info.update(config.require("info"))
  tokenizer = read_tokenizer(folder)
  if tokenizer is not None and tokenizer.vocab_size != network.process.vocab_size:
    raise ValueError(
      f"{folder / TOKENIZER} has {tokenizer.vocab_size} tokens, "
      f"{config.source} says vocab_size={network.process.vocab_size}"
    )
  return dataclasses.replace(model, tokenizer=tokenizer)


def read_tokenizer(folder: Path) -> Tokenizer | None:
  """The tokenizer of an exported folder, or None if it has none.

  Raises:
    ValueError: the file is damaged.
  """
  file = folder / TOKENIZER
  if not file.is_file():
    return None
  spec = Fields.from_json(file)
  spec.require("kind")
  return from_json(spec.values, str(file))


def _experiment(config: Fields) -> Experiment:
  """The sections of a run's config that the export holds, checked like a run's own."""
  for section, names in (("diffusion", _DIFFUSION), ("model", _MODEL)):
    for name in names:
      config.require(section, name)  # A default in its place would be another model.
  sections = {section: config.require(section) for section in ("diffusion", "model")}
  try:
    experiment = Experiment.from_config(sections)
  except ValueError as error:
    raise ValueError(f"{config.source}: {error}") from error
  for name in dataclasses.asdict(experiment.diffusion.make_noise()):
    config.require("diffusion", name)
  return experiment
