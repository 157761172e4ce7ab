"""Numerically stable forms that several formulas share; nothing else belongs here.

V: real tokens, S: states (V or V + 1), z: one row of log scores.
"""

import jax
import jax.numpy as jnp


def as_float(x: jax.typing.ArrayLike) -> jax.Array:
  """x as a float array of at least float32 (float64 stays float64)."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def log_expm1(total: jax.Array) -> jax.Array:
  """log(exp(total) - 1) for total >= 0 without overflow; -inf at 0."""
  small = total < 1.0
  low = jnp.log(jnp.expm1(jnp.where(small, total, 1.0)))
  big = jnp.where(small, 1.0, total)
  return jnp.where(small, low, big + jnp.log1p(-jnp.exp(-big)))


def log1m_exp(x: jax.Array) -> jax.Array:
  """log(1 - exp(-x)) for x >= 0, accurate at both ends; -inf at 0."""
  small = x < 1.0
  low = jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0)))
  return jnp.where(small, low, jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x))))


def clock(total: jax.Array) -> jax.Array:
  """-log(1 - exp(-total)): a time that runs from 0 to infinity as noise falls to 0.

  At the exact score masks are lifted at rate 1 in this time. For both processes the reverse rates
  neither grow nor vanish as noise goes to 0. The function is its own inverse.
  """
  return -log1m_exp(total)


def is_state(x: jax.Array, num_states: int) -> jax.Array:
  """bool[..., S], true at the entry y = x. XLA fuses it into the sums that use it."""
  x = jnp.asarray(x)  # numpy's int64 would warn in 32-bit mode.
  return jax.lax.broadcasted_iota(x.dtype, (*x.shape, num_states), x.ndim) == x[..., None]


def bernoulli(key: jax.Array, p: jax.Array) -> jax.Array:
  """bool, shape of p: true with probability p, to within 2^-32.

  `jax.random.bernoulli` compares float32 uniforms, whose spacing of 2^-23 is 0.1 % of a jump
  probability of 1e-4.
  """
  uniform = jax.random.bits(key, p.shape, jnp.uint32).astype(p.dtype) * 2.0**-32
  return (uniform < p) | (p >= 1.0)


def jump_or_stay(log_jump: jax.Array, own: jax.Array) -> jax.Array:
  """Probabilities of one step from the log probabilities of each jump.

  The remaining probability stays at the own state. Jumps that sum to more than 1 (an inconsistent
  score, or too long a step) are renormalised and the own state gets 0. This equals setting the
  negative remainder to 0, but without overflow.

  Args:
    log_jump: float[..., S], -inf where there is no jump; the own entry is ignored.
    own: bool[..., S], true at the own state.

  Returns:
    float[..., S], non-negative, sums to 1.
  """
  log_jump = jnp.where(own, -jnp.inf, jnp.minimum(log_jump, jnp.finfo(log_jump.dtype).max / 4))
  # Relative to the largest jump if it is above 1, so that nothing overflows.
  scale = jnp.maximum(jnp.max(log_jump, axis=-1, keepdims=True), 0.0)
  jump = jnp.exp(log_jump - scale)
  jumps = jnp.sum(jump, axis=-1, keepdims=True)
  stay = jnp.maximum(jnp.exp(-scale) - jumps, 0.0)
  return jnp.where(own, stay, jump) / jnp.maximum(jnp.exp(-scale), jumps)
