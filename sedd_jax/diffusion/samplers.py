"""Samplers: how tokens move from a time to an earlier one. docs/samplers.md compares them.

Euler, Tweedie, Ancestral and ReMDM move all positions independently given the current tokens. With
finite steps they are not exact even at the exact score, since positions depend on each other.
First-hitting is exact, because it draws one token at a time.

B: sequences, L: positions, T: rows (positions of sequences) of a tile, S: states.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.categorical import sample_categorical
from sedd_jax.diffusion.numerics import bernoulli, clock, is_state, jump_or_stay
from sedd_jax.diffusion.process import mask_of
from sedd_jax.diffusion.sampling import Denoiser, Move, Sampler, StepResult, draw_each
from sedd_jax.diffusion.schedules import END_TIME
from sedd_jax.ranges import check

# A sampler that sets its own times stays just above the last time while masks are left.
_NOT_YET = 1.01 * END_TIME
# Nats that no row of entropies reaches, and that float32 can hold.
_UNLIMITED = 1e30


@dataclasses.dataclass(frozen=True)
class Euler(Sampler):
  """First order in the rate: jump to y with probability (t - t_next) rate(t) reverse_rate_y.

  Source: equation 17 of arXiv:2310.16834 (tau-leaping); eq. 15 in docs/math.md.
  """

  def law(self, row, t, t_next, *, process, noise):
    log_step = jnp.log(jnp.broadcast_to((t - t_next) * noise.rate(t), row.x.shape))
    log_jump = process.log_reverse_rates(row.log_score, row.x) + log_step[..., None]
    return jump_or_stay(log_jump, is_state(row.x, process.num_states))


@dataclasses.dataclass(frozen=True)
class Tweedie(Sampler):
  """Tweedie steps, exact per position at the exact score ("analytic" in the original).

  Source: theorems 4.1 and 4.2 of arXiv:2310.16834; eq. 16 and 17 in docs/math.md.
  """

  def law(self, row, t, t_next, *, process, noise):
    return process.tweedie_probs(row.log_score, row.x, noise.total(t) - noise.total(t_next))


@dataclasses.dataclass(frozen=True)
class Ancestral(Sampler):
  """Tweedie with a share of lifted masks that depends on the noise alone. Absorbing only.

  The positions to lift are drawn first. Only they need the network, and a step that lifts none
  makes no call. Tokens follow the normalised scores, so under `conditional` the law is Tweedie's.

  Source: equation 7 of MDLM, arXiv:2406.07524, and its caching sampler.
  """

  needs_masks = True

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    lifted = _lifted(denoiser.noise.total(move.t), denoiser.noise.total(move.t_next))
    jump = bernoulli_each(move.keys_of_tokens(1), lifted[:, None])
    return StepResult(reveal(denoiser, x, move, jump), move.t_next)


@dataclasses.dataclass(frozen=True)
class ReMDM(Sampler):
  """Ancestral steps that mask some tokens again, to correct early ones. Absorbing only.

  Each step masks a share sigma of the tokens again, and lifts masks faster so that their expected
  number still follows the schedule. That allows sigma up to (1 - kept_next) / kept, with
  kept = exp(-total); sigma is the smaller of `cap` and `rescale` times this maximum.

  Source: ReMDM-cap and ReMDM-rescale of arXiv:2503.00307.

  Attributes:
    cap: upper limit of sigma, in [0, 1].
    rescale: share of the largest possible sigma, in [0, 1].

  Raises:
    ValueError: a field is out of range.
  """

  needs_masks = True

  cap: float = 0.02
  rescale: float = 1.0

  def __post_init__(self):
    for name in ("cap", "rescale"):
      check(f"sampler remdm: {name}", getattr(self, name), 0.0, 1.0)

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    total, total_next = denoiser.noise.total(move.t), denoiser.noise.total(move.t_next)
    kept, masked = jnp.exp(-total), -jnp.expm1(-total)
    again = jnp.minimum(1.0, -jnp.expm1(-total_next) / kept)
    again = jnp.minimum(self.cap, self.rescale * again)
    # The ancestral share, plus as many as are masked again.
    lifted = jnp.minimum(_lifted(total, total_next) + again * kept / masked, 1.0)
    jump = bernoulli_each(move.keys_of_tokens(1), lifted[:, None])
    forget = bernoulli_each(move.keys_of_tokens(2), again[:, None])
    forget &= move.free & ~denoiser.process.needs_score(x)
    x_next = reveal(denoiser, x, move, jump)
    return StepResult(jnp.where(forget, mask_of(denoiser.process), x_next), move.t_next)


@dataclasses.dataclass(frozen=True)
class FirstHitting(Sampler):
  """One token per call, at the time of its jump: exact in continuous time. Absorbing only.

  With n masks left, the next is lifted when the probability of being masked has fallen by a factor
  u^(1/n); each of the n is equally likely. Makes one call per token to fill in, and sets its own
  times.

  Source: first-hitting sampler of arXiv:2409.02908.
  """

  needs_masks = True
  sets_times = True

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    masked = denoiser.process.needs_score(x) & move.free
    left = jnp.sum(masked, axis=-1)
    bits = jax.vmap(lambda key: jax.random.bits(key, (1,), jnp.uint32)[0])(move.keys_for(1))
    u = (bits.astype(move.t.dtype) + 0.5) * 2.0**-32
    later = clock(denoiser.noise.total(move.t)) - jnp.log(u) / jnp.maximum(left, 1)
    t_next = jnp.maximum(denoiser.noise.time(clock(later)), _NOT_YET)
    order = jax.vmap(jax.vmap(jax.random.exponential))(move.keys_of_tokens(2))
    first = ranks(order, masked) < 1
    x_next = reveal(denoiser, x, move._replace(t=t_next), first)
    return StepResult(x_next, jnp.where(left > 1, t_next, END_TIME))


@dataclasses.dataclass(frozen=True)
class Confidence(Sampler):
  """Draws every masked token and keeps the most probable draws. Absorbing only.

  The schedule sets their number: the masks left are the expected number at its next time. Does not
  sample the model's law at any number of steps.

  Source: MaskGIT, arXiv:2202.04200; the low-confidence remasking of LLaDA, arXiv:2502.09992.
  """

  needs_masks = True

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    masked = denoiser.process.needs_score(x) & move.free
    left, all_free = jnp.sum(masked, axis=-1), jnp.sum(move.free, axis=-1)
    share = _masked(denoiser, move.t_next) / _masked(denoiser, jnp.ones_like(move.t))
    count = left - jnp.floor(all_free * share).astype(left.dtype)
    needed = masked & (count > 0)[:, None]

    def rule(keys, row):
      log_p = jnp.log(denoiser.process.denoise_probs(*row))
      token = jax.vmap(sample_categorical)(keys, log_p)
      return token, jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]

    token, log_p = _each_masked(rule, denoiser, x, move, needed)
    chosen = ranks(log_p, masked) < count[:, None]
    return StepResult(jnp.where(chosen & needed, token, x), move.t_next)


@dataclasses.dataclass(frozen=True)
class EntropyBounded(Sampler):
  """Draws the tokens whose entropies sum to little. Absorbing only; sets its own times.

  At the exact score, drawing tokens independently has a KL divergence of at most the sum of their
  entropies minus the largest, in nats. Each step fills in positions by rising entropy while this
  bound is at most gamma, and at least one.

  Source: entropy-bounded sampler of arXiv:2505.24857.

  Attributes:
    gamma: limit of the divergence per call in nats, at least 0.

  Raises:
    ValueError: gamma is negative.
  """

  needs_masks = True
  sets_times = True

  gamma: float = 0.1

  def __post_init__(self):
    check("sampler entropy_bounded: gamma", self.gamma, 0)

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    masked = denoiser.process.needs_score(x) & move.free

    def rule(keys, row):
      p = denoiser.process.denoise_probs(*row)
      return draw_each(keys, p), jnp.sum(jax.scipy.special.entr(p), axis=-1)

    token, entropy = _each_masked(rule, denoiser, x, move, masked)
    place = ranks(-entropy, masked)
    rising = jnp.sort(jnp.where(masked, entropy, jnp.inf), axis=-1)
    within = jnp.cumsum(rising, axis=-1) - rising <= min(self.gamma, _UNLIMITED)
    chosen = masked & jnp.take_along_axis(within, place, axis=-1)
    left = jnp.sum(masked & ~chosen, axis=-1)
    # The time at which the expected number of masks is the number left.
    share = left / jnp.maximum(jnp.sum(move.free, axis=-1), 1)
    masked_share = share * _masked(denoiser, jnp.ones_like(move.t))
    t_next = jnp.maximum(denoiser.noise.time(-jnp.log1p(-masked_share)), _NOT_YET)
    return StepResult(jnp.where(chosen, token, x), jnp.where(left > 0, t_next, END_TIME))


@dataclasses.dataclass(frozen=True)
class Trapezoidal(Sampler):
  """Second order with two calls per step.

  Takes a Tweedie step over the part theta of the step in `clock` time. Then takes one over the rest
  with scores extrapolated from both calls, so that changes of other tokens in the first part count
  for the whole step. The marginal of each token is as exact as under Tweedie. A negative
  extrapolated score is clipped to 0; there the step is of first order.

  Source: the theta-trapezoidal method of arXiv:2502.00234, with Tweedie steps in place of
  tau-leaping; eq. 20 in docs/math.md.

  Attributes:
    theta: in [0.001, 0.999]; nearer to the ends float32 scores cancel. A falling score is clipped
      if it falls below the share (ahead - 1) / ahead of its old value, with
      ahead = 1 / (2 theta (1 - theta)); the share is least, a half, at 1/2.

  Raises:
    ValueError: theta is out of range.
  """

  estimates_error = True

  theta: float = 0.5

  def __post_init__(self):
    check("sampler trapezoidal: theta", self.theta, 0.001, 0.999)

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    process, noise = denoiser.process, denoiser.noise
    ahead = 1.0 / (2.0 * self.theta * (1.0 - self.theta))
    total, total_next = noise.total(move.t), noise.total(move.t_next)
    now, then = clock(total), clock(total_next)
    between = clock(now + self.theta * (then - now))  # clock is its own inverse.

    def first(args, row):
      keys, step = args
      return draw_each(keys, process.tweedie_probs(row.log_score, row.x, step))

    def second(args, row, start):
      keys, step = args
      carried = process.carried(start.log_score, start.x, start.total, row.total)
      mixed = ahead * jnp.exp(row.log_score) - (ahead - 1.0) * jnp.exp(carried)
      changed = (row.x != start.x)[:, None]
      log_mixed = jnp.where(changed, row.log_score, jnp.log(jnp.maximum(mixed, 0.0)))
      probs = process.tweedie_probs(log_mixed, row.x, step)
      first_order = process.tweedie_probs(jnp.where(changed, row.log_score, carried), row.x, step)
      return draw_each(keys, probs), 0.5 * jnp.sum(jnp.abs(probs - first_order), axis=-1)

    needed = process.needs_score(x) & move.free
    start, step = denoiser.call(x, total, needed), on_tokens(total - between, x)
    args = move.keys_of_tokens(1), step
    x_between = denoiser.each_row(first, needed, x, start, args=args)
    needed = process.needs_score(x_between) & move.free
    middle, step = denoiser.call(x_between, between, needed), on_tokens(between - total_next, x)
    args, otherwise = (move.keys_of_tokens(2), step), (x_between, jnp.zeros_like(step))
    x_next, error = denoiser.each_row(second, needed, otherwise, middle, start, args=args)
    return StepResult(x_next, move.t_next, jnp.sum(error, axis=-1))


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Sampler):
  """Steps of another sampler, each followed by corrector steps at the time it reached.

  A corrector step is an Euler step of the noising plus the reverse process. Together the two leave
  p_t invariant, so errors of earlier steps decay.

  Source: section 4.4 of Campbell et al., arXiv:2205.14987, with the concrete score.

  Attributes:
    predictor: `tweedie` or `euler`.
    corrections: corrector steps after each step, at most 100.
    size: the share of clean tokens that a corrector step noises, over the share that is noised at
      that time; in (0, 1].

  Raises:
    ValueError: a field is out of range.
  """

  predictor: str = "tweedie"
  corrections: int = 1
  size: float = 0.1

  def __post_init__(self):
    name = "sampler predictor_corrector:"
    if self.predictor not in ("tweedie", "euler"):
      raise ValueError(f"{name} predictor={self.predictor!r} must be 'tweedie' or 'euler'")
    check(f"{name} corrections", self.corrections, 1, 100)
    if not 0.0 < self.size <= 1.0:
      raise ValueError(f"{name} size={self.size} must lie in (0, 1]")

  def law(self, row, t, t_next, *, process, noise):
    """Probabilities after a corrector step at t; t_next is not used."""
    del t_next
    total = jnp.broadcast_to(noise.total(t), row.x.shape)[..., None]
    noising = jnp.maximum(process.rates(row.x), 0.0)
    rate = jnp.exp(process.log_reverse_rates(row.log_score, row.x)) + noising
    step = self.size * -jnp.expm1(-total)
    return jump_or_stay(jnp.log(rate * step), is_state(row.x, process.num_states))

  def advance(self, denoiser: Denoiser, x: jax.Array, move: Move) -> StepResult:
    result = SAMPLERS[self.predictor]().advance(denoiser, x, move)
    x = result.x
    for i in range(self.corrections):
      at = move._replace(keys=move.keys_for(3 + i), t=result.t)
      x = self.correct(denoiser, x, at)
    return StepResult(x, result.t)

  def correct(self, denoiser: Denoiser, x: jax.Array, move: Move) -> jax.Array:
    """Tokens int32[B, L] after one corrector step at move.t."""
    process = denoiser.process
    jumps_back = process.needs_score(x)
    changed = denoiser.draw(self.law, x, move, jumps_back & move.free)
    if process.mask_id is None:
      return changed
    # Only noise can change unmasked tokens, which needs no network.
    share = self.size * _masked(denoiser, move.t)
    forget = bernoulli_each(move.keys_of_tokens(1), share[:, None]) & ~jumps_back & move.free
    return jnp.where(forget, mask_of(process), changed)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
  "euler": Euler,
  "tweedie": Tweedie,
  "ancestral": Ancestral,
  "first_hitting": FirstHitting,
  "predictor_corrector": PredictorCorrector,
  "remdm": ReMDM,
  "trapezoidal": Trapezoidal,
  "confidence": Confidence,
  "entropy_bounded": EntropyBounded,
}


# --- Shared by samplers


def reveal(denoiser: Denoiser, x: jax.Array, move: Move, chosen: jax.Array) -> jax.Array:
  """Tokens int32[B, L], the chosen masks drawn from their normalised scores at move.t."""

  def rule(keys, row):
    return draw_each(keys, denoiser.process.denoise_probs(*row))

  needed = chosen & denoiser.process.needs_score(x) & move.free
  output = denoiser.call(x, denoiser.noise.total(move.t), needed)
  return denoiser.each_row(rule, needed, x, output, args=move.keys_of_tokens())


def ranks(value: jax.Array, among: jax.Array) -> jax.Array:
  """The rank of each entry of float[B, L] in its row, largest first, from 0. Excluded entries rank
  last. int32[B, L]."""
  order = jnp.lexsort((-value, ~among), axis=-1)
  return jnp.argsort(order, axis=-1).astype(jnp.int32)


def bernoulli_each(keys: jax.Array, p: jax.Array) -> jax.Array:
  """bool[B, L], true with probability p; p broadcasts to the PRNG keys [B, L]."""
  return jax.vmap(jax.vmap(bernoulli))(keys, jnp.broadcast_to(p, keys.shape))


def on_tokens(value: jax.Array, x: jax.Array) -> jax.Array:
  """float[B, L] from a number per sequence, float[B]."""
  return jnp.broadcast_to(value[:, None], x.shape)


def _each_masked(rule, denoiser: Denoiser, x: jax.Array, move: Move, needed: jax.Array):
  """(int32[B, L], float[B, L]) from a rule that returns a token and a number."""
  output = denoiser.call(x, denoiser.noise.total(move.t), needed)
  otherwise = (x, jnp.zeros(x.shape, move.t.dtype))
  return denoiser.each_row(rule, needed, otherwise, output, args=move.keys_of_tokens())


def _masked(denoiser: Denoiser, t: jax.Array) -> jax.Array:
  """Probability that a token is masked at t."""
  return -jnp.expm1(-denoiser.noise.total(t))


def _lifted(total: jax.Array, total_next: jax.Array) -> jax.Array:
  """Probability that a mask is lifted between two times, computed without cancellation."""
  return jnp.exp(-total_next) * jnp.expm1(total_next - total) / jnp.expm1(-total)
