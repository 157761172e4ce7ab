"""A whole run as typed values: what a config file says, checked.

Below this module nothing knows of configs. Every section of a config is a frozen dataclass; this
is the one place that makes them from nested dicts.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from sedd_jax.data import DataConfig
from sedd_jax.diffusion import (
  Absorbing,
  Geometric,
  LogLinear,
  Noise,
  Parameterization,
  Process,
  TimeSampling,
  Uniform,
)
from sedd_jax.models import Network, ScoreTransformerConfig
from sedd_jax.models.placement import Placement
from sedd_jax.parallel import MeshConfig
from sedd_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """Process and noise.

  Attributes:
    process: `absorbing` or `uniform`.
    noise: `loglinear` or `geometric`.
    eps: of the log-linear noise.
    sigma_min: of the geometric noise.
    sigma_max: of the geometric noise.
    parameterization: `score`, `scaled` or `conditional` (`diffusion/score.py`).
    time_sampling: `low_discrepancy` or `iid`.
  """

  process: str = "absorbing"
  noise: str = "loglinear"
  eps: float = 1e-3
  sigma_min: float = 1e-4
  sigma_max: float = 20.0
  parameterization: Parameterization = "scaled"
  time_sampling: TimeSampling = "low_discrepancy"

  def __post_init__(self):
    if self.time_sampling not in ("low_discrepancy", "iid"):
      raise ValueError(
        f"diffusion.time_sampling={self.time_sampling!r} must be 'low_discrepancy' or 'iid'"
      )

  @classmethod
  def paper(cls, process: str) -> "DiffusionConfig":
    """The pairings of arXiv:2310.16834: `absorb` with log-linear noise, `uniform` with geometric.

    Raises:
      ValueError: the name is neither.
    """
    match process:
      case "absorb":
        return cls(process="absorbing", noise="loglinear", parameterization="scaled")
      case "uniform":
        return cls(process="uniform", noise="geometric", parameterization="score")
    raise ValueError(f"process {process!r} must be 'absorb' or 'uniform'")

  @classmethod
  def of(
    cls, process: Process, noise: Noise, parameterization: Parameterization
  ) -> "DiffusionConfig":
    """The inverse of `make_process` and `make_noise`."""
    return cls(
      process="uniform" if isinstance(process, Uniform) else "absorbing",
      noise="geometric" if isinstance(noise, Geometric) else "loglinear",
      parameterization=parameterization,
      **dataclasses.asdict(noise),
    )

  def make_process(self, vocab_size: int) -> Process:
    match self.process:
      case "absorbing":
        return Absorbing(vocab_size)
      case "uniform":
        return Uniform(vocab_size)
    raise ValueError(f"diffusion.process={self.process!r} must be 'absorbing' or 'uniform'")

  def make_noise(self) -> Noise:
    match self.noise:
      case "loglinear":
        return LogLinear(self.eps)
      case "geometric":
        return Geometric(self.sigma_min, self.sigma_max)
    raise ValueError(f"diffusion.noise={self.noise!r} must be 'loglinear' or 'geometric'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The score transformer without its number of states; see `ScoreTransformerConfig`."""

  width: int = 768
  blocks: int = 12
  heads: int = 12
  cond_dim: int = 128
  time_input: bool = True
  dropout: float = 0.1
  dtype: str = "float32"
  remat: str = "none"
  attention: str = "auto"
  unroll: int = 1
  pad_multiple: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Length and size of the run.

  Attributes:
    steps: number of updates.
    batch_size: sequences in a global batch.
    accumulation: micro-batches that a batch is cut into.
    skip_nonfinite: at most so many steps without a finite loss and gradient are skipped; the next
      one stops the run.
  """

  steps: int = 400_000
  batch_size: int = 512
  accumulation: int = 1
  skip_nonfinite: int = 0

  def __post_init__(self):
    if self.skip_nonfinite < 0:
      raise ValueError(f"train.skip_nonfinite={self.skip_nonfinite} must not be negative")
    for name in ("steps", "batch_size", "accumulation"):
      if getattr(self, name) < 1:
        raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
    if self.batch_size % self.accumulation:
      raise ValueError(
        f"train.batch_size={self.batch_size} must be a multiple of "
        f"train.accumulation={self.accumulation}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
  """What a run tells while it goes. Intervals are in steps; 0 is never.

  Attributes:
    log_every: a line of metrics.
    evaluate_every: the held-out bound of the moving average.
    evaluate_times: draws per block for it; even. The bound at the end takes four times as many.
    evaluate_blocks: at most so many held-out blocks; the bound at the end takes all.
    preview_every: a few samples.
    preview_steps: sampling steps for them.
    samples: number of samples at the end.
  """

  log_every: int = 50
  evaluate_every: int = 5000
  evaluate_times: int = 8
  evaluate_blocks: int = 512
  preview_every: int = 50_000
  preview_steps: int = 128
  samples: int = 4

  def __post_init__(self):
    if self.evaluate_times < 2 or self.evaluate_times % 2:
      raise ValueError(f"report.evaluate_times={self.evaluate_times} must be positive and even")
    for name in ("preview_steps", "samples", "evaluate_blocks"):
      if getattr(self, name) < 1:
        raise ValueError(f"report.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """What is kept.

  Attributes:
    every: steps between checkpoints.
    keep_last: how many of the latest stay.
    keep_every: those at a multiple of this stay too; 0 for none.
  """

  every: int = 10_000
  keep_last: int = 2
  keep_every: int = 50_000

  def at_once(self, steps: int) -> int:
    """The most that a run of so many steps has on disk, one that is being written included."""
    return self.keep_last + 1 + (steps // self.keep_every if self.keep_every else 0)

  def __post_init__(self):
    for name in ("every", "keep_last"):
      if getattr(self, name) < 1:
        raise ValueError(f"checkpoint.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """All sections of a config, and the seed of everything random."""

  seed: int = 0
  data: DataConfig = DataConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  model: ModelConfig = ModelConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  report: ReportConfig = ReportConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    if not 0 <= self.seed < 2**31:
      raise ValueError(f"seed={self.seed} must lie in [0, 2^31)")

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> "Experiment":
    """From nested dicts, as `dataclasses.asdict` gives them; what is left out has its default.

    Raises:
      ValueError: a field is unknown, of the wrong type or out of range; the message names it.
    """
    experiment = _section(cls, config, "config")
    # Faults that need no data show now.
    experiment.network(vocab_size=2)
    experiment.diffusion.make_noise()
    return experiment

  def network(self, vocab_size: int, placement: Placement = Placement()) -> Network:
    """The network for a vocabulary.

    Args:
      vocab_size: V, number of real tokens.
      placement: where its arrays live; one device by default.
    """
    process = self.diffusion.make_process(vocab_size)
    shape = ScoreTransformerConfig(num_states=process.num_states, **dataclasses.asdict(self.model))
    return Network(
      config=shape,
      process=process,
      parameterization=self.diffusion.parameterization,
      placement=placement,
    )


def _section(cls: type[Any], config: Mapping[str, Any], name: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(cls)}
  values = {}
  for key, value in config.items():
    if key not in fields:
      near = difflib.get_close_matches(key, fields, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(fields)}"
      raise ValueError(f"{name}.{key} is unknown: {hint}")
    default = fields[key].default
    path = f"{name}.{key}"
    values[key] = (
      _section(type(default), value, path)
      if dataclasses.is_dataclass(default)
      else _typed(value, default, path)
    )
  return cls(**values)


def _typed(value: Any, default: Any, name: str) -> Any:
  wanted = type(default)
  if wanted is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if wanted is tuple and isinstance(value, list):
    value = tuple(value)
  if type(value) is not wanted:
    raise ValueError(f"{name}={value!r} must be of type {wanted.__name__}, like {default!r}")
  return value
