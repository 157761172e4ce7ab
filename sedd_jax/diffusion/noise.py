"""Noise schedules: total noise as a function of time in [0, 1] (docs/math.md, section 2)."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float

# Float32 has no total noise below the first; beyond the second no token survives.
_LEAST, _MOST = 1e-30, 1e4


@dataclasses.dataclass(frozen=True)
class Noise(abc.ABC):
  """A noise schedule.

  Attributes:
    name: its name in configs.
  """

  name: ClassVar[str]

  @abc.abstractmethod
  def total(self, t: jax.typing.ArrayLike) -> jax.Array:
    """Total noise; float, shape of t."""

  @abc.abstractmethod
  def rate(self, t: jax.typing.ArrayLike) -> jax.Array:
    """d total / dt; float, shape of t."""

  @abc.abstractmethod
  def time(self, total: jax.typing.ArrayLike) -> jax.Array:
    """The time with this total noise, the inverse of `total`; float, shape of total."""


@dataclasses.dataclass(frozen=True)
class LogLinear(Noise):
  """Total noise that masks an expected share of tokens linear in t: (1 - eps) t.

  Source: appendix C.1 of arXiv:2310.16834.

  Attributes:
    eps: probability that a token is unchanged at t = 1; in (0, 1), not below 1e-30.

  Raises:
    ValueError: eps is out of range.
  """

  name = "loglinear"

  eps: float = 1e-3

  def __post_init__(self):
    if not _LEAST <= self.eps < 1.0:
      raise ValueError(
        f"LogLinear: eps={self.eps} must lie in (0, 1) and not below {_LEAST}, for example 1e-3"
      )

  def total(self, t: jax.typing.ArrayLike) -> jax.Array:
    """Total noise -log(1 - (1 - eps) t); float, shape of t."""
    t = as_float(t)
    early = t < 0.5  # Each form loses precision in the other half.
    low = -jnp.log1p(-(1.0 - self.eps) * jnp.where(early, t, 0.0))
    return jnp.where(early, low, -jnp.log(self._survival(t)))

  def rate(self, t: jax.typing.ArrayLike) -> jax.Array:
    """d total / dt = (1 - eps) / (1 - (1 - eps) t); float, shape of t."""
    return (1.0 - self.eps) / self._survival(as_float(t))

  def time(self, total: jax.typing.ArrayLike) -> jax.Array:
    return -jnp.expm1(-as_float(total)) / (1.0 - self.eps)

  def _survival(self, t: jax.Array) -> jax.Array:
    return (1.0 - t) + self.eps * t


@dataclasses.dataclass(frozen=True)
class Geometric(Noise):
  """Total noise sigma_min^(1 - t) sigma_max^t, exponential in t.

  Note that total(0) = sigma_min, not 0. Source: section 5.1 of arXiv:2310.16834.

  Attributes:
    sigma_min: total noise at t = 0.
    sigma_max: total noise at t = 1.

  Raises:
    ValueError: 1e-30 <= sigma_min < sigma_max <= 1e4 does not hold.
  """

  name = "geometric"

  sigma_min: float = 1e-4
  sigma_max: float = 20.0

  def __post_init__(self):
    if not _LEAST <= self.sigma_min < self.sigma_max <= _MOST:
      raise ValueError(
        f"Geometric: sigma_min={self.sigma_min}, sigma_max={self.sigma_max} must satisfy "
        f"0 < sigma_min < sigma_max, with sigma_min >= {_LEAST} and sigma_max <= {_MOST:g}, for "
        "example 1e-4 and 20"
      )

  def total(self, t: jax.typing.ArrayLike) -> jax.Array:
    t = as_float(t)
    return jnp.exp((1.0 - t) * math.log(self.sigma_min) + t * math.log(self.sigma_max))

  def rate(self, t: jax.typing.ArrayLike) -> jax.Array:
    """d total / dt = total(t) log(sigma_max / sigma_min); float, shape of t."""
    return self.total(t) * self._log_range

  def time(self, total: jax.typing.ArrayLike) -> jax.Array:
    return (jnp.log(as_float(total)) - math.log(self.sigma_min)) / self._log_range

  @property
  def _log_range(self) -> float:
    return math.log(self.sigma_max / self.sigma_min)


NOISES: Mapping[str, type[Noise]] = {kind.name: kind for kind in (LogLinear, Geometric)}
