"""A whole run as typed values: what a config file says, checked.

Below this module nothing knows of configs. Every section of a config is a frozen dataclass, which
`sections.py` makes from nested dicts; each says all that is wrong with it, a fault a line.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from sedd_jax.data import DataConfig
from sedd_jax.diffusion import NOISES, PROCESSES, TIME_SAMPLINGS, Noise, Process, TimeSampling
from sedd_jax.diffusion.process import check_parameterization
from sedd_jax.files.paths import path_fault
from sedd_jax.models import CausalNetwork, Network, ScoreTransformerConfig
from sedd_jax.models.placement import Placement
from sedd_jax.models.visibility import CAUSAL
from sedd_jax.parallel import MeshConfig
from sedd_jax.ranges import seed_outside
from sedd_jax.training.objectives import DiscreteTime, NextToken, Objective, ScoreEntropy
from sedd_jax.training.optimizer import OptimizerConfig
from sedd_jax.training.sections import below, read_section

OBJECTIVES = ("score_entropy", "discrete_time", "autoregressive")
# Sections that belong to studies.
_STUDIES = ("generations",)
_CHOICES = {
  "process": tuple(PROCESSES),
  "noise": tuple(NOISES),
  "time_sampling": TIME_SAMPLINGS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """Process and noise.

  Attributes:
    process: `absorbing` or `uniform`.
    noise: `loglinear` or `geometric`.
    eps: of the log-linear noise.
    sigma_min: of the geometric noise.
    sigma_max: of the geometric noise.
    parameterization: `score`, `scaled` or `conditional` (`diffusion/parameterizations.py`).
    time_sampling: `low_discrepancy` or `iid`.
    timesteps: of the objective `discrete_time`.

  Raises:
    ValueError: fields are out of range or do not go together; a line for each.
  """

  process: str = "absorbing"
  noise: str = "loglinear"
  eps: float = 1e-3
  sigma_min: float = 1e-4
  sigma_max: float = 20.0
  parameterization: str = "scaled"
  time_sampling: TimeSampling = "low_discrepancy"
  timesteps: int = 1000

  def __post_init__(self):
    faults = [
      f"diffusion.{name}={getattr(self, name)!r} must be {' or '.join(map(repr, known))}"
      for name, known in _CHOICES.items()
      if getattr(self, name) not in known
    ]
    faults += below(self, "diffusion", 1, "timesteps")
    process = self.process if self.process in PROCESSES else "absorbing"
    faults += _faults("diffusion.", check_parameterization, process, self.parameterization)
    for name in NOISES:  # What is out of range is a slip also where another noise is used.
      faults += _faults("diffusion: ", self._noise, name)
    if faults:
      raise ValueError("\n".join(faults))

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
  def of(cls, process: Process, noise: Noise, parameterization: str) -> "DiffusionConfig":
    """The inverse of `make_process` and `make_noise`."""
    names = {"process": process.name, "noise": noise.name, "parameterization": parameterization}
    return cls(**names, **dataclasses.asdict(noise))  # pyright: ignore[reportArgumentType]

  def make_process(self, vocab_size: int) -> Process:
    return PROCESSES[self.process](vocab_size)

  def make_noise(self) -> Noise:
    return self._noise(self.noise)

  def _noise(self, name: str) -> Noise:
    kind = NOISES[name]
    return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})


def _faults(prefix: str, check: Callable[..., Any], *args: Any) -> list[str]:
  """What a check says of its arguments, if it refuses them."""
  try:
    check(*args)
  except ValueError as error:
    return [f"{prefix}{error}"]
  return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The score transformer without its number of states; see `ScoreTransformerConfig`.

  Raises:
    ValueError: fields are out of range or do not go together; a line for each.
  """

  width: int = 768
  blocks: int = 12
  heads: int = 12
  cond_dim: int = 128
  time_input: bool = True
  dropout: float = 0.1
  dtype: str = "float32"
  stream: str = "float32"
  remat: str = "none"
  attention: str = "auto"
  unroll: int = 1
  pad_multiple: int = 128

  def __post_init__(self):
    self.shape(num_states=2)

  def shape(self, num_states: int) -> ScoreTransformerConfig:
    """With its number of states."""
    return ScoreTransformerConfig(num_states=num_states, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Length and size of the run.

  Attributes:
    steps: number of updates.
    batch_size: sequences in a global batch.
    accumulation: micro-batches that a batch is cut into.
    skip_nonfinite: at most so many steps without a finite loss and gradient are skipped; the next
      one stops the run.
    hold: a regular expression: parameters whose name it matches, such as `ends/embedding` or
      `blocks/`, stay as they start (`init_from`); empty: all are trained.
  """

  steps: int = 400_000
  batch_size: int = 512
  accumulation: int = 1
  skip_nonfinite: int = 0
  hold: str = ""

  def __post_init__(self):
    faults = below(self, "train", 1, "steps", "batch_size", "accumulation")
    faults += below(self, "train", 0, "skip_nonfinite")
    if self.accumulation >= 1 and self.batch_size % self.accumulation:
      faults.append(
        f"train.batch_size={self.batch_size} must be a multiple of "
        f"train.accumulation={self.accumulation}"
      )
    try:
      re.compile(self.hold)
    except re.error as error:
      faults.append(f"train.hold={self.hold!r} must be a regular expression: {error}")
    if faults:
      raise ValueError("\n".join(faults))

  def held(self, names: Iterable[str]) -> list[str]:
    """The names of parameters that are held.

    Raises:
      ValueError: there are none, though `hold` is set, or nothing else.
    """
    names = list(names)
    held = [name for name in names if self.hold and re.search(self.hold, name)]
    if self.hold and len(held) in (0, len(names)):
      raise ValueError(
        f"train.hold={self.hold!r} matches {'all' if held else 'none'} of the parameters; they are "
        f"{', '.join(names)}"
      )
    return held


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
  """What a run tells while it goes. Intervals are in steps; 0 is never.

  Attributes:
    log_every: a line of metrics.
    evaluate_every: the held-out bound of the moving average.
    evaluate_times: draws per block for it; even. The bound at the end takes four times as many.
    evaluate_blocks: at most so many held-out rows.
    final_blocks: the same, for the bound at the end.
    preview_every: a few samples.
    preview_steps: sampling steps for them.
    samples: number of samples at the end.
  """

  log_every: int = 50
  evaluate_every: int = 5000
  evaluate_times: int = 8
  evaluate_blocks: int = 512
  final_blocks: int = 8192
  preview_every: int = 50_000
  preview_steps: int = 128
  samples: int = 4

  def __post_init__(self):
    faults = [
      *below(self, "report", 1, "preview_steps", "samples", "evaluate_blocks", "final_blocks"),
      *below(self, "report", 0, "log_every", "evaluate_every", "preview_every"),
    ]
    if self.evaluate_times < 2 or self.evaluate_times % 2:
      faults.append(f"report.evaluate_times={self.evaluate_times} must be positive and even")
    if faults:
      raise ValueError("\n".join(faults))


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
    faults = [
      *below(self, "checkpoint", 1, "every", "keep_last"),
      *below(self, "checkpoint", 0, "keep_every"),
    ]
    if faults:
      raise ValueError("\n".join(faults))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """All sections of a config, the seed of everything random, and where the weights start.

  Attributes:
    label: what tables and plots call the run; "" for the name of its directory.
    seed: of parameters, batches, noise and dropout.
    objective: what is minimised: `score_entropy`; `discrete_time`, the bound of D3PM's absorbing
      process in `diffusion.timesteps` steps, which takes the parameterization `conditional`; or
      `autoregressive`, the cross entropy of each token given those before it, where `diffusion` and
      `model.time_input` do not matter.
    init_from: what a new run takes its weights from: a run, an export or published weights,
      whatever `sedd_jax.load` reads; "" for random ones. A run does not need it to go on.
    init_tokenizer: whether text becomes the tokens that those weights know: `same` (the run's own
      tokenizer must be theirs), `source` (theirs is taken), or `new` (the run has its own, and the
      embedding and output tables start at random).

  Raises:
    ValueError: fields are out of range or do not go together; a line for each.
  """

  label: str = ""
  seed: int = 0
  objective: str = "score_entropy"
  init_from: str = ""
  init_tokenizer: str = "same"
  data: DataConfig = DataConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  model: ModelConfig = ModelConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  report: ReportConfig = ReportConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    faults = seed_outside(self.seed)
    if self.objective not in OBJECTIVES:
      known = " or ".join(map(repr, OBJECTIVES))
      faults.append(f"objective={self.objective!r} must be {known}")
    if self.objective == "discrete_time":
      faults += [
        f"objective='discrete_time' needs diffusion.{name}={wanted!r}, not {own!r}"
        for name, wanted in (("process", "absorbing"), ("parameterization", "conditional"))
        if (own := getattr(self.diffusion, name)) != wanted
      ]
    if self.init_from and (fault := path_fault(self.init_from, "init_from")):
      faults.append(fault)
    if self.init_tokenizer not in ("same", "source", "new"):
      faults.append(f"init_tokenizer={self.init_tokenizer!r} must be 'same', 'source' or 'new'")
    elif self.init_tokenizer != "same" and not self.init_from:
      faults.append(
        f"init_tokenizer={self.init_tokenizer!r} needs init_from, which is empty: name a run, an "
        "export or published weights"
      )
    if faults:
      raise ValueError("\n".join(faults))

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> Self:
    """The experiment of nested dicts, as `dataclasses.asdict` gives them; missing fields have their
    defaults. Sections of studies, which older runs stored too, are ignored.

    Raises:
      ValueError: fields are unknown, of the wrong type, out of range or do not go together; the
        message has a line for each.
    """
    own = {field.name for field in dataclasses.fields(cls)}
    config = {k: v for k, v in config.items() if k in own or k not in _STUDIES}
    return read_section(cls, config, "config")

  def make_objective(self, vocab_size: int, placement: Placement = Placement()) -> Objective:
    """The objective with its network; arguments as of `network`."""
    if self.objective == "autoregressive":
      return NextToken(network=self.causal_network(vocab_size, placement))
    diffusion = {
      "network": self.network(vocab_size, placement),
      "noise": self.diffusion.make_noise(),
      "time_sampling": self.diffusion.time_sampling,
    }
    if self.objective == "discrete_time":
      return DiscreteTime(**diffusion, num_steps=self.diffusion.timesteps)
    return ScoreEntropy(**diffusion)

  def causal_network(self, vocab_size: int, placement: Placement = Placement()) -> CausalNetwork:
    """The autoregressive network of the same shape; arguments as of `network`."""
    shape = dataclasses.replace(
      self.model.shape(vocab_size + 1), visibility=CAUSAL, time_input=False
    )
    return CausalNetwork(config=shape, placement=placement)

  def network(self, vocab_size: int, placement: Placement = Placement()) -> Network:
    """The score network for a vocabulary.

    Args:
      vocab_size: V, number of real tokens.
      placement: where its arrays live; one device by default.
    """
    process = self.diffusion.make_process(vocab_size)
    return Network(
      config=self.model.shape(process.num_states),
      process=process,
      parameterization=self.diffusion.parameterization,
      placement=placement,
    )
