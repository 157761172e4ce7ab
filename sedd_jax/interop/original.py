"""Checkpoints in the layouts of the original PyTorch code, read into our parameters and written.

Two layouts exist in the wild:

  hub      config.json and model.safetensors (or pytorch_model.bin)
  run      .hydra/config.yaml and checkpoints-meta/checkpoint.pth, a torch pickle that holds the
           moving average as a list of tensors in parameter order, without names

Written is the hub's. Our own exports hold tensors under the same names.
"""

import dataclasses
from collections.abc import Iterable, Mapping
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
  names = tensor_names(network.config.blocks)
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
  missing, unknown = expected - tensors.keys(), tensors.keys() - expected - {ROTARY}
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
