"""Checkpoints of the original PyTorch code, read into our parameters.

Two layouts exist in the wild:

  hub      config.json and model.safetensors (or pytorch_model.bin)
  run      .hydra/config.yaml and checkpoints-meta/checkpoint.pth, a torch pickle that holds the
           moving average as a list of tensors in parameter order, without names

safetensors needs no torch; the pickles do.
"""

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sedd_jax.diffusion import Absorbing, Geometric, LogLinear, Noise, Uniform
from sedd_jax.models import Network, Params, ScoreTransformerConfig

Tensors = Mapping[str, np.ndarray]

_ENDS = {
  "embedding/embedding": "vocab_embed.embedding",
  "noise_in": "sigma_map.mlp.0",
  "noise_out": "sigma_map.mlp.2",
  "norm/scale": "output_layer.norm_final.weight",
  "output": "output_layer.linear",
  "modulation": "output_layer.adaLN_modulation",
}
_BLOCK = {
  "norm1/scale": "norm1.weight",
  "qkv/kernel": "attn_qkv.weight",
  "attn_out/kernel": "attn_out.weight",
  "norm2/scale": "norm2.weight",
  "mlp_in": "mlp.0",
  "mlp_out": "mlp.2",
  "modulation": "adaLN_modulation",
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Buffers that checkpoints may hold and that we compute.
_BUFFERS = ("rotary_emb.inv_freq",)


def is_hub_layout(path: Path) -> bool:
  """Whether a folder holds config.json and weights."""
  return (path / "config.json").is_file() and any((path / name).is_file() for name in _WEIGHTS)


def is_run_layout(path: Path) -> bool:
  """Whether a folder is a run of the original code."""
  return (path / ".hydra" / "config.yaml").is_file()


def load_original(path: Path, *, dtype: str) -> tuple[Network, Noise, int, Params]:
  """Reads either layout.

  Args:
    path: the folder.
    dtype: compute dtype of the network.

  Returns:
    The network, its noise schedule, the length it was trained at, and its parameters (float32;
    the moving average where the layout holds one).

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the config lacks a field, or tensors are missing, unknown or of the wrong shape.
    ImportError: the file is a torch pickle and torch is not installed.
  """
  if is_hub_layout(path):
    config = json.loads((path / "config.json").read_text())
    network, noise, length = _from_config(config, dtype, path / "config.json")
    tensors = _read_hub_tensors(path)
  else:
    config = yaml.safe_load((path / ".hydra" / "config.yaml").read_text())
    network, noise, length = _from_config(config, dtype, path / ".hydra" / "config.yaml")
    tensors = _read_run_tensors(path / "checkpoints-meta" / "checkpoint.pth", network)
  params = params_from_tensors(network, tensors)
  on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  return network, noise, length, network.pad(on_device)


def tensor_names(blocks: int) -> list[str]:
  """The original's parameter names in its parameter order, buffers left out."""
  block = [
    "norm1.weight",
    "attn_qkv.weight",
    "attn_out.weight",
    "norm2.weight",
    *(f"{name}.{kind}" for name in ("mlp.0", "mlp.2") for kind in ("weight", "bias")),
    "adaLN_modulation.weight",
    "adaLN_modulation.bias",
  ]
  return [
    "vocab_embed.embedding",
    *(f"sigma_map.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    *(f"blocks.{i}.{name}" for i in range(blocks) for name in block),
    "output_layer.norm_final.weight",
    *(
      f"output_layer.{name}.{kind}"
      for name in ("linear", "adaLN_modulation")
      for kind in ("weight", "bias")
    ),
  ]


def params_from_tensors(network: Network, tensors: Tensors) -> Params:
  """Our nested dict, unpadded, from tensors under the original's names.

  Raises:
    ValueError: tensors are missing, unknown or of the wrong shape; the message names them.
  """
  expected = set(tensor_names(network.config.blocks))
  missing, unknown = expected - tensors.keys(), tensors.keys() - expected - {*_BUFFERS}
  if missing or unknown:
    raise ValueError(
      f"weights do not fit a model of {network.config.blocks} blocks: "
      f"missing {_some(missing)}, unknown {_some(unknown)}"
    )
  params = {"ends": _section(_ENDS, tensors, "")}
  blocks = [_section(_BLOCK, tensors, f"blocks.{i}.") for i in range(network.config.blocks)]
  params["blocks"] = {
    name: {leaf: np.stack([block[name][leaf] for block in blocks]) for leaf in leaves}
    for name, leaves in blocks[0].items()
  }
  _check_shapes(network, params)
  return params


def tensors_from_params(network: Network, params: Params) -> dict[str, np.ndarray]:
  """The inverse of `params_from_tensors`; params unpadded."""
  tensors = dict(_named_tensors(_ENDS, params["ends"], ""))
  for i in range(network.config.blocks):
    block = {k: {leaf: x[i] for leaf, x in v.items()} for k, v in params["blocks"].items()}
    tensors |= _named_tensors(_BLOCK, block, f"blocks.{i}.")
  return {name: tensors[name] for name in tensor_names(network.config.blocks)}


def _section(table: Mapping[str, str], tensors: Tensors, prefix: str) -> Params:
  section: Params = {}
  for ours, theirs in table.items():
    name, _, leaf = ours.partition("/")
    if leaf == "kernel":
      section[name] = {"kernel": tensors[prefix + theirs].T}
    elif leaf:
      section[name] = {leaf: tensors[prefix + theirs]}
    else:
      weight, bias = (tensors[f"{prefix}{theirs}.{kind}"] for kind in ("weight", "bias"))
      section[name] = {"kernel": weight.T, "bias": bias}
  return section


def _named_tensors(
  table: Mapping[str, str], section: Params, prefix: str
) -> Iterable[tuple[str, np.ndarray]]:
  for ours, theirs in table.items():
    name, _, leaf = ours.partition("/")
    for kind, x in section[name].items():
      suffix = "" if leaf else f".{'weight' if kind == 'kernel' else kind}"
      yield prefix + theirs + suffix, np.asarray(x).T if kind == "kernel" else np.asarray(x)


def _check_shapes(network: Network, params: Params) -> None:
  abstract = jax.eval_shape(lambda: network.unpad(network.init(jax.random.key(0))))
  wrong = []

  def compare(path, want, got):
    if want.shape != got.shape:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      wrong.append(f"{name} is {got.shape}, not {want.shape}")

  jax.tree.map_with_path(compare, abstract, params)
  if wrong:
    raise ValueError(f"weights do not fit the config: {'; '.join(wrong[:5])}")


def _from_config(config: Any, dtype: str, source: Path) -> tuple[Network, Noise, int]:
  def field(*keys: str) -> Any:
    value = config
    for key in keys:
      if not isinstance(value, Mapping) or key not in value:
        raise ValueError(f"{source}: field {'.'.join(keys)!r} is missing")
      value = value[key]
    return value

  tokens = int(field("tokens"))
  match field("graph", "type"):
    case "absorb":
      process = Absorbing(tokens)
    case "uniform":
      process = Uniform(tokens)
    case other:
      raise ValueError(f"{source}: graph.type={other!r} must be 'absorb' or 'uniform'")
  match field("noise", "type"):
    case "loglinear":
      noise = LogLinear(1e-3)  # Hard-coded in the original too.
    case "geometric":
      noise = Geometric(float(field("noise", "sigma_min")), float(field("noise", "sigma_max")))
    case other:
      raise ValueError(f"{source}: noise.type={other!r} must be 'loglinear' or 'geometric'")
  network = Network(
    config=ScoreTransformerConfig(
      num_states=process.num_states,
      width=int(field("model", "hidden_size")),
      blocks=int(field("model", "n_blocks")),
      heads=int(field("model", "n_heads")),
      cond_dim=int(field("model", "cond_dim")),
      dropout=float(field("model", "dropout")),
      dtype=dtype,  # pyright: ignore[reportArgumentType]  (checked by the dataclass)
    ),
    process=process,
    parameterization="scaled" if field("model", "scale_by_sigma") else "score",
  )
  return network, noise, int(field("model", "length"))


def _read_hub_tensors(path: Path) -> Tensors:
  file = path / "model.safetensors"
  if not file.is_file():
    return _as_numpy(_torch_load(path / "pytorch_model.bin"))
  try:
    return load_file(file)
  except SafetensorError as error:
    raise ValueError(f"{file} is not a whole safetensors file: {error}") from error


def _read_run_tensors(file: Path, network: Network) -> Tensors:
  checkpoint = _torch_load(file)
  average = checkpoint["ema"]["shadow_params"]
  names = tensor_names(network.config.blocks)
  if len(average) != len(names):
    raise ValueError(
      f"{file}: the moving average holds {len(average)} tensors, "
      f"a model of {network.config.blocks} blocks has {len(names)}"
    )
  return _as_numpy(dict(zip(names, average, strict=True)))


def _torch_load(file: Path) -> Any:
  if not file.is_file():
    raise FileNotFoundError(f"{file} does not exist")
  try:
    import torch
  except ImportError as error:
    raise ImportError(
      f"{file} is a torch pickle: install torch to read it, or use a model.safetensors"
    ) from error
  try:
    return torch.load(file, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise ValueError(
      f"{file} holds more than tensors and plain values, and is not read: such a pickle can run "
      f"any code. If you trust it, save it again with torch.load(..., weights_only=False) and "
      f"torch.save ({error})"
    ) from error


def _as_numpy(tensors: Mapping[str, Any]) -> Tensors:
  return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _some(names: Iterable[str]) -> str:
  names = sorted(names)
  return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"
