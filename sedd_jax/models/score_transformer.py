"""The score transformer: SEDD's bidirectional transformer, conditioned on total noise by adaLN.

Flax NNX serves as a definition language only: modules hold parameters, no state and no randomness
(dropout keys are arguments). `build.py` turns them into pure functions of nested dicts and scans
over the stacked blocks.

Source: appendix C.2 of arXiv:2310.16834 and its code (after DiT, arXiv:2212.09748). Residual
stream, layer norms and conditioning stay float32; linear maps and attention use `dtype`.

B: sequences, L: positions, D: width, C: width of the conditioning, H: heads, S: states.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sedd_jax.models.attention import (
  ATTENTION,
  KERNELS,
  Kernel,
  PerShard,
  attend_one,
  attention,
  rotary,
)

# Names of what a block computes and each policy of rematerialisation keeps.
KEPT = {
  "dots": ("qkv", ATTENTION, "attn_out", "mlp_in", "mlp_out", "dropout"),
  "narrow": ("qkv", ATTENTION, "attn_out", "mlp_out"),
  "full": (),
}
_NOISE_FEATURES = 256
_MLP_RATIO = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTransformerConfig:
  """Shape and numerics of the network.

  Attributes:
    num_states: S, rows of the embedding and columns of the output layer.
    width: D.
    blocks: number of transformer blocks.
    heads: H; must divide width into heads of even width (rotary pairs features).
    cond_dim: C.
    time_input: whether the network sees the noise. Without, it is conditioned on total = 0 always,
      and noise enters through the parameterization alone: with `conditional`, the networks of MDLM
      and RADD, which know no time. The parameters are the same.
    dropout: rate on the outputs of attention and MLP, in training only; to a multiple of 2^-16.
    dtype: compute dtype of linear maps and attention.
    remat: what a block keeps for its backward pass: `none` (everything), `dots` (its matrix
      products, what attention returns, and which entries dropout keeps), `narrow` (products but the
      widest, the MLP's inner one, and attention), `full` (nothing but its input).
    attention: kernel: `xla`, `splash`, `cudnn` or `auto` (`models/attention.py`).
    causal: whether a position sees itself and those before it alone, as an autoregressive model
      needs (`models/causal.py`); a score network sees all.
    unroll: blocks that one iteration of the loop over blocks runs: more compile longer, and save
      copies of what the backward pass needs.
    pad_multiple: embedding and output tables are padded in memory to a multiple of this.

  Raises:
    ValueError: fields are out of range; the message names them, a line for each.
  """

  num_states: int
  width: int = 768
  blocks: int = 12
  heads: int = 12
  cond_dim: int = 128
  time_input: bool = True
  dropout: float = 0.1
  dtype: Literal["float32", "bfloat16", "float64"] = "float32"
  remat: Literal["none", "dots", "narrow", "full"] = "none"
  attention: Kernel = "auto"
  causal: bool = False
  unroll: int = 1
  pad_multiple: int = 128

  def __post_init__(self):
    sizes = ("num_states", "width", "blocks", "heads", "cond_dim", "unroll", "pad_multiple")
    faults = [
      f"model.{name}={getattr(self, name)} must be at least 1"
      for name in sizes
      if getattr(self, name) < 1
    ]
    if self.heads >= 1 and self.width % (2 * self.heads):
      faults.append(
        f"model.heads={self.heads} must divide model.width={self.width} into heads of even width"
      )
    if not 0.0 <= self.dropout < 1.0:
      faults.append(f"model.dropout={self.dropout} must lie in [0, 1)")
    if self.dtype not in ("float32", "bfloat16", "float64"):
      faults.append(f"model.dtype={self.dtype!r} must be 'float32', 'bfloat16' or 'float64'")
    if self.remat != "none" and self.remat not in KEPT:
      faults.append(f"model.remat={self.remat!r} must be 'none', {', '.join(map(repr, KEPT))}")
    if self.attention not in KERNELS:
      faults.append(f"model.attention={self.attention!r} must be one of {', '.join(KERNELS)}")
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def padded_states(self) -> int:
    return -(-self.num_states // self.pad_multiple) * self.pad_multiple

  @property
  def stream_dtype(self) -> jnp.dtype:
    """dtype of the residual stream, the norms and the conditioning."""
    return jnp.promote_types(self.dtype, jnp.float32)


class Cache(NamedTuple):
  """What the positions of a causal block have left for later ones.

  Attributes:
    keys: float[B, L, H, K], rotated.
    values: float[B, L, H, K].
  """

  keys: jax.Array
  values: jax.Array


class _Modulations(NamedTuple):
  """What the conditioning says to a block; each float[B, 1, D]."""

  shift1: jax.Array
  scale1: jax.Array
  gate1: jax.Array
  shift2: jax.Array
  scale2: jax.Array
  gate2: jax.Array


class Block(nnx.Module):
  """Attention and MLP, each shifted, scaled and gated by the conditioning."""

  def __init__(self, config: ScoreTransformerConfig, *, rngs: nnx.Rngs):
    width, dtype = config.width, config.dtype
    self.heads = config.heads
    self.dropout = config.dropout
    self.kernel: Kernel = config.attention
    self.causal = config.causal
    self.norm1 = _norm(config, rngs)
    # Queries, keys and values on an axis of their own, so that a mesh can cut each at its heads.
    self.qkv = nnx.LinearGeneral(
      width, (3, width), use_bias=False, dtype=dtype, kernel_init=_uniform(width), rngs=rngs
    )
    self.attn_out = _linear(width, width, dtype, rngs, use_bias=False)
    self.norm2 = _norm(config, rngs)
    self.mlp_in = _linear(width, _MLP_RATIO * width, dtype, rngs)
    self.mlp_out = _linear(_MLP_RATIO * width, width, dtype, rngs)
    self.modulation = _zero_linear(config.cond_dim, 6 * width, dtype, rngs)

  def __call__(
    self,
    h_BLD: jax.Array,
    cond_BC: jax.Array,
    dropout_keys: jax.Array | None,
    per_shard: PerShard = PerShard(),
  ) -> jax.Array:
    """float[B, L, D] to the same; dropout_keys is [B], or None outside training."""
    by = self._modulations(cond_BC, h_BLD.dtype)
    q, k, v = self._qkv(_modulated(self.norm1, h_BLD, by.scale1, by.shift1))
    out = attention(
      rotary(q), rotary(k), v, kernel=self.kernel, causal=self.causal, per_shard=per_shard
    )
    return self._after(h_BLD, out, by, dropout_keys)

  def step(
    self, h_B1D: jax.Array, cond_BC: jax.Array, cache: Cache, position: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """The same at one position of a causal block, whose earlier ones are in the cache."""
    by = self._modulations(cond_BC, h_B1D.dtype)
    q, k, v = self._qkv(_modulated(self.norm1, h_B1D, by.scale1, by.shift1))
    cache = Cache(
      jax.lax.dynamic_update_slice_in_dim(cache.keys, rotary(k, position), position, axis=1),
      jax.lax.dynamic_update_slice_in_dim(cache.values, v, position, axis=1),
    )
    out = attend_one(rotary(q, position), cache.keys, cache.values, position)
    return self._after(h_B1D, out, by, None), cache

  def _modulations(self, cond_BC: jax.Array, dtype: jax.typing.DTypeLike) -> _Modulations:
    modulation = self.modulation(cond_BC).astype(dtype)[:, None, :]
    return _Modulations(*jnp.split(modulation, 6, axis=-1))

  def _after(
    self,
    h_BLD: jax.Array,
    out_BLHK: jax.Array,
    by: _Modulations,
    dropout_keys: jax.Array | None,
  ) -> jax.Array:
    """All that comes after attention."""
    keys1, keys2 = (None, None) if dropout_keys is None else _two_keys(dropout_keys)
    out_BLD = _kept(_rows(self.attn_out, out_BLHK.reshape(h_BLD.shape)), "attn_out")
    h_BLD = h_BLD + by.gate1 * _dropout(out_BLD.astype(h_BLD.dtype), self.dropout, keys1)

    m_BLD = _modulated(self.norm2, h_BLD, by.scale2, by.shift2)
    out_BLD = _kept(_rows(self._mlp, m_BLD), "mlp_out")
    return h_BLD + by.gate2 * _dropout(out_BLD.astype(h_BLD.dtype), self.dropout, keys2)

  def _qkv(self, a_BLD: jax.Array) -> list[jax.Array]:
    """Queries, keys and values, float[B, L, H, K]: three products, since cutting one result in
    three and joining three gradients takes four passes over all of them."""
    a_TD = a_BLD.reshape(-1, a_BLD.shape[-1]).astype(self.qkv.dtype)
    kernel_DXD = self.qkv.kernel[...].astype(self.qkv.dtype)
    heads = (*a_BLD.shape[:2], self.heads, -1)
    return [_kept(a_TD @ kernel_DXD[:, i], "qkv").reshape(heads) for i in range(3)]

  def _mlp(self, m_TD: jax.Array) -> jax.Array:
    return self.mlp_out(jax.nn.gelu(_kept(self.mlp_in(m_TD), "mlp_in"), approximate=True))


class Ends(nnx.Module):
  """What stands before and after the blocks: embedding, noise conditioning, last norm, output."""

  def __init__(self, config: ScoreTransformerConfig, *, rngs: nnx.Rngs):
    width, cond, dtype = config.width, config.cond_dim, config.stream_dtype
    self.time_input = config.time_input
    self.embedding = nnx.Embed(
      config.num_states, width, dtype=dtype, embedding_init=_uniform(width), rngs=rngs
    )
    self.noise_in = _linear(_NOISE_FEATURES, cond, dtype, rngs)
    self.noise_out = _linear(cond, cond, dtype, rngs)
    self.norm = _norm(config, rngs)
    self.modulation = _zero_linear(cond, 2 * width, config.dtype, rngs)
    self.output = _zero_linear(width, config.num_states, config.dtype, rngs)

  def condition(self, total_B: jax.Array) -> jax.Array:
    """float[B, C] from total noise, or from 0 without `time_input`: sinusoids of the raw value, two
    linear maps, SiLU."""
    total_B = total_B if self.time_input else jnp.zeros_like(total_B)
    features = noise_features(total_B.astype(self.noise_in.dtype))
    return jax.nn.silu(self.noise_out(jax.nn.silu(self.noise_in(features))))

  def finish(self, h_BLD: jax.Array, cond_BC: jax.Array) -> jax.Array:
    """The hidden states that the output layer reads."""
    modulation = self.modulation(cond_BC).astype(h_BLD.dtype)[:, None, :]
    shift, scale = jnp.split(modulation, 2, axis=-1)
    return _modulated(self.norm, h_BLD, scale, shift)


def _kept(z: jax.Array, name: str) -> jax.Array:
  """A name by which rematerialisation may keep what a block computes (`KEPT`)."""
  return checkpoint_name(z, name)


def noise_features(total_B: jax.Array) -> jax.Array:
  """float[B, 256]: cosines, then sines, of total * 10000^(-i / 128), i = 0 .. 127."""
  half = _NOISE_FEATURES // 2
  frequency = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=total_B.dtype) / half)
  angle = total_B[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _rows(function: Callable[[jax.Array], jax.Array], z_BLD: jax.Array) -> jax.Array:
  """Applies a map of rows with all positions on one axis.

  The same products. On XLA's CPU backend an MLP with GELU, forward and backward, took 19 ms so and
  45 ms with two leading axes (4096 rows, width 128); why was not isolated, and a whole step gained
  little.
  """
  out_TE = function(z_BLD.reshape(-1, z_BLD.shape[-1]))
  return out_TE.reshape(*z_BLD.shape[:-1], -1)


def _norm(config: ScoreTransformerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(
    config.width,
    epsilon=1e-5,
    use_bias=False,
    use_fast_variance=False,
    dtype=config.stream_dtype,
    rngs=rngs,
  )


def _modulated(
  norm: nnx.LayerNorm, h_BLD: jax.Array, scale_B1D: jax.Array, shift_B1D: jax.Array
) -> jax.Array:
  """norm(h) (1 + scale) + shift. The norm's own scale is multiplied into the other, so that both
  get their gradient from one sum over positions."""
  centered_BLD = h_BLD - jnp.mean(h_BLD, axis=-1, keepdims=True)
  variance_BL1 = jnp.mean(jnp.square(centered_BLD), axis=-1, keepdims=True)
  assert norm.scale is not None
  gain_B1D = norm.scale[...][None, None, :] * (1.0 + scale_B1D)
  return centered_BLD * jax.lax.rsqrt(variance_BL1 + norm.epsilon) * gain_B1D + shift_B1D


def _linear(
  fan_in: int, fan_out: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs, *, use_bias: bool = True
) -> nnx.Linear:
  init = _uniform(fan_in)
  return nnx.Linear(
    fan_in, fan_out, use_bias=use_bias, dtype=dtype, kernel_init=init, bias_init=init, rngs=rngs
  )


def _zero_linear(
  fan_in: int, fan_out: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
) -> nnx.Linear:
  return nnx.Linear(fan_in, fan_out, dtype=dtype, kernel_init=nnx.initializers.zeros, rngs=rngs)


def _uniform(fan_in: int) -> nnx.Initializer:
  """U(-1, 1) / sqrt(fan_in), torch's default for linear maps and SEDD's for the embedding."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _two_keys(keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  pairs = jax.vmap(jax.random.split)(keys_B)
  return pairs[:, 0], pairs[:, 1]


def _dropout(z_BLD: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
  if keys_B is None or rate == 0.0:
    return z_BLD
  dropped = min(round(rate * 2**16), 2**16 - 1)
  # Two draws from each random word; `jax.random.bernoulli` would spend a word on each.
  _, length, width = z_BLD.shape
  words = jax.vmap(lambda key: jax.random.bits(key, (length, -(-width // 2)), jnp.uint32))(keys_B)
  keep = jnp.concatenate([words & 0xFFFF >= dropped, words >> 16 >= dropped], axis=-1)
  keep = _kept(keep[:, :, :width], "dropout")
  return jnp.where(keep, z_BLD / (1.0 - dropped / 2**16), 0.0)
