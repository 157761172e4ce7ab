"""Draws from unnormalised categorical laws, without the bias of float32 Gumbel noise."""

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float


def sample_categorical(key: jax.Array, log_weights: jax.Array) -> jax.Array:
  """Draws a state with probability proportional to exp(log_weights).

  `jax.random.categorical` in its default mode races float32 Gumbel noise that never exceeds 15.94,
  so it never draws a token more than 20.4 nats below the best and draws those beyond about 11 nats
  too rarely; text then looks better than the model is. `mode="high"` spends more random bits and
  reaches 31.9 nats.

  Args:
    key: a PRNG key.
    log_weights: float[..., S], unnormalised, in nats; -inf entries are never drawn. Each row needs
      one finite entry.

  Returns:
    int32[...].
  """
  return jax.random.categorical(key, as_float(log_weights), mode="high").astype(jnp.int32)
