"""A trained model in one object: score, sample, infill, bound."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.data import Tokenizer
from sedd_jax.diffusion import STEPS, Given, Noise, sample_rows
from sedd_jax.evaluation.bounds import BoundEstimator
from sedd_jax.models import Network, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBound:
  """Upper bounds on -log p of each sequence, in nats; each float32[B].

  Attributes:
    paper: the diffusion integral over t in [1e-3, 1], as the literature reports.
    strict: the whole bound.
    paper_stderr: Monte Carlo standard error of paper.
    strict_stderr: Monte Carlo standard error of strict.
  """

  paper: np.ndarray
  strict: np.ndarray
  paper_stderr: np.ndarray
  strict_stderr: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
  """A network with its parameters, noise and tokenizer.

  Attributes:
    network: the score network.
    params: its parameters, padded; the moving average of the training.
    noise: its schedule.
    length: tokens in a training sequence.
    tokenizer: text to tokens, or None where the weights came without one.
    info: what else is known: `source` (path or hub id), `origin` (run or hub id that the weights
      come from first), `step`, `corpus`, `evaluation` (the run's last held-out bound), and
      of a run `experiment`.
  """

  network: Network
  params: Params
  noise: Noise
  length: int
  tokenizer: Tokenizer | None = None
  info: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

  def log_score(self, tokens: jax.typing.ArrayLike, total: jax.typing.ArrayLike) -> jax.Array:
    """Log concrete scores.

    Args:
      tokens: int[B, L], each in [0, S).
      total: float[B], total noise, or a scalar for all.

    Returns:
      float32[B, L, S] (float64 for a float64 model); the own entry is 0.

    Raises:
      ValueError: tokens have another rank or lie outside [0, S).
    """
    tokens = self._checked(tokens, self.network.process.num_states)
    total = jnp.broadcast_to(jnp.asarray(total, self.network.config.stream_dtype), tokens.shape[:1])
    return self._log_score(self.params, tokens, total)

  def sample(
    self,
    num: int = 1,
    *,
    steps: int = 64,
    seed: int = 0,
    length: int | None = None,
    sampler: str = "tweedie",
  ) -> np.ndarray:
    """Samples from noise.

    Args:
      num: number of samples.
      steps: sampling steps; the network is called steps + 1 times.
      seed: sample i depends on (seed, i) alone.
      length: tokens; the model's own length by default.
      sampler: `tweedie` or `euler`.

    Returns:
      int32[num, length].

    Raises:
      ValueError: the sampler is unknown, or a number is below 1.
    """
    length = self.length if length is None else length
    nothing = np.zeros((num, length), np.int32)
    return self.infill(nothing, nothing.astype(bool), steps=steps, seed=seed, sampler=sampler)

  def infill(
    self,
    tokens: jax.typing.ArrayLike,
    given: jax.typing.ArrayLike,
    *,
    steps: int = 64,
    seed: int = 0,
    sampler: str = "tweedie",
  ) -> np.ndarray:
    """Samples around given tokens, which never change.

    For the absorbing process the law is the model's conditional law; for the uniform one it is the
    original's heuristic, not the posterior.

    Args:
      tokens: int[B, L]; what stands where given is false does not matter.
      given: bool[B, L].

    Returns:
      int32[B, L].
    """
    given = np.asarray(given, bool)
    tokens = np.where(given, np.asarray(tokens), 0)
    if given.ndim != 2 or 0 in given.shape:
      raise ValueError(f"samples of shape {given.shape}: number and length must be at least 1")
    if sampler not in STEPS:
      raise ValueError(f"sampler={sampler!r} must be one of {', '.join(map(repr, STEPS))}")
    if tokens.min() < 0 or tokens.max() >= self.network.process.vocab_size:
      raise ValueError(
        f"given tokens must lie in [0, {self.network.process.vocab_size}), "
        f"not in [{tokens.min()}, {tokens.max()}]"
      )
    key = jax.random.key(seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(tokens)))
    where = Given(jnp.asarray(tokens, jnp.int32), jnp.asarray(given))
    return np.asarray(self._sample(self.params, keys, where, steps, sampler))

  def bound(
    self, tokens: jax.typing.ArrayLike, *, num_times: int = 64, seed: int = 0
  ) -> SequenceBound:
    """Upper bounds on the negative log likelihood of each sequence.

    Args:
      tokens: int[B, L], clean tokens in [0, V).
      num_times: draws for each sequence; even.
      seed: of times and corruptions.
    """
    tokens = np.asarray(self._checked(tokens, self.network.process.vocab_size))
    estimator = self._estimator(num_times, min(len(tokens), 64))
    terms = estimator.terms(self.params, tokens, seed=seed)

    def stderr(estimates_GB):
      return np.std(estimates_GB, axis=0, ddof=1) / len(estimates_GB) ** 0.5

    return SequenceBound(
      paper=np.mean(terms.paper, axis=0),
      strict=np.mean(terms.strict, axis=0),
      paper_stderr=stderr(terms.paper),
      strict_stderr=stderr(terms.strict),
    )

  def encode(self, text: str) -> np.ndarray:
    """Tokens of a text, int32[T].

    Raises:
      ValueError: the model came without a tokenizer, or does not know a character.
    """
    return self._known_tokenizer().encode(text)

  def decode(self, tokens: Sequence[Sequence[int]] | np.ndarray) -> list[str]:
    """The text of each row of tokens."""
    tokenizer = self._known_tokenizer()
    return [tokenizer.decode(row) for row in np.asarray(tokens)]

  @functools.cached_property
  def _log_score(self):
    return jax.jit(self.network.log_score)

  @functools.cached_property
  def _sample(self):
    @functools.partial(jax.jit, static_argnums=(3, 4))
    def draw(params: Params, keys: jax.Array, given: Given, steps: int, sampler: str) -> jax.Array:
      return sample_rows(
        functools.partial(self.network.each_row, params),
        keys,
        length=given.tokens.shape[1],
        num_steps=steps,
        process=self.network.process,
        noise=self.noise,
        step=STEPS[sampler],
        given=given,
      )

    return draw

  @functools.cached_property
  def _estimator(self):
    @functools.cache
    def make(num_times: int, batch_size: int) -> BoundEstimator:
      return BoundEstimator(self.network, self.noise, num_times=num_times, batch_size=batch_size)

    return make

  def _checked(self, tokens: jax.typing.ArrayLike, limit: int) -> jax.Array:
    array = np.asarray(tokens)
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
      raise ValueError(f"tokens must be int[B, L], not empty, not {array.dtype}{list(array.shape)}")
    if array.min() < 0 or array.max() >= limit:
      raise ValueError(f"tokens must lie in [0, {limit}), not in [{array.min()}, {array.max()}]")
    return jnp.asarray(array, jnp.int32)

  def _known_tokenizer(self) -> Tokenizer:
    if self.tokenizer is None:
      raise ValueError(
        "this model came without a tokenizer: use token ids, or load it with tokenizer='gpt2' or "
        "'gpt2:FOLDER' (--tokenizer on the command line)"
      )
    return self.tokenizer
