"""Draws from unnormalised categorical laws, without the bias of float32 Gumbel noise."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float

# How draws are made, for reports: sample metrics depend on it.
PRECISION = "float32 Gumbel races in two levels, mode='high': unbiased to 31.9 nats"
# Below this, quotients are large and their last digits would be whole nats: the largest is taken
# off before the division.
_COLD = 0.01
# Divisors that float32 holds, with their inverses.
_COLDEST, _HOTTEST = 1e-30, 1e30
_LEAST_TOP_P = 1e-30
# About the square root of GPT-2's vocabulary size.
_GROUP = 256


def sample_categorical(key: jax.Array, log_weights: jax.Array) -> jax.Array:
  """A state drawn with probability proportional to exp(log_weights).

  Draws in two Gumbel races: among groups of states, then among the states of the winning group.
  The law is the same, and a row needs random bits for two short races, not for every state.

  `jax.random.categorical` in its default mode adds float32 Gumbel noise that never exceeds 15.94.
  It never draws a token more than 20.4 nats below the best, and draws tokens beyond about 11 nats
  too rarely, so text looks better than the model is. `mode="high"` uses more random bits and
  reaches 31.9 nats.

  Args:
    key: a PRNG key.
    log_weights: float[..., S], unnormalised, in nats; -inf entries are never drawn. Each row needs
      a finite entry.

  Returns:
    int32[...].
  """
  z = as_float(log_weights)
  if z.shape[-1] <= _GROUP:
    return _race(key, z)
  groups = -(-z.shape[-1] // _GROUP)
  padding = [(0, 0)] * (z.ndim - 1) + [(0, groups * _GROUP - z.shape[-1])]
  z = jnp.pad(z, padding, constant_values=-jnp.inf).reshape(*z.shape[:-1], groups, _GROUP)
  key_group, key_state = jax.random.split(key)
  group = _race(key_group, jax.nn.logsumexp(z, axis=-1))
  within = jnp.take_along_axis(z, group[..., None, None], axis=-2)[..., 0, :]
  return group * _GROUP + _race(key_state, within)


def _race(key: jax.Array, z: jax.Array) -> jax.Array:
  return jax.random.categorical(key, z, mode="high").astype(jnp.int32)


class _Shape(NamedTuple):
  """What a compiled truncation depends on.

  Attributes:
    top_k: as in `Truncation`.
    cuts: whether top_p removes states.
    cold: whether the temperature is so low that the largest weight is taken off first.
  """

  top_k: int
  cuts: bool
  cold: bool


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncation:
  """Log weights sharpened and cut to the most likely states: temperature, then top-k, then top-p.

  Samples then no longer follow the model's law. As a pytree its leaves are temperature and top_p:
  a function that is compiled for one temperature serves others.

  Attributes:
    temperature: divides log weights; values below 1 sharpen. The law tends to the argmax as it
      falls to 0, and to an even one over the possible states as it grows.
    top_k: number of most likely states to keep; 0 keeps all.
    top_p: keeps the smallest set of most likely states with at least this total probability.

  Raises:
    ValueError: a field is out of range.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not 0.0 < self.temperature < float("inf"):
      raise ValueError(
        f"temperature={self.temperature} must be positive; top_k=1 takes the most likely token"
      )
    if not self.top_k >= 0:
      raise ValueError(f"top_k={self.top_k} must be at least 1, or 0 for all tokens")
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")

  def __call__(self, log_weights: jax.Array) -> jax.Array:
    """Truncated log weights float[..., S], unnormalised, -inf at removed states. Ties with the last
    kept state are kept."""
    z = as_float(log_weights)
    if self._shape.cold:
      largest = jnp.max(z, axis=-1, keepdims=True)
      z = z - jnp.where(largest > -jnp.inf, largest, 0.0)
    temperature, top_p = self._numbers
    z = z / temperature
    if 0 < self.top_k < z.shape[-1]:
      z = _at_least(z, jax.lax.top_k(z, self.top_k)[0][..., -1:])
    if self._shape.cuts:
      falling = -jnp.sort(-z, axis=-1)
      p = jax.nn.softmax(falling, axis=-1)
      # A state is kept if the states before it have not reached top_p. The first always is.
      kept = jnp.cumsum(p, axis=-1) - p < top_p
      z = _at_least(z, jnp.min(falling, axis=-1, keepdims=True, where=kept, initial=jnp.inf))
    return z

  @functools.cached_property
  def is_identity(self) -> bool:
    """Whether the law stays as it is."""
    return self == Truncation()

  def tree_flatten(self) -> tuple[tuple[Any, ...], _Shape | None]:
    return ((), None) if self.is_identity else (self._numbers, self._shape)

  @classmethod
  def tree_unflatten(cls, shape: _Shape | None, numbers: tuple[Any, ...]) -> "Truncation":
    if shape is None:
      return cls()
    # Leaves may be tracers, which cannot be checked; the original was.
    truncation = object.__new__(cls)
    temperature, top_p = numbers
    truncation.__dict__.update(
      temperature=temperature,
      top_k=shape.top_k,
      top_p=top_p,
      is_identity=False,
      _shape=shape,
      _numbers=numbers,
    )
    return truncation

  @functools.cached_property
  def _shape(self) -> _Shape:
    return _Shape(self.top_k, cuts=self.top_p < 1.0, cold=self.temperature < _COLD)

  @functools.cached_property
  def _numbers(self) -> tuple[Any, ...]:
    """Temperature and top_p as float32 can hold them."""
    return min(max(self.temperature, _COLDEST), _HOTTEST), max(self.top_p, _LEAST_TOP_P)


def _at_least(z: jax.Array, least: jax.Array) -> jax.Array:
  return jnp.where(z >= least, z, -jnp.inf)
