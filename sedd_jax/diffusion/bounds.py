"""Upper bounds on -log p(x0), in nats per sequence (docs/math.md, section 6).

The diffusion integral over total noise is cut in three pieces, each estimated in a variable in
which its integrand is tame:

  low    total noise from 0 to that of MIN_TIME,   total = total_0 u^2
  main   times from MIN_TIME to 1,                 total = noise.total(t)
  high   total noise from that of t = 1 to infinity

`paper` is the main piece alone; the original and its peers report the mean over those times, which
is 1 / (1 - MIN_TIME) times as much. `strict` is the sum of all
three: a true bound for the reverse process run in continuous time. Beyond t = 1 the absorbing
model is taken to be its network at t = 1 with the one factor that depends on the noise,
1 / expm1(total), carried on; the uniform process stops at t = 1, where the samplers start, and
`high` is the divergence of x_1 from the uniform prior.

B: sequences, G: independent groups of draws, D: all draws.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.losses import (
  MIN_TIME,
  TIME_SAMPLINGS,
  StatsFn,
  TimeSampling,
  score_entropy_at,
)
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import log_expm1
from sedd_jax.diffusion.process import Process
from sedd_jax.diffusion.score import ScoreStats

# Draws in `low` and `high` for each one in `main`: they carry about a thousandth of the integral.
END_SHARE = 8


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


def bound_terms(
  stats_fn: StatsFn,
  x0: jax.Array,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
  num_times: int,
  num_groups: int = 2,
  time_sampling: TimeSampling = "low_discrepancy",
) -> Terms:
  """Estimates the pieces of the bound for each sequence.

  Every sequence draws its own times: num_groups independent groups of num_times // num_groups
  times. The spread between groups gives the standard error (`mean_and_stderr`).

  Args:
    stats_fn: the network, as in `losses`.
    x0: int[B, L], clean tokens; one that is given is its complement ~token.
    keys: PRNG keys [B]; the estimate of a sequence depends on its key alone.
    num_times: draws in the main piece; a multiple of num_groups.
    num_groups: at least 2 where a standard error is wanted.
    time_sampling: `low_discrepancy`, the times of a group evenly spaced from a random shift on, or
      `iid`, each uniform by itself. The mean is the same.

  Raises:
    ValueError: num_times is not a positive multiple of num_groups, or time_sampling is unknown.
  """
  check_draws("num_times", num_times, num_groups, time_sampling)
  draws = num_times // num_groups
  end_draws = -(-draws // END_SHARE)
  last = noise.total(1.0)
  pieces = [(_low, end_draws), (_main, draws)]
  prior_kl = process.prior_kl(last)
  if prior_kl is None:
    pieces.append((_high, end_draws))

  branches = [functools.partial(substitution, noise) for substitution, _ in pieces]
  stats_beyond = _carried_on(stats_fn, last)

  def one_draw(piece, u_B, corrupt_keys):
    total_B, weight_B = jax.lax.switch(piece, branches, u_B)
    entropy_B = score_entropy_at(stats_beyond, x0, total_B, corrupt_keys, process=process)
    return weight_B * entropy_B

  estimates = group_means(
    one_draw, [count for _, count in pieces], keys, num_groups=num_groups, sampling=time_sampling
  )
  if prior_kl is not None:
    prior_B = jnp.sum(x0 >= 0, axis=1) * prior_kl
    estimates.append(jnp.broadcast_to(prior_B, estimates[0].shape).astype(estimates[0].dtype))
  return Terms(*estimates)


def check_draws(name: str, draws: int, num_groups: int, sampling: TimeSampling) -> None:
  """Refuses draws that make no groups.

  Raises:
    ValueError: draws is not a positive multiple of num_groups, or sampling is unknown.
  """
  if sampling not in TIME_SAMPLINGS:
    raise ValueError(f"time_sampling={sampling!r} must be one of {', '.join(TIME_SAMPLINGS)}")
  if num_groups < 1 or draws < 1 or draws % num_groups:
    raise ValueError(f"{name}={draws} must be a positive multiple of num_groups={num_groups}")


def group_means(
  one_draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
  draws: Sequence[int],
  keys: jax.Array,
  *,
  num_groups: int,
  sampling: TimeSampling,
) -> list[jax.Array]:
  """Means over the draws of each group of each piece of a bound, float[G, B] for each piece.

  Args:
    one_draw: of a piece int32[], a number u[B] in [0, 1) and keys [B] to float[B].
    draws: of a group, for each piece.
    keys: PRNG keys [B]; what a sequence draws depends on its key alone.
    num_groups: G.
    sampling: `low_discrepancy` spaces the numbers of a group evenly from a random shift on; `iid`
      draws each by itself. The other random words are independent either way.
  """
  # One row per draw: its piece, its group, its place in the group, and the shift of its number.
  schedule = [
    (piece, group, i, i / count)
    for piece, count in enumerate(draws)
    for group in range(num_groups)
    for i in range(count)
  ]

  def body(_, draw):
    piece, group, i, shift = draw

    def of_example(key):
      key = jax.random.fold_in(jax.random.fold_in(key, piece), group)
      key_number, key_rest = jax.random.split(key)
      if sampling == "low_discrepancy":
        u = (jax.random.uniform(key_number) + shift) % 1.0
      else:
        u = jax.random.uniform(jax.random.fold_in(key_number, i))
      return u, jax.random.fold_in(key_rest, i)

    return None, one_draw(piece, *jax.vmap(of_example)(keys))

  schedule_D = tuple(map(jnp.asarray, zip(*schedule, strict=True)))
  _, values_DB = jax.lax.scan(body, None, schedule_D)
  means, start = [], 0
  for count in draws:
    stop = start + num_groups * count
    means.append(jnp.mean(values_DB[start:stop].reshape(num_groups, count, -1), axis=1))
    start = stop
  return means


def mean_and_stderr(estimates_GB: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean over sequences and its Monte Carlo standard error, the sequences held fixed.

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
  # u is the chance to survive from t = 1 on: total = total(1) - log u.
  u = jnp.maximum(u, 2.0**-24)
  return noise.total(1.0) - jnp.log(u), 1.0 / u


def _carried_on(stats_fn: StatsFn, last: jax.Array) -> StatsFn:
  """The model beyond t = 1: its scores at `last` times expm1(last) / expm1(total)."""

  def stats_beyond(x, x0, total):
    known = jnp.minimum(total, last)
    stats = stats_fn(x, x0, known)
    shift = jnp.where(total > last, log_expm1(known) - log_expm1(total), 0.0)[:, None]
    # sum_log is not moved: the absorbing score entropy does not use it.
    return ScoreStats(stats.sum_exp * jnp.exp(shift), stats.sum_log, stats.at_x0 + shift)

  return stats_beyond
