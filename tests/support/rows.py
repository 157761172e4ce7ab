"""Rows in memory."""

import dataclasses
from typing import Any

import numpy as np

from sedd_jax.batch import Batch


@dataclasses.dataclass(frozen=True)
class ArrayRows:
  """Rows of an array, of which every token counts.

  Attributes:
    tokens: int32[N, L].
  """

  tokens: np.ndarray

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tokens.shape

  def __getitem__(self, index: Any) -> Batch:
    return Batch.of(self.tokens[index])
