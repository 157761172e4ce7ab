"""A batch of token rows with their masks and labels: data, losses, bounds and judges share it.

B: rows, L: tokens in a row.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
  """Rows of tokens: a pytree of numpy arrays in data, of jax arrays in compiled functions.

  Attributes:
    tokens: int32[B, L].
    loss_mask: bool[B, L], tokens that count in a loss or bound. The others are given: they stay
      clean, and the law of the rest is conditioned on them.
    labels: int32[B], the class of each row, or None.
    segments: int32[B, L], the document in the row that each token belongs to; attention then sees
      only that document. None: attention sees the whole row.
  """

  tokens: Any
  loss_mask: Any
  labels: Any = None
  segments: Any = None

  @classmethod
  def of(cls, tokens: Any) -> "Batch":
    """A batch of rows int[B, L] in which every token counts."""
    return cls(tokens, np.ones(np.shape(tokens), bool))

  def map(self, function: Callable[[Any], Any]) -> "Batch":
    """The batch with a function applied to each of its arrays."""
    return Batch(*(None if array is None else function(array) for array in self))


def gathered(count: int, parts: Iterable[tuple[np.ndarray, Batch]]) -> Batch:
  """A batch of count rows, assembled from parts.

  Args:
    count: number of rows.
    parts: pairs of row indices int[n] and rows; at least one. All have the same fields.
  """
  whole: Batch | None = None
  for places, rows in parts:
    if whole is None:
      whole = rows.map(lambda array: np.empty((count, *array.shape[1:]), array.dtype))
    for into, array in zip(whole, rows, strict=True):
      if array is not None:
        into[places] = array
  assert whole is not None
  return whole
