"""A trained autoregressive model as one object, with a diffusion model's methods."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.diffusion import Truncation
from sedd_jax.evaluation.bounds import BoundEstimator, Exact
from sedd_jax.generation.generator import Generation, Snapshot
from sedd_jax.generation.model import BatchRequest, LanguageModel, SequenceBound
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.models import Autoregressive, Params, decode
from sedd_jax.parallel import MeshConfig, batch_sharding, make_mesh

_BATCH = 64
# The settings that apply to token-by-token sampling.
_SETTINGS = ("temperature", "top_k", "top_p")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CausalModel(LanguageModel):
  """An autoregressive network with its parameters and tokenizer: a run of ours, or GPT-2.

  Attributes, beside those of `LanguageModel`:
    network: the autoregressive network.
  """

  network: Autoregressive

  def _fits(self, tokens: int) -> bool:
    return tokens <= self.vocab_size  # GPT-2's table may be padded.

  @property
  def vocab_size(self) -> int:
    return self.network.vocab_size

  @property
  def width(self) -> int:
    return self.network.width

  @property
  def dtype(self) -> str:
    return self.network.dtype

  @property
  def mask_id(self) -> int:
    """Marks positions without a token in frames; beyond the vocabulary."""
    return self.network.vocab_size

  def logits(self, tokens: jax.typing.ArrayLike) -> jax.Array:
    """Logits of the next tokens.

    Args:
      tokens: int[B, L], each in [0, V).

    Returns:
      float32[B, L, V] (float64 for a float64 model); row i is for the token after tokens 0 to i.

    Raises:
      ValueError: tokens have another rank, lie outside [0, V), or exceed the model's length.
    """
    return self._logits(self.params, self._readable(tokens))

  def log_prob(self, tokens: jax.typing.ArrayLike) -> np.ndarray:
    """Log probability of each token given the tokens before it, nats.

    Args:
      tokens: int[B, L], each in [0, V).

    Returns:
      float32[B, L]. The first is 0 if the model has no law for it (GPT-2).

    Raises:
      ValueError: as `logits`.
    """
    return np.asarray(self._log_prob(self.params, self._readable(tokens)))

  def bound(self, tokens: jax.typing.ArrayLike) -> SequenceBound:
    """-log p of each sequence, nats, as a bound with errors of 0.

    Args:
      tokens: int[B, L], in [0, V).
    """
    tokens = np.asarray(self._readable(tokens))
    estimator = BoundEstimator(Exact(network=self.network), batch_size=min(len(tokens), _BATCH))
    nats = np.mean(estimator.terms(self.params, Batch.of(np.asarray(tokens))).strict, axis=0)
    zero = np.zeros_like(nats)
    return SequenceBound(paper=nats, strict=nats, paper_stderr=zero, strict_stderr=zero)

  def _generate(self, request: BatchRequest) -> Generation:
    """Samples that continue prefixes, token by token, in L network calls.

    Raises:
      ValueError: the given tokens are not a prefix, or a setting belongs to diffusion models.
    """
    tokens, given = request.tokens, request.given
    self.check_given(given)
    lengths = given.sum(axis=1)
    if request.best_of != 1:
      raise ValueError(f"best_of={request.best_of} must be 1 for an autoregressive model")
    self.check(request.settings)
    start_time, keys = time.monotonic(), request.keys()
    samples, truncation = np.array(tokens, np.int32), request.settings.make_truncation()
    # GPT-2 was trained on texts cut anywhere: it reads a prefix as it is, and its end of text
    # before an empty prefix, as in its own code.
    unstarted = lengths > 0 if not self.network.scores_first else np.zeros(len(lengths), bool)
    for started in (True, False):
      rows = np.flatnonzero(unstarted != started)
      if len(rows):
        decoded = self._decoded(keys[rows], tokens[rows], lengths[rows], truncation, started)
        samples[rows] = np.asarray(decoded)
    if request.on_progress is not None:
      request.on_progress(tokens.shape[1], 1.0)
    watched = request.record or request.on_snapshot is not None
    frames = self._frames(samples, lengths) if watched else np.zeros((0, *samples.shape), np.int32)
    times = np.repeat(np.linspace(1.0, 0.0, len(frames))[:, None], len(samples), axis=1)
    if request.on_snapshot is not None:
      for calls in range(len(frames)):
        request.on_snapshot(Snapshot(frames[calls], times[calls], calls))
    kept = len(frames) if request.record else 0
    return Generation(
      tokens=samples,
      given=given,
      steps=tokens.shape[1],
      calls=tokens.shape[1],
      seconds=time.monotonic() - start_time,
      frames=frames[:kept],
      times=times[:kept],
      calls_by_frame=np.arange(kept, dtype=np.int64),
    )

  def check_given(self, given: np.ndarray) -> None:
    prefix = np.arange(given.shape[1]) < given.sum(axis=1)[:, None]
    if (given != prefix).any():
      raise ValueError(
        "an autoregressive model continues a prefix and cannot fill in: given tokens must come "
        "before all others"
      )

  def check(self, settings: SamplerSettings) -> None:
    default = SamplerSettings()
    if other := [
      f"{field.name}={getattr(settings, field.name)!r}"
      for field in dataclasses.fields(settings)
      if field.name not in _SETTINGS
      and getattr(settings, field.name) != getattr(default, field.name)
    ]:
      raise ValueError(
        f"{', '.join(other)}: an autoregressive model samples token by token; it takes only "
        f"{', '.join(_SETTINGS)}"
      )

  def relevant_settings(self, settings: SamplerSettings) -> dict[str, Any]:
    return {"sampler": "autoregressive"} | {name: getattr(settings, name) for name in _SETTINGS}

  def _decoded(
    self,
    keys: jax.Array,
    tokens: np.ndarray,
    lengths: np.ndarray,
    truncation: Truncation,
    started: bool,
  ) -> jax.Array:
    """Samples int32[B, L], split over the devices."""
    devices, (mesh, params) = self._devices, self._on_devices
    rows = batch_sharding(mesh)
    # Padded with copies of the last sample to the same number on each device.
    count, each = len(tokens), -(-len(tokens) // len(devices))
    index = np.minimum(np.arange(each * len(devices)), count - 1)
    inputs = jax.device_put((keys[index], jnp.asarray(tokens[index]), lengths[index]), rows)
    return self._decode(params, *inputs, truncation=truncation, started=started)[:count]

  @property
  def _devices(self) -> Sequence[Any]:
    return self.devices or jax.local_devices()[:1]

  @functools.cached_property
  def _on_devices(self) -> tuple[jax.sharding.Mesh, Params]:
    """A mesh of the devices, and the parameters replicated on it."""
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=1), self._devices)
    return mesh, jax.device_put(self.params, jax.sharding.NamedSharding(mesh, jax.P()))

  def _frames(self, samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The tokens after each call, int32[L + 1, B, L]."""
    length = samples.shape[1]
    drawn = np.arange(length) < np.maximum(np.arange(length + 1)[:, None], lengths[:, None, None])
    return np.where(np.moveaxis(drawn, 0, 1), samples, self.mask_id).astype(np.int32)

  def _readable(self, tokens: jax.typing.ArrayLike) -> jax.Array:
    tokens = self._checked(tokens, self.vocab_size)
    if tokens.shape[1] > self.network.longest:
      raise ValueError(
        f"{tokens.shape[1]} tokens exceed the {self.network.longest} that this model reads"
      )
    return tokens

  @functools.cached_property
  def _logits(self):
    return jax.jit(self.network.logits)

  @functools.cached_property
  def _log_prob(self):
    return jax.jit(self.network.log_prob)

  @functools.cached_property
  def _decode(self):
    def draw(params: Params, keys, prefix, lengths, **options) -> jax.Array:
      return decode(self.network, params, keys, prefix, lengths, **options)[0]

    return jax.jit(draw, static_argnames="started")
