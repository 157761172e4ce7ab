"""Attention kernels, and the choice among them.

  xla     plain JAX: any platform, shape and dtype; holds weights [B, H, L, L]; for sequences
          longer than 1024 it processes a part of the queries at a time
  splash  Pallas's flash attention for TPU; on CPU it is interpreted, for tests
  cudnn   cuDNN's flash attention for NVIDIA GPUs, through `jax.nn.dot_product_attention`; its
          gradient is reproducible only with XLA_FLAGS=--xla_gpu_deterministic_ops=true
  auto    splash on TPU and cudnn on NVIDIA GPUs, where supported; else xla

B: sequences, L: positions, H: heads, K: head width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention

from sedd_jax.models.visibility import ALL, CAUSAL, Rule, Visibility

Kernel = Literal["xla", "splash", "cudnn", "auto"]
KERNELS: tuple[str, ...] = get_args(Kernel)
# The rematerialisation name of attention's output and, for splash, its other residuals.
ATTENTION = "attention"
# Maps queries, keys, values [B, L, H, K] and segments [B, L] or None to outputs [B, L, H, K].
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]

_SPEC = jax.P(("replica", "fsdp"), None, "tensor", None)
_ROWS = jax.P(("replica", "fsdp"), None)
# Splash holds rows of logits in whole vector registers, 128 lanes wide.
_LANES = 128
_LONGEST_BLOCK = 512
# `xla` computes the weights of at most this many queries at once.
_MOST_QUERIES = 1024
# All keys and values of a head of this length fit into VMEM; those of length 4096 do not.
_LONGEST_FUSED = 2048


@dataclasses.dataclass(frozen=True)
class PerShard:
  """Runs attention on each device's own sequences and heads.

  GSPMD partitions einsums, and cudnn's calls by rules that JAX registers. It cannot partition a
  Pallas kernel: a program over several devices needs this class with their mesh.

  `auto` takes the platform from here. At trace time the default backend may be a CPU while the
  program is compiled for an absent TPU, and the gradient of `jax.lax.platform_dependent` allocates
  residuals for all its branches, here [B, H, L, L].

  Attributes:
    mesh: with axes `replica` and `fsdp` for sequences and `tensor` for heads; None for one device
      of the default backend.
  """

  mesh: jax.sharding.Mesh | None = None

  @property
  def device(self) -> Any:
    """A device of the mesh; all are of one kind."""
    return jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]

  def parts(self) -> tuple[int, int]:
    """Number of shards of the sequences and of the heads."""
    if self.mesh is None:
      return 1, 1
    return self.mesh.shape["replica"] * self.mesh.shape["fsdp"], self.mesh.shape["tensor"]

  def __call__(self, attend: Attend) -> Attend:
    if self.mesh is None:
      return attend
    # A Pallas call does not declare over which axes its outputs vary, so the check is off.
    return jax.shard_map(
      attend,
      mesh=self.mesh,
      in_specs=(_SPEC, _SPEC, _SPEC, _ROWS),
      out_specs=_SPEC,
      check_vma=False,
    )


def attention(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  visibility: Visibility = Visibility(),
  *,
  kernel: Kernel = "xla",
  per_shard: PerShard = PerShard(),
) -> jax.Array:
  """Attention outputs with scale K^-1/2; float[B, L, H, K] of the dtype of v.

  Args:
    visibility: which positions see which.
    kernel: see the module docstring.
    per_shard: where the program runs.

  Raises:
    ValueError: the named kernel does not support these inputs; the message says what it supports.
  """
  match choose(kernel, q_BLHK, per_shard, visibility):
    case "splash":
      interpret = per_shard.device.platform == "cpu"
      splash = functools.partial(_splash, rule=visibility.rule, interpret=interpret)
      return per_shard(splash)(q_BLHK, k_BLHK, v_BLHK, visibility.segments)
    case "cudnn":
      out = jax.nn.dot_product_attention(
        q_BLHK, k_BLHK, v_BLHK, is_causal=visibility.rule == CAUSAL, implementation="cudnn"
      )
    case _:
      out = _xla(q_BLHK, k_BLHK, v_BLHK, visibility)
  return checkpoint_name(out, ATTENTION)


def choose(
  kernel: Kernel,
  q_BLHK: jax.Array,
  per_shard: PerShard,
  visibility: Visibility = Visibility(),
) -> Kernel:
  """The kernel that `attention` runs for queries of this shape and dtype.

  Raises:
    ValueError: as `attention`.
  """
  if kernel == "auto":
    best: dict[str, Kernel] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
    kernel = best.get(per_shard.device.platform, "xla")
    return "xla" if _misfit(kernel, q_BLHK, per_shard, visibility) else kernel
  if misfit := _misfit(kernel, q_BLHK, per_shard, visibility):
    raise ValueError(f"model.attention={kernel!r} {misfit}; model.attention='xla' always fits")
  return kernel


def _misfit(
  kernel: Kernel, q_BLHK: jax.Array, per_shard: PerShard, visibility: Visibility
) -> str | None:
  """Why a kernel does not support these queries, and what it supports; None if it does."""
  match kernel:
    case "splash":
      return _splash_misfit(q_BLHK, per_shard.device) or _parts_misfit(q_BLHK, per_shard)
    case "cudnn":
      if visibility.segments is not None:
        return "cannot separate documents (data.visibility='document')"
      if visibility.rule not in (ALL, CAUSAL):
        return f"has no mask for {visibility.rule.name!r}"
      return _cudnn_misfit(q_BLHK, per_shard.device) or _parts_misfit(q_BLHK, per_shard)
  return None


def _splash_misfit(q_BLHK: jax.Array, device: Any) -> str | None:
  length = q_BLHK.shape[1]
  if device.platform not in ("tpu", "cpu"):
    return f"needs a TPU (a CPU interprets it), not {device.platform}"
  if device.device_kind in ("TPU v2", "TPU v3"):
    return f"needs a TPU v4 or later, not {device.device_kind}"
  if q_BLHK.dtype not in (jnp.float32, jnp.bfloat16):
    return f"takes model.dtype 'float32' or 'bfloat16', not {q_BLHK.dtype.name!r}"
  if length % _LANES:
    right = -(-length // _LANES) * _LANES
    return f"needs data.length={length} to be a multiple of {_LANES}, for example {right}"
  return None


def _cudnn_misfit(q_BLHK: jax.Array, device: Any) -> str | None:
  """Why cuDNN's flash attention does not fit: JAX's conditions, and the compute capability.

  The platform of AMD GPUs is "gpu" too; their capability is not a number.
  """
  try:
    capability = float(getattr(device, "compute_capability", ""))
  except ValueError:
    capability = 0.0
  if capability < 8.0:
    return f"needs an NVIDIA GPU of compute capability 8.0 or more, not {device.device_kind!r}"
  if q_BLHK.dtype not in (jnp.bfloat16, jnp.float16):
    return f"takes model.dtype 'bfloat16', not {q_BLHK.dtype.name!r}"
  width, widest = q_BLHK.shape[3], 256 if capability >= 9.0 else 128
  if width % 8 or width > widest:
    return (
      f"needs heads of width (model.width / model.heads) {width} to be a multiple of 8, "
      f"at most {widest} on this GPU"
    )
  return None


def _parts_misfit(q_BLHK: jax.Array, per_shard: PerShard) -> str | None:
  batch, _, heads, _ = q_BLHK.shape
  batch_parts, head_parts = per_shard.parts()
  if batch % batch_parts:
    return f"needs the {batch} sequences to be a multiple of mesh.replica x mesh.fsdp={batch_parts}"
  if heads % head_parts:
    return f"needs model.heads={heads} to be a multiple of mesh.tensor={head_parts}"
  return None


def attend_one(
  q_B1HK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, position: jax.Array
) -> jax.Array:
  """Attention output of one query over a cache of keys and values; float[B, 1, H, K], dtype of v.

  Args:
    position: int32[], the query's position; later keys are not seen.
  """
  seen_1L = (jnp.arange(k_BLHK.shape[1]) <= position)[None, :]
  q_BH1K, k_BHLK, v_BHLK = _heads_first(q_B1HK, k_BLHK, v_BLHK)
  return jnp.swapaxes(_weighted(q_BH1K, k_BHLK, v_BHLK, seen_1L), 1, 2)


def _xla(
  q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, visibility: Visibility
) -> jax.Array:
  """Attention outputs in plain JAX, in float64 for the exact tests.

  `jax.nn.dot_product_attention` computes its softmax in float32 even then.
  """
  q_BHLK, k_BHLK, v_BHLK = _heads_first(q_BLHK, k_BLHK, v_BLHK)
  batch, heads, length, width = q_BHLK.shape

  segments_BM: Any = visibility.segments

  def attend(q_BHLK, segments_BL, first):
    """The outputs of consecutive queries from position first."""
    query_L1 = first + jnp.arange(q_BHLK.shape[2])[:, None]
    seen = visibility.rule.sees(query_L1, jnp.arange(length)[None, :])
    if segments_BL is not None:
      same_B1LM = segments_BL[:, None, :, None] == segments_BM[:, None, None, :]
      seen = same_B1LM if seen is None else same_B1LM & seen[None, None]
    return _weighted(q_BHLK, k_BHLK, v_BHLK, seen)

  if length <= _MOST_QUERIES:
    return jnp.swapaxes(attend(q_BHLK, segments_BM, 0), 1, 2)
  # One part of the queries at a time, recomputed for the gradient: memory is linear in the length.
  parts = -(-length // _MOST_QUERIES)
  extra = -length % parts
  q_BHLK = jnp.pad(q_BHLK, ((0, 0), (0, 0), (0, extra), (0, 0)))
  q_NBHLK = jnp.moveaxis(q_BHLK.reshape(batch, heads, parts, -1, width), 2, 0)
  segments_NBL = segments_BM
  if segments_NBL is not None:  # Padding queries see some key too: no softmax over nothing.
    padded_BL = jnp.pad(segments_BM, ((0, 0), (0, extra)), mode="edge")
    segments_NBL = jnp.moveaxis(padded_BL.reshape(batch, parts, -1), 1, 0)
  inputs = (q_NBHLK, segments_NBL, jnp.arange(parts) * q_NBHLK.shape[3])
  out_NBHLK = jax.lax.map(lambda part: jax.checkpoint(attend)(*part), inputs)
  out_BLHK = jnp.moveaxis(out_NBHLK, (0, 3), (1, 2)).reshape(batch, -1, heads, width)
  return out_BLHK[:, :length]


def _heads_first(*arrays_BLHK: jax.Array) -> list[jax.Array]:
  return [jnp.swapaxes(z, 1, 2) for z in arrays_BLHK]


def _weighted(
  q_BHLK: jax.Array, k_BHMK: jax.Array, v_BHMK: jax.Array, seen: jax.Array | None
) -> jax.Array:
  """Values weighted by the softmax over the keys that a query sees.

  Args:
    seen: bool[L, M] or [B, 1, L, M]; None: all keys.
  """
  dtype = jnp.promote_types(q_BHLK.dtype, jnp.float32)
  logits_BHLM = jnp.einsum("bhlk,bhmk->bhlm", q_BHLK, k_BHMK, preferred_element_type=dtype)
  logits_BHLM *= q_BHLK.shape[-1] ** -0.5
  if seen is not None:
    logits_BHLM = jnp.where(seen, logits_BHLM, -jnp.inf)
  weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1)
  return jnp.einsum("bhlm,bhmk->bhlk", weights_BHLM.astype(v_BHMK.dtype), v_BHMK)


def _splash(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  segments_BL: jax.Array | None,
  *,
  rule: Rule,
  interpret: bool,
) -> jax.Array:
  """Outputs of the splash kernel. It has no scale, so the queries are scaled; logits and weights
  are float32.

  In bfloat16 scaling rounds the queries again, unless K^-1/2 is a power of two, as for K=64.
  Against float32 its errors were 0.7 to 2.1 times those of xla.
  """
  _, length, heads, width = q_BLHK.shape
  scaled = (q_BLHK.astype(jnp.float32) * width**-0.5).astype(q_BLHK.dtype)
  q_BHLK, k_BHLK, v_BHLK = (jnp.swapaxes(z, 1, 2) for z in (scaled, k_BLHK, v_BLHK))
  kernel = _splash_kernel(heads, length, rule, interpret)

  def attend(q_HLK, k_HLK, v_HLK, *segments_L):
    ids = splash_attention.SegmentIds(*segments_L * 2) if segments_L else None
    return kernel(q_HLK, k_HLK, v_HLK, segment_ids=ids)

  inputs = (q_BHLK, k_BHLK, v_BHLK) + (() if segments_BL is None else (segments_BL,))
  merged: jax.Array = _merged(jax.vmap(attend), heads, *inputs)
  return merged.reshape(v_BLHK.shape)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Output:
  """Placeholder for the kernel's output among its residuals."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _merged(attend: Callable[..., jax.Array], heads: int, *inputs: jax.Array) -> jax.Array:
  """A kernel's output [B, H, L, K] with merged heads, [B, L, H K].

  The kernel's own derivative keeps [B, H, L, K], which a TPU pads to 128 features per head: twice
  the memory for K=64. This one keeps the merged output, under the name ATTENTION.
  """
  del heads
  return _merge(attend(*inputs))


def _merged_forward(attend: Callable[..., jax.Array], heads: int, *inputs: jax.Array):
  del heads
  out_BHLK, pullback = jax.vjp(attend, *inputs)

  def kept(z):
    """A residual to keep: a placeholder for the output, and a name if neither input nor mask."""
    if z is out_BHLK:
      return _Output()
    computed = jnp.issubdtype(z.dtype, jnp.floating) and not any(z is x for x in inputs)
    return checkpoint_name(z, ATTENTION) if computed else z

  merged = checkpoint_name(_merge(out_BHLK), ATTENTION)
  return merged, (merged, jax.tree.map(kept, pullback))


def _merged_backward(
  attend: Callable[..., jax.Array], heads: int, residuals: Any, cotangent: jax.Array
):
  del attend

  def split(z):
    return jnp.swapaxes(z.reshape(*z.shape[:2], heads, -1), 1, 2)

  merged, rest = residuals
  pullback = jax.tree.map(
    lambda z: split(merged) if isinstance(z, _Output) else z,
    rest,
    is_leaf=lambda z: isinstance(z, _Output),
  )
  return pullback(split(cotangent))


_merged.defvjp(_merged_forward, _merged_backward)


def _merge(out_BHLK: jax.Array) -> jax.Array:
  out_BLHK = jnp.swapaxes(out_BHLK, 1, 2)
  return out_BLHK.reshape(*out_BLHK.shape[:2], -1)


@functools.lru_cache
def _splash_kernel(heads: int, length: int, rule: Rule, interpret: bool) -> Any:
  """Forward and backward kernels for one sequence, of (q, k, v) [H, L, K].

  Blocks have the largest size that divides the length, up to MaxText's default of 512. They were
  compiled for v5e and v6e, not tuned.
  """
  block = max(b for b in range(_LANES, _LONGEST_BLOCK + 1, _LANES) if length % b == 0)
  # A fused kernel computes dq, dk and dv with 5 products per pair of blocks; two kernels take 7. It
  # writes a dq for every part of the keys, so the keys form one part, which limits the length.
  fused = length <= _LONGEST_FUSED
  sizes = splash_attention.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=length if fused else block,
    block_kv_dkv_compute=block,
    block_q_dq=None if fused else block,
    block_kv_dq=None if fused else block,
    use_fused_bwd_kernel=fused,
  )
  mask = splash_attention.MultiHeadMask([_splash_mask(length, rule)] * heads)
  # Cached as numpy arrays, which do not depend on the first caller's trace or backend.
  with jax.ensure_compile_time_eval():
    kernel = splash_attention.make_splash_mha(
      mask,
      block_sizes=sizes,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    return jax.tree.map(np.asarray, kernel)


def _splash_mask(length: int, rule: Rule) -> splash_attention.Mask:
  """Splash's mask for a rule; its built-in masks are computed block by block."""
  built_in = {ALL: splash_attention.FullMask, CAUSAL: splash_attention.CausalMask}
  if rule in built_in:
    return built_in[rule]((length, length))
  position = np.arange(length)
  return splash_attention.NumpyMask(np.asarray(rule.sees(position[:, None], position[None, :])))


def rotary(z_BLHK: jax.Array, first: jax.typing.ArrayLike = 0) -> jax.Array:
  """z with feature pairs (i, i + K / 2) rotated by position * 10000^(-2i / K).

  The angles are at least float32, whatever the dtype of z.

  Args:
    first: int32[], the first position.
  """
  length, width = z_BLHK.shape[1], z_BLHK.shape[3]
  dtype = jnp.promote_types(z_BLHK.dtype, jnp.float32)
  frequency = 10000.0 ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
  angle = (first + jnp.arange(length)).astype(dtype)[:, None] * frequency[None, :]
  cos, sin = (f(angle).astype(z_BLHK.dtype)[None, :, None, :] for f in (jnp.cos, jnp.sin))
  first, second = jnp.split(z_BLHK, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
