"""Batches on their way to the devices: the next one is made while a step runs."""

import concurrent.futures
import time
from typing import Any

import jax
import numpy as np

from sedd_jax.data import Batches


class Feed:
  """Global batches in order, each process reading the rows of its own devices; a context manager.

  Args:
    batches: by step.
    sharding: of a global batch.
    first: the first batch to hand over.
  """

  def __init__(self, batches: Batches, sharding: jax.sharding.NamedSharding, first: int):
    self._batches, self._sharding, self._step = batches, sharding, first
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="feed")
    self._next = self._thread.submit(self._make, first)
    self._waited = self._count = 0.0

  def __enter__(self) -> "Feed":
    return self

  def __exit__(self, *exception) -> None:
    self._thread.shutdown(cancel_futures=True)

  def next(self) -> jax.Array:
    """The next batch, int32[B, L]; starts on the one after it."""
    began = time.monotonic()
    batch = self._next.result()
    self._waited += time.monotonic() - began
    self._count += 1
    self._step += 1
    self._next = self._thread.submit(self._make, self._step)
    return batch

  def mean_wait(self) -> float:
    """Seconds that a step waited for its batch, on average since this was last asked."""
    mean = self._waited / max(self._count, 1)
    self._waited = self._count = 0.0
    return mean

  def _make(self, step: int) -> jax.Array:
    def rows(index: Any) -> np.ndarray:
      return self._batches.rows(step, index[0])

    return jax.make_array_from_callback(self._batches.shape, self._sharding, rows)
