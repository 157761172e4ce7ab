"""Bounds on -log p(x0) of masked models as any-order models, without an integral over time.

A network of the `conditional` parameterization says p(x_i | tokens that are not masked). For a
network that does not see the noise its strict bound (`bounds.py`) equals two other expectations
(arXiv:2406.03736, section 3.3, which writes lambda for the masking probability):

  shares   lambda uniform in (0, 1); every token is masked with probability lambda;
           1 / lambda times the cross entropy, summed over masked tokens
  orders   k uniform in 1 ... n; k of the n tokens are masked, every such set alike;
           n / k times the cross entropy, summed over masked tokens: the mean over all n! orders in
           which the tokens can be written one by one

The estimates of `orders` scatter least: the number of masked tokens is set, not drawn. `steps` is
`shares` with probabilities i / T alone, the bound of a sampler of T steps. A network
that does see the noise is told the one at which this share of tokens, lambda or k / n, is masked on
average. Both are true bounds for it too. `shares` is its strict bound once more, in another
variable. `orders` bounds another model of the same network: the any-order one, which writes tokens
one by one and asks for each at the share that is still masked.

A given token (~token) stays clean and does not count, as in `losses.score_entropy_at`; n is the
number of the others.

B: sequences, L: positions, G: independent groups of draws, D: all draws.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.bounds import END_SHARE, Terms, check_draws, group_means
from sedd_jax.diffusion.losses import MIN_TIME, StatsFn, TimeSampling
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import bernoulli, log_expm1
from sedd_jax.diffusion.parameterizations import Conditional
from sedd_jax.diffusion.process import Process, mask_of

# A masking, given a number u[B] in [0, 1), what counts bool[B, L] and keys [B]: which tokens are
# masked bool[B, L], their expected share float[B] and the weight of their cross entropy float[B].
Masking = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def supports_orders(process: Process, parameterization: str) -> bool:
  """Whether a network says p(x_i | tokens that are not masked), which all estimators here need."""
  return process.parameterizations.get(parameterization) is Conditional


def share_terms(
  stats_fn: StatsFn,
  x0: jax.Array,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
  num_draws: int,
  num_groups: int = 2,
  sampling: TimeSampling = "low_discrepancy",
) -> Terms:
  """Estimates from masking probabilities uniform in (0, 1): lambda-DCE.

  Near 0 the weight 1 / lambda makes the variance infinite, so those below MIN_TIME are drawn by
  themselves, more of them where it matters: they are `low`. `main` holds those above, `high` is 0.

  Args:
    stats_fn: a network of the `conditional` parameterization.
    x0: int[B, L], clean tokens; one that is given is its complement ~token.
    keys: PRNG keys [B]; the estimate of a sequence depends on its tokens and its key alone.
    process: the network's.
    noise: its schedule: it is asked for no more noise than that of t = 1.
    num_draws: in `main`, a multiple of num_groups.
    num_groups: at least 2 where a standard error is wanted.
    sampling: `low_discrepancy` spaces the probabilities of a group evenly from a random shift on;
      `iid` draws each by itself.

  Raises:
    ValueError: num_draws or sampling cannot be used.
  """
  check_draws("num_draws", num_draws, num_groups, sampling)
  draws = num_draws // num_groups
  pieces = [(_low_share, -(-draws // END_SHARE)), (_main_share, draws)]
  low, main = _estimates(stats_fn, x0, keys, pieces, process, noise, num_groups, sampling)
  return Terms(low, main, jnp.zeros_like(main))


def order_terms(
  stats_fn: StatsFn,
  x0: jax.Array,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
  num_draws: int,
  num_groups: int = 2,
  sampling: TimeSampling = "low_discrepancy",
) -> Terms:
  """Estimates from numbers of masked tokens uniform in 1 ... n: the any-order bound.

  Arguments and errors as in `share_terms`, with numbers for probabilities. All is in `main`.
  """
  check_draws("num_draws", num_draws, num_groups, sampling)
  pieces = [(_subset, num_draws // num_groups)]
  (main,) = _estimates(stats_fn, x0, keys, pieces, process, noise, num_groups, sampling)
  return Terms(jnp.zeros_like(main), main, jnp.zeros_like(main))


def step_terms(
  stats_fn: StatsFn,
  x0: jax.Array,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
  num_steps: int,
  num_draws: int,
  num_groups: int = 2,
  sampling: TimeSampling = "low_discrepancy",
) -> Terms:
  """Estimates of the bound in discrete time, for an ancestral sampler of num_steps steps.

  After step i of T a token is masked with probability i / T (D3PM, arXiv:2107.03006: absorbing
  state, with the posterior that keeps unmasked tokens). The bound has no end terms: at T all is
  masked, and step 1 leaves no mask. It falls towards that of `share_terms` as T grows. All is in
  `main`; arguments and errors otherwise as there.

  Args:
    num_steps: T.
  """
  check_draws("num_draws", num_draws, num_groups, sampling)
  masking = functools.partial(_with_probability, functools.partial(_at_step, num_steps))
  pieces: list[tuple[Masking, int]] = [(masking, num_draws // num_groups)]
  (main,) = _estimates(stats_fn, x0, keys, pieces, process, noise, num_groups, sampling)
  return Terms(jnp.zeros_like(main), main, jnp.zeros_like(main))


def step_cross_entropy(
  stats_fn: StatsFn,
  x0: jax.Array,
  u: jax.Array,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
  num_steps: int,
) -> jax.Array:
  """One draw of `step_terms`: what training in discrete time minimises.

  Args:
    u: float[B] in [0, 1), which says the step: 1 + floor(u T).
    keys: PRNG keys [B].

  Returns:
    float[B], nats per sequence, of the tokens that count.
  """
  counts, x0 = x0 >= 0, jnp.where(x0 >= 0, x0, ~x0)
  masked, share, weight = _with_probability(functools.partial(_at_step, num_steps), u, counts, keys)
  return weight * _cross_entropy(stats_fn, x0, masked, share, process, noise)


def _estimates(
  stats_fn: StatsFn,
  x0: jax.Array,
  keys: jax.Array,
  pieces: list[tuple[Masking, int]],
  process: Process,
  noise: Noise,
  num_groups: int,
  sampling: TimeSampling,
) -> list[jax.Array]:
  """float[G, B] for each piece, a masking and its draws in a group."""
  counts, x0 = x0 >= 0, jnp.where(x0 >= 0, x0, ~x0)
  maskings = [masking for masking, _ in pieces]

  def one_draw(piece, u_B, mask_keys):
    masked, share_B, weight_B = jax.lax.switch(piece, maskings, u_B, counts, mask_keys)
    return weight_B * _cross_entropy(stats_fn, x0, masked, share_B, process, noise)

  draws = [count for _, count in pieces]
  return group_means(one_draw, draws, keys, num_groups=num_groups, sampling=sampling)


def _cross_entropy(
  stats_fn: StatsFn,
  x0: jax.Array,
  masked: jax.Array,
  share: jax.Array,
  process: Process,
  noise: Noise,
) -> jax.Array:
  """float[B], nats: of the masked tokens, where this share of them is on average."""
  total = jnp.minimum(-jnp.log1p(-share), noise.total(1.0))
  stats = stats_fn(jnp.where(masked, mask_of(process), x0), x0, total)
  # The log score is the log probability minus log expm1(total).
  log_p = stats.at_x0 + log_expm1(total)[:, None]
  return -jnp.sum(jnp.where(masked, log_p, 0.0), axis=-1)


def _with_probability(substitution, u_B, counts, keys):
  """Every token masked with one probability, of the density that the substitution gives it."""
  share_B, slope_B = substitution(u_B)
  masked = jax.vmap(bernoulli)(keys, jnp.broadcast_to(share_B[:, None], counts.shape))
  return counts & masked, share_B, slope_B / share_B


def _below(u: jax.Array) -> tuple[jax.Array, jax.Array]:
  # Density u, as in `bounds._low`. Not 0, where no token is masked and the weight is infinite.
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
  """A random set of k tokens, k = 1 + floor(n u)."""
  n_B = jnp.maximum(jnp.sum(counts, axis=-1), 1)
  k_B = jnp.minimum(1 + jnp.floor(n_B * u_B).astype(n_B.dtype), n_B)
  draw = jax.vmap(lambda key: jax.random.uniform(key, counts.shape[1:]))(keys)
  rank = jnp.argsort(jnp.argsort(jnp.where(counts, draw, 2.0), axis=-1), axis=-1)
  masked = counts & (rank < k_B[:, None])
  n_B, k_B = n_B.astype(u_B.dtype), k_B.astype(u_B.dtype)
  return masked, k_B / n_B, n_B / k_B
