"""Score entropy losses, and the keys and times that they are estimated with.

B: sequences, L: positions, S: states. Everything is in nats and per sequence: the caller reduces.
Derivations: docs/math.md, sections 3 to 5.

The seam to the network is a `StatsFn`: noisy tokens, clean tokens and total noise in, `ScoreStats`
out. Whoever builds it decides whether [B, L, S] ever exists.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.process import Process
from sedd_jax.diffusion.score import ScoreStats

LogScoreFn = Callable[[jax.Array, jax.Array], jax.Array]  # x_BL, total_B -> log_score_BLS
StatsFn = Callable[[jax.Array, jax.Array, jax.Array], ScoreStats]  # x_BL, x0_BL, total_B -> [B, L]
TimeSampling = Literal["low_discrepancy", "iid"]
TIME_SAMPLINGS: tuple[TimeSampling, ...] = get_args(TimeSampling)

# Training times lie in [MIN_TIME, 1], the original's choice.
MIN_TIME = 1e-3


def from_log_score(log_score_fn: LogScoreFn, process: Process) -> StatsFn:
  """The StatsFn of a function that returns dense log scores."""
  return lambda x_BL, x0_BL, total_B: process.stats(log_score_fn(x_BL, total_B), x_BL, x0_BL)


def denoising_score_entropy(
  stats_fn: StatsFn,
  x0: jax.Array,
  t: jax.Array,
  keys: jax.Array,
  *,
  process: Process,
  noise: Noise,
) -> jax.Array:
  """rate(t) times the score entropy of corrupted sequences, summed over positions (eq. 12).

  Its mean over t uniform in [0, 1] is the diffusion part of an upper bound on -log p(x0).

  Args:
    stats_fn: the network (see the module docstring).
    x0: int[B, L], clean tokens. One that is given, so that it stays clean and does not count, is
      its complement ~token; then the bound is on the law of the others, given these.
    t: float[B], times in [0, 1].
    keys: PRNG keys [B], one per example.

  Returns:
    float[B], nats per sequence, of the tokens that count.
  """
  return noise.rate(t) * score_entropy_at(stats_fn, x0, noise.total(t), keys, process=process)


def score_entropy_at(
  stats_fn: StatsFn, x0: jax.Array, total: jax.Array, keys: jax.Array, *, process: Process
) -> jax.Array:
  """Score entropy of sequences corrupted with given total noise, summed over positions.

  Args:
    total: float[B], total noise of each sequence; the others as in `denoising_score_entropy`.

  Returns:
    float[B], nats per unit of total noise.
  """
  counts, x0 = x0 >= 0, jnp.where(x0 >= 0, x0, ~x0)
  x = jnp.where(counts, jax.vmap(process.corrupt)(keys, x0, total), x0)
  stats = stats_fn(x, x0, total)
  entropy = process.score_entropy_from_stats(stats, x, x0, total[:, None])
  return jnp.sum(jnp.where(counts, entropy, 0.0), axis=-1)


def example_keys(key: jax.Array, step: jax.typing.ArrayLike, index: jax.Array) -> jax.Array:
  """One PRNG key per example, a function of (key, step, global example index) alone.

  The same on any mesh, for any accumulation and after any restart.

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
  offset. Slices are handed out in bit-reversed order, so that every aligned shard and micro-batch
  covers [0, 1] evenly too.

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
