"""One loader: a run directory of ours, the original's layouts, or a hub id."""

import re
from pathlib import Path

from sedd_jax.data import from_json, from_name
from sedd_jax.interop.model import Model
from sedd_jax.interop.original import is_hub_layout, is_run_layout, load_original
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import FOLDER, Checkpoints, read_meta
from sedd_jax.training.experiment import Experiment

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]


def load(
  path_or_hub_id: str | Path, *, dtype: str | None = None, tokenizer: str | None = None
) -> Model:
  """Loads a model for sampling and evaluation.

  Args:
    path_or_hub_id: a run directory (the moving average at its latest checkpoint), a folder with
      the original's hub files or run, or a hub id such as `louaaron/sedd-small`, which downloads.
    dtype: compute dtype, `float32`, `bfloat16` or `float64` (which needs jax_enable_x64); by
      default that of the run, and float32 for the original's weights.
    tokenizer: `gpt2` (downloads) or `gpt2:FOLDER`, for the original's weights, which come without
      one; a run has its own.

  Raises:
    FileNotFoundError: there is no such path, or no model in it.
    ValueError: the files do not fit each other.
    ConnectionError: a hub id was given and cannot be fetched.
    ImportError: the weights are a torch pickle and torch is not installed.
  """
  path = Path(path_or_hub_id)
  if not path.exists() and _HUB_ID.fullmatch(str(path_or_hub_id)):
    path = _download(str(path_or_hub_id))
  if is_hub_layout(path) or is_run_layout(path):
    network, noise, length, params = load_original(path, dtype=dtype or "float32")
    return Model(
      network=network,
      params=params,
      noise=noise,
      length=length,
      tokenizer=None if tokenizer is None else from_name(tokenizer, ()),
      info={"source": str(path)},
    )
  if (path / rundir.CONFIG).is_file():
    return _load_run(path, dtype)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist, and is no hub id such as louaaron/sedd-small")
  raise FileNotFoundError(
    f"{path} holds no model: neither a run ({rundir.CONFIG} and {FOLDER}/), nor config.json with "
    "model.safetensors or pytorch_model.bin, nor .hydra/config.yaml with checkpoints-meta/"
  )


def _load_run(path: Path, dtype: str | None) -> Model:
  if not (path / FOLDER).is_dir():
    raise FileNotFoundError(f"{path} is a run without checkpoints: it has not saved yet")
  step, meta = read_meta(path)
  if step is None:
    raise FileNotFoundError(f"{path / FOLDER} holds no whole checkpoint: the run has not saved yet")
  if dtype is not None:
    meta["config"]["model"]["dtype"] = dtype
  experiment = Experiment.from_config(meta["config"])
  tokenizer = from_json(meta["tokenizer"])
  network = experiment.network(tokenizer.vocab_size)
  with Checkpoints(path, network) as checkpoints:
    params = checkpoints.load_average(step)
  return Model(
    network=network,
    params=params,
    noise=experiment.diffusion.make_noise(),
    length=experiment.data.length,
    tokenizer=tokenizer,
    info={"source": str(path), "step": step, "experiment": experiment, "corpus": meta["corpus"]},
  )


def _download(hub_id: str) -> Path:
  from huggingface_hub import snapshot_download

  try:
    return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
  except Exception as error:
    raise ConnectionError(
      f"there is no folder {hub_id!r}, and as a hub id it cannot be fetched "
      f"({type(error).__name__}: {error})"
    ) from error
