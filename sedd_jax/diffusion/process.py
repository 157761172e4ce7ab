"""The two noising processes: their rates, transitions, ratios, score entropy and reverse steps.

Every token jumps independently, at rate 1, to a draw from a law pi: the mask, or uniform over
tokens. Code elsewhere never tests for the class of a process: it calls these methods. Conventions,
derivations and equation numbers: docs/math.md.

Shapes: x and x0 are int[...]; total broadcasts to their shape; rows are float[..., S]. The own
entry (y = x) of an argument log_score is ignored and means 0.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
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
from sedd_jax.diffusion.parameterizations import (
  Conditional,
  ConditionalUniform,
  Parameterization,
  Scaled,
  Score,
)
from sedd_jax.diffusion.score import ScoreStats, dense_stats

# Total noise is clipped here, far below any time in use, to keep 1 / total finite in float32.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Process(abc.ABC):
  """A noising process of single tokens.

  Attributes:
    name: its name in configs.
    parameterizations: the supported parameterizations by name.
    vocab_size: V, the number of real tokens.

  Raises:
    ValueError: vocab_size < 1.
  """

  name: ClassVar[str]
  parameterizations: ClassVar[Mapping[str, type[Parameterization]]]

  vocab_size: int

  def __post_init__(self):
    if self.vocab_size < 1:
      name = type(self).__name__
      raise ValueError(f"{name}: vocab_size={self.vocab_size} must be at least 1")

  @property
  @abc.abstractmethod
  def num_states(self) -> int:
    """S."""

  @property
  @abc.abstractmethod
  def mask_id(self) -> int | None:
    """The mask's state, or None."""

  def parameterization(self, name: str) -> Parameterization:
    """The parameterization with this name.

    Raises:
      ValueError: the process has no parameterization of this name.
    """
    check_parameterization(self.name, name)
    return self.parameterizations[name](self.vocab_size, self.num_states)

  @abc.abstractmethod
  def transition(self, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    """P(x_t = . given x_0 = x0), float[..., S] (eq. 3)."""

  @abc.abstractmethod
  def rates(self, x: jax.Array) -> jax.Array:
    """Rates from x to each state, float32[..., S] (eq. 1); the diagonal is minus the rest."""

  @abc.abstractmethod
  def corrupt(self, key: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    """A draw of x_t given x_0 = x0; int32, shape of x0."""

  @abc.abstractmethod
  def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A draw from the law that sampling starts from, int32[shape]."""

  @abc.abstractmethod
  def prior_kl(self, total: jax.Array) -> jax.Array | None:
    """KL(P(x_t given x_0) || prior) of one token in nats, float, shape of total; the same for every
    x_0. None if it is infinite: the model is then extended to infinite total noise."""

  @abc.abstractmethod
  def needs_score(self, x: jax.Array) -> jax.Array:
    """bool, shape of x: tokens that a reverse jump can change. Others have zero score entropy."""

  @abc.abstractmethod
  def score_share(self, total: jax.Array) -> jax.Array:
    """Expected share of tokens that need a score, float, shape of total."""

  def score_entropy(
    self, log_score: jax.Array, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Denoising score entropy per position in nats, float[...]; see `score_entropy_from_stats`."""
    return self.score_entropy_from_stats(self.stats(log_score, x, x0), x, x0, total)

  @abc.abstractmethod
  def stats(self, log_score: jax.Array, x: jax.Array, x0: jax.Array) -> ScoreStats:
    """ScoreStats of dense rows float[..., S]."""

  @abc.abstractmethod
  def score_entropy_from_stats(
    self, stats: ScoreStats, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Denoising score entropy per position in nats, float[...], from ScoreStats."""

  @abc.abstractmethod
  def log_reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Log rates of reverse jumps, float[..., S]; -inf at the own and at unreachable states."""

  def reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Rates of the reverse process per unit of total noise, float[..., S]; the diagonal is minus
    the rest."""
    rates = jnp.exp(self.log_reverse_rates(log_score, x))
    own = is_state(jnp.asarray(x), rates.shape[-1])
    return jnp.where(own, -jnp.sum(rates, axis=-1, keepdims=True), rates)

  @abc.abstractmethod
  def tweedie_probs(
    self, log_score: jax.Array, x: jax.Array, total_step: jax.typing.ArrayLike
  ) -> jax.Array:
    """Probabilities after a Tweedie step of size total_step, float[..., S], sum to 1 (eq. 16, 17).

    Args:
      total_step: difference of total noise.
    """

  @abc.abstractmethod
  def denoise_probs(
    self, log_score: jax.Array, x: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Probabilities after the last step, over all remaining noise; float[..., S], sum to 1."""

  @abc.abstractmethod
  def with_posterior(
    self,
    log_score: jax.Array,
    x: jax.Array,
    total: jax.typing.ArrayLike,
    change: Callable[[jax.Array], jax.Array],
  ) -> jax.Array:
    """Log scores under a changed law of x_0, float[..., S] (eq. 18).

    Args:
      change: maps log probabilities float[..., S] of x_0 given the other tokens to log weights.
    """

  @abc.abstractmethod
  def carried(
    self, log_score: jax.Array, x: jax.Array, total: jax.Array, total_next: jax.Array
  ) -> jax.Array:
    """Log scores at lower total noise, other tokens fixed; float[..., S] (eq. 19)."""


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

  def transition(self, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    x0, total = _position(x0, total)
    stay = jnp.exp(-total)[..., None] * is_state(x0, self.num_states)
    return stay - jnp.expm1(-total)[..., None] * self._is_mask_state(x0)

  def rates(self, x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return self._is_mask_state(x) * 1.0 - is_state(x, self.num_states)

  def corrupt(self, key: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    x0, total = _position(x0, total)
    jumped = bernoulli(key, -jnp.expm1(-total))
    return jnp.where(jumped, self.mask_id, x0).astype(jnp.int32)

  def stats(self, log_score: jax.Array, x: jax.Array, x0: jax.Array) -> ScoreStats:
    """ScoreStats of dense rows; rows of unmasked tokens may hold anything."""
    # Zeroed before exp: an overflow would meet a zero cotangent, and inf times 0 is NaN.
    log_score = jnp.where(self.needs_score(x)[..., None], as_float(log_score), 0.0)
    return dense_stats(log_score, x, x0)

  def needs_score(self, x: jax.Array) -> jax.Array:
    """bool, shape of x: true at masked tokens."""
    return jnp.asarray(x) == self.mask_id

  def score_share(self, total: jax.Array) -> jax.Array:
    """The probability that a token is masked."""
    return -jnp.expm1(-total)

  def score_entropy_from_stats(
    self, stats: ScoreStats, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Denoising score entropy per position in nats (eq. 9); non-negative, 0 at unmasked tokens.

    With r = 1 / expm1(total) it is sum_exp - r z[x0] + r (log r - 1), grouped so that the large
    terms cancel before they are summed.
    """
    x, total = _position(x, total)
    log_ratio = -log_expm1(jnp.maximum(total, _TINY))
    ratio = jnp.exp(log_ratio)
    masked = x == self.mask_id
    sum_exp = jnp.where(masked, stats.sum_exp, 0.0)
    # A ratio that underflows to 0 contributes 0, even if the log score is -inf.
    excess = jnp.where(masked & (ratio > 0.0), stats.at_x0 - log_ratio, 0.0)
    return jnp.where(masked, (sum_exp - ratio) - ratio * excess, 0.0)

  def log_reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Log rates of reverse jumps, float[..., S]; -inf at the own and at unreachable states."""
    x = jnp.asarray(x)
    jump = (x == self.mask_id)[..., None] & ~self._is_mask_state(x)
    return jnp.where(jump, as_float(log_score), -jnp.inf)

  def tweedie_probs(
    self, log_score: jax.Array, x: jax.Array, total_step: jax.typing.ArrayLike
  ) -> jax.Array:
    """Probabilities after a Tweedie step of size total_step, float[..., S], sum to 1 (eq. 16).

    A masked token becomes y with probability expm1(total_step) exp(log_score_y) and stays masked
    with the remaining probability.
    """
    x, total_step = _position(x, total_step)
    log_jump = self.log_reverse_rates(log_score, x) + log_expm1(total_step)[..., None]
    return jump_or_stay(log_jump, is_state(x, self.num_states))

  def denoise_probs(
    self, log_score: jax.Array, x: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Probabilities after the last step, float[..., S], sum to 1: a Tweedie step without the mask.

    A masked token follows its normalised scores, whatever `total` is. No mask remains.
    """
    x, _ = _position(x, total)
    real = ~self._is_mask_state(x)
    z = jnp.where(real, as_float(log_score), -jnp.inf)
    z = jnp.where(jnp.any(z > -jnp.inf, axis=-1, keepdims=True), z, jnp.where(real, 0.0, z))
    z = jnp.minimum(z, jnp.finfo(z.dtype).max / 4)
    masked = (x == self.mask_id)[..., None]
    return jnp.where(masked, jax.nn.softmax(z, axis=-1), is_state(x, self.num_states))

  def with_posterior(
    self,
    log_score: jax.Array,
    x: jax.Array,
    total: jax.typing.ArrayLike,
    change: Callable[[jax.Array], jax.Array],
  ) -> jax.Array:
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

  def carried(
    self, log_score: jax.Array, x: jax.Array, total: jax.Array, total_next: jax.Array
  ) -> jax.Array:
    """Log scores of masks at lower total noise, other tokens fixed; float[..., S] (eq. 19)."""
    x, total = _position(x, total)
    shift = log_expm1(total) - log_expm1(_position(x, total_next)[1])
    return as_float(log_score) + shift[..., None]

  def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """All masks, int32[shape]; the key is not used."""
    del key
    return jnp.full(shape, self.mask_id, jnp.int32)

  def prior_kl(self, total: jax.Array) -> None:
    """None: an unmasked token has probability 0 under the prior."""
    del total

  def _is_mask_state(self, x: jax.Array) -> jax.Array:
    return is_state(jnp.full_like(x, self.mask_id), self.num_states)


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

  def transition(self, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    x0, total = _position(x0, total)
    move = -jnp.expm1(-total) / self.vocab_size
    return move[..., None] + jnp.exp(-total)[..., None] * is_state(x0, self.vocab_size)

  def rates(self, x: jax.Array) -> jax.Array:
    return 1.0 / self.vocab_size - is_state(jnp.asarray(x), self.vocab_size)

  def corrupt(self, key: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    x0, total = _position(x0, total)
    key_jump, key_token = jax.random.split(key)
    jumped = bernoulli(key_jump, -jnp.expm1(-total))
    token = jax.random.randint(key_token, x0.shape, 0, self.vocab_size)
    return jnp.where(jumped, token, x0).astype(jnp.int32)

  def stats(self, log_score: jax.Array, x: jax.Array, x0: jax.Array) -> ScoreStats:
    """ScoreStats of dense rows."""
    return dense_stats(log_score, x, x0)

  def needs_score(self, x: jax.Array) -> jax.Array:
    """bool, shape of x: true everywhere."""
    return jnp.ones(jnp.shape(x), bool)

  def score_share(self, total: jax.Array) -> jax.Array:
    """1."""
    return jnp.ones_like(total)

  def score_entropy_from_stats(
    self, stats: ScoreStats, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Denoising score entropy per position in nats (eq. 10, 11); non-negative.

    Let q = expm1(total) / (expm1(total) + V). Where x = x0 the true ratio is q for every y;
    elsewhere it is 1 / q for y = x0 and 1 for other y. q is never computed as
    1 - V / (expm1(total) + V), which cancels.
    """
    x, total = _position(x, total)
    x0 = jnp.asarray(x0)
    vocab = self.vocab_size
    log_em1 = log_expm1(jnp.maximum(total, _TINY))
    log_q = log_em1 - jnp.logaddexp(log_em1, jnp.log(jnp.asarray(vocab, total.dtype)))
    q, inv_q = jnp.exp(log_q), jnp.exp(-log_q)
    clean = stats.sum_exp - q * (stats.sum_log - (vocab - 1) * (log_q - 1.0))
    # With -inf at x0 the last term is infinite already; -inf minus -inf would be NaN.
    others = stats.sum_log - jnp.where(stats.at_x0 == -jnp.inf, 0.0, stats.at_x0)
    noisy = (stats.sum_exp - (vocab - 2) - inv_q) - others - inv_q * (stats.at_x0 + log_q)
    return jnp.where(x == x0, clean, noisy) / vocab

  def log_reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Log rates of the reverse jumps, float[..., S]; -inf at the own state."""
    z = as_float(log_score)
    log_rate = z - jnp.log(jnp.asarray(self.vocab_size, z.dtype))
    return jnp.where(is_state(jnp.asarray(x), self.vocab_size), -jnp.inf, log_rate)

  def tweedie_probs(
    self, log_score: jax.Array, x: jax.Array, total_step: jax.typing.ArrayLike
  ) -> jax.Array:
    """Probabilities after a Tweedie step of size total_step, float[..., S], sum to 1 (eq. 17).

    Proportional to (s_y - (1 - e^-d) mean(s)) P(y becomes x in d). An inconsistent score can make
    the first factor negative: it is set to 0, and the rest is renormalised.
    """
    x, total_step = _position(x, total_step)
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

  def denoise_probs(
    self, log_score: jax.Array, x: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Probabilities after the last step, over all remaining noise: a Tweedie step."""
    return self.tweedie_probs(log_score, x, total)

  def with_posterior(
    self,
    log_score: jax.Array,
    x: jax.Array,
    total: jax.typing.ArrayLike,
    change: Callable[[jax.Array], jax.Array],
  ) -> jax.Array:
    """Log scores under a changed law of x_0, float[..., S], 0 at the own entry (eq. 18).

    Given the other tokens, a position holds y with probability proportional to its score. Removing
    the noise gives the law of x_0 there. That law is changed, and the noise is applied again.

    Args:
      change: maps log probabilities float[..., S] of x_0 given the other tokens to log weights.
    """
    x, total = _position(x, total)
    own = is_state(x, self.vocab_size)
    kept, spread = jnp.exp(-total)[..., None], -jnp.expm1(-total)[..., None] / self.vocab_size
    noisy = jax.nn.softmax(jnp.where(own, 0.0, as_float(log_score)), axis=-1)
    clean = jnp.maximum(noisy - spread, 0.0)
    mass = jnp.sum(clean, axis=-1, keepdims=True)
    clean = jnp.where(mass > 0.0, clean / jnp.where(mass > 0.0, mass, 1.0), noisy)
    log_noisy = jnp.log(kept * jax.nn.softmax(change(jnp.log(clean)), axis=-1) + spread)
    return log_noisy - jnp.sum(jnp.where(own, log_noisy, 0.0), axis=-1, keepdims=True)

  def carried(
    self, log_score: jax.Array, x: jax.Array, total: jax.Array, total_next: jax.Array
  ) -> jax.Array:
    """Log scores at lower total noise, other tokens fixed; float[..., S] (eq. 19).

    -inf where an inconsistent score would give a negative one; 0 at the own entry.
    """
    x, total = _position(x, total)
    step = total - _position(x, total_next)[1]
    _, earlier = self._earlier(log_score, x, step)
    own = is_state(x, self.vocab_size)
    log_earlier = jnp.log(jnp.maximum(earlier, 0.0))
    at_own = jnp.sum(jnp.where(own, log_earlier, 0.0), axis=-1, keepdims=True)
    # If the own entry is 0, the token is almost surely noise: its scores take their largest value.
    return jnp.where(own, 0.0, log_earlier - jnp.maximum(at_own, jnp.log(_TINY)))

  def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform tokens, int32[shape]."""
    return jax.random.randint(key, shape, 0, self.vocab_size, jnp.int32)

  def prior_kl(self, total: jax.Array) -> jax.Array:
    """KL of a token that survives with probability exp(-total), in nats."""
    survival = jnp.exp(-total)
    others = self.vocab_size - 1
    # V p is 1 + (V - 1) survival at x_0 and 1 - survival elsewhere.
    own = (1.0 + others * survival) * jnp.log1p(others * survival)
    rest = others * (1.0 - survival) * jnp.log1p(-survival)
    return jnp.maximum((own + rest) / self.vocab_size, 0.0)


PROCESSES: Mapping[str, type[Process]] = {kind.name: kind for kind in (Absorbing, Uniform)}


def mask_of(process: Process) -> int:
  """The mask of a process that is known to have one."""
  assert process.mask_id is not None
  return process.mask_id


def check_parameterization(process: str, name: str) -> None:
  """Checks by name that a process supports a parameterization.

  Raises:
    ValueError: the process does not support it; the message lists the names that it supports.
  """
  supporting = [other for other, kind in PROCESSES.items() if name in kind.parameterizations]
  if process in supporting:
    return
  known = " or ".join(map(repr, PROCESSES[process].parameterizations))
  if supporting:
    raise ValueError(
      f"parameterization={name!r} needs the {' or '.join(supporting)} process; the {process} "
      f"process takes {known}"
    )
  raise ValueError(f"parameterization={name!r} must be {known} with the {process} process")


def _position(x: jax.typing.ArrayLike, total: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
  """x and total as arrays, total of x's shape."""
  x, total = jnp.asarray(x), as_float(total)
  return x, jnp.broadcast_to(total, x.shape)
