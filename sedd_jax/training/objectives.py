"""What a run minimises, and with it how its model is judged and how it makes text.

The loop, the step, meshes and checkpoints know none of this: they ask an `Objective`.

B: sequences, L: positions.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  MIN_TIME,
  Level,
  Noise,
  Sampling,
  Steps,
  TimeIntegral,
  TimeSampling,
  Tweedie,
  denoising_score_entropy,
  even_times,
  nothing_given,
  sample,
)
from sedd_jax.evaluation.bounds import Estimator, Exact
from sedd_jax.models import CausalNetwork, Network, Params, Transformer, decode
from sedd_jax.training.flops import needed_share


class Objective(Protocol):
  """What a run minimises: the mean over a batch of a bound on -log p of each sequence."""

  @property
  def network(self) -> Transformer: ...

  @property
  def time_sampling(self) -> TimeSampling:
    """How the times of a batch are drawn."""
    ...

  @property
  def exact(self) -> bool:
    """Whether `estimator` gives -log p itself, not a bound on it."""
    ...

  @property
  def head_share(self) -> float:
    """Share of positions that need the output layer, on average over times."""
    ...

  def per_example(self, params: Params, batch: Batch, t: jax.Array, keys: jax.Array) -> jax.Array:
    """float[B], nats per sequence, dropout on.

    Args:
      batch: clean tokens.
      t: float[B], times.
      keys: PRNG keys [B].
    """
    ...

  def estimator(self, num_draws: int) -> Estimator:
    """Of the bound on held-out text."""
    ...

  def draw(self, params: Params, keys: jax.Array, length: int, num_steps: int) -> jax.Array:
    """Samples int32[B, length], one for each key, in so many steps where that can be chosen."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreEntropy:
  """The denoising score entropy (eq. 12 of docs/math.md).

  Attributes:
    network: the score network.
    noise: its schedule.
    time_sampling: `low_discrepancy` or `iid`.
  """

  network: Network
  noise: Noise
  time_sampling: TimeSampling = "low_discrepancy"

  @property
  def exact(self) -> bool:
    return False

  @property
  def head_share(self) -> float:
    return needed_share(self.network.process, self.noise)

  def per_example(self, params: Params, batch: Batch, t: Level, keys: jax.Array) -> jax.Array:
    noise_keys, dropout_keys = _two_keys(keys)
    stats_fn = self.network.stats_fn(params, batch, dropout_keys)
    process = self.network.process
    return denoising_score_entropy(
      stats_fn, batch, t, noise_keys, process=process, noise=self.noise
    )

  def estimator(self, num_draws: int) -> Estimator:
    return TimeIntegral(network=self.network, noise=self.noise, num_draws=num_draws)

  def sampling(self, num_steps: int) -> Sampling:
    """Tweedie steps even in time: how samples are shown during training."""
    return Sampling(
      process=self.network.process,
      noise=self.noise,
      sampler=Tweedie(),
      schedule=even_times(num_steps, self.noise),
    )

  def draw(self, params: Params, keys: jax.Array, length: int, num_steps: int) -> jax.Array:
    given = nothing_given(len(keys), length)
    return sample(self.network.scores(params), keys, self.sampling(num_steps), given=given).x


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteTime(ScoreEntropy):
  """D3PM's bound in discrete time for the absorbing process (`diffusion/orders.py`, `Steps`).

  Attributes, beside those of `ScoreEntropy`, whose network is of the `conditional`
  parameterization:
    num_steps: T.
  """

  num_steps: int

  def per_example(self, params: Params, batch: Batch, t: jax.Array, keys: jax.Array) -> jax.Array:
    noise_keys, dropout_keys = _two_keys(keys)
    u = (t - MIN_TIME) / (1.0 - MIN_TIME)
    stats_fn = self.network.stats_fn(params, batch, dropout_keys)
    return self.estimator(2).one_draw(stats_fn, batch, u, noise_keys)

  def estimator(self, num_draws: int) -> Steps:
    """Of the bound in discrete time, as `paper` and as `strict`."""
    return Steps(
      network=self.network, noise=self.noise, num_draws=num_draws, num_steps=self.num_steps
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
  """The cross entropy of each token given those before it: -log p of a sequence, exactly.

  It looks at no times; that they are drawn costs nothing, since nothing depends on them.

  Attributes:
    network: the autoregressive network.
  """

  network: CausalNetwork

  @property
  def time_sampling(self) -> TimeSampling:
    return "iid"

  @property
  def exact(self) -> bool:
    return True

  @property
  def head_share(self) -> float:
    return 1.0

  def per_example(self, params: Params, batch: Batch, t: jax.Array, keys: jax.Array) -> jax.Array:
    del t
    _, dropout_keys = _two_keys(keys)
    log_prob = self.network.log_prob(params, batch.tokens, batch.segments, dropout_keys)
    return -jnp.sum(jnp.where(batch.loss_mask, log_prob, 0.0), axis=-1)

  def estimator(self, num_draws: int) -> Estimator:
    del num_draws
    return Exact(network=self.network)

  def draw(self, params: Params, keys: jax.Array, length: int, num_steps: int) -> jax.Array:
    del num_steps  # As many as there are tokens.
    nothing = jnp.zeros((len(keys), length), jnp.int32)
    return decode(self.network, params, keys, nothing, nothing[:, 0])[0]


def _two_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
  pairs = jax.vmap(jax.random.split)(keys)
  return pairs[:, 0], pairs[:, 1]
