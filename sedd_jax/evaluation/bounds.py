"""The likelihood bound on blocks of tokens, whatever estimates it for a sequence.

An `Estimator` is the seam: `diffusion.Estimator` is one of a score network, `Exact` one of an
autoregressive network. `BoundEstimator` compiles it and goes through many blocks, on one device or
on a mesh.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  MIN_TIME,
  Noise,
  Orders,
  Shares,
  Terms,
  TimeIntegral,
  TimeSampling,
  mean_and_stderr,
  supports_orders,
)
from sedd_jax.diffusion.bounds import MOST_DRAWS
from sedd_jax.models import Autoregressive, Network, Params
from sedd_jax.parallel import batch_sharding
from sedd_jax.parallel.memory import check_batch
from sedd_jax.parallel.mesh import batch_multiple, distribute
from sedd_jax.ranges import check, check_seed

# Told the share of the way that is done.
OnShare = Callable[[float], None]


class Estimator(Protocol):
  """Estimates the terms of a bound for each sequence."""

  def terms(self, params: Params, batch: Batch, keys: jax.Array) -> Terms:
    """Terms float[G, B] in nats; pure, and compiled by whoever calls it.

    Args:
      params: padded.
      batch: clean tokens.
      keys: PRNG keys [B]; the estimate of a sequence depends on its tokens and its key alone.
    """
    ...


_DIFFUSION = {"times": TimeIntegral, "lambda": Shares, "orders": Orders}
ESTIMATORS = (*_DIFFUSION, "exact")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
  """What the bound of a diffusion model is estimated from.

  Attributes:
    estimator: `times`, the integral over time of any model; `lambda` or `orders`, of masking
      probabilities or of numbers of masked tokens, for absorbing models of the `conditional`
      parameterization (`diffusion/orders.py`); `exact`, of autoregressive models, which draws
      nothing.
    num_times: draws for each sequence and pass; even.
    time_sampling: `low_discrepancy` or `iid`.

  Raises:
    ValueError: a field is out of range.
  """

  estimator: str = "times"
  num_times: int
  time_sampling: TimeSampling = "low_discrepancy"

  def __post_init__(self):
    if self.estimator not in ESTIMATORS:
      raise ValueError(f"estimator={self.estimator!r} must be one of {', '.join(ESTIMATORS)}")
    if self.num_times < 2 or self.num_times % 2:
      raise ValueError(f"num_times={self.num_times} must be even and at least 2")
    check("num_times", self.num_times, 2, MOST_DRAWS)

  def published(self, terms: Terms) -> jax.Array:
    """What the literature reports of these terms, float[G, B]: of `times` the mean over [1e-3, 1],
    the ends left out; of the others all."""
    return terms.paper / (1.0 - MIN_TIME) if self.estimator == "times" else terms.strict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
  """Upper bounds on the negative log likelihood of some blocks, in bits per character.

  Standard errors are of the Monte Carlo estimate over times and corruptions; the text is fixed.

  Attributes:
    paper: the diffusion integral over t in [1e-3, 1], as the literature reports.
    paper_stderr: its standard error.
    strict: the whole bound (`diffusion/bounds.py`).
    strict_stderr: its standard error.
  """

  paper: float
  paper_stderr: float
  strict: float
  strict_stderr: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
  """-log p of an autoregressive network: no bound, and nothing is drawn.

  A token that does not count is read all the same. `paper` and `strict` are the same.

  Attributes:
    network: the autoregressive network.
  """

  network: Autoregressive

  def terms(self, params: Params, batch: Batch, keys: jax.Array) -> Terms:
    """Twice the same number, so that its spread is 0."""
    del keys
    log_prob = self.network.log_prob(params, batch.tokens, batch.segments)
    nats_B = -jnp.sum(jnp.where(batch.loss_mask, log_prob, 0.0), axis=-1)
    twice = jnp.stack([nats_B, nats_B])
    return Terms(jnp.zeros_like(twice), twice, jnp.zeros_like(twice))


def make_estimator(
  network: Network | Autoregressive, noise: Noise | None, draws: Draws
) -> Estimator:
  """The estimator that some draws stand for.

  Args:
    network: a score network, or an autoregressive one.
    noise: the schedule of a score network.
    draws: which.

  Raises:
    ValueError: it is not for such a network.
  """
  name = draws.estimator
  if not isinstance(network, Network) or noise is None:
    if name != "exact":
      raise ValueError(
        f"the estimator {name!r} is for diffusion models; of an autoregressive one the likelihood "
        "is 'exact'"
      )
    return Exact(network=network)  # pyright: ignore[reportArgumentType]
  if name == "exact":
    raise ValueError("the estimator 'exact' is for autoregressive models: use 'times'")
  if name != "times" and not supports_orders(network.process, network.parameterization):
    raise ValueError(
      f"the estimator {name!r} is for absorbing models of the parameterization "
      f"'conditional' (MDLM, RADD, MD4), which say p(x_i | tokens not masked); this model is "
      f"{network.process.name} and {network.parameterization!r}: use 'times'"
    )
  return _DIFFUSION[name](
    network=network, noise=noise, num_draws=draws.num_times, sampling=draws.time_sampling
  )


class BoundEstimator:
  """Estimates bounds of one model on any blocks; compiles once.

  Args:
    estimator: of the terms of each sequence.
    batch_size: blocks per call; on a mesh, rounded up to what it divides.
    mesh: devices that share the work; by default that of the parameters alone.

  Attributes:
    batch_size: blocks per call.
  """

  def __init__(
    self,
    estimator: Estimator,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self._multiple = multiple = 1 if mesh is None else batch_multiple(mesh)
    check("batch_size", batch_size, 1)
    self.batch_size = -(-batch_size // multiple) * multiple
    self._sharding = None if mesh is None else batch_sharding(mesh)
    whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())

    @functools.partial(jax.jit, out_shardings=whole)
    def terms(params: Params, batch: Batch, index_B: jax.Array, key_data) -> Terms:
      key = jax.random.wrap_key_data(key_data)
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index_B)
      return estimator.terms(params, batch, keys)

    self._terms = terms

  def terms(
    self,
    params: Params,
    blocks: Batch,
    *,
    seed: int = 0,
    passes: int = 1,
    numbers: Sequence[int] | None = None,
    on_progress: OnShare = lambda share: None,
  ) -> Terms:
    """Estimates for each block, float[G passes, N] in nats.

    Those of a block depend on (seed, its number) alone.

    Args:
      params: padded, as the network takes them.
      blocks: N rows.
      seed: of times and corruptions.
      passes: independent passes, each with all draws of the estimate.
      numbers: of the blocks; 0 to N - 1 if None.
      on_progress: told the share that is done, after each batch.
    """
    rows = self.batch_size // self._multiple
    check_batch(
      f"batch_size={self.batch_size}", rows, 5 * blocks.tokens.shape[1], jax.local_devices()
    )
    key = jax.random.key(check_seed(seed))
    index = np.asarray(range(len(blocks.tokens)) if numbers is None else numbers, np.uint32)
    of_pass = [
      self._pass(
        params,
        blocks,
        index,
        jax.random.fold_in(key, i),
        lambda share, i=i: on_progress((i + share) / passes),
      )
      for i in range(passes)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs, axis=0), *of_pass)

  def _pass(
    self,
    params: Params,
    blocks: Batch,
    numbers: np.ndarray,
    key: jax.Array,
    on_progress: OnShare,
  ) -> Terms:
    # Plain numbers: several processes can hand over the same ones.
    key_data = np.asarray(jax.random.key_data(key))
    count = len(blocks.tokens)
    parts = []
    for first in range(0, count, self.batch_size):
      # The last batch is filled up with the last block, so that there is one shape to compile.
      index = np.minimum(np.arange(first, first + self.batch_size), count - 1)
      rows = blocks.map(lambda x, index=index: self._placed(np.asarray(x)[index]))
      terms = self._terms(params, rows, self._placed(numbers[index]), key_data)
      parts.append(jax.tree.map(lambda x, n=count - first: np.asarray(x)[:, :n], terms))
      on_progress(min(1.0, (first + self.batch_size) / count))
    return jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)

  def _placed(self, rows: np.ndarray) -> jax.Array:
    return jnp.asarray(rows) if self._sharding is None else distribute(rows, self._sharding)

  def bound(
    self,
    params: Params,
    blocks: Batch,
    *,
    chars_per_block: float,
    seed: int = 0,
    passes: int = 1,
    on_progress: OnShare = lambda share: None,
  ) -> Bound:
    """The mean over blocks, in bits per character.

    Args:
      chars_per_block: mean number of characters in a block.
    """
    terms = self.terms(params, blocks, seed=seed, passes=passes, on_progress=on_progress)
    scale = 1.0 / (math.log(2.0) * chars_per_block)
    paper, paper_stderr = mean_and_stderr(jnp.asarray(terms.paper))
    strict, strict_stderr = mean_and_stderr(jnp.asarray(terms.strict))
    return Bound(
      paper=float(paper) * scale,
      paper_stderr=float(paper_stderr) * scale,
      strict=float(strict) * scale,
      strict_stderr=float(strict_stderr) * scale,
    )


def evaluation_report(bound: Bound, entropies: Mapping[str, float], **more: Any) -> dict[str, Any]:
  """The object that `sedd evaluate --json` prints.

  Args:
    bound: of the model.
    entropies: from `heldout_entropies`.
    more: further fields.
  """
  return {
    "bits_per_char_paper": bound.paper,
    "bits_per_char_paper_stderr": bound.paper_stderr,
    "bits_per_char_strict": bound.strict,
    "bits_per_char_strict_stderr": bound.strict_stderr,
    **{f"{name}_bits_per_char": bits for name, bits in entropies.items()},
    **more,
  }
