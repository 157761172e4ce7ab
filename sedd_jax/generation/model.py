"""Trained models as objects: score, sample, infill, bound. `causal.py` has autoregressive ones."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.data import Tokenizer
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.diffusion import NO_LIMIT, Given, Noise, TimeIntegral
from sedd_jax.evaluation.bounds import BoundEstimator
from sedd_jax.generation.generator import Generation, Generator, OnProgress, OnSnapshot
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.models import Network, Params
from sedd_jax.ranges import check, check_seed

# Sample numbers lie below this; numbers above it make the keys of candidates.
NUMBERS = 2**31 - 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBound:
  """Upper bounds on -log p of each sequence, in nats; each float32[B].

  Attributes:
    paper: the diffusion integral over t in [1e-3, 1], as in the literature.
    strict: the complete bound.
    paper_stderr: Monte Carlo standard error of paper.
    strict_stderr: Monte Carlo standard error of strict.
  """

  paper: np.ndarray
  strict: np.ndarray
  paper_stderr: np.ndarray
  strict_stderr: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchRequest:
  """The checked arguments of `LanguageModel.generate`; `tokens` is 0 where not given."""

  tokens: np.ndarray
  given: np.ndarray
  settings: SamplerSettings
  seed: int
  numbers: Sequence[int]
  best_of: int
  record: bool
  on_progress: OnProgress | None
  on_snapshot: OnSnapshot | None

  def keys(self, candidate: int = 0) -> jax.Array:
    """PRNG keys [B]."""
    root = jax.random.key(self.seed)
    root = jax.random.fold_in(root, NO_LIMIT - candidate) if candidate else root
    return jax.vmap(lambda n: jax.random.fold_in(root, n))(jnp.asarray(self.numbers, jnp.uint32))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModel(abc.ABC):
  """The interface of all models: text to tokens and back, and samples.

  Attributes:
    params: the network's parameters, padded; the moving average of training.
    length: tokens in a training sequence.
    tokenizer: maps text to tokens, or None if the weights came without a tokenizer.
    devices: the samples are split over them; one device by default.
    info: metadata: `source` (path or hub id), `origin` (run or hub id that the weights first came
      from), `step`, `corpus`, `evaluation` (the run's last held-out bound), and for a run
      `experiment`.
  """

  params: Params
  length: int
  tokenizer: Tokenizer | None = None
  devices: Sequence[Any] = ()
  info: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

  def __post_init__(self):
    """Raises:
    ValueError: the tokenizer is of another vocabulary than the network."""
    tokenizer = self.tokenizer
    if tokenizer is not None and not self._fits(tokenizer.vocab_size):
      raise ValueError(
        f"the tokenizer has {tokenizer.vocab_size} tokens and the model {self.vocab_size}: it is "
        "another model's (--tokenizer on the command line, tokenizer= in Python)"
      )

  def _fits(self, tokens: int) -> bool:
    """Whether a tokenizer with so many tokens may be the model's."""
    return tokens == self.vocab_size

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """V, number of real tokens."""

  @property
  @abc.abstractmethod
  def width(self) -> int:
    """D, of the network's hidden states."""

  @property
  @abc.abstractmethod
  def dtype(self) -> str:
    """Compute dtype of the network."""

  @property
  @abc.abstractmethod
  def mask_id(self) -> int | None:
    """The state of positions without a token yet, or None."""

  # More than six parameters: this is the only list of what callers may set.
  def generate(
    self,
    tokens: jax.typing.ArrayLike,
    given: jax.typing.ArrayLike,
    *,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    best_of: int = 1,
    record: bool = False,
    on_progress: OnProgress | None = None,
    on_snapshot: OnSnapshot | None = None,
  ) -> Generation:
    """The samples of `infill`, with their cost.

    Args:
      tokens: int[B, L]; ignored where given is false.
      given: bool[B, L].
      settings: how to sample.
      seed: see numbers.
      numbers: the randomness of a sample depends only on (seed, its number); 0 to B - 1 if None.
      best_of: number of candidates for each sample. The candidate with the lowest strict bound on
        its negative log likelihood is kept, so samples no longer follow the model's law.
      record: whether to keep the tokens after every step; only with a single candidate.
      on_progress: called occasionally with (steps so far, share of the way).
      on_snapshot: called with a `Snapshot` before the first step and after each; only with a single
        candidate. What it raises ends the sampling.

    Raises:
      ValueError: the arrays don't fit the model, or an argument is out of range.
    """
    tokens, given, numbers = self._checked_request(tokens, given, seed, numbers)
    return self._generate(
      BatchRequest(
        tokens=tokens,
        given=given,
        settings=settings,
        seed=seed,
        numbers=numbers,
        best_of=best_of,
        record=record,
        on_progress=on_progress,
        on_snapshot=on_snapshot,
      )
    )

  @abc.abstractmethod
  def _generate(self, request: BatchRequest) -> Generation:
    """The samples of a checked request."""

  @abc.abstractmethod
  def check(self, settings: SamplerSettings) -> None:
    """Raises ValueError if this model cannot be sampled with these settings."""

  def check_given(self, given: np.ndarray) -> None:  # noqa: B027 - Most models keep any.
    """Raises ValueError if this model cannot keep given tokens there, bool[B, L]."""

  def relevant_settings(self, settings: SamplerSettings) -> dict[str, Any]:
    """The settings that apply to this model, by name."""
    return {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}

  def sample(
    self, num: int = 1, *, length: int | None = None, seed: int = 0, **settings: Any
  ) -> np.ndarray:
    """Samples from noise.

    Args:
      num: number of samples.
      length: tokens, at most the model's length, which is the default.
      seed: the randomness of sample i depends only on (seed, i).
      **settings: fields of `SamplerSettings`: sampler, steps, schedule, temperature, top_k, top_p.

    Returns:
      int32[num, length].

    Raises:
      ValueError: a setting is unknown or out of range.
    """
    length = self.length if length is None else length
    if num < 1 or length < 1:
      raise ValueError(f"num={num} and length={length} must be at least 1")
    nothing = np.zeros((num, length), np.int32)
    return self.infill(nothing, nothing.astype(bool), seed=seed, **settings)

  def infill(
    self,
    tokens: jax.typing.ArrayLike,
    given: jax.typing.ArrayLike,
    *,
    seed: int = 0,
    **settings: Any,
  ) -> np.ndarray:
    """Samples around given tokens, which never change.

    For the absorbing process samples follow the model's conditional law. For the uniform process
    this is the original's heuristic, not the posterior. An autoregressive model takes only a
    prefix.

    Args:
      tokens: int[B, L]; ignored where given is false.
      given: bool[B, L].
      seed: the randomness of sample i depends only on (seed, i).
      **settings: fields of `SamplerSettings`.

    Returns:
      int32[B, L].

    Raises:
      ValueError: the arrays don't fit the model, or a setting is unknown or out of range.
    """
    return self.generate(tokens, given, settings=SamplerSettings(**settings), seed=seed).tokens

  def encode(self, text: str) -> np.ndarray:
    """Tokens of a text, int32[T].

    Raises:
      ValueError: the model came without a tokenizer, or does not know a character.
    """
    return self._known_tokenizer().encode(text)

  def encode_behind(self, text: str) -> np.ndarray:
    """Tokens of a text that stands behind other text, int32[T]: without what some tokenizers put
    before the start of a text, such as a space.

    Raises:
      ValueError: as of `encode`.
    """
    tokenizer = self._known_tokenizer()
    is_library = isinstance(tokenizer, LibraryTokenizer)
    return tokenizer.encode_behind(text) if is_library else tokenizer.encode(text)

  def decode(self, tokens: Sequence[Sequence[int]] | np.ndarray) -> list[str]:
    """The text of each row of tokens.

    Args:
      tokens: int[B, L].

    Raises:
      ValueError: they are no rows, or lie outside [0, V).
    """
    tokenizer, rows = self._known_tokenizer(), np.asarray(tokens)
    if rows.ndim != 2:
      raise ValueError(f"tokens must be int[B, L], rows of tokens, not of shape {rows.shape}")
    return [tokenizer.decode(row) for row in rows]

  def text(self, tokens: jax.typing.ArrayLike, given: jax.typing.ArrayLike | None = None) -> str:
    """The text of one sample, up to its end-of-text token if the tokenizer has one.

    Args:
      tokens: int[L].
      given: bool[L]; end-of-text tokens before the last given token are ignored.
    """
    tokenizer, tokens = self._known_tokenizer(), np.asarray(tokens)
    if tokenizer.eos_id is not None:
      after = 0 if given is None else np.max(np.flatnonzero(given), initial=-1) + 1
      ends = np.flatnonzero(tokens[after:] == tokenizer.eos_id)
      tokens = tokens[: after + ends[0]] if len(ends) else tokens
    return tokenizer.decode(tokens)

  def _checked_request(
    self,
    tokens: jax.typing.ArrayLike,
    given: jax.typing.ArrayLike,
    seed: int,
    numbers: Sequence[int] | None,
  ) -> tuple[np.ndarray, np.ndarray, Sequence[int]]:
    """Tokens int[B, L], given bool[B, L] and sample numbers for a request, with defaults filled in.

    Raises:
      ValueError: the arguments don't fit the model.
    """
    given = np.asarray(given, bool)
    tokens = np.where(given, np.asarray(tokens), 0)
    if given.ndim != 2 or 0 in given.shape:
      raise ValueError(f"samples of shape {given.shape}: number and length must be at least 1")
    if given.shape[1] > self.length:
      raise ValueError(f"length={given.shape[1]} exceeds the {self.length} tokens of this model")
    if tokens.min() < 0 or tokens.max() >= self.vocab_size:
      raise ValueError(
        f"given tokens must lie in [0, {self.vocab_size}), not in [{tokens.min()}, {tokens.max()}]"
      )
    check_seed(seed)
    numbers = range(len(tokens)) if numbers is None else numbers
    if len(numbers) != len(tokens) or min(numbers) < 0 or max(numbers) >= NUMBERS:
      raise ValueError(
        f"numbers must be {len(tokens)}, one for each sample, in [0, 2^31 - 2^16), not {numbers!r}"
      )
    return tokens, given, numbers

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
        "this model came without a tokenizer: use token ids, or load it with tokenizer='gpt2', a "
        "tokenizer.json or a folder with one (--tokenizer on the command line)"
      )
    return self.tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model(LanguageModel):
  """A score network with its parameters, noise and tokenizer.

  Attributes, beside those of `LanguageModel`:
    network: the score network.
    noise: its schedule.
  """

  network: Network
  noise: Noise

  @property
  def vocab_size(self) -> int:
    return self.network.process.vocab_size

  @property
  def width(self) -> int:
    return self.network.width

  @property
  def dtype(self) -> str:
    return self.network.config.dtype

  @property
  def mask_id(self) -> int | None:
    return self.network.process.mask_id

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
    total = jnp.broadcast_to(jnp.asarray(total, self.network.config.wide_dtype), tokens.shape[:1])
    return self._log_score(self.params, tokens, total)

  def _generate(self, request: BatchRequest) -> Generation:
    best_of = request.best_of
    check("best_of", best_of, 1, NO_LIMIT - NUMBERS)
    if (request.record or request.on_snapshot is not None) and best_of > 1:
      raise ValueError(f"best_of={best_of} must be 1 if steps are recorded or watched")
    sampling = request.settings.sampling(self.network.process, self.noise)
    given = Given(jnp.asarray(request.tokens, jnp.int32), jnp.asarray(request.given))

    def candidate(i: int) -> Generation:
      return self._generator(
        sampling,
        request.keys(i),
        given,
        record=request.record,
        on_progress=request.on_progress,
        on_snapshot=request.on_snapshot,
      )

    best = candidate(0)
    if best_of == 1:
      return best
    bounds = self._strict(best.tokens, request)
    for i in range(1, best_of):
      other = candidate(i)
      other_bounds = self._strict(other.tokens, request)
      better = other_bounds < bounds
      bounds = np.where(better, other_bounds, bounds)
      best = dataclasses.replace(
        best,
        tokens=np.where(better[:, None], other.tokens, best.tokens),
        calls=best.calls + other.calls,
        seconds=best.seconds + other.seconds,
      )
    return best

  def check(self, settings: SamplerSettings) -> None:
    settings.sampling(self.network.process, self.noise)

  def bound(
    self, tokens: jax.typing.ArrayLike, *, num_times: int = 64, seed: int = 0
  ) -> SequenceBound:
    """Upper bounds on the negative log likelihood of each sequence.

    Args:
      tokens: int[B, L], clean tokens in [0, V).
      num_times: draws for each sequence; even.
      seed: seed of times and corruptions.
    """
    tokens = np.asarray(self._checked(tokens, self.network.process.vocab_size))
    estimator = self._estimator(num_times, min(len(tokens), 64))
    terms = estimator.terms(self.params, Batch.of(tokens), seed=seed)

    def stderr(estimates_GB):
      return np.std(estimates_GB, axis=0, ddof=1) / len(estimates_GB) ** 0.5

    return SequenceBound(
      paper=np.mean(terms.paper, axis=0),
      strict=np.mean(terms.strict, axis=0),
      paper_stderr=stderr(terms.paper),
      strict_stderr=stderr(terms.strict),
    )

  def _strict(self, tokens: np.ndarray, request: BatchRequest) -> np.ndarray:
    """Strict bounds float32[B]; their draws depend only on (seed, number)."""
    estimator = self._estimator(64, min(len(tokens), 64))
    terms = estimator.terms(
      self.params, Batch.of(tokens), seed=request.seed, numbers=request.numbers
    )
    return np.mean(terms.strict, axis=0)

  @functools.cached_property
  def _log_score(self):
    return jax.jit(self.network.log_score)

  @functools.cached_property
  def _generator(self) -> Generator:
    return Generator(self.network, self.params, self.devices or jax.local_devices()[:1])

  @functools.cached_property
  def _estimator(self):
    @functools.cache
    def make(num_times: int, batch_size: int) -> BoundEstimator:
      estimator = TimeIntegral(network=self.network, noise=self.noise, num_draws=num_times)
      return BoundEstimator(estimator, batch_size=batch_size)

    return make
