"""GPT-2 (Radford et al. 2019): the judge of generated text, as pure functions of nested dicts.

Pre-norm blocks with learned positions, biases everywhere, GELU in its tanh form, a causal mask, and
an output layer that is the embedding unless the weights bring another. Residual stream, norms,
softmax and logits are float32 at least; linear maps and attention take their inputs in
`config.dtype`, and float32 means float32 on accelerators too, where products would be rounded.

Parameter paths (float32, blocks stacked along a leading axis):

  embedding [V, D], positions [N, D], norm/{scale, bias} [D], output [D, V] where it is not tied
  blocks/{norm1, norm2}/{scale, bias}, blocks/{qkv, attn_out, mlp_in, mlp_out}/{kernel, bias}

B: sequences, L: positions, D: width, H: heads, K: head width, V: vocabulary, M: positions that are
read, N: `longest`, R: rows, T: rows of a tile.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp

Dtype = Literal["float32", "bfloat16", "float64"]
Params = dict[str, Any]
# Keys and values of all blocks, each float[blocks, B, M, H, K].
Cache = tuple[jax.Array, jax.Array]

# Logits that `log_prob` holds at a time: 256 MiB in float32.
_MOST_LOGITS = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
  """Shape and numerics, by the names of Hugging Face's config.json.

  Attributes:
    vocab_size: V.
    n_positions: most positions it can read.
    n_embd: D.
    n_layer: number of blocks.
    n_head: H; must divide n_embd.
    n_inner: width inside the MLP; 4 D if None.
    layer_norm_epsilon: added to variances.
    activation_function: `gelu_new`, the tanh form, and no other.
    scale_attn_weights: whether attention logits are multiplied by K^-1/2.
    scale_attn_by_inverse_layer_idx: whether those of block i are divided by i + 1.
    tie_word_embeddings: whether the output layer is the embedding.
    bos_token_id: the token that stands before a text, <|endoftext|>.
    dtype: compute dtype of linear maps and attention.

  Raises:
    ValueError: fields are out of range or not supported; the message names them, a line for each.
  """

  vocab_size: int
  n_positions: int
  n_embd: int
  n_layer: int
  n_head: int
  n_inner: int | None = None
  layer_norm_epsilon: float = 1e-5
  activation_function: str = "gelu_new"
  scale_attn_weights: bool = True
  scale_attn_by_inverse_layer_idx: bool = False
  tie_word_embeddings: bool = True
  bos_token_id: int = 0
  dtype: Dtype = "float32"

  def __post_init__(self):
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner")
    faults = [
      f"{name}={getattr(self, name)} must be at least 1"
      for name in sizes
      if getattr(self, name) < 1
    ]
    if self.n_head >= 1 and self.n_embd % self.n_head:
      faults.append(f"n_head={self.n_head} must divide n_embd={self.n_embd}")
    if not self.layer_norm_epsilon > 0:
      faults.append(f"layer_norm_epsilon={self.layer_norm_epsilon} must be positive")
    if self.activation_function != "gelu_new":
      faults.append(
        f"activation_function={self.activation_function!r} must be 'gelu_new', GPT-2's own"
      )
    if not 0 <= self.bos_token_id < self.vocab_size:
      faults.append(f"bos_token_id={self.bos_token_id} must lie in [0, {self.vocab_size})")
    if self.dtype not in get_args(Dtype):
      faults.append(f"dtype={self.dtype!r} must be one of {', '.join(get_args(Dtype))}")
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def inner(self) -> int:
    """Width inside the MLP."""
    return 4 * self.n_embd if self.n_inner is None else self.n_inner

  @property
  def stream_dtype(self) -> jnp.dtype:
    """dtype of the residual stream, the norms, the softmax and the logits."""
    return jnp.promote_types(self.dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class GPT2:
  """The network.

  Row i of what it returns has read tokens 0 to i, and is about token i + 1: there is no law of the
  first token (`scores_first`) but behind a `start` that the caller puts there.

  Attributes:
    config: shape and numerics.
  """

  config: GPT2Config

  scores_first = False

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.config.vocab_size

  @property
  def dtype(self) -> str:
    """Compute dtype."""
    return self.config.dtype

  @property
  def longest(self) -> int:
    """Most positions that it can read."""
    return self.config.n_positions

  @property
  def start(self) -> int:
    """The token that stands before the first one when text is sampled."""
    return self.config.bos_token_id

  def shapes(self) -> Params:
    """The parameters' shapes and dtypes, as `jax.ShapeDtypeStruct`s."""
    width, blocks, inner = self.config.n_embd, self.config.n_layer, self.config.inner

    def array(*shape: int) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(shape, jnp.float32)

    def linear(fan_in: int, fan_out: int) -> Params:
      return {"kernel": array(blocks, fan_in, fan_out), "bias": array(blocks, fan_out)}

    def norm(*leading: int) -> Params:
      return {"scale": array(*leading, width), "bias": array(*leading, width)}

    output = {} if self.config.tie_word_embeddings else {"output": array(width, self.vocab_size)}
    return output | {
      "embedding": array(self.vocab_size, width),
      "positions": array(self.longest, width),
      "norm": norm(),
      "blocks": {
        "norm1": norm(blocks),
        "qkv": linear(width, 3 * width),
        "attn_out": linear(width, width),
        "norm2": norm(blocks),
        "mlp_in": linear(width, inner),
        "mlp_out": linear(inner, width),
      },
    }

  def num_parameters(self) -> int:
    """Number of parameters; a tied output layer counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes()))

  def hidden(self, params: Params, tokens: jax.Array) -> jax.Array:
    """What the output layer reads.

    Args:
      params: as `shapes` says.
      tokens: int[B, L], in [0, V); L at most `longest`.

    Returns:
      float[B, L, D] of at least float32; state i has read tokens 0 to i.

    Raises:
      ValueError: L exceeds `longest`.
    """
    chex.assert_rank(tokens, 2)
    batch, length = tokens.shape
    if length > self.longest:
      raise ValueError(f"{length} tokens exceed the {self.longest} positions of this model")
    positions = jnp.arange(length)
    seen_LM = positions[None, :] <= positions[:, None]

    def body(h_BLD, block):
      params, scale = block
      q, k, v = self._qkv(params, h_BLD)
      return self._finish_block(params, h_BLD, self._attend(q, k, v, seen_LM, scale)), None

    h_BLD = self._embed(params, tokens, jnp.broadcast_to(positions, (batch, length)))
    h_BLD, _ = jax.lax.scan(body, h_BLD, (params["blocks"], self._scales()))
    return self._norm(params["norm"], h_BLD)

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Unnormalised log probabilities of the next token, float[B, L, V] of at least float32.

    Args:
      params: as `shapes` says.
      tokens: int[B, L].

    Raises:
      ValueError: L exceeds `longest`.
    """
    return self._head(params, self.hidden(params, tokens))

  def log_prob(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Log probability of each token given those before it, in nats; [B, L, V] is never held.

    Args:
      params: as `shapes` says.
      tokens: int[B, L].

    Returns:
      float[B, L] of at least float32; entry 0 is 0, since the first token has no law.

    Raises:
      ValueError: L exceeds `longest`.
    """
    hidden_BLD = self.hidden(params, tokens)
    batch, length, width = hidden_BLD.shape
    rows, targets = hidden_BLD[:, :-1].reshape(-1, width), tokens[:, 1:].reshape(-1)
    if length < 2:
      return jnp.zeros((batch, length), hidden_BLD.dtype)
    tiles = min(-(-rows.shape[0] * self.vocab_size // _MOST_LOGITS), rows.shape[0])
    extra = -rows.shape[0] % tiles

    def tile(args):
      hidden_TD, target_T = args
      logits_TV = self._head(params, hidden_TD)
      of_target_T = jnp.take_along_axis(logits_TV, target_T[:, None], axis=-1)[:, 0]
      return of_target_T - jax.nn.logsumexp(logits_TV, axis=-1)

    parts = jax.tree.map(
      lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)).reshape(tiles, -1, *x.shape[1:]),
      (rows, targets),
    )
    log_prob_R = jax.lax.map(tile, parts).reshape(-1)[: batch * (length - 1)]
    return jnp.pad(log_prob_R.reshape(batch, length - 1), ((0, 0), (1, 0)))

  def empty_cache(self, batch: int, length: int) -> Cache:
    """Room for the keys and values of so many sequences and positions.

    Raises:
      ValueError: length exceeds `longest`.
    """
    if not 1 <= length <= self.longest:
      raise ValueError(f"a cache of {length} positions: this model reads 1 to {self.longest}")
    config = self.config
    shape = (config.n_layer, batch, length, config.n_head, config.n_embd // config.n_head)
    return jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)

  def step(
    self, params: Params, cache: Cache, token: jax.Array, position: jax.typing.ArrayLike
  ) -> tuple[jax.Array, Cache]:
    """Reads one token of each sequence.

    Args:
      params: as `shapes` says.
      cache: from `empty_cache` or the step before; it holds all positions before this one.
      token: int[B].
      position: int32[], of this token, below the length of the cache.

    Returns:
      Logits of the next token, float[B, V] of at least float32, and the cache with this token.
    """
    chex.assert_rank([token, position], [1, 0])
    seen_LM = jnp.arange(cache[0].shape[2])[None, :] <= position

    def body(h_BLD, block):
      params, scale, keys, values = block
      q, k, v = self._qkv(params, h_BLD)
      keys = jax.lax.dynamic_update_slice_in_dim(keys, k, position, axis=1)
      values = jax.lax.dynamic_update_slice_in_dim(values, v, position, axis=1)
      out_BLD = self._attend(q, keys, values, seen_LM, scale)
      return self._finish_block(params, h_BLD, out_BLD), (keys, values)

    where = jnp.broadcast_to(position, (token.shape[0], 1))
    h_BLD = self._embed(params, token[:, None], where)
    h_BLD, cache = jax.lax.scan(body, h_BLD, (params["blocks"], self._scales(), *cache))
    return self._head(params, self._norm(params["norm"], h_BLD)[:, 0]), cache

  def _embed(self, params: Params, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    dtype = self.config.stream_dtype
    h_BLD = params["embedding"][tokens].astype(dtype)
    return h_BLD + params["positions"][positions].astype(dtype)

  def _scales(self) -> jax.Array:
    """What attention logits are multiplied by, float[blocks]."""
    config = self.config
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    layers = jnp.arange(1, config.n_layer + 1, dtype=config.stream_dtype)
    divisors = layers if config.scale_attn_by_inverse_layer_idx else jnp.ones_like(layers)
    return scale / divisors

  def _qkv(self, block: Params, h_BLD: jax.Array) -> list[jax.Array]:
    """Queries, keys and values, float[B, L, H, K] of the compute dtype."""
    a_BLX = self._linear(block["qkv"], self._norm(block["norm1"], h_BLD)).astype(self.config.dtype)
    heads = (*h_BLD.shape[:2], self.config.n_head, -1)
    return [z.reshape(heads) for z in jnp.split(a_BLX, 3, axis=-1)]

  def _attend(
    self, q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, seen_LM: jax.Array, scale
  ) -> jax.Array:
    """float[B, L, D], of the positions that are seen."""
    logits_BHLM = self._product("blhk,bmhk->bhlm", q_BLHK, k_BMHK) * scale
    lowest = jnp.finfo(logits_BHLM.dtype).min
    weights_BHLM = jax.nn.softmax(jnp.where(seen_LM[None, None], logits_BHLM, lowest), axis=-1)
    out_BLHK = self._product("bhlm,bmhk->blhk", weights_BHLM.astype(v_BMHK.dtype), v_BMHK)
    return out_BLHK.reshape(*out_BLHK.shape[:2], -1)

  def _finish_block(self, block: Params, h_BLD: jax.Array, attended_BLD: jax.Array) -> jax.Array:
    h_BLD = h_BLD + self._linear(block["attn_out"], attended_BLD)
    m_BLF = self._linear(block["mlp_in"], self._norm(block["norm2"], h_BLD))
    return h_BLD + self._linear(block["mlp_out"], jax.nn.gelu(m_BLF, approximate=True))

  def _norm(self, layer: Params, z: jax.Array) -> jax.Array:
    centered = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    scale, bias = (
      jnp.expand_dims(layer[name].astype(z.dtype), range(z.ndim - 1)) for name in ("scale", "bias")
    )
    return centered * jax.lax.rsqrt(variance + self.config.layer_norm_epsilon) * scale + bias

  def _linear(self, layer: Params, z_BLD: jax.Array) -> jax.Array:
    bias = layer["bias"].astype(self.config.stream_dtype)
    return self._product("bld,df->blf", z_BLD, layer["kernel"]) + bias[None, None, :]

  def _head(self, params: Params, h: jax.Array) -> jax.Array:
    """Logits float[..., V] of hidden states float[..., D]."""
    if self.config.tie_word_embeddings:
      return self._product("...d,vd->...v", h, params["embedding"])
    return self._product("...d,dv->...v", h, params["output"])

  def _product(self, axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of inputs in the compute dtype, summed in float32 at least.

    By default TPUs round float32 inputs to bfloat16, and GPUs to TensorFloat-32.
    """
    return jnp.einsum(
      axes,
      a.astype(self.config.dtype),
      b.astype(self.config.dtype),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=self.config.stream_dtype,
    )
