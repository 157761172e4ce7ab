"""Checkpoints in the layouts of the original PyTorch code, read into our parameters and written.

Two layouts exist in the wild:

  hub      config.json and model.safetensors (or pytorch_model.bin)
  run      .hydra/config.yaml and checkpoints-meta/checkpoint.pth, a torch pickle that holds the
           moving average as a list of tensors in parameter order, without names

Written is the hub's. Our own exports hold tensors under the same names.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import PROCESSES, Geometric, LogLinear, Noise
from sedd_jax.generation.model import Model
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.weights import Tensors, read_average, read_weights
from sedd_jax.models import Network, Params, ScoreTransformerConfig
from sedd_jax.models.layers import Layer

# A buffer that checkpoints may hold and that we compute: the frequencies of the rotary embedding.
ROTARY = "rotary_emb.inv_freq"
# Our processes by the original's names, and back.
_GRAPHS = {"absorb": "absorbing", "uniform": "uniform"}
_GRAPH_OF = {ours: theirs for theirs, ours in _GRAPHS.items()}
# The original's log-linear noise takes no eps from its config.
_EPS = 1e-3


def is_run_layout(path: Path) -> bool:
  """Whether a folder is a run of the original code."""
  return (path / ".hydra" / "config.yaml").is_file()


def load_original(folder: Path, config: Fields, dtype: str) -> Model:
  """Reads a folder in the hub's layout.

  Args:
    folder: with the weights.
    config: its config.json.
    dtype: compute dtype of the network.

  Raises:
    ValueError: the config lacks a field, or tensors are missing, unknown or of the wrong shape.
    ImportError: the weights are a torch pickle and torch is not installed.
  """
  network, noise, length = _from_config(config, dtype)
  return make_model(network, noise, length, read_weights(folder))


def load_run(folder: Path, dtype: str) -> Model:
  """Reads a run of the original code: the moving average of its last checkpoint.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError, ImportError: as `load_original`.
  """
  network, noise, length = _from_config(Fields.from_yaml(folder / ".hydra" / "config.yaml"), dtype)
  names = [name for name, _, _ in network.table.originals()]
  tensors, step = read_average(folder / "checkpoints-meta" / "checkpoint.pth", names)
  model = make_model(network, noise, length, tensors)
  if step is not None:
    model.info["step"] = step
  return model


def make_model(network: Network, noise: Noise, length: int, tensors: Tensors) -> Model:
  """A model without tokenizer from tensors under the original's names.

  Raises:
    ValueError: tensors are missing, unknown or of the wrong shape; the message names them.
  """
  params = params_from_tensors(network, tensors)
  on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  return Model(network=network, params=network.pad(on_device), noise=noise, length=length)


def original_config(model: Model) -> dict[str, Any]:
  """The config.json with which the original code loads a model.

  Raises:
    ValueError: the original cannot express the model; the message names the field and what it can.
  """
  network, noise = model.network, model.noise

  def refuse(field: str, value: Any, wanted: str) -> ValueError:
    return ValueError(
      f"the original's layout cannot hold {field}={value!r}: there it must be {wanted}. "
      "--layout=sedd_jax holds every model"
    )

  if network.parameterization == "conditional":
    raise refuse("diffusion.parameterization", "conditional", "'scaled' or 'score'")
  fields = dataclasses.asdict(noise)
  if fields.get("eps", _EPS) != _EPS:
    raise refuse("diffusion.eps", fields["eps"], f"{_EPS}, which its code fixes")
  if not network.config.time_input:
    raise refuse("model.time_input", False, "True")
  # What its log-linear noise does not read has the values of its own configs.
  sigmas = dataclasses.asdict(Geometric(1e-4, 20.0)) | fields
  return {
    "tokens": network.process.vocab_size,
    "graph": {
      "type": _GRAPH_OF[network.process.name],
      "file": "data",
      "report_all": False,
    },
    "noise": {
      "type": noise.name,
      "sigma_min": sigmas["sigma_min"],
      "sigma_max": sigmas["sigma_max"],
    },
    "model": {
      "name": "sedd_jax",
      "type": "ddit",
      "hidden_size": network.config.width,
      "cond_dim": network.config.cond_dim,
      "length": model.length,
      "n_blocks": network.config.blocks,
      "n_heads": network.config.heads,
      "scale_by_sigma": network.parameterization == "scaled",
      "dropout": network.config.dropout,
    },
  }


def rotary_frequencies(config: ScoreTransformerConfig) -> np.ndarray:
  """The buffer `rotary_emb.inv_freq`, float32[D / H / 2], which the original's files hold too.

  Powers rounded from float64: torch's own on a CPU, to the bit for heads up to 64 wide.
  """
  size = config.width // config.heads
  exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
  return np.float32(1.0) / (10000.0 ** exponent.astype(np.float64)).astype(np.float32)


def params_from_tensors(network: Network, tensors: Tensors) -> Params:
  """Our nested dict, unpadded, from tensors under the original's names.

  Raises:
    ValueError: tensors are missing, unknown or of the wrong shape; the message names them.
  """
  originals = list(network.table.originals())
  expected = {name for name, _, _ in originals}
  missing, unknown = expected - tensors.keys(), tensors.keys() - expected - {ROTARY}
  if missing or unknown:
    raise ValueError(
      f"weights do not fit a model of {network.config.blocks} blocks: "
      f"missing {_some(missing)}, unknown {_some(unknown)}"
    )
  params = network.table.params_of(
    {name: _transposed(layer, tensors[name]) for name, layer, _ in originals}
  )
  _check_shapes(network, params)
  if ROTARY in tensors:
    _check_heads(network.config, tensors[ROTARY])
  return params


def tensors_from_params(network: Network, params: Params) -> dict[str, np.ndarray]:
  """The inverse of `params_from_tensors`; params unpadded."""

  def tensor(layer: Layer, block: int) -> np.ndarray:
    x: Any = params
    for part in layer.name.split("/"):
      x = x[part]
    return _transposed(layer, np.asarray(x[block] if layer.stacked else x))

  return {name: tensor(layer, block) for name, layer, block in network.table.originals()}


def _transposed(layer: Layer, x: np.ndarray) -> np.ndarray:
  """PyTorch's linear maps hold their kernels the other way round."""
  return x.T if layer.name.endswith("/kernel") else x


def _check_heads(config: ScoreTransformerConfig, found: np.ndarray) -> None:
  """Checks the number of heads, which no other tensor tells, by the rotary frequencies."""
  expected = rotary_frequencies(config)
  if found.shape != expected.shape:
    width = 2 * found.size
    raise ValueError(
      f"n_heads={config.heads} means heads {config.width // config.heads} wide, and the file's "
      f"{ROTARY} is of heads {width} wide: n_heads should be {config.width / max(width, 1):g}"
    )
  if not np.allclose(np.asarray(found, np.float32), expected, rtol=1e-2):
    raise ValueError(
      f"the file's {ROTARY} holds other frequencies than 10000^(-2i / {2 * expected.size}), which "
      "this network uses"
    )


def _check_shapes(network: Network, params: Params) -> None:
  wrong = []

  def compare(path, want, got):
    if want.shape != got.shape:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      wrong.append(f"{name} is {got.shape}, not {want.shape}")

  jax.tree.map_with_path(compare, network.table.shapes(), params)
  if wrong:
    raise ValueError(f"weights do not fit the config: {'; '.join(wrong[:5])}")


def _from_config(config: Fields, dtype: str) -> tuple[Network, Noise, int]:
  graph, noise = config.require("graph", "type"), read_noise(config)
  if graph not in _GRAPHS:
    raise config.wrong(graph, "'absorb' or 'uniform'", "graph", "type")
  process = PROCESSES[_GRAPHS[graph]](config.integer("tokens"))
  network = Network(
    config=ScoreTransformerConfig(
      num_states=process.num_states,
      width=config.integer("model", "hidden_size"),
      blocks=config.integer("model", "n_blocks"),
      heads=config.integer("model", "n_heads"),
      cond_dim=config.integer("model", "cond_dim"),
      dropout=config.number("model", "dropout"),
      dtype=dtype,  # pyright: ignore[reportArgumentType]  (checked by the dataclass)
    ),
    process=process,
    parameterization="scaled" if config.flag("model", "scale_by_sigma") else "score",
  )
  return network, noise, config.integer("model", "length")


def read_noise(config: Fields) -> Noise:
  """The noise of a config, as the original and RADD write it.

  Raises:
    ValueError: a field is missing or wrong.
  """
  match config.require("noise", "type"):
    case "loglinear":
      return LogLinear(_EPS)
    case "geometric":
      return Geometric(config.number("noise", "sigma_min"), config.number("noise", "sigma_max"))
    case other:
      raise config.wrong(other, "'loglinear' or 'geometric'", "noise", "type")


def _some(names: Iterable[str]) -> str:
  names = sorted(names)
  return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"
