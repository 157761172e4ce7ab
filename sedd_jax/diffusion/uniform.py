"""The uniform process: noise is a token drawn from all.

The own entry (y = x) of an argument log_score is ignored and means 0. docs/math.md has the
derivations and equation numbers. Shapes and dtypes: `process.py`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float, bernoulli, is_state, log_expm1
from sedd_jax.diffusion.parameterizations import ConditionalUniform, Score
from sedd_jax.diffusion.process import TINY, Process, aligned
from sedd_jax.diffusion.score import dense_stats


@dataclasses.dataclass(frozen=True)
class Uniform(Process):
  """Every token turns into each of the V tokens at rate 1 / V, itself included.

  Tokens are the only states. Source: equation 15 of arXiv:2310.16834, with the rates divided by V
  as its code has them.
  """

  name = "uniform"
  parameterizations: ClassVar = {"score": Score, "conditional": ConditionalUniform}

  @property
  def num_states(self) -> int:
    return self.vocab_size

  @property
  def mask_id(self) -> None:
    return None

  def transition(self, x0, total):
    x0, total = aligned(x0, total)
    move = -jnp.expm1(-total) / self.vocab_size
    return move[..., None] + jnp.exp(-total)[..., None] * is_state(x0, self.vocab_size)

  def rates(self, x):
    return 1.0 / self.vocab_size - is_state(jnp.asarray(x), self.vocab_size)

  def corrupt(self, key, x0, total):
    x0, total = aligned(x0, total)
    key_jump, key_token = jax.random.split(key)
    jumped = bernoulli(key_jump, -jnp.expm1(-total))
    token = jax.random.randint(key_token, x0.shape, 0, self.vocab_size)
    return jnp.where(jumped, token, x0).astype(jnp.int32)

  def stats(self, log_score, x, x0):
    """ScoreStats of dense rows."""
    return dense_stats(log_score, x, x0)

  def needs_score(self, x):
    """bool, shape of x: true everywhere."""
    return jnp.ones(jnp.shape(x), bool)

  def score_share(self, total):
    """1."""
    return jnp.ones_like(total)

  def score_entropy_from_stats(self, stats, x, x0, total):
    """Denoising score entropy per position in nats (eq. 10, 11); non-negative.

    Let q = expm1(total) / (expm1(total) + V). Where x = x0 the true ratio is q for every y;
    elsewhere it is 1 / q for y = x0 and 1 for other y. q is never computed as
    1 - V / (expm1(total) + V), which cancels.
    """
    x, total = aligned(x, total)
    x0 = jnp.asarray(x0)
    vocab = self.vocab_size
    log_em1 = log_expm1(jnp.maximum(total, TINY))
    log_q = log_em1 - jnp.logaddexp(log_em1, jnp.log(jnp.asarray(vocab, total.dtype)))
    q, inv_q = jnp.exp(log_q), jnp.exp(-log_q)
    clean = stats.sum_exp - q * (stats.sum_log - (vocab - 1) * (log_q - 1.0))
    # With -inf at x0 the last term is infinite already; -inf minus -inf would be NaN.
    others = stats.sum_log - jnp.where(stats.at_x0 == -jnp.inf, 0.0, stats.at_x0)
    noisy = (stats.sum_exp - (vocab - 2) - inv_q) - others - inv_q * (stats.at_x0 + log_q)
    return jnp.where(x == x0, clean, noisy) / vocab

  def log_reverse_rates(self, log_score, x):
    """Log rates of the reverse jumps, float[..., S]; -inf at the own state."""
    z = as_float(log_score)
    log_rate = z - jnp.log(jnp.asarray(self.vocab_size, z.dtype))
    return jnp.where(is_state(jnp.asarray(x), self.vocab_size), -jnp.inf, log_rate)

  def tweedie_probs(self, log_score, x, total_step):
    """Probabilities after a Tweedie step of size total_step, float[..., S], sum to 1 (eq. 17).

    Proportional to (s_y - (1 - e^-d) mean(s)) P(y becomes x in d). An inconsistent score can make
    the first factor negative: it is set to 0, and the rest is renormalised.
    """
    x, total_step = aligned(x, total_step)
    own, earlier = self._earlier(log_score, x, total_step)
    weight = jnp.maximum(earlier, 0.0) * self.transition(x, total_step)
    norm = jnp.sum(weight, axis=-1, keepdims=True)
    return jnp.where(norm > 0.0, weight / jnp.where(norm > 0.0, norm, 1.0), own)

  def _earlier(self, log_score: jax.Array, x: jax.Array, step: jax.Array):
    """The own state bool[..., S], and (s e^-dQ)_y e^-d over the largest score, float[..., S]."""
    z = jnp.minimum(as_float(log_score), jnp.finfo(step.dtype).max / 4)
    own = is_state(x, self.vocab_size)
    z = jnp.where(own, 0.0, z)
    # Relative to the largest score: nothing overflows, and the largest entry stays positive.
    below = jnp.expm1(z - jnp.max(z, axis=-1, keepdims=True))
    mean_below = jnp.mean(below, axis=-1, keepdims=True)
    kept = jnp.exp(-step)[..., None]
    return own, (below - mean_below) + kept * (1.0 + mean_below)

  def denoise_probs(self, log_score, x, total):
    """Probabilities after the last step, over all remaining noise: a Tweedie step."""
    return self.tweedie_probs(log_score, x, total)

  def with_posterior(self, log_score, x, total, change):
    """Log scores under a changed law of x_0, float[..., S], 0 at the own entry (eq. 18).

    Given the other tokens, a position holds y with probability proportional to its score. Removing
    the noise gives the law of x_0 there. That law is changed, and the noise is applied again.

    Args:
      change: maps log probabilities float[..., S] of x_0 given the other tokens to log weights.
    """
    x, total = aligned(x, total)
    own = is_state(x, self.vocab_size)
    kept, spread = jnp.exp(-total)[..., None], -jnp.expm1(-total)[..., None] / self.vocab_size
    noisy = jax.nn.softmax(jnp.where(own, 0.0, as_float(log_score)), axis=-1)
    clean = jnp.maximum(noisy - spread, 0.0)
    mass = jnp.sum(clean, axis=-1, keepdims=True)
    clean = jnp.where(mass > 0.0, clean / jnp.where(mass > 0.0, mass, 1.0), noisy)
    log_noisy = jnp.log(kept * jax.nn.softmax(change(jnp.log(clean)), axis=-1) + spread)
    return log_noisy - jnp.sum(jnp.where(own, log_noisy, 0.0), axis=-1, keepdims=True)

  def carried(self, log_score, x, total, total_next):
    """Log scores at lower total noise, other tokens fixed; float[..., S] (eq. 19).

    -inf where an inconsistent score would give a negative one; 0 at the own entry.
    """
    x, total = aligned(x, total)
    step = total - aligned(x, total_next)[1]
    _, earlier = self._earlier(log_score, x, step)
    own = is_state(x, self.vocab_size)
    log_earlier = jnp.log(jnp.maximum(earlier, 0.0))
    at_own = jnp.sum(jnp.where(own, log_earlier, 0.0), axis=-1, keepdims=True)
    # If the own entry is 0, the token is almost surely noise: its scores take their largest value.
    return jnp.where(own, 0.0, log_earlier - jnp.maximum(at_own, jnp.log(TINY)))

  def prior(self, key, shape):
    """Uniform tokens, int32[shape]."""
    return jax.random.randint(key, shape, 0, self.vocab_size, jnp.int32)

  def prior_kl(self, total):
    """KL of a token that survives with probability exp(-total), in nats."""
    survival = jnp.exp(-total)
    others = self.vocab_size - 1
    # V p is 1 + (V - 1) survival at x_0 and 1 - survival elsewhere.
    own = (1.0 + others * survival) * jnp.log1p(others * survival)
    rest = others * (1.0 - survival) * jnp.log1p(-survival)
    return jnp.maximum((own + rest) / self.vocab_size, 0.0)
