"""The score transformer: SEDD's bidirectional transformer, conditioned on total noise by adaLN.

Its table of layers, and its parts before, in and after the blocks as pure functions of nested dicts
of parameters. `network.py` scans over the stacked blocks.

Source: appendix C.2 of arXiv:2310.16834 and its code (after DiT, arXiv:2212.09748). Residual
stream, layer norms and conditioning stay float32; linear maps and attention use `dtype`.

B: sequences, L: positions, D: width, C: width of the conditioning, S: states.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import P

from sedd_jax.diffusion.levels import Level, at_tokens, map_level
from sedd_jax.models.attention import ATTENTION, KERNELS, Kernel
from sedd_jax.models.layers import Layer, Params, Table, linear, ones, uniform, zeros
from sedd_jax.models.mixers import Attention, Mixer, kept, rows
from sedd_jax.models.placement import EMBEDDING, OUTPUT_BIAS, OUTPUT_KERNEL
from sedd_jax.models.visibility import ALL, Rule

# Names of the values that each rematerialisation policy keeps.
KEPT = {
  "dots": ("qkv", ATTENTION, "attn_out", "mlp_in", "mlp_out", "dropout"),
  "narrow": ("qkv", ATTENTION, "attn_out", "mlp_out"),
  "full": (),
}
_NOISE_FEATURES = 256
_MLP_RATIO = 4
_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTransformerConfig:
  """Shape and numerics of the network.

  Attributes:
    num_states: S, rows of the embedding and columns of the output layer.
    width: D.
    blocks: number of transformer blocks.
    heads: H; must divide width into heads of even width (rotary pairs features).
    cond_dim: C.
    time_input: whether the network sees the noise. If not, its conditioning is that of total = 0,
      and noise enters only through the parameterization: with `conditional`, these are the networks
      of MDLM and RADD. The parameters are the same.
    dropout: rate on the outputs of attention and MLP in training, rounded to a multiple of 2^-16.
    dtype: compute dtype of linear maps and attention.
    stream: dtype of the residual stream between the parts of a block: `float32` (float64 if the
      compute dtype is), or `bfloat16`, half the traffic; norms and sums are in float32 either way.
    remat: what a block keeps for its backward pass: `none` (no rematerialisation: everything),
      `dots` (matrix products, attention outputs and dropout masks), `narrow` (attention outputs and
      all matrix products but the widest, inside the MLP), `full` (only its input).
    attention: kernel: `xla`, `splash`, `cudnn` or `auto` (`models/attention.py`).
    visibility: which positions a position sees: all, or itself and earlier ones, as an
      autoregressive model needs (`models/causal.py`).
    unroll: blocks per iteration of the loop over blocks: more take longer to compile, and save
      copies of residuals.
    pad_multiple: embedding and output tables are padded in memory to a multiple of this.

  Raises:
    ValueError: fields are out of range; the message has one line per field.
  """

  num_states: int
  width: int = 768
  blocks: int = 12
  heads: int = 12
  cond_dim: int = 128
  time_input: bool = True
  dropout: float = 0.1
  dtype: Literal["float32", "bfloat16", "float64"] = "float32"
  stream: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "dots", "narrow", "full"] = "none"
  attention: Kernel = "auto"
  visibility: Rule = ALL
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
    if self.stream not in ("float32", "bfloat16"):
      faults.append(f"model.stream={self.stream!r} must be 'float32' or 'bfloat16'")
    if self.stream == "bfloat16" and self.dtype != "bfloat16":
      faults.append(
        f"model.stream='bfloat16' needs model.dtype='bfloat16', not {self.dtype!r}: it would round "
        "what is computed more precisely"
      )
    if self.remat != "none" and self.remat not in KEPT:
      faults.append(f"model.remat={self.remat!r} must be 'none', {', '.join(map(repr, KEPT))}")
    if self.attention not in KERNELS:
      faults.append(f"model.attention={self.attention!r} must be one of {', '.join(KERNELS)}")
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def padded_states(self) -> int:
    return -(-self.num_states // self.pad_multiple) * self.pad_multiple

  @functools.cached_property
  def mixer(self) -> Mixer:
    """The mixer of each block."""
    return Attention(
      width=self.width,
      heads=self.heads,
      dtype=self.dtype,
      rule=self.visibility,
      kernel=self.attention,
    )

  @functools.cached_property
  def table(self) -> Table:
    """All layers."""
    return _table(self)

  @property
  def wide_dtype(self) -> jnp.dtype:
    """dtype of the norms, the conditioning, sums into the residual stream, and outputs."""
    return jnp.promote_types(self.dtype, jnp.float32)

  @property
  def stream_dtype(self) -> jnp.dtype:
    """dtype of the residual stream."""
    return jnp.dtype(jnp.bfloat16) if self.stream == "bfloat16" else self.wide_dtype


class _Modulations(NamedTuple):
  """adaLN modulations of a block; each float[B, 1, D], or [B, L, D] with noise per token."""

  shift1: jax.Array
  scale1: jax.Array
  gate1: jax.Array
  shift2: jax.Array
  scale2: jax.Array
  gate2: jax.Array


def _table(config: ScoreTransformerConfig) -> Table:
  """The layers in the original's parameter order, which is also the order of initialization."""
  width, cond, dtype = config.width, config.cond_dim, config.dtype
  hidden, wide = _MLP_RATIO * width, config.wide_dtype
  first = (
    Layer(
      name="ends/embedding/embedding", shape=(config.num_states, width), init=uniform(width),
      spec=EMBEDDING, states=0, original="vocab_embed.embedding",
    ),
    *_linear("ends/noise_in", _NOISE_FEATURES, cond, "sigma_map.mlp.0", dtype=wide),
    *_linear("ends/noise_out", cond, cond, "sigma_map.mlp.2", dtype=wide),
  )  # fmt: skip
  block = (
    _norm("blocks/norm1", width, "blocks.{}.norm1"),
    *config.mixer.layers(),
    _norm("blocks/norm2", width, "blocks.{}.norm2"),
    *_linear(
      "blocks/mlp_in", width, hidden, "blocks.{}.mlp.0", dtype=dtype, per="token",
      spec=P("fsdp", "tensor"), bias_spec=P("tensor"),
    ),
    *_linear(
      "blocks/mlp_out", hidden, width, "blocks.{}.mlp.2", dtype=dtype, per="token",
      spec=P("tensor", "fsdp"),
    ),
    *_linear(
      "blocks/modulation", cond, 6 * width, "blocks.{}.adaLN_modulation", dtype=dtype, init=zeros,
      per="row", spec=P(None, "fsdp"),
    ),
  )  # fmt: skip
  last = (
    _norm("ends/norm", width, "output_layer.norm_final"),
    *_linear(
      "ends/output", width, config.num_states, "output_layer.linear", dtype=dtype, init=zeros,
      per="state", spec=OUTPUT_KERNEL, bias_spec=OUTPUT_BIAS, states=1,
    ),
    *_linear(
      "ends/modulation", cond, 2 * width, "output_layer.adaLN_modulation", dtype=dtype, init=zeros,
      per="row",
    ),
  )  # fmt: skip
  return Table(first, block, last, config.blocks, config.padded_states - config.num_states)


def _norm(name: str, width: int, original: str) -> Layer:
  return Layer(name=f"{name}/scale", shape=(width,), init=ones, original=f"{original}.weight")


def _linear(
  name: str,
  fan_in: int,
  fan_out: int,
  original: str,
  *,
  init: Any = None,
  bias_spec: jax.P = P(),
  states: int | None = None,
  **kernel: Any,
) -> tuple[Layer, Layer]:
  """Kernel and bias of a linear map. The kernel gets all other fields as keywords, since a layer
  has many and most maps set few."""
  init = init or uniform(fan_in)
  return (
    Layer(
      name=f"{name}/kernel", shape=(fan_in, fan_out), init=init, states=states,
      original=f"{original}.weight", **kernel,
    ),
    Layer(
      name=f"{name}/bias", shape=(fan_out,), init=init, spec=bias_spec,
      states=None if states is None else 0, original=f"{original}.bias",
    ),
  )  # fmt: skip


def condition(config: ScoreTransformerConfig, ends: Params, total: Level) -> Level:
  """Conditioning float[..., C] of total noise float[...]: sinusoids, two linear maps, SiLU.

  Without `time_input` the total noise is taken as 0. Computed once per entry of a table.
  """
  dtype = config.wide_dtype

  def condition_values(total: jax.Array) -> jax.Array:
    total = total if config.time_input else jnp.zeros_like(total)
    features = noise_features(total.astype(dtype))
    hidden = jax.nn.silu(linear(ends["noise_in"], features, dtype))
    return jax.nn.silu(linear(ends["noise_out"], hidden, dtype))

  return map_level(condition_values, total)


def apply_block(
  config: ScoreTransformerConfig,
  params: Params,
  h_BLD: jax.Array,
  cond: Level,
  mix: Callable[[jax.Array], tuple[jax.Array, Any]],
  dropout_keys: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
  """The residual stream float[B, L, D] after a block, and `mix`'s second result.

  A block is mixing and an MLP, each shifted, scaled and gated by the conditioning.

  Args:
    params: this block's parameters.
    h_BLD: the residual stream, float[B, L, D].
    cond: from `condition`.
    mix: the mixer bound to its arguments: maps float[B, L, D] to the same and a second result.
    dropout_keys: PRNG keys [B] in training, else None.
  """
  wide = config.wide_dtype
  keys1, keys2 = (None, None) if dropout_keys is None else _two_keys(dropout_keys)

  def added(h_BLD: jax.Array, gate_BLD: jax.Array, out_BLD: jax.Array) -> jax.Array:
    return (h_BLD.astype(wide) + gate_BLD * out_BLD).astype(h_BLD.dtype)

  mod = _Modulations(*_modulations(params["modulation"], cond, config, 6))

  out_BLD, rest = mix(_modulated(params["norm1"], h_BLD, mod.scale1, mod.shift1))
  h_BLD = added(h_BLD, mod.gate1, dropout(out_BLD.astype(wide), config.dropout, keys1))

  def mlp(m_TD: jax.Array) -> jax.Array:
    inner_TF = kept(linear(params["mlp_in"], m_TD, config.dtype), "mlp_in")
    return linear(params["mlp_out"], jax.nn.gelu(inner_TF, approximate=True), config.dtype)

  m_BLD = _modulated(params["norm2"], h_BLD, mod.scale2, mod.shift2)
  out_BLD = kept(rows(mlp, m_BLD), "mlp_out")
  return added(h_BLD, mod.gate2, dropout(out_BLD.astype(wide), config.dropout, keys2)), rest


def finish(
  config: ScoreTransformerConfig, ends: Params, h_BLD: jax.Array, cond: Level
) -> jax.Array:
  """Hidden states float[B, L, D], the input of the output layer."""
  shift, scale = _modulations(ends["modulation"], cond, config, 2)
  return _modulated(ends["norm"], h_BLD, scale, shift)


def noise_features(total: jax.Array) -> jax.Array:
  """float[..., 256]: cosines, then sines, of total * 10000^(-i / 128), i = 0 .. 127."""
  half = _NOISE_FEATURES // 2
  frequency = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=total.dtype) / half)
  angle = total[..., None] * frequency.reshape((1,) * total.ndim + (-1,))
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def dropout(z_BLD: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
  """z with entries zeroed at this rate, rounded to a multiple of 2^-16, and the others scaled."""
  if keys_B is None or rate == 0.0:
    return z_BLD
  dropped = min(round(rate * 2**16), 2**16 - 1)
  # Two draws per random word; `jax.random.bernoulli` uses a word for each.
  _, length, width = z_BLD.shape
  words = jax.vmap(lambda key: jax.random.bits(key, (length, -(-width // 2)), jnp.uint32))(keys_B)
  keep = jnp.concatenate([words & 0xFFFF >= dropped, words >> 16 >= dropped], axis=-1)
  keep = kept(keep[:, :, :width], "dropout")
  return jnp.where(keep, z_BLD / (1.0 - dropped / 2**16), 0.0)


def _modulations(
  layer: Params, cond: Level, config: ScoreTransformerConfig, parts: int
) -> list[jax.Array]:
  """Modulation vectors, each float[B, 1, D] or [B, L, D]. Each is looked up separately in a table,
  so that [B, L, parts D] is never materialized."""
  modulation = map_level(lambda c: linear(layer, c, config.dtype).astype(config.wide_dtype), cond)
  split = [
    map_level(lambda m, i=i: jnp.split(m, parts, axis=-1)[i], modulation) for i in range(parts)
  ]
  return [at_tokens(part) for part in split]


def _modulated(
  norm: Params, h_BLD: jax.Array, scale_BLD: jax.Array, shift_BLD: jax.Array
) -> jax.Array:
  """norm(h) (1 + scale) + shift. The norm's own scale is multiplied into 1 + scale, so that both
  gradients come from one sum over positions."""
  h_BLD = h_BLD.astype(scale_BLD.dtype)
  centered_BLD = h_BLD - jnp.mean(h_BLD, axis=-1, keepdims=True)
  variance_BL1 = jnp.mean(jnp.square(centered_BLD), axis=-1, keepdims=True)
  gain_BLD = norm["scale"][None, None, :] * (1.0 + scale_BLD)
  return centered_BLD * jax.lax.rsqrt(variance_BL1 + _NORM_EPSILON) * gain_BLD + shift_BLD


def _two_keys(keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  pairs = jax.vmap(jax.random.split)(keys_B)
  return pairs[:, 0], pairs[:, 1]
