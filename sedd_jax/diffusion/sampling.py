"""Reverse steps and the one loop that applies them.

The loop does not know the step, the step does not know the network: `log_score_fn` is all that
connects them. Steps treat positions independently, so with L > 1 no step of finite length is
exact, even at the exact score (docs/math.md, section 7).

B: sequences, L: positions, S: states, N: steps.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.categorical import sample_categorical
from sedd_jax.diffusion.losses import LogScoreFn
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import is_state, jump_or_stay
from sedd_jax.diffusion.process import Process

# Sampling ends here and the denoising step takes what noise is left; the original's choice.
END_TIME = 1e-5


class Step(Protocol):
  """Law of every token at an earlier time t_next, given log scores at t."""

  def probs(
    self,
    log_score: jax.Array,
    x: jax.Array,
    t: jax.Array,
    t_next: jax.Array,
    *,
    process: Process,
    noise: Noise,
  ) -> jax.Array:
    """float[B, L, S], non-negative, sums to 1; x is int[B, L], t and t_next are float[]."""
    ...


@dataclasses.dataclass(frozen=True)
class Euler:
  """First order in the rate: jump to y with probability (t - t_next) rate(t) reverse_rate_y.

  Source: equation 17 of arXiv:2310.16834 (tau-leaping); eq. 15 in docs/math.md.
  """

  def probs(self, log_score, x, t, t_next, *, process, noise):
    log_step = jnp.log((t - t_next) * noise.rate(t))
    log_jump = process.log_reverse_rates(log_score, x) + log_step
    return jump_or_stay(log_jump, is_state(x, process.num_states))


@dataclasses.dataclass(frozen=True)
class Tweedie:
  """Exact per position at the exact score ("analytic" in the original).

  Source: theorems 4.1 and 4.2 of arXiv:2310.16834; eq. 16 and 17 in docs/math.md.
  """

  def probs(self, log_score, x, t, t_next, *, process, noise):
    return process.tweedie_probs(log_score, x, noise.total(t) - noise.total(t_next))


STEPS: dict[str, Step] = {"euler": Euler(), "tweedie": Tweedie()}


class Given(NamedTuple):
  """Tokens that sampling must keep: int[B, L] tokens, and bool[B, L], true where they are given."""

  tokens: jax.Array
  where: jax.Array


def sample(
  log_score_fn: LogScoreFn,
  keys: jax.Array,
  *,
  length: int,
  num_steps: int,
  process: Process,
  noise: Noise,
  step: Step = Tweedie(),
  given: Given | None = None,
  draw: Callable[[jax.Array, jax.Array], jax.Array] = sample_categorical,
) -> jax.Array:
  """Samples sequences: num_steps steps from t = 1 to END_TIME, then a denoising step.

  The network is called num_steps + 1 times. Given tokens are put back before every call and at the
  end: for the absorbing process this is the same sampler run on the conditional law, exact at the
  exact score but for the error of its steps; for the uniform one it is the original's heuristic
  and not the posterior.

  Args:
    log_score_fn: tokens int[B, L] and total noise float[B] to log scores float[B, L, S].
    keys: PRNG keys [B]: the random words of a sample depend on its own key alone.
    length: L.
    num_steps: N >= 1.
    step: Euler() or Tweedie().
    given: tokens to keep, for infilling.
    draw: (key, log weights float[L, S]) to tokens int[L].

  Returns:
    int32[B, L], without masks.

  Raises:
    ValueError: num_steps < 1.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps} must be at least 1")
  batch = keys.shape[0]
  times = jnp.linspace(1.0, END_TIME, num_steps + 1)

  def put_back(x_BL):
    return x_BL if given is None else jnp.where(given.where, given.tokens.astype(jnp.int32), x_BL)

  def fold(i):
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)

  def call(x_BL, t):
    return log_score_fn(x_BL, jnp.broadcast_to(noise.total(t), (batch,)))

  def advance(x_BL, i):
    x_BL = put_back(x_BL)
    log_score_BLS = call(x_BL, times[i])
    p_BLS = step.probs(log_score_BLS, x_BL, times[i], times[i + 1], process=process, noise=noise)
    return jax.vmap(draw)(fold(i), jnp.log(p_BLS)), None

  x_BL = jax.vmap(lambda key: process.prior(key, (length,)))(fold(num_steps + 1))
  x_BL, _ = jax.lax.scan(advance, x_BL, jnp.arange(num_steps))
  x_BL = put_back(x_BL)
  p_BLS = process.denoise_probs(call(x_BL, times[-1]), x_BL, noise.total(times[-1]))
  return put_back(jax.vmap(draw)(fold(num_steps), jnp.log(p_BLS)))
