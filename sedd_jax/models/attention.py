"""Attention kernels; the one place that chooses among them.

B: sequences, L: positions, H: heads, K: head width.
"""

import jax
import jax.numpy as jnp


def attention(q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array) -> jax.Array:
  """Full bidirectional attention, scale K^-1/2; float[B, L, H, K].

  Written out because `jax.nn.dot_product_attention` takes its softmax in float32 even for float64
  inputs, and the exact tests run in float64.
  """
  dtype = jnp.promote_types(q_BLHK.dtype, jnp.float32)
  q_BHLK, k_BHLK, v_BHLK = (jnp.swapaxes(z, 1, 2) for z in (q_BLHK, k_BLHK, v_BLHK))
  logits_BHLM = jnp.einsum("bhlk,bhmk->bhlm", q_BHLK, k_BHLK, preferred_element_type=dtype)
  weights_BHLM = jax.nn.softmax(logits_BHLM * q_BLHK.shape[-1] ** -0.5, axis=-1)
  out_BHLK = jnp.einsum("bhlm,bhmk->bhlk", weights_BHLM.astype(v_BHLK.dtype), v_BHLK)
  return jnp.swapaxes(out_BHLK, 1, 2)


def rotary(z_BLHK: jax.Array) -> jax.Array:
  """Rotates feature i with feature i + K / 2 by position * 10000^(-2i / K).

  The angles are float32 at least, whatever the dtype of z.
  """
  length, width = z_BLHK.shape[1], z_BLHK.shape[3]
  dtype = jnp.promote_types(z_BLHK.dtype, jnp.float32)
  frequency = 10000.0 ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
  angle = jnp.arange(length, dtype=dtype)[:, None] * frequency[None, :]
  cos, sin = (f(angle).astype(z_BLHK.dtype)[None, :, None, :] for f in (jnp.cos, jnp.sin))
  first, second = jnp.split(z_BLHK, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
