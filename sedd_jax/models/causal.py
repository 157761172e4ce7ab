"""Autoregressive networks: the law of each token given those before it.

`CausalNetwork` is the trunk of the score transformer with causal attention: the same parameters,
loop, meshes and checkpoints as a score network. Its conditioning sees no noise, so it is constant.
The sequence is shifted by one, with the state that would be the mask in front: that the first token
has a law too makes a sequence's likelihood comparable with a diffusion bound.

B: sequences, L: positions, D: width, V: tokens.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from sedd_jax.diffusion.score import log_prob_of_columns
from sedd_jax.models.build import Params, Transformer, block_graph, ends_graph
from sedd_jax.models.score_transformer import Cache


class Autoregressive(Protocol):
  """An autoregressive network as pure functions; ours (`CausalNetwork`) and GPT-2 (`gpt2.py`).

  Attributes:
    vocab_size: V.
    longest: the most positions it reads.
    start: token that stands before the first one when text is generated.
    scores_first: whether it knows the law of the first token.
    dtype: compute dtype.
  """

  @property
  def vocab_size(self) -> int: ...

  @property
  def longest(self) -> int: ...

  @property
  def start(self) -> int: ...

  @property
  def scores_first(self) -> bool: ...

  @property
  def dtype(self) -> str: ...

  def hidden(self, params: Params, tokens: jax.Array) -> jax.Array:
    """float[B, L, D] of int[B, L]: state i has read tokens 0 to i."""
    ...

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """float32[B, L, V] of int[B, L]: row i is for the token after tokens 0 to i."""
    ...

  def log_prob(self, params: Params, tokens: jax.Array) -> jax.Array:
    """float32[B, L], nats: of each token given those before it; the first is 0 without
    `scores_first`."""
    ...

  def empty_cache(self, batch: int, length: int) -> Any:
    """Room for what `step` keeps of so many positions."""
    ...

  def step(
    self, params: Params, cache: Any, tokens_B: jax.Array, position: jax.Array
  ) -> tuple[jax.Array, Any]:
    """Reads one token of each sequence, or `start`, at a position int32[].

    Returns:
      Logits float32[B, V] for the token after it, and the cache with it.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalNetwork(Transformer):
  """The score transformer's trunk as an autoregressive network.

  Parameters are those of a score network for the absorbing process; the row of the mask in the
  embedding is that of the start.

  Raises:
    ValueError: the config is not causal, or sees the noise.
  """

  scores_first = True
  # Rotary positions have no end; how far the network was trained to read is not known here.
  longest = 2**31 - 1

  def __post_init__(self):
    if not self.config.causal or self.config.time_input:
      raise ValueError(
        f"model.causal={self.config.causal} and model.time_input={self.config.time_input} must be "
        "True and False for an autoregressive network"
      )

  @property
  def vocab_size(self) -> int:
    """V: one state less than there are."""
    return self.config.num_states - 1

  @property
  def start(self) -> int:
    """The last state."""
    return self.vocab_size

  @property
  def dtype(self) -> str:
    return self.config.dtype

  def hidden(self, params: Params, tokens: jax.Array) -> jax.Array:
    """float[B, L, D] of int[B, L]: state i has read tokens 0 to i."""
    return self._read(params, self._started(tokens))[:, 1:]

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """float[B, L, V] of at least float32: row i is for the token after tokens 0 to i."""
    started = self._started(tokens)
    return self.raw(params, started, _no_noise(started))[:, 1:, : self.vocab_size]

  def log_prob(
    self, params: Params, tokens: jax.Array, dropout_keys: jax.Array | None = None
  ) -> jax.Array:
    """log p of each token given those before it, without [B, L, V].

    Args:
      tokens: int[B, L].
      dropout_keys: PRNG keys [B] in training, else None.

    Returns:
      float[B, L] of at least float32, nats.
    """

    def of_columns(columns, hidden_BLD, tokens, *, axis):
      return log_prob_of_columns(
        hidden_BLD,
        columns,
        jnp.full_like(tokens, self.start),
        tokens,
        num_states=self.config.num_states,
        axis=axis,
      )

    hidden_BLD = self._read(params, self._started(tokens)[:, :-1], dropout_keys)
    hidden_BLD = hidden_BLD.astype(self.config.dtype)
    return self.placement.on_columns(of_columns)(*self._stored_head(params), hidden_BLD, tokens)

  def empty_cache(self, batch: int, length: int) -> Cache:
    """Room for so many positions; float[blocks, B, L, H, K]."""
    config = self.config
    shape = (config.blocks, batch, length, config.heads, config.width // config.heads)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

  def step(
    self, params: Params, cache: Cache, tokens_B: jax.Array, position: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Reads one token of each sequence at a position; see `Autoregressive`.

    The start stands at position 0, token i at position i + 1.
    """
    ends = nnx.merge(
      ends_graph(self.config),
      {name: self._used(f"ends/{name}", layer) for name, layer in params["ends"].items()},
    )
    cond_BC = ends.condition(_no_noise(tokens_B[:, None]))
    graph = block_graph(self.config)

    def body(h_B1D, scanned):
      block_params, cache = scanned
      return nnx.merge(graph, self._used("blocks", block_params)).step(
        h_B1D, cond_BC, cache, position
      )

    table_SD = params["ends"]["embedding"]["embedding"].astype(self.config.stream_dtype)
    h_B1D = self.placement.lookup(table_SD, tokens_B[:, None])
    h_B1D, cache = jax.lax.scan(body, h_B1D, (params["blocks"], cache))
    raw_BS = self._apply_head(ends.finish(h_B1D, cond_BC)[:, 0], *self._stored_head(params))
    return raw_BS[:, : self.vocab_size], cache

  def _read(
    self, params: Params, tokens: jax.Array, dropout_keys: jax.Array | None = None
  ) -> jax.Array:
    return self.read(params, tokens, _no_noise(tokens), dropout_keys)

  def _started(self, tokens: jax.Array) -> jax.Array:
    """int[B, L + 1]: the start, and the tokens."""
    return jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=self.start)


def _no_noise(tokens_BL: jax.Array) -> jax.Array:
  return jnp.zeros(tokens_BL.shape[0], jnp.float32)
