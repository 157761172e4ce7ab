"""GPT-2 (Radford et al. 2019): the judge of generated text, as pure functions of nested dicts.

Pre-norm blocks with learned positions, biases everywhere, tanh GELU, a causal mask, and an output
layer tied to the embedding unless the weights have their own. Residual stream, norms, softmax and
logits are at least float32. Linear maps and attention take inputs in `config.dtype`; float32
products are not rounded on accelerators either. Attention, output tiles and placement are shared
with our own networks.

Parameter paths (float32, blocks stacked along a leading axis):

  embedding [V, D], positions [N, D], norm/{scale, bias} [D], output [D, V] if not tied
  blocks/{norm1, norm2}/{scale, bias}, blocks/{qkv, attn_out, mlp_in, mlp_out}/{kernel, bias}

B: sequences, L: positions, D: width, H: heads, K: head width, V: vocabulary, M: positions of a
cache, N: `longest`.
"""

import dataclasses
import functools
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax import P

from sedd_jax.diffusion.score import log_prob_of_columns
from sedd_jax.models.attention import attend_one, attention
from sedd_jax.models.layers import Layer, Params, Table, normal, ones, zeros
from sedd_jax.models.mixers import Cache
from sedd_jax.models.placement import EMBEDDING, OUTPUT_KERNEL, Placement
from sedd_jax.models.visibility import CAUSAL, Visibility

Dtype = Literal["float32", "bfloat16", "float64"]
# Keeps accelerators from rounding float32 products to bfloat16 or TensorFloat-32.
_exactly = jax.default_matmul_precision("highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
  """Shape and numerics, with the names of Hugging Face's config.json.

  Attributes:
    vocab_size: V.
    n_positions: maximum number of positions.
    n_embd: D.
    n_layer: number of blocks.
    n_head: H; must divide n_embd.
    n_inner: width inside the MLP; 4 D if None.
    layer_norm_epsilon: added to variances.
    activation_function: `gelu_new`, the tanh form; no other is supported.
    scale_attn_weights: whether attention logits are multiplied by K^-1/2.
    scale_attn_by_inverse_layer_idx: whether attention logits of block i are divided by i + 1.
    tie_word_embeddings: whether the output layer is the embedding.
    bos_token_id: the token before a text, <|endoftext|>.
    dtype: compute dtype of linear maps and attention.

  Raises:
    ValueError: fields are out of range or not supported; the message has one line per field.
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

  Output row i has read tokens 0 to i and predicts token i + 1. The first token has no law
  (`scores_first`), unless the caller puts `start` before it.

  Attributes:
    config: shape and numerics.
    placement: where its arrays live; one device by default.
  """

  config: GPT2Config
  placement: Placement = Placement()

  scores_first = False

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.config.vocab_size

  @property
  def width(self) -> int:
    """D."""
    return self.config.n_embd

  @property
  def dtype(self) -> str:
    """Compute dtype."""
    return self.config.dtype

  @property
  def longest(self) -> int:
    """Maximum number of positions."""
    return self.config.n_positions

  @property
  def start(self) -> int:
    """The token before the first one when text is sampled."""
    return self.config.bos_token_id

  @functools.cached_property
  def table(self) -> Table:
    """All layers; their original names are Hugging Face's."""
    return _table(self.config)

  def shapes(self) -> Params:
    """The parameters' shapes and dtypes, as `jax.ShapeDtypeStruct`s."""
    return self.table.shapes()

  def num_parameters(self) -> int:
    """Number of parameters; a tied output layer counts once."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.shapes()))

  @_exactly
  def hidden(
    self, params: Params, tokens: jax.Array, segments: jax.Array | None = None
  ) -> jax.Array:
    """Hidden states, the input of the output layer.

    Args:
      params: parameters, see `shapes`.
      tokens: int[B, L], in [0, V); L at most `longest`.
      segments: int[B, L], see `Batch`; positions count from the start of the row.

    Returns:
      float[B, L, D] of at least float32; state i has read tokens 0 to i.

    Raises:
      ValueError: L exceeds `longest`.
    """
    chex.assert_rank(tokens, 2)
    if tokens.shape[1] > self.longest:
      raise ValueError(
        f"{tokens.shape[1]} tokens exceed the {self.longest} positions of this model"
      )
    place, visibility = self.placement, Visibility(CAUSAL, segments)

    def body(h_BLD, scanned):
      stored, scale = scanned
      block = self._used("blocks", stored)
      q, k, v = self._qkv(block, place.activations(h_BLD), scale)
      out = attention(q, k, v, visibility, kernel="xla", per_shard=place.per_shard)
      return self._finish_block(block, h_BLD, out), None

    h_BLD = place.activations(self._embed(params, tokens, jnp.arange(tokens.shape[1])))
    h_BLD, _ = jax.lax.scan(body, h_BLD, (params["blocks"], self._query_scales()))
    return self._norm(params["norm"], place.activations(h_BLD))

  @_exactly
  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Unnormalised log probabilities of the next token, float[B, L, V] of at least float32.

    Args:
      params: parameters, see `shapes`.
      tokens: int[B, L].

    Raises:
      ValueError: L exceeds `longest`.
    """
    return self._logits(params, self.hidden(params, tokens))

  @_exactly
  def log_prob(
    self, params: Params, tokens: jax.Array, segments: jax.Array | None = None
  ) -> jax.Array:
    """Log probability of each token given the tokens before it, in nats, without [B, L, V].

    Args:
      params: parameters, see `shapes`.
      tokens: int[B, L].
      segments: as in `hidden`.

    Returns:
      float[B, L] of at least float32; entry 0 is 0 because the first token has no law.

    Raises:
      ValueError: L exceeds `longest`.
    """

    def log_prob_from_columns(columns, hidden_BLD, tokens, *, axis):
      left_out = jnp.full_like(tokens, self.vocab_size)  # Beyond the states: none is left out.
      return log_prob_of_columns(
        hidden_BLD, columns, left_out, tokens, num_states=self.vocab_size, axis=axis
      )

    hidden_BLD = self.hidden(params, tokens, segments).astype(self.config.dtype)
    if tokens.shape[1] < 2:
      return jnp.zeros(tokens.shape, self.config.stream_dtype)
    bias = jnp.zeros(self.vocab_size, self.config.stream_dtype)
    run = self.placement.on_columns(log_prob_from_columns)
    log_prob = run(self._head(params), bias, hidden_BLD[:, :-1], tokens[:, 1:])
    if segments is not None:  # The first token of a segment has no law either.
      log_prob = jnp.where(segments[:, 1:] == segments[:, :-1], log_prob, 0.0)
    return jnp.pad(log_prob, ((0, 0), (1, 0)))

  def empty_cache(self, batch: int, length: int) -> Cache:
    """An empty cache: keys and values float[blocks, B, M, H, K] for M = length positions.

    Raises:
      ValueError: length exceeds `longest`.
    """
    if not 1 <= length <= self.longest:
      raise ValueError(f"a cache of {length} positions: this model reads 1 to {self.longest}")
    config = self.config
    shape = (config.n_layer, batch, length, config.n_head, config.n_embd // config.n_head)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

  @_exactly
  def step(
    self, params: Params, cache: Cache, token: jax.Array, position: jax.typing.ArrayLike
  ) -> tuple[jax.Array, Cache]:
    """Logits of the next token, float[B, V] of at least float32, and the cache with this token.

    Args:
      params: parameters, see `shapes`.
      cache: from `empty_cache` or the step before; holds all earlier positions.
      token: int[B].
      position: int32[], this token's position, below the length of the cache.
    """
    chex.assert_rank([token, position], [1, 0])
    position = jnp.asarray(position)

    def body(h_B1D, scanned):
      stored, scale, cache = scanned
      block = self._used("blocks", stored)
      q, k, v = self._qkv(block, h_B1D, scale)
      keys = jax.lax.dynamic_update_slice_in_dim(cache.keys, k, position, axis=1)
      values = jax.lax.dynamic_update_slice_in_dim(cache.values, v, position, axis=1)
      out = attend_one(q, keys, values, position)
      return self._finish_block(block, h_B1D, out), Cache(keys, values)

    h_B1D = self._embed(params, token[:, None], position[None])
    h_B1D, cache = jax.lax.scan(body, h_B1D, (params["blocks"], self._query_scales(), cache))
    return self._logits(params, self._norm(params["norm"], h_B1D)[:, 0]), cache

  def _embed(self, params: Params, tokens: jax.Array, positions_L: jax.Array) -> jax.Array:
    dtype = self.config.stream_dtype
    h_BLD = self.placement.lookup(params["embedding"].astype(dtype), tokens)
    return h_BLD + params["positions"][positions_L].astype(dtype)[None]

  def _used(self, name: str, layer: Params) -> Params:
    return self.placement.weights(name, self.table.cast(name, layer), self.table.specs)

  def _query_scales(self) -> jax.Array | None:
    """Factors of the queries, float[blocks], or None if attention is scaled by K^-1/2."""
    config = self.config
    if config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx:
      return None
    scale = 1.0 if config.scale_attn_weights else (config.n_embd // config.n_head) ** 0.5
    layers = jnp.arange(1, config.n_layer + 1, dtype=config.stream_dtype)
    return scale / (layers if config.scale_attn_by_inverse_layer_idx else jnp.ones_like(layers))

  def _qkv(self, block: Params, h_BLD: jax.Array, scale: jax.Array | None) -> list[jax.Array]:
    """Queries, keys and values, float[B, L, H, K] of the compute dtype."""
    a_BLX = self._linear(block["qkv"], self._norm(block["norm1"], h_BLD))
    heads = (*h_BLD.shape[:2], self.config.n_head, -1)
    q, k, v = (z.reshape(heads) for z in jnp.split(a_BLX, 3, axis=-1))
    q = q if scale is None else q * scale
    return [z.astype(self.config.dtype) for z in (q, k, v)]

  def _finish_block(self, block: Params, h_BLD: jax.Array, out_BLHK: jax.Array) -> jax.Array:
    """The residual stream after the block, from attention's output."""
    h_BLD = h_BLD + self._linear(block["attn_out"], out_BLHK.reshape(h_BLD.shape))
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
    return self._product(z_BLD, layer["kernel"]) + bias[None, None, :]

  def _head(self, params: Params) -> jax.Array:
    """The kernel of the output layer, float[D, V] of the compute dtype."""
    kernel = params["embedding"].T if self.config.tie_word_embeddings else params["output"]
    return kernel.astype(self.config.dtype)

  def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    return self._product(hidden, self.placement.gathered(self._head(params), OUTPUT_KERNEL))

  def _product(self, a: jax.Array, kernel: jax.Array) -> jax.Array:
    """a float[..., D] times the kernel, in the compute dtype, accumulated in at least float32."""
    dtype = self.config.dtype
    return jax.lax.dot_general(
      a.astype(dtype),
      kernel.astype(dtype),
      (((a.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=self.config.stream_dtype,
    )


def _table(config: GPT2Config) -> Table:
  """The layers; positions and norms are small and replicated."""
  width, inner, dtype = config.n_embd, config.inner, config.dtype
  weights = normal(0.02)

  def norm(name: str, original: str) -> tuple[Layer, Layer]:
    return (
      Layer(name=f"{name}/scale", shape=(width,), init=ones, original=f"{original}.weight"),
      Layer(name=f"{name}/bias", shape=(width,), init=zeros, original=f"{original}.bias"),
    )

  def linear(name: str, shape: tuple[int, int], spec: jax.P, original: str) -> tuple[Layer, Layer]:
    return (
      Layer(
        name=f"blocks/{name}/kernel", shape=shape, init=weights, spec=spec, dtype=dtype,
        per="token", original=f"h.{{}}.{original}.weight",
      ),
      Layer(
        name=f"blocks/{name}/bias", shape=shape[1:], init=zeros, original=f"h.{{}}.{original}.bias"
      ),
    )  # fmt: skip

  first = (
    Layer(
      name="embedding", shape=(config.vocab_size, width), init=weights, spec=EMBEDDING,
      original="wte.weight",
    ),
    Layer(
      name="positions", shape=(config.n_positions, width), init=weights, original="wpe.weight"
    ),
  )  # fmt: skip
  block = (
    *norm("blocks/norm1", "h.{}.ln_1"),
    *linear("qkv", (width, 3 * width), P("fsdp"), "attn.c_attn"),
    *linear("attn_out", (width, width), P("tensor", "fsdp"), "attn.c_proj"),
    *norm("blocks/norm2", "h.{}.ln_2"),
    *linear("mlp_in", (width, inner), P("fsdp", "tensor"), "mlp.c_fc"),
    *linear("mlp_out", (inner, width), P("tensor", "fsdp"), "mlp.c_proj"),
  )
  last = norm("norm", "ln_f")
  if not config.tie_word_embeddings:
    last += (
      Layer(
        name="output", shape=(width, config.vocab_size), init=weights, spec=OUTPUT_KERNEL,
        original="lm_head.weight",
      ),
    )  # fmt: skip
  return Table(first, block, last, config.n_layer)
