"""The config of a self-consuming loop, which `autophagy.py` runs."""

import dataclasses
import math

from sedd_jax.training.experiment import Experiment
from sedd_jax.training.sections import below

REGIMES = ("synthetic", "augmented", "fresh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationsConfig:
  """The section `generations` of a config.

  Attributes:
    count: generations after the first, which sees real text only; 0 for an ordinary run.
    regime: the text of later generations: `synthetic` (samples of the one before), `augmented`
      (samples of all before, and the real text of the first) or `fresh` (samples of the one before,
      and as much unseen real text).
    rows: sequences of real text, and of samples of each generation.
    temperature: of sampling; below 1 it favours likely tokens.
    steps: sampling steps of a diffusion model.

  Raises:
    ValueError: fields are out of range; a line for each.
  """

  count: int = 0
  regime: str = "synthetic"
  rows: int = 4096
  temperature: float = 1.0
  steps: int = 64

  def __post_init__(self):
    faults = below(self, "generations", 0, "count")
    faults += below(self, "generations", 1, "rows", "steps")
    if self.regime not in REGIMES:
      known = ", ".join(map(repr, REGIMES))
      faults.append(f"generations.regime={self.regime!r} must be one of {known}")
    if not 0.0 < self.temperature < math.inf:
      faults.append(f"generations.temperature={self.temperature} must be positive")
    if faults:
      raise ValueError("\n".join(faults))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop(Experiment):
  """What `sedd train` runs: the experiment of each generation, and how many there are.

  Attributes, beside those of `Experiment`:
    generations: of the loop; an ordinary run has none.
  """

  generations: GenerationsConfig = GenerationsConfig()

  @property
  def experiment(self) -> Experiment:
    """The experiment without its loop."""
    fields = dataclasses.fields(Experiment)
    return Experiment(**{field.name: getattr(self, field.name) for field in fields})
