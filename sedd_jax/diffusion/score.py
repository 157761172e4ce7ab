"""Three numbers per position: all that the score entropy needs of a row of log scores.

This is the seam between mathematics and speed (docs/math.md, section 4). The formulas in
`process.py` take a `ScoreStats` and don't know whether it came from a dense row or from tiles of
the output layer (`tiles.py`) that never held [B, L, V].

The parameterizations live here too: they say how a network's raw outputs become log scores.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float, is_state, log_expm1
from sedd_jax.diffusion.tiles import Columns, Rows, RowSums, row_sums, whole_tile_height

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


def dense_stats(log_score: jax.Array, x: jax.Array, x0: jax.Array) -> ScoreStats:
  """ScoreStats of dense rows.

  Args:
    log_score: float[..., S]; the own entry is ignored, whatever it holds.
    x: int[...], current tokens.
    x0: int[...], clean tokens.
  """
  z = as_float(log_score)
  own = is_state(x, z.shape[-1])
  z = jnp.where(own, 0.0, z)
  return ScoreStats(
    sum_exp=_sum(jnp.where(own, 0.0, jnp.exp(z))),
    sum_log=_sum(z),
    at_x0=jnp.sum(jnp.where(is_state(x0, z.shape[-1]), z, 0.0), axis=-1),
  )


def stats_of_columns(
  hidden: jax.Array,
  columns: Columns,
  x: jax.Array,
  x0: jax.Array,
  total: jax.Array,
  needed: jax.Array,
  *,
  num_states: int,
  vocab_size: int,
  parameterization: Parameterization,
  axis: str | None = None,
) -> ScoreStats:
  """ScoreStats from hidden states and the output layer, without its outputs [..., S].

  The same as `dense_log_score` and `dense_stats` of the outputs, in the rows that are needed; 0 in
  the others.

  Args:
    hidden: float[..., D], in the dtype of the products.
    columns: the output layer, or the part of it that is here.
    x: int[...], the network's input tokens.
    x0: int[...], clean tokens.
    total: float, broadcasts to the shape of x; total noise.
    needed: bool[...], whose stats are wanted; of an absorbing process masked tokens alone for
      `conditional`, whose norm is over the real ones.
    num_states: S.
    vocab_size: V, the number of real tokens.
    parameterization: see `dense_log_score`.
    axis: mapped axis over which devices hold the other columns, if they do.

  Raises:
    ValueError: the parameterization is unknown.
  """
  shape = needed.shape
  if not needed.size:
    return ScoreStats(*(jnp.zeros(shape, as_float(hidden).dtype) for _ in range(3)))
  if parameterization == "conditional" and num_states == vocab_size:
    return _marginal_stats(hidden, columns, x, x0, total, needed, vocab_size, axis)
  sums = _sums(hidden, columns, x, x0, needed, num_states, axis)
  total = jnp.broadcast_to(as_float(total), shape)
  log_norm = jnp.log(jnp.where(needed, sums.sum_exp, 1.0)) + sums.largest
  # Where nothing is needed the shift may be infinite, and 0 times infinity is NaN.
  shift = jnp.where(needed, _shift(total, log_norm, vocab_size, parameterization), 0.0)
  return ScoreStats(
    sum_exp=sums.sum_exp * jnp.exp(sums.largest - shift),
    sum_log=sums.sum_raw - (num_states - 1) * shift,
    at_x0=jnp.where(x == x0, 0.0, sums.at_x0 - shift),
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
    columns: the output layer, or the part of it that is here.
    left_out: int[...], a state that the softmax leaves out, not x0.
    x0: int[...].
    num_states: S.
    axis: as in `stats_of_columns`.
  """
  needed = jnp.ones(x0.shape, bool)
  sums = _sums(hidden, columns, left_out, x0, needed, num_states, axis)
  return sums.at_x0 - jnp.log(sums.sum_exp) - sums.largest


def _sums(
  hidden: jax.Array,
  columns: Columns,
  x: jax.Array,
  x0: jax.Array,
  needed: jax.Array,
  num_states: int,
  axis: str | None,
) -> RowSums:
  """Sums over the columns of all devices, of the shape of x."""
  rows = Rows(*(jnp.asarray(z).reshape(-1) for z in (x, x0, needed)))
  sums: RowSums = row_sums(hidden.reshape(-1, hidden.shape[-1]), columns, rows, num_states)
  sums = sums if axis is None else _over(sums, axis)
  return jax.tree.map(lambda z: z.reshape(needed.shape), sums)


def _over(sums: RowSums, axis: str) -> RowSums:
  """The sums over the columns of all devices of a mapped axis. A device may have none."""
  largest = jax.lax.pmax(jax.lax.stop_gradient(sums.largest), axis)
  sum_exp = sums.sum_exp * jnp.exp(sums.largest - largest)
  return RowSums(largest, *jax.lax.psum((sum_exp, sums.sum_raw, sums.at_x0), axis))


def dense_log_score(
  raw: jax.Array,
  x: jax.Array,
  total: jax.Array,
  *,
  vocab_size: int,
  parameterization: Parameterization,
) -> jax.Array:
  """Log scores from a network's raw outputs.

  Args:
    raw: float[..., S], the output layer's.
    x: int[...], the network's input tokens.
    total: float, broadcasts to the shape of x; total noise.
    vocab_size: V, the number of real tokens.
    parameterization: `score` (raw as it is), `scaled` (minus log expm1(total) minus log V: SEDD's
      `scale_by_sigma`, for the absorbing process), or `conditional`: the softmax over real tokens
      is a law of x0, and the score is the ratio of what noise makes of it. Absorbing: the law over
      expm1(total) (MDLM, RADD, MD4); uniform: (law + c) / (law at x + c), c = expm1(total) / V
      (UDLM, arXiv:2412.10193).

  Returns:
    float[..., S] of at least float32; the own entry is 0.

  Raises:
    ValueError: the parameterization is unknown.
  """
  z = as_float(raw)
  total = as_float(total)[..., None]
  own = is_state(x, z.shape[-1])
  if parameterization == "conditional" and z.shape[-1] == vocab_size:
    marginal = _log_marginal(jax.nn.log_softmax(z, axis=-1), total, vocab_size)
    at_x = jnp.sum(jnp.where(own, marginal, 0.0), axis=-1, keepdims=True)
    return jnp.where(own, 0.0, marginal - at_x)
  log_norm = jax.nn.logsumexp(z[..., :vocab_size], axis=-1, keepdims=True)
  shift = _shift(total, log_norm, vocab_size, parameterization)
  return jnp.where(own, 0.0, z - shift)


def _log_marginal(log_law: jax.Array, total: jax.Array, vocab_size: int) -> jax.Array:
  """log of what uniform noise makes of a law of x0, times exp(total); float[..., V]."""
  return jnp.logaddexp(log_law, log_expm1(total) - jnp.log(jnp.asarray(vocab_size, total.dtype)))


def _marginal_stats(
  hidden: jax.Array,
  columns: Columns,
  x: jax.Array,
  x0: jax.Array,
  total: jax.Array,
  needed: jax.Array,
  vocab_size: int,
  axis: str | None,
) -> ScoreStats:
  """`stats_of_columns` of `conditional` for the uniform process.

  The norm of a row stands inside a logarithm of each of its entries, so sums of raw outputs are not
  enough: tiles of rows hold all columns that are here, and are made again for the gradient.
  """
  shape, dtype = needed.shape, jnp.promote_types(hidden.dtype, jnp.float32)
  state_C = columns.first + jnp.arange(columns.kernel.shape[1])
  real_C = state_C < vocab_size

  def over(z, reduce=jax.lax.psum):
    return z if axis is None else reduce(z, axis)

  @jax.checkpoint
  def of_row(row):
    hidden_D, x, x0, total = row
    raw_C = jnp.matmul(hidden_D, columns.kernel, preferred_element_type=dtype)
    raw_C = jnp.where(real_C, raw_C + columns.bias.astype(dtype), -jnp.inf)
    raw_C -= over(jnp.max(jax.lax.stop_gradient(raw_C)), jax.lax.pmax)
    log_law_C = raw_C - jnp.log(over(_sum(jnp.exp(raw_C))))
    marginal_C = _log_marginal(log_law_C, total, vocab_size)

    def at(state):
      return over(_sum(jnp.where(state_C == state, marginal_C, 0.0)))

    others_C = real_C & (state_C != x)
    z_C = jnp.where(others_C, marginal_C - at(x), 0.0)
    return ScoreStats(
      sum_exp=over(_sum(jnp.where(others_C, jnp.exp(z_C), 0.0))),
      sum_log=over(_sum(z_C)),
      at_x0=at(x0) - at(x),
    )

  rows = (hidden, x, x0, jnp.broadcast_to(as_float(total), shape))
  rows = tuple(jnp.reshape(z, (needed.size, *jnp.shape(z)[needed.ndim :])) for z in rows)
  stats = jax.lax.map(of_row, rows, batch_size=whole_tile_height(needed.size))
  return jax.tree.map(lambda z: jnp.where(needed, z.reshape(shape), 0.0), stats)


def _shift(
  total: jax.Array, log_norm: jax.Array, vocab_size: int, parameterization: Parameterization
) -> jax.Array:
  """Raw outputs minus log scores, given the logsumexp of the raw outputs over real tokens."""
  match parameterization:
    case "score":
      return jnp.zeros_like(total)
    case "scaled":
      return log_expm1(total) + jnp.log(jnp.asarray(vocab_size, total.dtype))
    case "conditional":
      return log_expm1(total) + log_norm
  raise ValueError(
    f"parameterization={parameterization!r} must be one of 'score', 'scaled', 'conditional'"
  )


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
