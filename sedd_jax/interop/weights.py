"""Files of named tensors: safetensors, and the torch pickles that older checkpoints come in.

The only module that imports torch, and only where a file is a pickle.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"

Tensors = Mapping[str, np.ndarray]


def has_weights(folder: Path) -> bool:
  """Whether a folder holds weights under one of the hub's names."""
  return (folder / SAFETENSORS).is_file() or (folder / PICKLE).is_file()


def read_weights(folder: Path) -> Tensors:
  """Tensors of model.safetensors, or else of pytorch_model.bin, as float32.

  Raises:
    ValueError: the file is damaged, or a tensor holds an infinity or NaN.
    ImportError: the file is a torch pickle and torch is not installed.
  """
  file = folder / SAFETENSORS
  if file.is_file():
    tensors = _read_safetensors(file)
  else:
    file = folder / PICKLE
    tensors = _as_numpy(_torch_load(file), file)
  check_finite(tensors, str(file))
  return tensors


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


def write_weights(folder: Path, tensors: Tensors) -> None:
  """Writes model.safetensors: float32, and the same bytes for the same tensors.

  Raises:
    ValueError: a tensor holds an infinity or NaN.
  """
  check_finite(tensors, "this model")
  # Views with other strides are not what the library writes.
  whole = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
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
