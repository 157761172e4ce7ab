"""Parameterizations: how a network's raw outputs become log scores.

A process lists the parameterizations it supports (`Process.parameterization`). Each maps dense raw
outputs to log scores, and hidden states with an output layer to `ScoreStats`, without [..., S].

V: real tokens, S: states, D: width, C: local columns (states) of the output layer.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float, is_state, log_expm1
from sedd_jax.diffusion.score import ScoreStats, column_sums, split_sum
from sedd_jax.diffusion.tiles import Columns, Rows, whole_tile_height


@dataclasses.dataclass(frozen=True)
class Parameterization(abc.ABC):
  """How raw outputs become log scores.

  Attributes:
    name: its name in configs.
    vocab_size: V, the number of real tokens.
    num_states: S.
  """

  name: ClassVar[str]

  vocab_size: int
  num_states: int

  @abc.abstractmethod
  def log_score(self, raw: jax.Array, x: jax.Array, total: jax.Array) -> jax.Array:
    """Log scores from raw outputs.

    Args:
      raw: float[..., S], outputs of the output layer.
      x: int[...], the network's input tokens.
      total: float, broadcasts to the shape of x; total noise.

    Returns:
      float[..., S] of at least float32; the own entry is 0.
    """

  def stats(
    self,
    hidden: jax.Array,
    columns: Columns,
    rows: Rows,
    total: jax.Array,
    axis: str | None = None,
  ) -> ScoreStats:
    """ScoreStats from hidden states and the output layer, without its outputs [..., S].

    Equal to `dense_stats` of `log_score` in needed rows, and 0 in the others.

    Args:
      hidden: float[..., D], in the dtype of the products.
      columns: the output layer, or this device's columns of it.
      rows: input tokens and clean tokens int[...], and which rows are needed bool[...]. With
        `conditional` and an absorbing process only masked tokens may be needed: the norm is over
        real tokens.
      total: float, broadcasts to the shape of rows.x; total noise.
      axis: mapped axis over which the columns are sharded, or None.
    """
    shape = rows.needed.shape
    if not rows.needed.size:
      return ScoreStats(*(jnp.zeros(shape, as_float(hidden).dtype) for _ in range(3)))
    return self._stats(hidden, columns, rows, jnp.broadcast_to(as_float(total), shape), axis)

  @abc.abstractmethod
  def _stats(
    self, hidden: jax.Array, columns: Columns, rows: Rows, total: jax.Array, axis: str | None
  ) -> ScoreStats:
    """`stats` for at least one row, with total of the rows' shape."""


class _Shifted(Parameterization):
  """Log scores are raw outputs minus one number per row, so sums over raw outputs are enough."""

  @abc.abstractmethod
  def _shift(self, total: jax.Array, log_norm: jax.Array) -> jax.Array:
    """Raw outputs minus log scores.

    Args:
      total: float[...], total noise.
      log_norm: float[...], the logsumexp of the raw outputs over real tokens.
    """

  def log_score(self, raw: jax.Array, x: jax.Array, total: jax.Array) -> jax.Array:
    z = as_float(raw)
    log_norm = jax.nn.logsumexp(z[..., : self.vocab_size], axis=-1, keepdims=True)
    shift = self._shift(as_float(total)[..., None], log_norm)
    return jnp.where(is_state(x, z.shape[-1]), 0.0, z - shift)

  def _stats(self, hidden, columns, rows, total, axis):
    sums = column_sums(hidden, columns, rows, self.num_states, axis)
    log_norm = jnp.log(jnp.where(rows.needed, sums.sum_exp, 1.0)) + sums.largest
    # In other rows the shift may be infinite, and 0 times infinity is NaN.
    shift = jnp.where(rows.needed, self._shift(total, log_norm), 0.0)
    return ScoreStats(
      sum_exp=sums.sum_exp * jnp.exp(sums.largest - shift),
      sum_log=sums.sum_raw - (self.num_states - 1) * shift,
      at_x0=jnp.where(rows.x == rows.x0, 0.0, sums.at_x0 - shift),
    )


class Score(_Shifted):
  """Raw outputs are log scores."""

  name = "score"

  def _shift(self, total, log_norm):
    return jnp.zeros_like(total)


class Scaled(_Shifted):
  """Raw outputs minus log expm1(total) minus log V, for the absorbing process.

  Source: `scale_by_sigma` of SEDD's code.
  """

  name = "scaled"

  def _shift(self, total, log_norm):
    return log_expm1(total) + jnp.log(jnp.asarray(self.vocab_size, total.dtype))


class Conditional(_Shifted):
  """The softmax over real tokens is a law of x0; the score is that law over expm1(total).

  For the absorbing process: MDLM (arXiv:2406.07524), RADD (2406.03736), MD4 (2406.04329).
  """

  name = "conditional"

  def _shift(self, total, log_norm):
    return log_expm1(total) + log_norm


class ConditionalUniform(Parameterization):
  """The softmax is a law of x0; the score is the ratio of its marginals under uniform noise.

  (law + c) / (law at x + c) with c = expm1(total) / V: UDLM (arXiv:2412.10193).
  """

  name = "conditional"

  def log_score(self, raw: jax.Array, x: jax.Array, total: jax.Array) -> jax.Array:
    z = as_float(raw)
    own = is_state(x, z.shape[-1])
    marginal = self._log_marginal(jax.nn.log_softmax(z, axis=-1), as_float(total)[..., None])
    at_x = jnp.sum(jnp.where(own, marginal, 0.0), axis=-1, keepdims=True)
    return jnp.where(own, 0.0, marginal - at_x)

  def _log_marginal(self, log_law: jax.Array, total: jax.Array) -> jax.Array:
    """Log marginal of a law of x0 under uniform noise, plus total; float[..., V]."""
    vocab_size = jnp.asarray(self.vocab_size, total.dtype)
    return jnp.logaddexp(log_law, log_expm1(total) - jnp.log(vocab_size))

  def _stats(self, hidden, columns, rows, total, axis):
    """The norm of a row is inside the logarithm of each entry, so sums of raw outputs are not
    enough: tiles of rows hold all local columns, and are recomputed for the gradient."""
    needed, dtype = rows.needed, jnp.promote_types(hidden.dtype, jnp.float32)
    state_C = columns.first + jnp.arange(columns.kernel.shape[1])
    real_C = state_C < self.vocab_size

    def over(z, reduce=jax.lax.psum):
      return z if axis is None else reduce(z, axis)

    @jax.checkpoint
    def row_stats(row):
      hidden_D, x, x0, total = row
      raw_C = jnp.matmul(hidden_D, columns.kernel, preferred_element_type=dtype)
      raw_C = jnp.where(real_C, raw_C + columns.bias.astype(dtype), -jnp.inf)
      raw_C -= over(jnp.max(jax.lax.stop_gradient(raw_C)), jax.lax.pmax)
      log_law_C = raw_C - jnp.log(over(split_sum(jnp.exp(raw_C))))
      marginal_C = self._log_marginal(log_law_C, total)

      def at(state):
        return over(split_sum(jnp.where(state_C == state, marginal_C, 0.0)))

      others_C = real_C & (state_C != x)
      z_C = jnp.where(others_C, marginal_C - at(x), 0.0)
      return ScoreStats(
        sum_exp=over(split_sum(jnp.where(others_C, jnp.exp(z_C), 0.0))),
        sum_log=over(split_sum(z_C)),
        at_x0=at(x0) - at(x),
      )

    inputs = (hidden, rows.x, rows.x0, total)
    inputs = tuple(jnp.reshape(z, (needed.size, *jnp.shape(z)[needed.ndim :])) for z in inputs)
    stats = jax.lax.map(row_stats, inputs, batch_size=whole_tile_height(needed.size))
    return jax.tree.map(lambda z: jnp.where(needed, z.reshape(needed.shape), 0.0), stats)
