"""Bounds on -log p(x0) of masked models as any-order models, without an integral over time.

A network of the `conditional` parameterization returns p(x_i | tokens that are not masked). If it
does not see the noise, its strict bound (`bounds.py`) equals two other expectations
(arXiv:2406.03736, section 3.3, which writes lambda for the masking probability):

  shares   lambda uniform in (0, 1); every token is masked with probability lambda;
           1 / lambda times the cross entropy, summed over masked tokens
  orders   k uniform in 1 ... n; k of the n tokens are masked, every such set equally likely;
           n / k times the cross entropy, summed over masked tokens: the mean over all n! orders in
           which the tokens can be written one by one

`orders` has the lowest variance: the number of masked tokens is fixed, not drawn. `steps` is
`shares` restricted to probabilities i / T, the bound of a sampler of T steps.

A network that sees the noise gets the total noise at which this share of tokens, lambda or k / n,
is masked on average. Both are true bounds for it too. `shares` is its strict bound in another
variable. `orders` bounds a different model of the same network: the any-order model, which writes
tokens one by one and calls the network at the share that is still masked.

A token that does not count (`Batch.loss_mask`) stays clean; n is the number of tokens that count.

B: sequences, L: positions, G: independent groups of draws.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sedd_jax.batch import Batch
from sedd_jax.diffusion.bounds import Estimator, Terms
from sedd_jax.diffusion.losses import MIN_TIME, StatsFn
from sedd_jax.diffusion.numerics import bernoulli, log_expm1
from sedd_jax.diffusion.parameterizations import Conditional
from sedd_jax.diffusion.process import Process, mask_of

# Maps numbers u[B] in [0, 1), the loss mask bool[B, L] and keys [B] to masked tokens bool[B, L],
# their expected share float[B] and the weight of their cross entropy float[B].
Masking = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def supports_orders(process: Process, parameterization: str) -> bool:
  """Whether a network returns p(x_i | tokens that are not masked), as all estimators here need."""
  return process.parameterizations.get(parameterization) is Conditional


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Masked(Estimator):
  """Estimates from cross entropies of masked tokens.

  The network is of the `conditional` parameterization. Its total noise is clipped to that of t = 1.
  """

  @abc.abstractmethod
  def _pieces(self) -> list[tuple[Masking, int]]:
    """Each piece of the bound: its masking and its draws per group."""

  def terms(self, params: Any, batch: Batch, keys: jax.Array) -> Terms:
    stats_fn = self.network.stats_fn(params, batch)
    maskings, draws = zip(*self._pieces(), strict=True)

    def one_draw(piece, u_B, mask_keys):
      masked, share_B, weight_B = jax.lax.switch(piece, maskings, u_B, batch.loss_mask, mask_keys)
      return weight_B * self._cross_entropy(stats_fn, batch.tokens, masked, share_B)

    *low, main = self._group_means(one_draw, draws, keys)
    zero = jnp.zeros_like(main)
    return Terms(low[0] if low else zero, main, zero)

  def _cross_entropy(
    self, stats_fn: StatsFn, x0: jax.Array, masked: jax.Array, share: jax.Array
  ) -> jax.Array:
    """float[B], nats, summed over the masked tokens; share is their expected share, float[B]."""
    total = jnp.minimum(-jnp.log1p(-share), self.noise.total(1.0))
    stats = stats_fn(jnp.where(masked, mask_of(self.network.process), x0), x0, total)
    # The log score is the log probability minus log expm1(total).
    log_p = stats.at_x0 + log_expm1(total)[:, None]
    return -jnp.sum(jnp.where(masked, log_p, 0.0), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares(_Masked):
  """Estimates from masking probabilities uniform in (0, 1): lambda-DCE.

  Near 0 the weight 1 / lambda makes the variance infinite, so probabilities below MIN_TIME are
  drawn separately, with a density that keeps it finite: they give `low`. Probabilities above give
  `main`; `high` is 0.
  """

  def _pieces(self) -> list[tuple[Masking, int]]:
    return [(_low_share, self._end_draws), (_main_share, self._draws)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orders(_Masked):
  """Estimates from numbers of masked tokens uniform in 1 ... n: the any-order bound (`main`)."""

  def _pieces(self) -> list[tuple[Masking, int]]:
    return [(_subset, self._draws)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(_Masked):
  """Estimates of the bound in discrete time, for an ancestral sampler of num_steps steps.

  After step i of T a token is masked with probability i / T (D3PM, arXiv:2107.03006: absorbing
  state, with the posterior that keeps unmasked tokens). The bound has no end terms: at step T all
  tokens are masked, and step 1 leaves no mask. It decreases to the bound of `Shares` as T grows.
  It is all in `main`.

  Attributes, beside those of `Estimator`:
    num_steps: T.
  """

  num_steps: int

  def _pieces(self) -> list[tuple[Masking, int]]:
    return [(self._masking, self._draws)]

  def one_draw(self, stats_fn: StatsFn, batch: Batch, u: jax.Array, keys: jax.Array) -> jax.Array:
    """One draw of the bound: the training loss in discrete time.

    Args:
      stats_fn: the network, as in `losses`.
      batch: clean tokens.
      u: float[B] in [0, 1), which selects the step: 1 + floor(u T).
      keys: PRNG keys [B].

    Returns:
      float[B], nats per sequence, summed over the tokens that count.
    """
    masked, share, weight = self._masking(u, batch.loss_mask, keys)
    return weight * self._cross_entropy(stats_fn, batch.tokens, masked, share)

  @property
  def _masking(self) -> Masking:
    return functools.partial(_with_probability, functools.partial(_at_step, self.num_steps))


def _with_probability(substitution, u_B, counts, keys):
  """Masks every token with the same probability, whose density the substitution sets."""
  share_B, slope_B = substitution(u_B)
  masked = jax.vmap(bernoulli)(keys, jnp.broadcast_to(share_B[:, None], counts.shape))
  return counts & masked, share_B, slope_B / share_B


def _below(u: jax.Array) -> tuple[jax.Array, jax.Array]:
  # Density u, as in `bounds._low`. u > 0: at 0 no token is masked and the weight is infinite.
  u = jnp.maximum(u, 2.0**-24)
  return MIN_TIME * u**2, 2.0 * MIN_TIME * u


def _above(u: jax.Array) -> tuple[jax.Array, jax.Array]:
  return MIN_TIME + (1.0 - MIN_TIME) * u, jnp.full_like(u, 1.0 - MIN_TIME)


def _at_step(num_steps: int, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  step = jnp.minimum(1.0 + jnp.floor(num_steps * u), num_steps)
  return step / num_steps, jnp.ones_like(u)


_low_share = functools.partial(_with_probability, _below)
_main_share = functools.partial(_with_probability, _above)


def _subset(u_B, counts, keys):
  """Masks a random set of k tokens, k = 1 + floor(n u)."""
  n_B = jnp.maximum(jnp.sum(counts, axis=-1), 1)
  k_B = jnp.minimum(1 + jnp.floor(n_B * u_B).astype(n_B.dtype), n_B)
  draw = jax.vmap(lambda key: jax.random.uniform(key, counts.shape[1:]))(keys)
  rank = jnp.argsort(jnp.argsort(jnp.where(counts, draw, 2.0), axis=-1), axis=-1)
  masked = counts & (rank < k_B[:, None])
  n_B, k_B = n_B.astype(u_B.dtype), k_B.astype(u_B.dtype)
  return masked, k_B / n_B, n_B / k_B
