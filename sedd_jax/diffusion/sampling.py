"""Reverse steps and the one loop that applies them.

The loop does not know the step, the step does not know the network: a `RowsFn` is all that connects
them. Whoever builds it decides whether [B, L, S] ever exists. Steps treat positions independently,
so with L > 1 no step of finite length is exact, even at the exact score (docs/math.md, section 7).

B: sequences, L: positions, T: some rows (positions of sequences), S: states, N: steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.categorical import sample_categorical
from sedd_jax.diffusion.losses import LogScoreFn
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.numerics import is_state, jump_or_stay
from sedd_jax.diffusion.process import Process

# From (rule, keys [B, L]) to int32[B, L]: what rule(log_score float[T, S], x int[T], keys [T]) says
# of each row that can change, and x elsewhere; x is what the network was given.
EachRow = Callable[[Callable[..., jax.Array], jax.Array], jax.Array]
RowsFn = Callable[[jax.Array, jax.Array], EachRow]  # x_BL, total_B -> EachRow

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
    """float[..., S], non-negative, sums to 1; x is int[...], t and t_next are float[]."""
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


def dense_rows(log_score_fn: LogScoreFn, process: Process) -> RowsFn:
  """The RowsFn of a function that returns dense log scores float[B, L, S]."""

  def rows_fn(x_BL, total_B):
    log_score_BLS = log_score_fn(x_BL, total_B)

    def each_row(rule, keys_BL):
      log_score_TS = log_score_BLS.reshape(-1, log_score_BLS.shape[-1])
      new_T = rule(log_score_TS, x_BL.reshape(-1), keys_BL.reshape(-1))
      return jnp.where(process.can_jump_back(x_BL), new_T.reshape(x_BL.shape), x_BL)

    return each_row

  return rows_fn


def sample(
  log_score_fn: LogScoreFn, keys: jax.Array, *, process: Process, **settings: Any
) -> jax.Array:
  """`sample_rows` with a function that returns dense log scores.

  Args:
    log_score_fn: tokens int[B, L] and total noise float[B] to log scores float[B, L, S].
    keys: PRNG keys [B].
    process: the noising process.
    **settings: the others of `sample_rows`.

  Returns:
    int32[B, L], without masks.
  """
  return sample_rows(dense_rows(log_score_fn, process), keys, process=process, **settings)


def sample_rows(
  rows_fn: RowsFn,
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

  The network is called num_steps + 1 times, and its output layer only where a token can change.
  Given tokens are put back before every call and at the end: for the absorbing process this is the
  same sampler run on the conditional law, exact at the exact score but for the error of its steps;
  for the uniform one it is the original's heuristic and not the posterior.

  Args:
    rows_fn: the network (see the top of this file).
    keys: PRNG keys [B]: the random words of a sample depend on its own key alone.
    length: L.
    num_steps: N >= 1.
    process: the noising process.
    noise: its schedule.
    step: Euler() or Tweedie().
    given: tokens to keep, for infilling.
    draw: (key, log weights float[S]) to a token int[].

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

  def change(x_BL, i, t, probs):
    x_BL = put_back(x_BL)
    each_row = rows_fn(x_BL, jnp.broadcast_to(noise.total(t), (batch,)))

    def rule(log_score_TS, x_T, keys_T):
      return jax.vmap(draw)(keys_T, jnp.log(probs(log_score_TS, x_T)))

    return each_row(rule, _per_position(fold(i), length))

  def advance(x_BL, i):
    def probs(log_score_TS, x_T):
      return step.probs(log_score_TS, x_T, times[i], times[i + 1], process=process, noise=noise)

    return change(x_BL, i, times[i], probs), None

  def denoise(log_score_TS, x_T):
    return process.denoise_probs(log_score_TS, x_T, noise.total(times[-1]))

  x_BL = jax.vmap(lambda key: process.prior(key, (length,)))(fold(num_steps + 1))
  x_BL, _ = jax.lax.scan(advance, x_BL, jnp.arange(num_steps))
  return put_back(change(x_BL, num_steps, times[-1], denoise))


def _per_position(keys: jax.Array, length: int) -> jax.Array:
  """PRNG keys [B, L] from keys [B]."""
  positions = jnp.arange(length)
  return jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(positions))(keys)
