"""Checkpoints of RADD (arXiv:2406.03736), read into our parameters.

RADD's network sees no noise. Its norms have a bias and its residual branches no gate; ours are
shifted, scaled and gated by a linear map of the conditioning. With kernel 0 that map is its bias
alone: shift = RADD's bias, scale = 0, gate = 1 give RADD's outputs (docs/checkpoints.md).
"""

from pathlib import Path

import numpy as np

from sedd_jax.diffusion import Absorbing
from sedd_jax.generation.model import Model
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.original import make_model, read_noise
from sedd_jax.interop.weights import Tensors, read_weights
from sedd_jax.models import Network, ScoreTransformerConfig

# Nothing comes through the conditioning, so that its width is the least.
_COND_DIM = 1
_NOISE_FEATURES = 256


def is_radd(config: Fields) -> bool:
  """Whether a config.json is RADD's: its model type means `without time`."""
  return config.get("model", "type") == "ddit_wot"


def load_radd(folder: Path, config: Fields, dtype: str) -> Model:
  """Reads a folder in RADD's hub layout: absorbing noise, parameterization `conditional`.

  Args:
    folder: with the weights.
    config: its config.json.
    dtype: compute dtype of the network; its own `model.dtype` is not read.

  Raises:
    ValueError: the config lacks a field, or tensors are missing, unknown or of the wrong shape.
    ImportError: the weights are a torch pickle and torch is not installed.
  """
  process = Absorbing(config.integer("tokens"))
  network = Network(
    config=ScoreTransformerConfig(
      num_states=process.num_states,
      width=config.integer("model", "hidden_size"),
      blocks=config.integer("model", "n_blocks"),
      heads=config.integer("model", "n_heads"),
      cond_dim=_COND_DIM,
      time_input=False,
      dropout=config.number("model", "dropout"),
      dtype=dtype,  # pyright: ignore[reportArgumentType]  (checked by the dataclass)
    ),
    process=process,
    parameterization="conditional",
  )
  tensors = _with_modulation(network.config, read_weights(folder), folder)
  return make_model(network, read_noise(config), config.integer("model", "length"), tensors)


def _with_modulation(config: ScoreTransformerConfig, tensors: Tensors, folder: Path) -> Tensors:
  """The same weights under the original's names: biases of norms become shifts."""
  tensors = dict(tensors)
  zero, one = np.zeros(config.width, np.float32), np.ones(config.width, np.float32)

  def shift(norm: str) -> np.ndarray:
    try:
      return tensors.pop(f"{norm}.bias")
    except KeyError:
      raise ValueError(f"{folder}: the weights lack {norm}.bias, which RADD's have") from None

  biases = {
    f"blocks.{i}.adaLN_modulation": (
      *(shift(f"blocks.{i}.norm1"), zero, one),
      *(shift(f"blocks.{i}.norm2"), zero, one),
    )
    for i in range(config.blocks)
  } | {"output_layer.adaLN_modulation": (shift("output_layer.norm_final"), zero)}
  for name, parts in biases.items():
    tensors[f"{name}.bias"] = np.concatenate(parts)
    tensors[f"{name}.weight"] = np.zeros((len(parts) * config.width, _COND_DIM), np.float32)
  for layer, inputs in (("sigma_map.mlp.0", _NOISE_FEATURES), ("sigma_map.mlp.2", _COND_DIM)):
    tensors[f"{layer}.weight"] = np.zeros((_COND_DIM, inputs), np.float32)
    tensors[f"{layer}.bias"] = np.zeros(_COND_DIM, np.float32)
  return tensors
