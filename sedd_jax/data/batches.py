"""Blocks of tokens, and batches that are a function of the step."""

from collections.abc import Iterable
from typing import Any

import grain
import numpy as np

from sedd_jax.data.tokenizers import Tokenizer

# Stands between documents where the tokenizer has no end-of-text token.
SEPARATOR = "\n\n"


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
  """All documents as one stream of tokens, int32[T].

  EOS follows every document; a tokenizer without EOS has a blank line between them.
  """
  if tokenizer.eos_id is None:
    return tokenizer.encode(SEPARATOR.join(documents))
  eos = np.array([tokenizer.eos_id], np.int32)
  parts = [part for document in documents for part in (tokenizer.encode(document), eos)]
  return np.concatenate([np.zeros(0, np.int32), *parts])


def cut_blocks(stream: np.ndarray, length: int, name: str) -> np.ndarray:
  """Cuts a stream int32[T] into int32[T // length, length]; the remainder is dropped.

  Raises:
    ValueError: the stream is shorter than one block.
  """
  if len(stream) < length:
    raise ValueError(
      f"data.length={length} is longer than the whole {name} text ({len(stream)} tokens)"
    )
  return stream[: len(stream) // length * length].reshape(-1, length)


class Batches:
  """An endless sequence of batches, random access by step.

  Every block comes once an epoch; each epoch has its own order, a function of the seed.

  Args:
    blocks: int32[N, L].
    batch_size: B.
    seed: of the order.
  """

  def __init__(self, blocks: np.ndarray, batch_size: int, seed: int):
    # A source of indices, so that grain hands over numbers and numpy gathers the rows.
    indices: Any = grain.MapDataset.range(len(blocks)).seed(seed).shuffle().repeat()
    self._indices = indices
    self._blocks = blocks
    self._batch_size = batch_size

  @property
  def shape(self) -> tuple[int, int]:
    """(B, L)."""
    return self._batch_size, self._blocks.shape[1]

  def __getitem__(self, step: int) -> np.ndarray:
    """The batch of step 0, 1, ...; int32[B, L]."""
    return self.rows(step, slice(None))

  def rows(self, step: int, which: slice) -> np.ndarray:
    """Some rows of a batch, int32[b, L]; the others are not read."""
    return self._blocks[np.array([row for _, row in self.indices(step, which)], np.int64)]

  def indices(self, step: int, which: slice = slice(None)) -> list[tuple[int, int]]:
    """Where rows of a batch come from: (part, row in it); there is one part."""
    first = step * self._batch_size
    return [(0, int(self._indices[first + i])) for i in range(self._batch_size)[which]]
