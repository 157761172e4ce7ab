"""Ranges of numbers that a user sets, with one form of message."""

import math
import operator
from typing import Any

import numpy as np

# Seeds are 32 bits: JAX would cut larger ones, so that two seeds would be one.
SEEDS = 2**32
_FLOAT32 = np.finfo(np.float32)


def outside(name: str, value: float, low: float, high: float = math.inf) -> list[str]:
  """A line if the value does not lie in [low, high], which NaN never does; otherwise nothing."""
  if low <= value <= high:
    return []
  if isinstance(low, float):
    return [f"{name}={value} must lie in [{low:g}, {high:g}]"]
  return [f"{name}={value} must be at {f'most {high:,}' if value > high else f'least {low:,}'}"]


def check(name: str, value: float, low: float, high: float = math.inf) -> None:
  """Checks that low <= value <= high.

  Raises:
    ValueError: it is not; the message names the value.
  """
  if line := outside(name, value, low, high):
    raise ValueError(line[0])


def seed_outside(seed: Any, name: str = "seed") -> list[str]:
  """A line if this is no seed, an integer in [0, 2^32); otherwise nothing."""
  try:
    fits = 0 <= operator.index(seed) < SEEDS
  except TypeError:
    return [f"{name}={seed!r} must be an integer in [0, 2^32)"]
  return [] if fits else [f"{name}={seed} must lie in [0, 2^32)"]


def check_seed(seed: Any, name: str = "seed") -> int:
  """The seed as an int.

  Raises:
    ValueError: it is no integer in [0, 2^32).
  """
  if line := seed_outside(seed, name):
    raise ValueError(line[0])
  return operator.index(seed)


def number_outside(name: str, value: float) -> list[str]:
  """A line if no setting of this name can have the value; otherwise nothing.

  Integers must fit 32 bits, as those on devices do; seeds have no sign. Other numbers must be
  finite in float32, and not so small that they are 0 there. NaN is left to the setting's own range.
  """
  if name.endswith("seed"):
    return seed_outside(value, name)
  if isinstance(value, int):
    fits, wanted = -(2**31) <= value < 2**31, "lie in [-2^31, 2^31)"
  else:
    least, most = float(_FLOAT32.tiny), float(_FLOAT32.max)
    fits = value == 0 or math.isnan(value) or least <= abs(value) <= most
    wanted = "be a finite number of float32"
  return [] if fits else [f"{name}={value} must {wanted}"]
