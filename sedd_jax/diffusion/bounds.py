"""Upper bounds on -log p(x0), in nats per sequence (docs/math.md, section 6).

The diffusion integral over total noise is split into three pieces, each estimated in a variable
in which its integrand is well behaved:

  low    total noise from 0 to that of MIN_TIME,   total = total_0 u^2
  main   times from MIN_TIME to 1,                 total = noise.total(t)
  high   total noise from that of t = 1 to infinity

`paper` is the main piece alone. The original and its peers report the mean over these times, which
is larger by the factor 1 / (1 - MIN_TIME). `strict` is the sum of all three: a true bound for the
reverse process in continuous time. Beyond t = 1 the absorbing model uses its network at t = 1 and
updates only the factor that depends on the noise, 1 / expm1(total). The uniform process stops at
t = 1, where the samplers start; there `high` is the divergence of x_1 from the uniform prior.

B: sequences, G: independent groups of draws, D: all draws.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sedd_jax.batch import Batch
from sedd_jax.diffusion.levels import weighted_sum
from sedd_jax.diffusion.losses import (
  MIN_TIME,
  TIME_SAMPLINGS,
  ScoreNetwork,
  StatsFn,
  TimeSampling,
  score_entropy_at,
)
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import log_expm1
from sedd_jax.diffusion.score import ScoreStats
from sedd_jax.ranges import check

# `low` and `high` get one draw for this many in `main`: they hold about 0.1 % of the integral.
END_SHARE = 8
MOST_DRAWS = 2**20


@dataclasses.dataclass(frozen=True)
class Terms:
  """The three pieces, each float[G, B]: G independent, unbiased estimates for each sequence."""

  low: jax.Array
  main: jax.Array
  high: jax.Array

  @property
  def paper(self) -> jax.Array:
    """float[G, B], nats per sequence."""
    return self.main

  @property
  def strict(self) -> jax.Array:
    """float[G, B], nats per sequence."""
    return self.low + self.main + self.high


jax.tree_util.register_dataclass(Terms, ["low", "main", "high"], [])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator(abc.ABC):
  """Estimates of the pieces of a bound for each sequence.

  Every sequence makes its own draws, in num_groups independent groups; the spread between groups
  gives the standard error (`mean_and_stderr`).

  Attributes:
    network: the score network.
    noise: its schedule.
    num_draws: draws in the main piece; a multiple of num_groups, at most `MOST_DRAWS`.
    num_groups: G; a standard error needs at least 2.
    sampling: `low_discrepancy` (evenly spaced numbers with a random shift in each group) or `iid`
      (independent numbers). The mean is the same.

  Raises:
    ValueError: num_draws is no positive multiple of num_groups or too large, or sampling is
      unknown.
  """

  network: ScoreNetwork
  noise: Noise
  num_draws: int
  num_groups: int = 2
  sampling: TimeSampling = "low_discrepancy"

  def __post_init__(self):
    if self.sampling not in TIME_SAMPLINGS:
      known = ", ".join(TIME_SAMPLINGS)
      raise ValueError(f"time_sampling={self.sampling!r} must be one of {known}")
    groups, draws = self.num_groups, self.num_draws
    if groups < 1 or draws < 1 or draws % groups:
      raise ValueError(f"num_draws={draws} must be a positive multiple of num_groups={groups}")
    check("num_draws", draws, 1, MOST_DRAWS)

  @abc.abstractmethod
  def terms(self, params: Any, batch: Batch, keys: jax.Array) -> Terms:
    """The pieces of the bound. A pure function, to be compiled.

    Args:
      params: the network's parameters.
      batch: clean tokens; the bound is on the law of the tokens that count, given the others.
      keys: PRNG keys [B]; the estimate of a sequence depends only on its tokens and its key.
    """

  @property
  def _draws(self) -> int:
    """Draws per group in the main piece."""
    return self.num_draws // self.num_groups

  @property
  def _end_draws(self) -> int:
    """Draws per group in `low` and `high`."""
    return -(-self._draws // END_SHARE)

  def _group_means(
    self,
    one_draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    draws: Sequence[int],
    keys: jax.Array,
  ) -> list[jax.Array]:
    """Means over the draws of each group, float[G, B] for each piece of a bound.

    Args:
      one_draw: maps a piece int32[], numbers u[B] in [0, 1) and keys [B] to float[B].
      draws: draws per group, for each piece.
      keys: PRNG keys [B].
    """
    # One row per draw: piece, group, index in the group, and the shift of its number.
    schedule = [
      (piece, group, i, i / count)
      for piece, count in enumerate(draws)
      for group in range(self.num_groups)
      for i in range(count)
    ]

    def body(_, draw):
      piece, group, i, shift = draw

      def example_draw(key):
        key = jax.random.fold_in(jax.random.fold_in(key, piece), group)
        key_number, key_rest = jax.random.split(key)
        if self.sampling == "low_discrepancy":
          u = (jax.random.uniform(key_number) + shift) % 1.0
        else:
          u = jax.random.uniform(jax.random.fold_in(key_number, i))
        return u, jax.random.fold_in(key_rest, i)

      return None, one_draw(piece, *jax.vmap(example_draw)(keys))

    schedule_D = tuple(map(jnp.asarray, zip(*schedule, strict=True)))
    _, values_DB = jax.lax.scan(body, None, schedule_D)
    means, start = [], 0
    for count in draws:
      stop = start + self.num_groups * count
      means.append(jnp.mean(values_DB[start:stop].reshape(self.num_groups, count, -1), axis=1))
      start = stop
    return means


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeIntegral(Estimator):
  """The bound as an integral over time, for any score network."""

  def terms(self, params: Any, batch: Batch, keys: jax.Array) -> Terms:
    process, last = self.network.process, self.noise.total(1.0)
    prior_kl = process.prior_kl(last)
    pieces = [(_low, self._end_draws), (_main, self._draws)]
    if prior_kl is None:
      pieces.append((_high, self._end_draws))
    branches = [functools.partial(substitution, self.noise) for substitution, _ in pieces]
    stats_fn = _carried_on(self.network.stats_fn(params, batch), last)

    def one_draw(piece, u_B, corrupt_keys):
      total_B, weight_B = jax.lax.switch(piece, branches, u_B)
      entropy_BL = score_entropy_at(stats_fn, batch, total_B, corrupt_keys, process=process)
      return weighted_sum(weight_B, entropy_BL)

    estimates = self._group_means(one_draw, [count for _, count in pieces], keys)
    if prior_kl is not None:
      prior_B = jnp.sum(batch.loss_mask, axis=1) * prior_kl
      estimates.append(jnp.broadcast_to(prior_B, estimates[0].shape).astype(estimates[0].dtype))
    return Terms(*estimates)


def mean_and_stderr(estimates_GB: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean over fixed sequences and its Monte Carlo standard error.

  Args:
    estimates_GB: float[G, B], G >= 2 independent estimates for each sequence.

  Returns:
    Two float[]: the mean, and its standard error from the spread between the groups.
  """
  groups, batch = estimates_GB.shape
  variance_B = jnp.var(estimates_GB, axis=0, ddof=1) / groups
  return jnp.mean(estimates_GB), jnp.sqrt(jnp.sum(variance_B)) / batch


# The three substitutions: u in [0, 1) to (total noise, d total / du), each float[B].


def _low(noise: Noise, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  # Density u makes the variance finite: a jump of probability `total` costs 1 / total.
  first = noise.total(MIN_TIME)
  return first * u**2, 2.0 * first * u


def _main(noise: Noise, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  t = MIN_TIME + (1.0 - MIN_TIME) * u
  return noise.total(t), (1.0 - MIN_TIME) * noise.rate(t)


def _high(noise: Noise, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  # u is the probability of no jump after t = 1: total = total(1) - log u.
  u = jnp.maximum(u, 2.0**-24)
  return noise.total(1.0) - jnp.log(u), 1.0 / u


def _carried_on(stats_fn: StatsFn, last: jax.Array) -> StatsFn:
  """The network beyond t = 1: its scores at `last` times expm1(last) / expm1(total)."""

  def stats_beyond(x, x0, total):
    clipped = jnp.minimum(total, last)
    stats = stats_fn(x, x0, clipped)
    shift = jnp.where(total > last, log_expm1(clipped) - log_expm1(total), 0.0)[:, None]
    # sum_log is not shifted: the absorbing score entropy does not use it.
    return ScoreStats(stats.sum_exp * jnp.exp(shift), stats.sum_log, stats.at_x0 + shift)

  return stats_beyond
