"""Autoregressive networks: the law of each token given those before it.

`CausalNetwork` is the trunk of the score transformer with causal attention: the same parameters,
loop, meshes and checkpoints as a score network. Its conditioning is constant, without noise. The
sequence is shifted by one behind a start token, the absorbing process's mask state. The first token
then has a law too, so the likelihood is comparable with a diffusion bound.

B: sequences, L: positions, D: width, V: tokens.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.score import log_prob_of_columns
from sedd_jax.models.layers import Params
from sedd_jax.models.network import Transformer
from sedd_jax.models.score_transformer import apply_block, condition, finish
from sedd_jax.models.visibility import CAUSAL


class Autoregressive(Protocol):
  """An autoregressive network as pure functions; ours (`CausalNetwork`) and GPT-2 (`gpt2.py`).

  Attributes:
    vocab_size: V.
    width: D.
    longest: the maximum number of positions.
    start: token placed before the first one when text is generated.
    scores_first: whether it models the law of the first token.
    dtype: compute dtype.
  """

  @property
  def vocab_size(self) -> int: ...

  @property
  def width(self) -> int: ...

  @property
  def longest(self) -> int: ...

  @property
  def start(self) -> int: ...

  @property
  def scores_first(self) -> bool: ...

  @property
  def dtype(self) -> str: ...

  def hidden(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Hidden states float[B, L, D] of tokens int[B, L]; state i has read tokens 0 to i."""
    ...

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Logits float32[B, L, V] of tokens int[B, L]; row i is for the token after tokens 0 to i."""
    ...

  def log_prob(
    self, params: Params, tokens: jax.Array, segments: jax.Array | None = None
  ) -> jax.Array:
    """Log probability of each token given earlier tokens of its segment, float32[B, L], nats; the
    first is 0 without `scores_first`."""
    ...

  def empty_cache(self, batch: int, length: int) -> Any:
    """A cache for `step`, with space for this many positions."""
    ...

  def step(
    self, params: Params, cache: Any, tokens_B: jax.Array, position: jax.Array
  ) -> tuple[jax.Array, Any]:
    """Logits float32[B, V] for the next token, and the cache with this one.

    Args:
      tokens_B: one token, or `start`, for each sequence.
      position: int32[].
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalNetwork(Transformer):
  """The score transformer's trunk as an autoregressive network.

  Its parameters are those of a score network for the absorbing process; the start token uses the
  mask's row of the embedding.

  Raises:
    ValueError: the config is not causal, or sees the noise.
  """

  scores_first = True
  # Rotary positions have no limit, and the training length is not known here.
  longest = 2**31 - 1

  def __post_init__(self):
    if self.config.visibility != CAUSAL or self.config.time_input:
      raise ValueError(
        f"model.visibility={self.config.visibility.name!r} and model.time_input="
        f"{self.config.time_input} must be 'causal' and False for an autoregressive network"
      )

  @property
  def vocab_size(self) -> int:
    """V: the number of states minus 1."""
    return self.config.num_states - 1

  @property
  def start(self) -> int:
    """The start token, which is the last state."""
    return self.vocab_size

  @property
  def dtype(self) -> str:
    return self.config.dtype

  def hidden(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Hidden states float[B, L, D] of tokens int[B, L]; state i has read tokens 0 to i."""
    started = self._started(tokens)
    return self.read(params, started, _no_noise(started))[:, 1:]

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Logits float[B, L, V] of at least float32; row i is for the token after tokens 0 to i."""
    started = self._started(tokens)
    return self.raw(params, started, _no_noise(started))[:, 1:, : self.vocab_size]

  def log_prob(
    self,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """Log probability of each token given the tokens before it, without [B, L, V].

    Args:
      tokens: int[B, L].
      segments: int[B, L], as in `Batch`.
      dropout_keys: PRNG keys [B] in training, else None.

    Returns:
      float[B, L] of at least float32, nats.
    """

    def log_prob_from_columns(columns, hidden_BLD, tokens, *, axis):
      return log_prob_of_columns(
        hidden_BLD,
        columns,
        jnp.full_like(tokens, self.start),
        tokens,
        num_states=self.config.num_states,
        axis=axis,
      )

    keys = dropout_keys if self.config.dropout else None
    previous = self._started(tokens)[:, :-1]
    if segments is not None:  # Each segment begins with the start token.
      first = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
      previous = jnp.where(first, self.start, previous)
    hidden_BLD = self.read(params, previous, _no_noise(previous), keys, segments)
    hidden_BLD = hidden_BLD.astype(self.config.dtype)
    run = self.placement.on_columns(log_prob_from_columns)
    return run(*self.stored_head(params), hidden_BLD, tokens)

  def empty_cache(self, batch: int, length: int) -> Any:
    """The mixers' empty caches for this many positions, stacked over blocks."""
    cache = self.config.mixer.empty_cache(batch, length)
    return jax.tree.map(lambda x: jnp.zeros((self.config.blocks, *x.shape), x.dtype), cache)

  def step(
    self, params: Params, cache: Any, tokens_B: jax.Array, position: jax.Array
  ) -> tuple[jax.Array, Any]:
    """Logits for the next token and the new cache; see `Autoregressive`.

    The start token has position 0, token i has position i + 1.
    """
    config = self.config
    ends = self.used_ends(params)
    cond_BC = condition(config, ends, _no_noise(tokens_B))

    def body(h_B1D, scanned):
      stored, cache = scanned
      block = self.used("blocks", stored)

      def mix(a_B1D):
        return config.mixer.step(block, a_B1D, cache, position)

      return apply_block(config, block, h_B1D, cond_BC, mix)

    h_B1D = self.embed(params, tokens_B[:, None])
    h_B1D, cache = jax.lax.scan(body, h_B1D, (params["blocks"], cache))
    hidden_BD = finish(config, ends, h_B1D, cond_BC)[:, 0]
    raw_BS = self.apply_head(hidden_BD, *self.stored_head(params))
    return raw_BS[:, : self.vocab_size], cache

  def _started(self, tokens: jax.Array) -> jax.Array:
    """The start token followed by the tokens, int[B, L + 1]."""
    return jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=self.start)


def _no_noise(tokens: jax.Array) -> jax.Array:
  """Total noise 0 for each row of tokens int[B, ...], float32[B]."""
  return jnp.zeros(tokens.shape[0], jnp.float32)
