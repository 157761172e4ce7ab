"""Three numbers per position: all that the score entropy needs of a row of log scores.

This is the seam between mathematics and speed (docs/math.md, section 4). The formulas in
`process.py` take a `ScoreStats` and don't know whether it came from a dense row or from tiles that
never held [B, L, V].

The parameterizations live here too: they say how a network's raw outputs become log scores.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float, is_state, log_expm1

Parameterization = Literal["score", "scaled", "conditional"]


class ScoreStats(NamedTuple):
  """Sums over a row z of log scores, own entry (y = x) left out; each float[...].

  Attributes:
    sum_exp: sum over y != x of exp(z_y).
    sum_log: sum over y != x of z_y.
    at_x0: z[x0], 0 where x0 = x.
  """

  sum_exp: jax.Array
  sum_log: jax.Array
  at_x0: jax.Array


def dense_stats(
  log_score: jax.Array,
  x: jax.Array,
  x0: jax.Array,
  *,
  num_states: int,
  first: jax.typing.ArrayLike = 0,
) -> ScoreStats:
  """ScoreStats of a dense row, or what some of its columns add to them.

  Args:
    log_score: float[..., C]; the own entry is ignored, whatever it holds, and so are columns
      beyond the last state.
    x: int[...], current tokens.
    x0: int[...], clean tokens.
    num_states: S.
    first: state of the first column.
  """
  z = as_float(log_score)
  width = z.shape[-1]
  x, x0 = jnp.asarray(x), jnp.asarray(x0)
  left_out = is_state(x - first, width) | (_states(z, first) >= num_states)
  z = jnp.where(left_out, 0.0, z)
  return ScoreStats(
    sum_exp=_sum(jnp.where(left_out, 0.0, jnp.exp(z))),
    sum_log=_sum(z),
    at_x0=jnp.sum(jnp.where(is_state(x0 - first, width), z, 0.0), axis=-1),
  )


def dense_log_score(
  raw: jax.Array,
  x: jax.Array,
  total: jax.Array,
  *,
  vocab_size: int,
  parameterization: Parameterization,
  first: jax.typing.ArrayLike = 0,
  axis: str | None = None,
) -> jax.Array:
  """Log scores from a network's raw outputs.

  Args:
    raw: float[..., C], the head's outputs: all S states, or some columns.
    x: int[...], the network's input tokens.
    total: float, broadcasts to the shape of x; total noise.
    vocab_size: V, the number of real tokens.
    parameterization: `score` (raw as it is), `scaled` (minus log expm1(total) minus log V: SEDD's
      `scale_by_sigma`), or `conditional` (normalised over the real tokens, then divided by
      expm1(total): MDLM, RADD, MD4). The last two are for the absorbing process.
    first: state of the first column.
    axis: mapped axis over which devices hold the other columns, if they do.

  Returns:
    float[..., C] of at least float32; the own entry is 0.

  Raises:
    ValueError: the parameterization is unknown.
  """
  z = as_float(raw)
  total = as_float(total)[..., None]
  match parameterization:
    case "score":
      pass
    case "scaled":
      z = z - log_expm1(total) - jnp.log(jnp.asarray(vocab_size, z.dtype))
    case "conditional":
      z = z - _log_norm(z, _states(z, first) < vocab_size, axis) - log_expm1(total)
    case _:
      raise ValueError(
        f"parameterization={parameterization!r} must be one of 'score', 'scaled', 'conditional'"
      )
  return jnp.where(is_state(jnp.asarray(x) - first, raw.shape[-1]), 0.0, z)


def _states(z: jax.Array, first: jax.typing.ArrayLike) -> jax.Array:
  """int32, the state of each column."""
  return jax.lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) + first


def _log_norm(z: jax.Array, real: jax.Array, axis: str | None) -> jax.Array:
  """logsumexp over the real columns of all devices, float[..., 1]. A device may have none."""
  z = jnp.where(real, z, -jnp.inf)
  most = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
  if axis is not None:
    most = jax.lax.pmax(most, axis)
  most = jnp.where(jnp.isfinite(most), most, 0.0)
  total = jnp.sum(jnp.exp(z - most), axis=-1, keepdims=True)
  if axis is not None:
    total = jax.lax.psum(total, axis)
  return jnp.log(total) + most


def _sum(z: jax.Array) -> jax.Array:
  """Sum over the last axis in two levels: float32 keeps 1e-6 at 128k entries, where one running
  sum may lose 1e-5."""
  width = z.shape[-1]
  inner = 256
  if width <= inner:
    return jnp.sum(z, axis=-1)
  whole = width - width % inner
  blocks = z[..., :whole].reshape(*z.shape[:-1], whole // inner, inner)
  return jnp.sum(jnp.sum(blocks, axis=-1), axis=-1) + jnp.sum(z[..., whole:], axis=-1)
