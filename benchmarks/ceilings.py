"""The device's measured peak throughput in a large product and a large copy."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_CHAIN, _TRIES = 4, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
  """Measured peak throughput of one device.

  Attributes:
    matmul_flops_per_second: throughput of a square product.
    copy_bytes_per_second: bytes read plus written when 1 is added to an array in place.
    dtype: dtype of the product.
  """

  matmul_flops_per_second: float
  copy_bytes_per_second: float
  dtype: str


def measure_ceilings(dtype: str) -> Ceilings:
  """The best of several tries on the default device.

  Args:
    dtype: dtype of the product; the device chooses that of the sums.
  """
  on_cpu = jax.default_backend() == "cpu"
  size, words = (2048, 2**26) if on_cpu else (8192, 2**28)
  # Products of products stay finite: the rows of this matrix sum to 1.
  average = jnp.full((size, size), 1.0 / size, dtype)
  matmul = _best(jax.jit(lambda x: x @ average), average)
  copy = _best(jax.jit(lambda x: x + 1.0, donate_argnums=0), jnp.zeros(words, jnp.float32))
  return Ceilings(
    matmul_flops_per_second=2.0 * size**3 / matmul,
    copy_bytes_per_second=2.0 * 4 * words / copy,
    dtype=dtype,
  )


def _best(function: Callable[[Any], Any], x: Any) -> float:
  """Least seconds per call in a chain of calls, where dispatch overlaps with work."""
  seconds = []
  for _ in range(_TRIES + 1):  # The first one compiles.
    start = time.perf_counter()
    for _ in range(_CHAIN):
      x = function(x)
    jax.block_until_ready(x)
    seconds.append((time.perf_counter() - start) / _CHAIN)
  return min(seconds)
