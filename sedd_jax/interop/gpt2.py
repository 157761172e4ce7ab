"""GPT-2 in Hugging Face's layout: config.json, weights, and the tokenizer's files beside them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.data import Tokenizer
from sedd_jax.data.tokenizers import from_folder
from sedd_jax.interop.exported import read_tokenizer
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.weights import Tensors, read_weights
from sedd_jax.models import Params
from sedd_jax.models.gpt2 import GPT2, GPT2Config

MODEL_TYPE = "gpt2"
# All that a hub's folder has to have, or may have, of what is read here.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")

_PREFIX = "transformer."
_HEAD = "lm_head.weight"
# Masks, which older files hold as if they were parameters.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_MOST_NAMED = 4


class LoadedGPT2(NamedTuple):
  """A network, its parameters, and its tokenizer where the folder has one."""

  network: GPT2
  params: Params
  tokenizer: Tokenizer | None


def is_gpt2(config: Fields) -> bool:
  """Whether a config.json is GPT-2's: by its model type, or by its sizes where it has none."""
  sizes = all(config.get(name) is not None for name in ("n_embd", "n_layer", "n_head"))
  return config.get("model_type") in ((None, MODEL_TYPE) if sizes else (MODEL_TYPE,))


def load_gpt2(folder: Path, config: Fields, dtype: str) -> LoadedGPT2:
  """Reads a folder in Hugging Face's layout of GPT-2.

  Names of tensors may start with `transformer.` or not, as the two classes there write them.

  Args:
    folder: with model.safetensors or pytorch_model.bin, and perhaps tokenizer.json or vocab.json
      with merges.txt.
    config: its config.json.
    dtype: compute dtype, `float32`, `bfloat16` or `float64`.

  Raises:
    ValueError: the config lacks a field or asks for what is not supported, tensors are missing,
      unknown or of the wrong shape, or the tokenizer has more tokens than the model.
    ImportError: the weights are a torch pickle and torch is not installed.
  """
  network = GPT2(read_config(config, dtype))
  params = _params(network, _without_prefix(read_weights(folder), folder), folder)
  tokenizer = _tokenizer(folder)
  if tokenizer is not None and tokenizer.vocab_size > network.vocab_size:
    raise ValueError(
      f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, "
      f"{config.source} says vocab_size={network.vocab_size}"
    )
  return LoadedGPT2(network, jax.tree.map(jnp.asarray, params), tokenizer)


def read_config(config: Fields, dtype: str) -> GPT2Config:
  """The part of a config.json that the network's outputs depend on.

  What is left out there has Hugging Face's default. Dropout is that of training, and not read.

  Raises:
    ValueError: a size is missing or wrong, or something is asked for that is not supported.
  """
  if config.get("model_type") not in (None, MODEL_TYPE):
    raise config.wrong(config.get("model_type"), repr(MODEL_TYPE), "model_type")
  if config.get("add_cross_attention"):
    raise config.wrong(True, "false: cross attention is not supported", "add_cross_attention")
  sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
  options: dict[str, Any] = {name: config.integer(name) for name in sizes}
  if config.get("n_inner") is not None:
    options["n_inner"] = config.integer("n_inner")
  for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
    if config.get(name) is not None:
      options[name] = config.flag(name)
  if config.get("layer_norm_epsilon") is not None:
    options["layer_norm_epsilon"] = config.number("layer_norm_epsilon")
  if config.get("activation_function") is not None:
    options["activation_function"] = config.get("activation_function")
  start = config.get("bos_token_id")
  start = config.require("eos_token_id") if start is None else start
  if isinstance(start, bool) or not isinstance(start, int):
    raise config.wrong(start, "one token id", "bos_token_id")
  try:
    return GPT2Config(**options, bos_token_id=start, dtype=dtype)  # pyright: ignore[reportArgumentType]  (checked by the dataclass)
  except ValueError as error:
    raise ValueError(f"{config.source}: {error}") from error


def _without_prefix(tensors: Tensors, folder: Path) -> dict[str, np.ndarray]:
  """The tensors under their shorter names, buffers left out."""
  found: dict[str, np.ndarray] = {}
  for name, tensor in tensors.items():
    short = name.removeprefix(_PREFIX)
    if short in found:
      raise ValueError(f"{folder}: tensor {short!r} is there twice, with and without {_PREFIX!r}")
    if not _BUFFER.fullmatch(short):
      found[short] = tensor
  return found


def _params(network: GPT2, tensors: dict[str, np.ndarray], folder: Path) -> Params:
  """Linear maps are stored as [in, out] there too, unlike elsewhere in PyTorch."""
  head = tensors.pop(_HEAD, None)
  named = {name: layer for name, layer, _ in network.table.originals() if name != _HEAD}
  missing, unknown = named.keys() - tensors.keys(), tensors.keys() - named.keys()
  if missing or unknown:
    raise ValueError(
      f"{folder}: weights do not fit a GPT-2 of {network.config.n_layer} blocks: "
      f"missing {_some(missing)}, unknown {_some(unknown)}"
    )
  # Under the original's names, so that the message has them.
  wrong = [
    f"{name} is {tensors[name].shape}, not {layer.shape}"
    for name, layer in named.items()
    if tensors[name].shape != layer.shape
  ]
  wanted = (network.vocab_size, network.config.n_embd)
  if head is not None and head.shape != wanted:
    wrong.append(f"{_HEAD} is {head.shape}, not {wanted}")
  if wrong:
    raise ValueError(f"{folder}: weights do not fit the config: {'; '.join(wrong[:_MOST_NAMED])}")
  params = network.table.params_of(tensors)
  return params | _output(network, head, params["embedding"], folder)


def _output(
  network: GPT2, head: np.ndarray | None, embedding: np.ndarray, folder: Path
) -> dict[str, np.ndarray]:
  """The output layer, where it is not the embedding."""
  if network.config.tie_word_embeddings:
    if head is not None and not np.array_equal(head, embedding):
      raise ValueError(
        f"{folder}: {_HEAD} differs from wte.weight, and config.json does not say "
        "tie_word_embeddings=false"
      )
    return {}
  if head is None:
    raise ValueError(f"{folder}: tie_word_embeddings=false needs {_HEAD}, which is missing")
  return {"output": np.ascontiguousarray(head.T)}


def _tokenizer(folder: Path) -> Tokenizer | None:
  """The folder's own: ours, or the library's files.

  Raises:
    ValueError: a file is damaged.
  """
  if (own := read_tokenizer(folder)) is not None:
    return own
  try:
    return from_folder(folder, kind="gpt2")
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(f"{folder}: its tokenizer cannot be read: {error}") from error


def _some(names: set[str]) -> str:
  ordered = sorted(names)
  more = f" and {len(ordered) - _MOST_NAMED} more" if len(ordered) > _MOST_NAMED else ""
  return ", ".join(ordered[:_MOST_NAMED]) + more or "none"
