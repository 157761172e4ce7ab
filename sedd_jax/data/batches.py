"""Batches that are a function of the step."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from sedd_jax.batch import Batch, gathered
from sedd_jax.data.rows import Rows


class Batches:
  """An endless sequence of batches, random access by step.

  Every row comes once in an epoch; each epoch has its own order, a function of the seed. Orders are
  computed, not stored. With several parts, each has its own epochs, and a row comes from part i
  with frequency weights[i].
  """

  def __init__(
    self, parts: Sequence[Rows], batch_size: int, seed: int, weights: Sequence[float] = ()
  ):
    """Args:
    parts: what the rows are taken from.
    batch_size: B.
    seed: of the order.
    weights: positive, one for each part; not needed for one.
    """
    # grain shuffles row numbers; the rows of a batch are then read together.
    orders = [grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat() for rows in parts]
    numbered: list[Any] = [
      order.map(lambda row, part=i: (part, int(row))) for i, order in enumerate(orders)
    ]
    self._places: Any = numbered[0] if len(parts) == 1 else grain.MapDataset.mix(numbered, weights)
    self._parts = parts
    self._batch_size = batch_size

  @property
  def shape(self) -> tuple[int, int]:
    """(B, L)."""
    return self._batch_size, self._parts[0].shape[1]

  def __getitem__(self, step: int) -> Batch:
    """The batch of step 0, 1, ..."""
    return self.rows(step, slice(None))

  def rows(self, step: int, which: slice) -> Batch:
    """Some rows of a batch; no others are read."""
    places = np.array(self.indices(step, which), np.int64)
    of_parts = ((places[:, 0] == part, part) for part in np.unique(places[:, 0]))
    return gathered(
      len(places), ((mine, self._parts[part][places[mine, 1]]) for mine, part in of_parts)
    )

  def indices(self, step: int, which: slice = slice(None)) -> list[tuple[int, int]]:
    """(part, row in the part) of the rows of a batch."""
    first = step * self._batch_size
    return [self._places[first + i] for i in range(self._batch_size)[which]]
