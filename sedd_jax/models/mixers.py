"""Mixers: the part of a block that mixes positions, and its cache.

A block (`score_transformer.py`) depends only on `Mixer`. B: sequences, L: positions, D: width, H:
heads, K: head width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import P
from jax.ad_checkpoint import checkpoint_name

from sedd_jax.models.attention import Kernel, PerShard, attend_one, attention, rotary
from sedd_jax.models.layers import Layer, Params, linear, uniform
from sedd_jax.models.visibility import ALL, Rule, Visibility


class Mixer(Protocol):
  """The part of a block that mixes positions."""

  def layers(self) -> tuple[Layer, ...]:
    """Its layers of the table; names begin with `blocks/`."""
    ...

  def products(self, length: int) -> float:
    """Multiplications per token, in addition to those of its layers."""
    ...

  def __call__(
    self, params: Params, a_BLD: jax.Array, segments: jax.Array | None, per_shard: PerShard
  ) -> jax.Array:
    """Mixed activations float[B, L, D] from a_BLD; segments as in `Batch`."""
    ...

  def empty_cache(self, batch: int, length: int) -> Any:
    """A cache for `step`, with space for this many positions."""
    ...

  def step(
    self, params: Params, a_B1D: jax.Array, cache: Any, position: jax.Array
  ) -> tuple[jax.Array, Any]:
    """The output of a causal mixer at one position, and the cache, which holds earlier ones."""
    ...


class Cache(NamedTuple):
  """Keys and values of earlier positions, each float[B, L, H, K]; keys are rotated."""

  keys: jax.Array
  values: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
  """Attention with rotary positions.

  Attributes:
    width: D.
    heads: H.
    dtype: compute dtype.
    rule: which positions see which.
    kernel: see `attention.py`.
  """

  width: int
  heads: int
  dtype: Any
  rule: Rule = ALL
  kernel: Kernel = "auto"

  def layers(self) -> tuple[Layer, ...]:
    width = self.width
    return (
      # In memory queries, keys and values have an axis of their own, so that a mesh can shard each
      # by heads.
      Layer(
        name="blocks/qkv/kernel", shape=(width, 3 * width), init=uniform(width), split=3,
        spec=P("fsdp", None, "tensor"), dtype=self.dtype, per="token",
        original="blocks.{}.attn_qkv.weight",
      ),
      Layer(
        name="blocks/attn_out/kernel", shape=(width, width), init=uniform(width),
        spec=P("tensor", "fsdp"), dtype=self.dtype, per="token",
        original="blocks.{}.attn_out.weight",
      ),
    )  # fmt: skip

  def products(self, length: int) -> float:
    return 2 * length * self.width * self.rule.share

  def __call__(
    self, params: Params, a_BLD: jax.Array, segments: jax.Array | None, per_shard: PerShard
  ) -> jax.Array:
    q, k, v = self._qkv(params, a_BLD)
    out = attention(
      rotary(q),
      rotary(k),
      v,
      Visibility(self.rule, segments),
      kernel=self.kernel,
      per_shard=per_shard,
    )
    return self._out(params, out)

  def empty_cache(self, batch: int, length: int) -> Cache:
    shape = (batch, length, self.heads, self.width // self.heads)
    return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

  def step(
    self, params: Params, a_B1D: jax.Array, cache: Cache, position: jax.Array
  ) -> tuple[jax.Array, Cache]:
    q, k, v = self._qkv(params, a_B1D)
    cache = Cache(
      jax.lax.dynamic_update_slice_in_dim(cache.keys, rotary(k, position), position, axis=1),
      jax.lax.dynamic_update_slice_in_dim(cache.values, v, position, axis=1),
    )
    out = attend_one(rotary(q, position), cache.keys, cache.values, position)
    return self._out(params, out), cache

  def _qkv(self, params: Params, a_BLD: jax.Array) -> list[jax.Array]:
    """Queries, keys and values, float[B, L, H, K]. Three products: splitting one result and joining
    three gradients would take four passes over them."""
    a_TD = a_BLD.reshape(-1, a_BLD.shape[-1]).astype(self.dtype)
    kernel_DXD = params["qkv"]["kernel"].astype(self.dtype)
    heads = (*a_BLD.shape[:2], self.heads, -1)
    return [kept(a_TD @ kernel_DXD[:, i], "qkv").reshape(heads) for i in range(3)]

  def _out(self, params: Params, out_BLHK: jax.Array) -> jax.Array:
    out_BLD = out_BLHK.reshape(*out_BLHK.shape[:2], -1)
    return kept(rows(lambda z: linear(params["attn_out"], z, self.dtype), out_BLD), "attn_out")


def kept(z: jax.Array, name: str) -> jax.Array:
  """z under a name by which rematerialisation may keep it (`score_transformer.KEPT`)."""
  return checkpoint_name(z, name)


def rows(function: Callable[[jax.Array], jax.Array], z_BLD: jax.Array) -> jax.Array:
  """function(z), a map of rows, computed with all positions on one axis.

  The products are the same. On XLA's CPU backend an MLP with GELU, forward and backward, took 19 ms
  this way and 45 ms with two leading axes (4096 rows, width 128). The cause was not isolated, and a
  whole step gained little.
  """
  out_TE = function(z_BLD.reshape(-1, z_BLD.shape[-1]))
  return out_TE.reshape(*z_BLD.shape[:-1], -1)
