"""Files of named tensors: safetensors, and the torch pickles that older checkpoints come in.

The only module that imports torch, and only where a file is a pickle.
"""

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sedd_jax.files.pointers import check_no_pointer

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
_INDEX = ".index.json"
# In the order in which they are looked for.
_NAMES = (SAFETENSORS, f"{SAFETENSORS}{_INDEX}", PICKLE, f"{PICKLE}{_INDEX}")
# What a hub's folder may hold of weights.
WEIGHT_PATTERNS = (*_NAMES, "model-*.safetensors", "pytorch_model-*.bin")

# That weights may have on disk.
DTYPES = ("float32", "float16", "bfloat16")

Tensors = Mapping[str, np.ndarray]


def has_weights(folder: Path) -> bool:
  """Whether a folder holds weights under one of the hub's names."""
  return any((folder / name).is_file() for name in _NAMES)


def weight_files(folder: Path) -> list[Path]:
  """The files of a folder's weights: one, or those that an index lists; safetensors if there are
  any.

  Raises:
    ValueError: the index is damaged, or names a file outside the folder.
    FileNotFoundError: a file that the index names is missing; the message names all such.
  """
  file = folder / next(name for name in _NAMES if (folder / name).is_file())
  if not file.name.endswith(_INDEX):
    return [file]
  try:
    named = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
    inside = all(Path(name).name == name for name in named)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{file} is damaged: it must map tensors to files ({error!r})") from error
  if not named or not inside:
    raise ValueError(f"{file} must name files of its own folder, not {_some(named)}")
  if missing := [name for name in named if not (folder / name).is_file()]:
    raise FileNotFoundError(f"{file} names {_some(missing)}, which {folder} lacks")
  return [folder / name for name in sorted(named)]


def read_weights(folder: Path) -> Tensors:
  """Tensors of a folder's weights, as float32.

  Raises:
    ValueError: a file is damaged, a Git LFS pointer, or holds a tensor of another or one with an
      infinity or NaN.
    FileNotFoundError: a file that the index names is missing.
    ImportError: a file is a torch pickle and torch is not installed.
  """
  tensors: dict[str, np.ndarray] = {}
  for file in weight_files(folder):
    check_no_pointer(file)
    is_pickle = file.suffix == ".bin"
    found = _as_numpy(_torch_load(file), file) if is_pickle else _read_safetensors(file)
    check_finite(found, str(file))
    if twice := found.keys() & tensors.keys():
      raise ValueError(f"{file}: {_some(twice)} is in another file too")
    tensors |= found
  return tensors


def _some(names: Iterable[str]) -> str:
  first, *others = sorted(map(str, names)) or ["nothing"]
  return f"{first!r} and {len(others)} more" if others else repr(first)


def read_average(file: Path, names: Sequence[str]) -> tuple[Tensors, int | None]:
  """The moving average of a run of the original code, a list of tensors without names.

  Args:
    file: `checkpoints-meta/checkpoint.pth`.
    names: of the tensors, in parameter order.

  Returns:
    The tensors as float32, and the training step where the file holds it.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, holds no average, or one of another number of tensors.
    ImportError: torch is not installed.
  """
  checkpoint = _torch_load(file)
  average = checkpoint.get("ema") if isinstance(checkpoint, Mapping) else None
  average = average.get("shadow_params") if isinstance(average, Mapping) else None
  if not isinstance(average, Sequence):
    raise ValueError(
      f"{file} holds no moving average: 'ema' with a list 'shadow_params' is missing, which the "
      "original's training writes"
    )
  if len(average) != len(names):
    raise ValueError(
      f"{file}: the moving average holds {len(average)} tensors, the config's model {len(names)}"
    )
  tensors = _as_numpy(dict(zip(names, average, strict=True)), file)
  check_finite(tensors, str(file))
  step = checkpoint.get("step")
  return tensors, step if isinstance(step, int) else None


def write_weights(folder: Path, tensors: Tensors, dtype: str = "float32") -> None:
  """Writes model.safetensors: the same bytes for the same tensors.

  Args:
    dtype: on disk, one of `DTYPES`; the nearest numbers are written.

  Raises:
    ValueError: a tensor holds an infinity or NaN, or a number beyond the dtype.
  """
  check_finite(tensors, "this model")
  # Views with other strides are not what the library writes.
  with np.errstate(over="ignore"):
    whole = {
      name: np.ascontiguousarray(x, np.float32).astype(jnp.dtype(dtype))
      for name, x in tensors.items()
    }
  check_finite(whole, f"this model in {dtype}")
  save_file(whole, folder / SAFETENSORS)


def check_finite(tensors: Tensors, source: str) -> None:
  """Raises:
  ValueError: a tensor holds an infinity or NaN; the message names it."""
  for name, x in tensors.items():
    if not np.isfinite(x).all():
      raise ValueError(f"{source}: tensor {name!r} holds values that are not finite")


def _read_safetensors(file: Path) -> Tensors:
  try:
    return {name: np.asarray(x, np.float32) for name, x in load_file(file).items()}
  except SafetensorError as error:
    raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
  except (AttributeError, TypeError) as error:
    raise ValueError(f"{file} holds a dtype that numpy does not know: {error}") from error


def _torch_load(file: Path) -> Any:
  if not file.is_file():
    raise FileNotFoundError(f"{file} does not exist")
  try:
    import torch
  except ImportError as error:
    raise ImportError(
      f"{file} is a torch pickle: install torch to read it, or use a {SAFETENSORS}"
    ) from error
  try:
    return torch.load(file, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise ValueError(
      f"{file} is damaged, or holds more than tensors and plain values and is not read: such a "
      f"pickle can run any code. If you trust it, save it again with torch.load(..., "
      f"weights_only=False) and torch.save ({error})"
    ) from error
  except (RuntimeError, EOFError, KeyError) as error:
    raise ValueError(f"{file} is not a whole torch file: {error}") from error


def _as_numpy(tensors: Any, file: Path) -> Tensors:
  if not isinstance(tensors, Mapping) or not all(hasattr(x, "detach") for x in tensors.values()):
    raise ValueError(f"{file} must hold a state dict, names with tensors")
  return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
