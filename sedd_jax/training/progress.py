"""What a run counts from step to step besides its train state."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(kw_only=True)
class Progress:
  """Counts that are stored beside each checkpoint, so that a resumed run logs what it would have.

  Attributes:
    skipped_steps: steps so far that were skipped because loss or gradient were not finite.
    unlogged_steps: steps since the last line of training metrics, skipped ones left out.
    unlogged_loss: sum of their losses, in nats per sequence.
  """

  skipped_steps: int = 0
  unlogged_steps: int = 0
  unlogged_loss: float = 0.0

  @classmethod
  def of_checkpoint(cls, meta: Mapping[str, Any]) -> "Progress":
    """The counts stored beside a checkpoint; those that an older version did not store are 0."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: meta[name] for name in names if name in meta})

  def add_loss(self, loss: float) -> None:
    """Counts the loss of one more step."""
    self.unlogged_steps += 1
    self.unlogged_loss += loss

  def take_mean_loss(self) -> float:
    """The mean loss since this was last asked for. At least one step must have been counted."""
    mean = self.unlogged_loss / self.unlogged_steps
    self.unlogged_steps, self.unlogged_loss = 0, 0.0
    return mean
