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

B: sequences, G: independent groups of draws, K: draws in a group.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.losses import MIN_TIME, StatsFn, sample_times, score_entropy_at
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import log_expm1
from sedd_jax.diffusion.process import Process, Uniform
from sedd_jax.diffusion.score import ScoreStats

# Draws in `low` and `high` for each one in `main`: they carry about a thousandth of the integral.
_END_SHARE = 8


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
) -> Terms:
  """Estimates the pieces of the bound for each sequence.

  Every sequence draws its own times: num_groups independent groups of num_times // num_groups
  low-discrepancy times. The spread between groups gives the standard error (`mean_and_stderr`).

  Args:
    stats_fn: the network, as in `losses`.
    x0: int[B, L], clean tokens.
    keys: PRNG keys [B]; the estimate of a sequence depends on its key alone.
    num_times: draws in the main piece; a multiple of num_groups.
    num_groups: at least 2 where a standard error is wanted.

  Raises:
    ValueError: num_times is not a positive multiple of num_groups.
  """
  if num_groups < 1 or num_times < 1 or num_times % num_groups:
    raise ValueError(
      f"num_times={num_times} must be a positive multiple of num_groups={num_groups}"
    )
  first, last = noise.total(MIN_TIME), noise.total(1.0)
  draws = num_times // num_groups
  end_draws = -(-draws // _END_SHARE)

  def low(u):
    # Density u makes the variance finite: a jump of probability `total` costs 1 / total.
    return first * u**2, 2.0 * first * u

  def main(u):
    t = MIN_TIME + (1.0 - MIN_TIME) * u
    return noise.total(t), (1.0 - MIN_TIME) * noise.rate(t)

  def high(u):
    # u is the chance to survive from t = 1 on: total = last - log u.
    u = jnp.maximum(u, jnp.finfo(u.dtype).tiny)
    return last - jnp.log(u), 1.0 / u

  estimate = functools.partial(_integrate, x0=x0, keys=keys, process=process, num_groups=num_groups)
  if isinstance(process, Uniform):
    prior = jnp.sum(_prior_divergence(process, last) * jnp.ones_like(x0, last.dtype), axis=-1)
    high_GB = jnp.broadcast_to(prior, (num_groups, x0.shape[0]))
  else:
    high_GB = estimate(_carried_on(stats_fn, last), high, draws=end_draws, stream=2)
  return Terms(
    low=estimate(stats_fn, low, draws=end_draws, stream=0),
    main=estimate(stats_fn, main, draws=draws, stream=1),
    high=high_GB,
  )


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


def _integrate(
  stats_fn: StatsFn,
  substitution: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
  *,
  x0: jax.Array,
  keys: jax.Array,
  process: Process,
  num_groups: int,
  draws: int,
  stream: int,
) -> jax.Array:
  """float[G, B]: mean over draws of weight * score entropy, with (total, weight) of u in (0, 1)."""
  order = jnp.arange(draws)

  def one_draw(carry, draw):
    group, i = draw

    def of_example(key):
      key = jax.random.fold_in(jax.random.fold_in(key, stream), group)
      key_time, key_corrupt = jax.random.split(key)
      u = sample_times(key_time, order[i], draws, min_time=0.0)
      return u, jax.random.fold_in(key_corrupt, i)

    u_B, corrupt_keys = jax.vmap(of_example)(keys)
    total_B, weight_B = substitution(u_B)
    entropy_B = score_entropy_at(stats_fn, x0, total_B, corrupt_keys, process=process)
    return carry, weight_B * entropy_B

  groups, indices = jnp.meshgrid(jnp.arange(num_groups), order, indexing="ij")
  _, values = jax.lax.scan(one_draw, None, (groups.reshape(-1), indices.reshape(-1)))
  return jnp.mean(values.reshape(num_groups, draws, -1), axis=1)


def _carried_on(stats_fn: StatsFn, last: jax.Array) -> StatsFn:
  """The absorbing model beyond t = 1: log scores at `last`, moved by
  log(expm1(last) / expm1(total))."""

  def stats_beyond(x, x0, total):
    stats = stats_fn(x, x0, jnp.broadcast_to(last, total.shape))
    shift = (log_expm1(last) - log_expm1(total))[:, None]
    # sum_log is not moved: the absorbing score entropy does not use it.
    return ScoreStats(stats.sum_exp * jnp.exp(shift), stats.sum_log, stats.at_x0 + shift)

  return stats_beyond


def _prior_divergence(process: Uniform, total: jax.Array) -> jax.Array:
  """KL(P(x_t given x_0) || uniform) for one token, nats; the same for every x_0."""
  survival = jnp.exp(-total)
  others = process.vocab_size - 1
  # V p is 1 + (V - 1) survival at x_0 and 1 - survival elsewhere.
  own = (1.0 + others * survival) * jnp.log1p(others * survival)
  rest = others * (1.0 - survival) * jnp.log1p(-survival)
  return jnp.maximum((own + rest) / process.vocab_size, 0.0)
