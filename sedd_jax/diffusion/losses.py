"""Score entropy losses, and their random keys and times.

B: sequences, L: positions, S: states. Everything is in nats and per sequence: the caller reduces.
Derivations: docs/math.md, sections 3 to 5.

The interface to the network is a `StatsFn`: it maps noisy tokens, clean tokens and total noise to
`ScoreStats`. Only its implementation decides whether [B, L, S] is materialized.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.diffusion.levels import Level, at_tokens, map_level, weighted_sum
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.process import Process
from sedd_jax.diffusion.score import ScoreStats

LogScoreFn = Callable[[jax.Array, jax.Array], jax.Array]  # x_BL, total_B -> log_score_BLS
StatsFn = Callable[[jax.Array, jax.Array, Any], ScoreStats]  # x_BL, x0_BL, total -> [B, L]
TimeSampling = Literal["low_discrepancy", "iid"]
TIME_SAMPLINGS: tuple[TimeSampling, ...] = get_args(TimeSampling)

# Training times lie in [MIN_TIME, 1], the original's choice.
MIN_TIME = 1e-3


class ScoreNetwork(Protocol):
  """The score network's interface for losses and bounds."""

  @property
  def process(self) -> Process: ...

  def stats_fn(self, params: Any, batch: Batch) -> StatsFn:
    """The network for rows with a batch's labels and segments."""
    ...


@dataclasses.dataclass(frozen=True)
class DenseNetwork:
  """A `ScoreNetwork` without parameters, made from a function that returns dense log scores.

  Attributes:
    process: the noising process.
    log_score_fn: maps tokens int[B, L] and total noise float[B] to log scores float[B, L, S].
  """

  process: Process
  log_score_fn: LogScoreFn

  def stats_fn(self, params: Any = None, batch: Batch | None = None) -> StatsFn:
    del params, batch
    return lambda x, x0, total: self.process.stats(self.log_score_fn(x, total), x, x0)


def denoising_score_entropy(
  stats_fn: StatsFn,
  batch: Batch,
  t: Level,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
) -> jax.Array:
  """rate(t) times the score entropy of corrupted sequences, summed over positions (eq. 12).

  Its mean over t uniform in [0, 1] is the diffusion part of an upper bound on -log p(x0).

  Args:
    stats_fn: the network (see the module docstring).
    batch: clean tokens; the bound is on the law of the tokens that count, given the others.
    t: times in [0, 1], float[B] or a table.
    keys: PRNG keys [B], one per example.

  Returns:
    float[B], nats per sequence, summed over the tokens that count.
  """
  entropy = score_entropy_at(stats_fn, batch, map_level(noise.total, t), keys, process=process)
  return weighted_sum(map_level(noise.rate, t), entropy)


def score_entropy_at(
  stats_fn: StatsFn, batch: Batch, total: Level, keys: jax.Array, *, process: Process
) -> jax.Array:
  """Score entropy of sequences corrupted at a given total noise.

  Args:
    total: total noise, float[B] or a table; other arguments as in `denoising_score_entropy`.

  Returns:
    float[B, L], nats per unit of total noise; 0 at tokens that do not count.
  """
  x0, at = batch.tokens, at_tokens(total)
  x = jnp.where(batch.loss_mask, jax.vmap(process.corrupt)(keys, x0, at), x0)
  entropy = process.score_entropy_from_stats(stats_fn(x, x0, total), x, x0, at)
  return jnp.where(batch.loss_mask, entropy, 0.0)


def example_keys(key: jax.Array, step: jax.typing.ArrayLike, index: jax.Array) -> jax.Array:
  """One PRNG key per example, a function of (key, step, global example index) alone.

  The keys don't change with the mesh, with accumulation or after a restart.

  Args:
    key: the run's key.
    step: int[], the training step.
    index: int[B], the examples' positions in the global batch.

  Returns:
    PRNG keys [B].
  """
  step_key = jax.random.fold_in(key, step)
  return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(index)


def sample_times(
  key: jax.Array,
  index: jax.Array,
  batch_size: int,
  *,
  sampling: TimeSampling = "low_discrepancy",
  min_time: float = MIN_TIME,
) -> jax.Array:
  """Times for examples of one global batch, in [min_time, 1].

  Low-discrepancy times put one example in each of batch_size equal slices, at a common random
  offset. Slices are assigned in bit-reversed order, so that every aligned shard and micro-batch
  also covers [0, 1] evenly.

  Args:
    key: the step's key, the same on every process.
    index: int[...], positions in the global batch, each in [0, batch_size).
    batch_size: size of the global batch.
    sampling: `low_discrepancy` or `iid`.
    min_time: smallest time.

  Returns:
    float32[...], shape of index.

  Raises:
    ValueError: sampling is unknown.
  """
  match sampling:
    case "low_discrepancy":
      order = jnp.asarray(bit_reversed_order(batch_size))
      unit = (jax.random.uniform(key) + order[index] / batch_size) % 1.0
    case "iid":
      draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
      unit = draw(index.reshape(-1)).reshape(index.shape)
    case _:
      raise ValueError(f"time sampling {sampling!r} must be 'low_discrepancy' or 'iid'")
  return min_time + (1.0 - min_time) * unit


def bit_reversed_order(size: int) -> np.ndarray:
  """int32[size]: the rank of each index when indices are sorted by their reversed bits."""
  bits = max(size - 1, 1).bit_length()
  reversed_bits = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)]
  return np.argsort(np.argsort(reversed_bits)).astype(np.int32)
