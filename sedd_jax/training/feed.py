"""Batches placed on the devices: the next ones are made while a step runs."""

import collections
import concurrent.futures
import functools
import itertools
import time
from typing import Any

import jax
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.data import Batches

# Number of batches made in advance, so that a slow read need not delay a step.
_AHEAD = 2


class Feed:
  """Global batches in order, each process reading the rows of its own devices; a context manager.

  Args:
    batches: by step.
    sharding: of a global batch.
    first: number of the first batch.
  """

  def __init__(self, batches: Batches, sharding: jax.sharding.NamedSharding, first: int):
    self._batches, self._sharding = batches, sharding
    self._steps = itertools.count(first)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="feed")
    self._ahead = collections.deque(self._submit() for _ in range(_AHEAD))
    self._waited = self._count = 0.0
    self._since = time.monotonic()

  def __enter__(self) -> "Feed":
    return self

  def __exit__(self, *exception) -> None:
    self._thread.shutdown(cancel_futures=True)

  def next(self) -> Batch:
    """The next batch of B rows; starts to make one more."""
    began = time.monotonic()
    batch = self._ahead.popleft().result()
    self._waited += time.monotonic() - began
    self._count += 1
    self._ahead.append(self._submit())
    return batch

  def waits(self) -> dict[str, float]:
    """Waiting since the last call: `input_wait_seconds`, the mean wait of a step for its batch, and
    `input_wait_share`, the share of all time spent waiting."""
    now = time.monotonic()
    waits = {
      "input_wait_seconds": self._waited / max(self._count, 1),
      "input_wait_share": self._waited / max(now - self._since, 1e-9),
    }
    self._waited, self._count, self._since = 0.0, 0.0, now
    return waits

  def _submit(self) -> concurrent.futures.Future[Batch]:
    return self._thread.submit(self._make, next(self._steps))

  def _make(self, step: int) -> Batch:
    @functools.cache  # Devices that share rows would each read them.
    def read(start: int | None, stop: int | None) -> Batch:
      return self._batches.rows(step, slice(start, stop))

    def array(number: int, row_shape: tuple[int, ...]) -> jax.Array:
      def rows(index: Any) -> np.ndarray:
        return read(index[0].start, index[0].stop)[number]

      return jax.make_array_from_callback((size, *row_shape), self._sharding, rows)

    size = self._batches.shape[0]
    places = self._sharding.addressable_devices_indices_map((size,)).values()
    rows_here = next(index[0] for index in places if index is not None)
    here = read(rows_here.start, rows_here.stop)
    return Batch(*(None if x is None else array(i, x.shape[1:]) for i, x in enumerate(here)))
