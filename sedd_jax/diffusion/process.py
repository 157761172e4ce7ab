"""What a noising process answers: rates, transitions, ratios, score entropy and reverse steps.

Every token jumps independently, at rate 1, to a draw from a law pi: the mask, or uniform over
tokens (`absorbing.py`, `uniform.py`). Code elsewhere never tests for the class of a process: it
calls these methods. Conventions, derivations and equation numbers: docs/math.md.

Shapes: x and x0 are int[...]; total broadcasts to their shape; rows are float[..., S]. The own
entry (y = x) of an argument log_score is ignored and means 0.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.numerics import as_float, is_state
from sedd_jax.diffusion.parameterizations import Parameterization
from sedd_jax.diffusion.score import ScoreStats

# By their names in configs; filled as their classes are defined.
PROCESSES: dict[str, type["Process"]] = {}
# Total noise is clipped here, far below any time in use, to keep 1 / total finite in float32.
TINY = 1e-30


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

  def __init_subclass__(cls):
    PROCESSES[cls.name] = cls

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


def aligned(x: jax.typing.ArrayLike, total: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
  """x and total as arrays, total of x's shape."""
  x, total = jnp.asarray(x), as_float(total)
  return x, jnp.broadcast_to(total, x.shape)
