"""One loader: a run directory of ours, an export, layouts of PyTorch code, or a hub id."""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

from sedd_jax.data import Tokenizer, from_json, from_name
from sedd_jax.data.library_tokenizer import TokenizerWarning
from sedd_jax.data.tokenizers import eos_name, same_tokenizer
from sedd_jax.files.paths import local_name, local_path
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import Model
from sedd_jax.interop import gpt2, mdlm
from sedd_jax.interop.exported import FORMAT, TOKENIZER, load_exported, read_tokenizer
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.original import is_run_layout, load_original, load_run
from sedd_jax.interop.radd import is_radd, load_radd
from sedd_jax.interop.weights import PICKLE, SAFETENSORS, WEIGHT_PATTERNS, has_weights
from sedd_jax.training import rundir
from sedd_jax.training.checkpoints import FOLDER, Checkpoints, load_meta, newest_whole
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.objectives import NextToken

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIG = "config.json"
_HUB_FILES = [CONFIG, *WEIGHT_PATTERNS, TOKENIZER, *gpt2.TOKENIZER_FILES]


# The model that comes with the package, and what `Model.info` calls its source.
STORIES = Path(__file__).resolve().parent.parent / "assets" / "stories"
STORIES_SOURCE = "sedd_jax/assets/stories"


def load(
  path_or_hub_id: str | Path = STORIES,
  *,
  dtype: str | None = None,
  tokenizer: str | None = None,
  tokenizer_eos: str = "",
) -> Model | CausalModel:
  """Loads a model for sampling and evaluation. Only a hub id downloads.

  Args:
    path_or_hub_id: a run directory (the moving average at its latest checkpoint), a folder that
      `sedd export` wrote, a folder with the hub files of SEDD's original code, MDLM or RADD, a run
      of the original code, a folder of Hugging Face's GPT-2, or a hub id such as
      `louaaron/sedd-small` or `openai-community/gpt2-large`, which downloads. By default a small
      model of stories that comes with the package.
    dtype: compute dtype, `float32`, `bfloat16` or `float64` (which needs jax_enable_x64); by
      default that of the run or export, and float32 for other weights.
    tokenizer: for weights that come without one: `gpt2` (downloads), or any that the config of a
      run may name (`data.tokenizers.from_name`); where there is one, that is taken,
      and a `TokenizerWarning` tells if it is another.
    tokenizer_eos: its end-of-text token; "" to find it in its file.

  Raises:
    FileNotFoundError: there is no such path, no such hub id, or no model in it.
    ValueError: a file is damaged, or the files do not fit each other; the message says which.
    ConnectionError: a hub id was given and cannot be fetched.
    ImportError: the weights are a torch pickle and torch is not installed.
  """
  source = local_name(path_or_hub_id, "path_or_hub_id")
  path = local_path(source, "path_or_hub_id")
  if not path.exists() and _is_hub_id(source):
    path, origin = _download(source), source
  else:
    origin = path.resolve().name
  model = _load_folder(path, dtype)
  own = model.tokenizer if model.tokenizer is not None else read_tokenizer(path)
  if own is None:
    own = _named(tokenizer, tokenizer_eos)
  elif tokenizer is not None or tokenizer_eos:
    _note_unused(source, own, tokenizer, tokenizer_eos)
  model = dataclasses.replace(model, tokenizer=own)
  # The origin in an export's config goes before the name of the folder.
  shown = STORIES_SOURCE if path == STORIES else source
  model.info.update({"origin": origin} | model.info | {"source": shown})
  return model


def _load_folder(path: Path, dtype: str | None) -> Model | CausalModel:
  if is_run_layout(path):
    return load_run(path, dtype or "float32")
  if (path / CONFIG).is_file():
    config = Fields.from_json(path / CONFIG)
    if not has_weights(path) and config.get("train") is not None:
      return _load_run(path, dtype)
    return _load_published(path, config, dtype)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist, and is no hub id such as louaaron/sedd-small")
  raise FileNotFoundError(
    f"{path} holds no model: neither a run ({rundir.CONFIG} and {FOLDER}/), nor {CONFIG} with "
    f"{SAFETENSORS} or {PICKLE}, nor .hydra/config.yaml with checkpoints-meta/"
  )


def _load_published(path: Path, config: Fields, dtype: str | None) -> Model | CausalModel:
  """The model of a folder with config.json and weights; the config tells which layout it has."""
  if not has_weights(path):
    raise FileNotFoundError(f"{path} has a {CONFIG} and no {SAFETENSORS} or {PICKLE} beside it")
  if config.get("format") is not None:
    if config.get("format") != FORMAT:
      raise config.wrong(config.get("format"), repr(FORMAT), "format")
    return load_exported(path, config, dtype)
  dtype = dtype or "float32"
  match model_type := config.get("model_type"):
    case None if not gpt2.is_gpt2(config):
      pass
    case mdlm.MODEL_TYPE:
      return mdlm.load_mdlm(path, config, dtype)
    case None | gpt2.MODEL_TYPE:
      loaded = gpt2.load_gpt2(path, config, dtype)
      return CausalModel(length=loaded.network.longest, **loaded._asdict())
    case _:
      known = f"{mdlm.MODEL_TYPE!r} or {gpt2.MODEL_TYPE!r}, the only such layouts read"
      raise config.wrong(model_type, known, "model_type")
  if is_radd(config):
    return load_radd(path, config, dtype)
  return load_original(path, config, dtype)


def _named(name: str | None, eos: str) -> Tokenizer | None:
  """The tokenizer of a name, or None if there is no name."""
  if name is None and eos:
    raise ValueError(f"tokenizer_eos={eos!r}: name the tokenizer too (tokenizer=)")
  return None if name is None else from_name(name, (), eos, field="tokenizer")


def _note_unused(source: str, own: Tokenizer, name: str | None, eos: str) -> None:
  """Says that a tokenizer is not used, as the weights have their own, unless it is the same.

  Raises:
    ValueError, FileNotFoundError: the name is that of no tokenizer.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", TokenizerWarning)
    try:
      other = _named(name, eos) if name is not None else None
    except ConnectionError:
      other = None  # It may be the same.
  if other is None and eos == eos_name(own):
    return
  if other is None or not same_tokenizer(own, other):
    given = f"tokenizer={name!r}" if name is not None else f"tokenizer_eos={eos!r}"
    warnings.warn(
      f"{given} is not used: {source} comes with its own tokenizer", TokenizerWarning, stacklevel=3
    )


def _load_run(path: Path, dtype: str | None) -> Model | CausalModel:
  if not (path / FOLDER).is_dir():
    raise FileNotFoundError(f"{path} is a run without checkpoints: it has not saved yet")
  step = newest_whole(path)
  if step is None:
    raise FileNotFoundError(f"{path / FOLDER} holds no whole checkpoint: the run has not saved yet")
  try:
    return _load_step(path, step, dtype)
  except Exception:
    if (path / FOLDER / str(step)).is_dir():
      raise
  return _load_run(path, dtype)  # A run that goes on has removed the checkpoint; it has newer ones.


def _load_step(path: Path, step: int, dtype: str | None) -> Model | CausalModel:
  meta = load_meta(path, step)
  if dtype is not None:
    meta["config"]["model"]["dtype"] = dtype
  experiment = Experiment.from_config(meta["config"])
  tokenizer = from_json(meta["tokenizer"], f"{path}, step {step}")
  objective = experiment.make_objective(tokenizer.vocab_size)
  with Checkpoints(path, objective.network) as checkpoints:
    params = checkpoints.load_average(step)
  known = {
    "params": params,
    "length": experiment.data.length,
    "tokenizer": tokenizer,
    "info": {
      "step": step,
      "experiment": experiment,
      "corpus": meta["corpus"],
      **_evaluation(path, step),
    },
  }
  if isinstance(objective, NextToken):
    return CausalModel(network=objective.network, **known)
  return Model(
    network=experiment.network(tokenizer.vocab_size),
    noise=experiment.diffusion.make_noise(),
    **known,
  )


def _evaluation(path: Path, step: int) -> dict[str, Any]:
  """The bound at the end of the run, if it is of this step."""
  report = rundir.read_json(path, rundir.EVALUATION)
  return {"evaluation": report} if report is not None and report.get("step") == step else {}


def _is_hub_id(name: str) -> bool:
  """Whether a name that is no path may be a hub id. If its first half is a folder here, it is a
  mistyped path."""
  return bool(_HUB_ID.fullmatch(name)) and not Path(name).parent.is_dir()


def _download(hub_id: str) -> Path:
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

  try:
    return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
  except (RepositoryNotFoundError, HFValidationError) as error:
    raise FileNotFoundError(
      f"there is no folder {hub_id!r}, and the hub has no such id, or only for others ({error})"
    ) from error
  except Exception as error:
    raise ConnectionError(
      f"there is no folder {hub_id!r}, and as a hub id it cannot be fetched "
      f"({type(error).__name__}: {' '.join(str(error).split())})"
    ) from error
