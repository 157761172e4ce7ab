"""The absorbing process: a masked token is the only noise.

The own entry (y = x) of an argument log_score is ignored and means 0. docs/math.md has the
derivations and equation numbers. Shapes and dtypes: `process.py`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import (
  as_float,
  bernoulli,
  is_state,
  jump_or_stay,
  log_expm1,
)
from sedd_jax.diffusion.parameterizations import Conditional, Scaled, Score
from sedd_jax.diffusion.process import TINY, Process, aligned
from sedd_jax.diffusion.score import dense_stats


@dataclasses.dataclass(frozen=True)
class Absorbing(Process):
  """Every real token turns into the mask at rate 1; the mask stays.

  Source: equation 16 of arXiv:2310.16834.

  The mask is state V, so there are V + 1 states.
  """

  name = "absorbing"
  parameterizations: ClassVar = {"score": Score, "scaled": Scaled, "conditional": Conditional}

  @property
  def num_states(self) -> int:
    return self.vocab_size + 1

  @property
  def mask_id(self) -> int:
    return self.vocab_size

  def transition(self, x0, total):
    x0, total = aligned(x0, total)
    stay = jnp.exp(-total)[..., None] * is_state(x0, self.num_states)
    return stay - jnp.expm1(-total)[..., None] * self._is_mask_state(x0)

  def rates(self, x):
    x = jnp.asarray(x)
    return self._is_mask_state(x) * 1.0 - is_state(x, self.num_states)

  def corrupt(self, key, x0, total):
    x0, total = aligned(x0, total)
    jumped = bernoulli(key, -jnp.expm1(-total))
    return jnp.where(jumped, self.mask_id, x0).astype(jnp.int32)

  def stats(self, log_score, x, x0):
    """ScoreStats of dense rows; rows of unmasked tokens may hold anything."""
    # Zeroed before exp: an overflow would meet a zero cotangent, and inf times 0 is NaN.
    log_score = jnp.where(self.needs_score(x)[..., None], as_float(log_score), 0.0)
    return dense_stats(log_score, x, x0)

  def needs_score(self, x):
    """bool, shape of x: true at masked tokens."""
    return jnp.asarray(x) == self.mask_id

  def score_share(self, total):
    """The probability that a token is masked."""
    return -jnp.expm1(-total)

  def score_entropy_from_stats(self, stats, x, x0, total):
    """Denoising score entropy per position in nats (eq. 9); non-negative, 0 at unmasked tokens.

    With r = 1 / expm1(total) it is sum_exp - r z[x0] + r (log r - 1), grouped so that the large
    terms cancel before they are summed.
    """
    x, total = aligned(x, total)
    log_ratio = -log_expm1(jnp.maximum(total, TINY))
    ratio = jnp.exp(log_ratio)
    masked = x == self.mask_id
    sum_exp = jnp.where(masked, stats.sum_exp, 0.0)
    # A ratio that underflows to 0 contributes 0, even if the log score is -inf.
    excess = jnp.where(masked & (ratio > 0.0), stats.at_x0 - log_ratio, 0.0)
    return jnp.where(masked, (sum_exp - ratio) - ratio * excess, 0.0)

  def log_reverse_rates(self, log_score, x):
    """Log rates of reverse jumps, float[..., S]; -inf at the own and at unreachable states."""
    x = jnp.asarray(x)
    jump = (x == self.mask_id)[..., None] & ~self._is_mask_state(x)
    return jnp.where(jump, as_float(log_score), -jnp.inf)

  def tweedie_probs(self, log_score, x, total_step):
    """Probabilities after a Tweedie step of size total_step, float[..., S], sum to 1 (eq. 16).

    A masked token becomes y with probability expm1(total_step) exp(log_score_y) and stays masked
    with the remaining probability.
    """
    x, total_step = aligned(x, total_step)
    log_jump = self.log_reverse_rates(log_score, x) + log_expm1(total_step)[..., None]
    return jump_or_stay(log_jump, is_state(x, self.num_states))

  def denoise_probs(self, log_score, x, total):
    """Probabilities after the last step, float[..., S], sum to 1: a Tweedie step without the mask.

    A masked token follows its normalised scores, whatever `total` is. No mask remains.
    """
    x, _ = aligned(x, total)
    real = ~self._is_mask_state(x)
    z = jnp.where(real, as_float(log_score), -jnp.inf)
    z = jnp.where(jnp.any(z > -jnp.inf, axis=-1, keepdims=True), z, jnp.where(real, 0.0, z))
    z = jnp.minimum(z, jnp.finfo(z.dtype).max / 4)
    masked = (x == self.mask_id)[..., None]
    return jnp.where(masked, jax.nn.softmax(z, axis=-1), is_state(x, self.num_states))

  def with_posterior(self, log_score, x, total, change):
    """Log scores of a masked token under a changed law of x_0, float[..., S] (eq. 18).

    The rate of unmasking is unchanged; the law of the new token changes.

    Args:
      change: maps log probabilities float[..., S] of x_0 given the other tokens, -inf at the mask,
        to log weights.
    """
    del total
    x = jnp.asarray(x)
    z = jnp.where(self._is_mask_state(x), -jnp.inf, as_float(log_score))
    size = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    possible = size > -jnp.inf
    changed = jax.nn.log_softmax(change(z - jnp.where(possible, size, 0.0)), axis=-1) + size
    return jnp.where(possible, changed, z)

  def carried(self, log_score, x, total, total_next):
    """Log scores of masks at lower total noise, other tokens fixed; float[..., S] (eq. 19)."""
    x, total = aligned(x, total)
    shift = log_expm1(total) - log_expm1(aligned(x, total_next)[1])
    return as_float(log_score) + shift[..., None]

  def prior(self, key, shape):
    """All masks, int32[shape]; the key is not used."""
    del key
    return jnp.full(shape, self.mask_id, jnp.int32)

  def prior_kl(self, total):
    """None: an unmasked token has probability 0 under the prior."""
    del total

  def _is_mask_state(self, x: jax.Array) -> jax.Array:
    return is_state(jnp.full_like(x, self.mask_id), self.num_states)
