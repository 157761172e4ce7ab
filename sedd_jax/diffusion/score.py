"""Three numbers per position: all that the score entropy needs of a row of log scores.

They separate the formulas from their fast implementation (docs/math.md, section 4). The formulas in
`process.py` take a `ScoreStats`, whether it comes from a dense row or from tiles of the output
layer (`tiles.py`) that never hold [B, L, V]. `parameterizations.py` makes it from either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float, is_state
from sedd_jax.diffusion.tiles import Columns, Rows, RowSums, row_sums


class ScoreStats(NamedTuple):
  """Sums over a row z of log scores without its own entry (y = x); each float[...].

  Attributes:
    sum_exp: sum over y != x of exp(z_y).
    sum_log: sum over y != x of z_y.
    at_x0: z[x0], or 0 where x0 = x.
  """

  sum_exp: jax.Array
  sum_log: jax.Array
  at_x0: jax.Array


def dense_stats(log_score: jax.Array, x: jax.Array, x0: jax.Array) -> ScoreStats:
  """ScoreStats of dense rows.

  Args:
    log_score: float[..., S]; the own entry is ignored.
    x: int[...], current tokens.
    x0: int[...], clean tokens.
  """
  z = as_float(log_score)
  own = is_state(x, z.shape[-1])
  z = jnp.where(own, 0.0, z)
  return ScoreStats(
    sum_exp=split_sum(jnp.where(own, 0.0, jnp.exp(z))),
    sum_log=split_sum(z),
    at_x0=jnp.sum(jnp.where(is_state(x0, z.shape[-1]), z, 0.0), axis=-1),
  )


def log_prob_of_columns(
  hidden: jax.Array,
  columns: Columns,
  left_out: jax.Array,
  x0: jax.Array,
  *,
  num_states: int,
  axis: str | None = None,
) -> jax.Array:
  """log p(x0), float[...] in nats, under the softmax of the output layer, without [..., S].

  Args:
    hidden: float[..., D], in the dtype of the products.
    columns: the output layer, or this device's columns of it.
    left_out: int[...], a state other than x0 that the softmax excludes.
    x0: int[...].
    num_states: S.
    axis: as in `column_sums`.
  """
  rows = Rows(left_out, x0, jnp.ones(x0.shape, bool))
  sums = column_sums(hidden, columns, rows, num_states, axis)
  return sums.at_x0 - jnp.log(sums.sum_exp) - sums.largest


def column_sums(
  hidden: jax.Array, columns: Columns, rows: Rows, num_states: int, axis: str | None
) -> RowSums:
  """Sums over the columns of all devices, each float[...] of the rows' shape.

  Args:
    hidden: float[..., D], in the dtype of the products.
    columns: the output layer, or this device's columns of it.
    rows: the sums to compute in each row; arrays [...].
    num_states: S.
    axis: mapped axis over which the columns are sharded, or None.
  """
  flat = Rows(*(jnp.asarray(z).reshape(-1) for z in rows))
  sums: RowSums = row_sums(hidden.reshape(-1, hidden.shape[-1]), columns, flat, num_states)
  sums = sums if axis is None else _reduced(sums, axis)
  return jax.tree.map(lambda z: z.reshape(rows.needed.shape), sums)


def _reduced(sums: RowSums, axis: str) -> RowSums:
  """The sums over the columns of all devices of a mapped axis. A device may have no column."""
  largest = jax.lax.pmax(jax.lax.stop_gradient(sums.largest), axis)
  sum_exp = sums.sum_exp * jnp.exp(sums.largest - largest)
  return RowSums(largest, *jax.lax.psum((sum_exp, sums.sum_raw, sums.at_x0), axis))


def split_sum(z: jax.Array) -> jax.Array:
  """Sum over the last axis in two levels. Its float32 error at 128k entries is 1e-6; a running sum
  may reach 1e-5."""
  width = z.shape[-1]
  inner = 256
  if width <= inner:
    return jnp.sum(z, axis=-1)
  whole = width - width % inner
  blocks = z[..., :whole].reshape(*z.shape[:-1], whole // inner, inner)
  return jnp.sum(jnp.sum(blocks, axis=-1), axis=-1) + jnp.sum(z[..., whole:], axis=-1)
