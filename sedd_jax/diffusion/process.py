"""The two noising processes: their rates, transitions, ratios, score entropy and reverse steps.

Every token jumps independently, at rate 1, to a draw from a law pi: the mask, or uniform over
tokens. Whoever needs to know which it is asks the process. Conventions, derivations and equation
numbers: docs/math.md.

Shapes: x and x0 are int[...]; total broadcasts to their shape; rows are float[..., S]. Where an
argument is called log_score its own entry (y = x) is ignored and means 0.
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

# Below this total noise the formulas are evaluated at it: no time in use comes near, and 1 / total
# stays finite in float32.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Process(abc.ABC):
  """A noising process of single tokens.

  Attributes:
    name: in configs.
    parameterizations: by name, those that suit the process.
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
    """The state of a mask, if there is one."""

  def parameterization(self, name: str) -> Parameterization:
    """The parameterization of a name.

    Raises:
      ValueError: there is none of this name for the process.
    """
    check_parameterization(self.name, name)
    return self.parameterizations[name](self.vocab_size, self.num_states)

  @abc.abstractmethod
  def transition(self, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    """P(x_t = . given x_0 = x0), float[..., S] (eq. 3)."""

  @abc.abstractmethod
  def rates(self, x: jax.Array) -> jax.Array:
    """Rates from x to each state, the diagonal minus the rest; float32[..., S] (eq. 1)."""

  @abc.abstractmethod
  def corrupt(self, key: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike) -> jax.Array:
    """Draws x_t given x_0 = x0; int32, shape of x0."""

  @abc.abstractmethod
  def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Where sampling starts, int32[shape]."""

  @abc.abstractmethod
  def prior_kl(self, total: jax.Array) -> jax.Array | None:
    """KL(P(x_t given x_0) || prior) of one token in nats, float, shape of total; the same for every
    x_0. None where it is infinite: the model is then carried on to infinite total noise."""

  @abc.abstractmethod
  def needs_score(self, x: jax.Array) -> jax.Array:
    """bool, shape of x: tokens that a reverse jump can change. The others have no score entropy."""

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
    """What the score entropy needs of dense rows float[..., S]."""

  @abc.abstractmethod
  def score_entropy_from_stats(
    self, stats: ScoreStats, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """Denoising score entropy per position in nats, float[...], from three numbers a position."""

  @abc.abstractmethod
  def log_reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Log rates of the reverse jumps, float[..., S]; -inf at the own state and where none leads."""

  def reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Rates of the reverse process per unit of total noise; the diagonal is minus the rest."""
    rates = jnp.exp(self.log_reverse_rates(log_score, x))
    own = is_state(jnp.asarray(x), rates.shape[-1])
    return jnp.where(own, -jnp.sum(rates, axis=-1, keepdims=True), rates)

  @abc.abstractmethod
  def tweedie_probs(
    self, log_score: jax.Array, x: jax.Array, total_step: jax.typing.ArrayLike
  ) -> jax.Array:
    """One Tweedie step over total_step of total noise, float[..., S], sums to 1 (eq. 16, 17)."""

  @abc.abstractmethod
  def denoise_probs(
    self, log_score: jax.Array, x: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """The last step, over all the total noise that is left; float[..., S], sums to 1."""

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
      change: of log probabilities float[..., S] of x_0 given the other tokens, to log weights.
    """

  @abc.abstractmethod
  def carried(
    self, log_score: jax.Array, x: jax.Array, total: jax.Array, total_next: jax.Array
  ) -> jax.Array:
    """Log scores at less noise, the other tokens held; float[..., S] (eq. 19)."""


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
    """What the score entropy needs of dense rows; those of unmasked tokens may hold anything."""
    # Zeroed before exp: an overflow there would meet a zero cotangent, and inf times 0 is NaN.
    log_score = jnp.where(self.needs_score(x)[..., None], as_float(log_score), 0.0)
    return dense_stats(log_score, x, x0)

  def needs_score(self, x: jax.Array) -> jax.Array:
    """bool, shape of x: masked tokens alone."""
    return jnp.asarray(x) == self.mask_id

  def score_share(self, total: jax.Array) -> jax.Array:
    """The probability that a token is masked."""
    return -jnp.expm1(-total)

  def score_entropy_from_stats(
    self, stats: ScoreStats, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """The same from three numbers a position (eq. 9); non-negative, 0 where x is not the mask.

    With r = 1 / expm1(total) it is sum_exp - r z[x0] + r (log r - 1), grouped so that the large
    terms cancel before they are summed.
    """
    x, total = _position(x, total)
    log_ratio = -log_expm1(jnp.maximum(total, _TINY))
    ratio = jnp.exp(log_ratio)
    masked = x == self.mask_id
    sum_exp = jnp.where(masked, stats.sum_exp, 0.0)
    # A ratio that underflows to 0 weighs nothing, also against a log score of -inf.
    excess = jnp.where(masked & (ratio > 0.0), stats.at_x0 - log_ratio, 0.0)
    return jnp.where(masked, (sum_exp - ratio) - ratio * excess, 0.0)

  def log_reverse_rates(self, log_score: jax.Array, x: jax.Array) -> jax.Array:
    """Log rates of the reverse jumps, float[..., S]; -inf at the own state and where none leads."""
    x = jnp.asarray(x)
    jump = (x == self.mask_id)[..., None] & ~self._is_mask_state(x)
    return jnp.where(jump, as_float(log_score), -jnp.inf)

  def tweedie_probs(
    self, log_score: jax.Array, x: jax.Array, total_step: jax.typing.ArrayLike
  ) -> jax.Array:
    """One Tweedie step over total_step of total noise, float[..., S], sums to 1 (eq. 16).

    A masked token becomes y with probability expm1(total_step) exp(log_score_y) and stays masked
    with what is left.
    """
    x, total_step = _position(x, total_step)
    log_jump = self.log_reverse_rates(log_score, x) + log_expm1(total_step)[..., None]
    return jump_or_stay(log_jump, is_state(x, self.num_states))

  def denoise_probs(
    self, log_score: jax.Array, x: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """The last step, over all the total noise that is left: the Tweedie step without the mask.

    The law of a masked token is then its scores, normalised, whatever `total` is. Never leaves a
    mask behind. float[..., S], sums to 1.
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

    The rate at which it is unmasked stays; what it turns into changes.

    Args:
      change: of log probabilities float[..., S] of x_0 given the other tokens, -inf at the mask, to
        log weights.
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
    """Log scores of masked tokens at less noise, the other tokens held; float[..., S] (eq. 19)."""
    x, total = _position(x, total)
    shift = log_expm1(total) - log_expm1(_position(x, total_next)[1])
    return as_float(log_score) + shift[..., None]

  def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Where sampling starts: all masks, int32[shape]; the key is not used."""
    del key
    return jnp.full(shape, self.mask_id, jnp.int32)

  def prior_kl(self, total: jax.Array) -> None:
    """None: a token that is not masked yet has no probability under the prior."""
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
    """What the score entropy needs of dense rows."""
    return dense_stats(log_score, x, x0)

  def needs_score(self, x: jax.Array) -> jax.Array:
    """bool, shape of x: every token."""
    return jnp.ones(jnp.shape(x), bool)

  def score_share(self, total: jax.Array) -> jax.Array:
    """1."""
    return jnp.ones_like(total)

  def score_entropy_from_stats(
    self, stats: ScoreStats, x: jax.Array, x0: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """The same from three numbers a position (eq. 10, 11); non-negative.

    With q = expm1(total) / (expm1(total) + V) the true ratios are q for every y at a token that
    still is x0; elsewhere 1 / q for y = x0 and 1 for the others. q is never formed as
    1 - V / (expm1(total) + V), which cancels.
    """
    x, total = _position(x, total)
    x0 = jnp.asarray(x0)
    vocab = self.vocab_size
    log_em1 = log_expm1(jnp.maximum(total, _TINY))
    log_q = log_em1 - jnp.logaddexp(log_em1, jnp.log(jnp.asarray(vocab, total.dtype)))
    q, inv_q = jnp.exp(log_q), jnp.exp(-log_q)
    clean = stats.sum_exp - q * (stats.sum_log - (vocab - 1) * (log_q - 1.0))
    # -inf at x0 makes the whole infinite by itself; -inf minus -inf would be NaN.
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
    """One Tweedie step over total_step of total noise, float[..., S], sums to 1 (eq. 17).

    Proportional to (s_y - (1 - e^-d) mean(s)) P(y becomes x in d). The first factor is negative
    where the score is inconsistent: set to 0, and the rest renormalised.
    """
    x, total_step = _position(x, total_step)
    own, earlier = self._earlier(log_score, x, total_step)
    weight = jnp.maximum(earlier, 0.0) * self.transition(x, total_step)
    norm = jnp.sum(weight, axis=-1, keepdims=True)
    return jnp.where(norm > 0.0, weight / jnp.where(norm > 0.0, norm, 1.0), own)

  def _earlier(self, log_score: jax.Array, x: jax.Array, step: jax.Array):
    """bool[..., S], the own state, and (s e^-dQ)_y e^-d over the largest score, float[..., S]."""
    z = jnp.minimum(as_float(log_score), jnp.finfo(step.dtype).max / 4)
    own = is_state(x, self.vocab_size)
    z = jnp.where(own, 0.0, z)
    # Everything relative to the largest score: no overflow, and the largest entry stays positive.
    below = jnp.expm1(z - jnp.max(z, axis=-1, keepdims=True))
    mean_below = jnp.mean(below, axis=-1, keepdims=True)
    kept = jnp.exp(-step)[..., None]
    return own, (below - mean_below) + kept * (1.0 + mean_below)

  def denoise_probs(
    self, log_score: jax.Array, x: jax.Array, total: jax.typing.ArrayLike
  ) -> jax.Array:
    """The last step, over all the total noise that is left: the Tweedie step."""
    return self.tweedie_probs(log_score, x, total)

  def with_posterior(
    self,
    log_score: jax.Array,
    x: jax.Array,
    total: jax.typing.ArrayLike,
    change: Callable[[jax.Array], jax.Array],
  ) -> jax.Array:
    """Log scores under a changed law of x_0, float[..., S], 0 at the own entry (eq. 18).

    Given the other tokens a position holds y with a probability proportional to its score. Taking
    the noise off leaves the law of x_0 there; the changed one is put under the noise again.

    Args:
      change: of log probabilities float[..., S] of x_0 given the other tokens, to log weights.
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
    """Log scores of tokens at less noise, the other tokens held; float[..., S] (eq. 19).

    -inf where an inconsistent score would make them negative; 0 at the own entry.
    """
    x, total = _position(x, total)
    step = total - _position(x, total_next)[1]
    _, earlier = self._earlier(log_score, x, step)
    own = is_state(x, self.vocab_size)
    log_earlier = jnp.log(jnp.maximum(earlier, 0.0))
    at_own = jnp.sum(jnp.where(own, log_earlier, 0.0), axis=-1, keepdims=True)
    # An own entry of 0: the token is almost surely noise, and any score is as large as can be.
    return jnp.where(own, 0.0, log_earlier - jnp.maximum(at_own, jnp.log(_TINY)))

  def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Where sampling starts: uniform tokens, int32[shape]."""
    return jax.random.randint(key, shape, 0, self.vocab_size, jnp.int32)

  def prior_kl(self, total: jax.Array) -> jax.Array:
    """Of a token that survives with probability exp(-total)."""
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
  """Refuses a parameterization that does not suit a process; both by name.

  Raises:
    ValueError: it is unknown, or belongs to another process; the message says what would suit.
  """
  suiting = [other for other, kind in PROCESSES.items() if name in kind.parameterizations]
  if process in suiting:
    return
  known = " or ".join(map(repr, PROCESSES[process].parameterizations))
  if suiting:
    raise ValueError(
      f"parameterization={name!r} needs the {' or '.join(suiting)} process; the {process} one "
      f"takes {known}"
    )
  raise ValueError(f"parameterization={name!r} must be {known} with the {process} process")


def _position(x: jax.typing.ArrayLike, total: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
  """x and total as arrays, total of x's shape."""
  x, total = jnp.asarray(x), as_float(total)
  return x, jnp.broadcast_to(total, x.shape)
