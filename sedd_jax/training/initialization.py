"""Initial weights of a run: random, or another model's (fine-tuning)."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from sedd_jax.data import Tokenizer
from sedd_jax.data.tokenizers import same_tokenizer
from sedd_jax.models import Network, Params, Transformer
from sedd_jax.models.layers import flat
from sedd_jax.parallel.mesh import distribute
from sedd_jax.training.experiment import DiffusionConfig, Experiment
from sedd_jax.training.program import Program
from sedd_jax.training.state import TrainState

# Fields of `model` that must be the same for weights to be taken over.
_SHAPE = ("width", "blocks", "heads", "cond_dim", "time_input")


class Pretrained(Protocol):
  """A model whose weights a run can start from; `sedd_jax.Model` is one."""

  @property
  def network(self) -> Any: ...

  @property
  def params(self) -> Params: ...

  @property
  def length(self) -> int: ...

  @property
  def vocab_size(self) -> int: ...

  @property
  def tokenizer(self) -> Tokenizer | None: ...

  @property
  def info(self) -> dict[str, Any]: ...


Load = Callable[[str], Pretrained]


class Initialization:
  """Initial weights of a run. Their source is read when first needed; a resumed run never reads it.

  Args:
    experiment: names the source, if any, and how its tokens are taken over.
    load: loads a source by its name.
  """

  def __init__(self, experiment: Experiment, load: Load | None):
    self._experiment, self._load = experiment, load
    self._source: Pretrained | None = None

  def tokenizer(self) -> Tokenizer | None:
    """The source's tokenizer if the run is to use it, else None.

    Raises:
      ValueError: the source has none, or is another kind of model.
      FileNotFoundError: there is no such source.
    """
    if self._experiment.init_tokenizer != "source":
      return None
    if (tokenizer := self._read().tokenizer) is None:
      raise ValueError(
        f"init_tokenizer='source': init_from={self._experiment.init_from!r} came without a "
        "tokenizer. Name it with --config.data.tokenizer (gpt2 for the published SEDD weights) and "
        "leave init_tokenizer as it is by default"
      )
    return tokenizer

  def check(self, tokenizer: Tokenizer) -> None:
    """Checks that the source fits the run.

    Args:
      tokenizer: the run's.

    Raises:
      ValueError: the source is another kind of model, with a line for each difference, or its
        tokens mean something else.
      FileNotFoundError: there is no such source.
    """
    if not self._experiment.init_from:
      return
    source = self._read()
    if self._experiment.init_tokenizer != "new":
      _check_tokens(self._experiment, source, tokenizer)

  def create(self, program: Program, tokenizer: Tokenizer) -> tuple[TrainState, str | None]:
    """The state before the first step, and a sentence on its source (None for random weights).

    Parameters and moving average are the source's; the optimizer starts at step 0. The source is
    released.

    Raises:
      ValueError, FileNotFoundError: see `check`.
    """
    state = program.create()
    if not self._experiment.init_from:
      return state, None
    self.check(tokenizer)
    source, self._source = self._read(), None
    new_tables = self._experiment.init_tokenizer == "new"
    trees = {name: getattr(state, name) for name in ("params", "ema", "held")}
    placed = {name: _placed(program, source, x, new_tables) for name, x in trees.items()}
    state = dataclasses.replace(state, **placed)  # pyright: ignore[reportArgumentType]
    return state, _origin(self._experiment, source)

  def _read(self) -> Pretrained:
    if self._source is None:
      if self._load is None:
        raise ValueError("init_from needs a loader: train(..., load=sedd_jax.load)")
      source = self._load(self._experiment.init_from)
      _check_kind(self._experiment, source)
      self._source = source
    return self._source


def _placed(program: Program, source: Pretrained, fresh: Params, new_tables: bool) -> Params:
  """The source's parameters, sharded as the program needs them.

  Args:
    fresh: random parameters of the run.
    new_tables: whether the token tables stay random.
  """
  # The whole tree passes through host memory; each process then fills its own devices.
  unpadded = jax.device_get(source.network.unpad(source.params))
  padded = flat(jax.device_get(program.network.pad(unpadded)))

  def leaf(path, own):
    layer = program.network.table.of_path(path)
    if new_tables and layer is not None and layer.states is not None:  # An entry for each token.
      return own
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return distribute(np.asarray(padded[name]), own.sharding)

  return jax.tree.map_with_path(leaf, fresh)


def _origin(experiment: Experiment, source: Pretrained) -> str:
  """A sentence on where the weights come from."""
  step = f", step {source.info['step']}" if "step" in source.info else ""
  tokens = {
    "same": "its tokenizer is this run's",
    "source": "with its tokenizer",
    "new": "with new tables for this run's tokens",
  }[experiment.init_tokenizer]
  here, there = experiment.data.length, source.length
  other = "" if here == there else f"; it knows sequences of {there} tokens, this run has {here}"
  return f"weights from {experiment.init_from}{step}, {tokens}{other}"


def _check_kind(experiment: Experiment, source: Pretrained) -> None:
  """Checks that the source is the same kind of model.

  Raises:
    ValueError: it is not; one line per difference, with the flag that removes it.
  """
  network = source.network
  if not isinstance(network, Transformer):
    raise ValueError(
      f"init_from={experiment.init_from!r} is {type(network).__name__}, not a transformer of ours"
    )
  causal = not isinstance(network, Network)
  theirs: dict[str, Any] = {}
  if causal != (experiment.objective == "autoregressive"):
    theirs["objective"] = "autoregressive" if causal else "score_entropy"
  elif not causal:
    noise = getattr(source, "noise")  # noqa: B009  (models of another kind have none)
    diffusion = DiffusionConfig.of(network.process, noise, network.parameterization)
    names = ("process", "noise", "parameterization", *dataclasses.asdict(noise))
    theirs |= {f"diffusion.{name}": getattr(diffusion, name) for name in names}
  shape = [name for name in _SHAPE if not (causal and name == "time_input")]
  theirs |= {f"model.{name}": getattr(network.config, name) for name in shape}
  faults = [
    f"{name}={own!r} is {value!r} there: --config.{name}={value}"
    for name, value in theirs.items()
    if (own := operator.attrgetter(name)(experiment)) != value
  ]
  if faults:
    raise ValueError(
      "\n".join([f"init_from={experiment.init_from!r} is another kind of model:", *faults])
    )


def _check_tokens(experiment: Experiment, source: Pretrained, tokenizer: Tokenizer) -> None:
  """Checks that the source's token tables mean the same tokens as the run's tokenizer.

  Raises:
    ValueError: they do not; the message names both tokenizers and the remedies.
  """
  size = source.vocab_size
  if source.tokenizer is None and tokenizer.vocab_size == size:
    return  # Weights without a tokenizer: only the size can be compared.
  if source.tokenizer is not None and same_tokenizer(source.tokenizer, tokenizer):
    return
  theirs = "a vocabulary" if source.tokenizer is None else _kind(source.tokenizer)
  hints = ["--config.init_tokenizer=new keeps all but the tables of tokens, which start at random"]
  if source.tokenizer is not None:
    hints.insert(0, "--config.init_tokenizer=source takes its tokenizer for this run's text")
  raise ValueError(
    f"init_from={experiment.init_from!r} knows {theirs} of {size:,} tokens, and this run has "
    f"{_kind(tokenizer)} of {tokenizer.vocab_size:,}. {'; '.join(hints)}"
  )


def _kind(tokenizer: Tokenizer) -> str:
  return f"the tokenizer {tokenizer.to_json()['kind']!r}"
