"""Draws from unnormalised categorical laws, without the bias of float32 Gumbel noise."""

import dataclasses

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncation:
  """Log weights sharpened and cut to the most likely states: temperature, then top-k, then top-p.

  Samples then no longer follow the model's law.

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
    if self.temperature < _COLD:
      largest = jnp.max(z, axis=-1, keepdims=True)
      z = z - jnp.where(largest > -jnp.inf, largest, 0.0)
    z = z / min(max(self.temperature, _COLDEST), _HOTTEST)
    if 0 < self.top_k < z.shape[-1]:
      z = _at_least(z, jax.lax.top_k(z, self.top_k)[0][..., -1:])
    if self.top_p < 1.0:
      falling = -jnp.sort(-z, axis=-1)
      p = jax.nn.softmax(falling, axis=-1)
      # A state is kept if the states before it have not reached top_p. The first always is.
      kept = jnp.cumsum(p, axis=-1) - p < max(self.top_p, _LEAST_TOP_P)
      z = _at_least(z, jnp.min(falling, axis=-1, keepdims=True, where=kept, initial=jnp.inf))
    return z


def _at_least(z: jax.Array, least: jax.Array) -> jax.Array:
  return jnp.where(z >= least, z, -jnp.inf)
