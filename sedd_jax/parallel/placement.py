"""A network on a mesh: sharding constraints and sharded sums."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from sedd_jax.diffusion import Columns
from sedd_jax.models.attention import PerShard
from sedd_jax.models.placement import EMBEDDING, OUTPUT_BIAS, OUTPUT_KERNEL, Placement
from sedd_jax.parallel.mesh import BATCH_AXES
from sedd_jax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True)
class OnMesh(Placement):
  """Shards batches over replica and fsdp, and layers over tensor.

  All shardings are explicit. Without these constraints XLA replicates activations, or moves them
  instead of weights.

  Attributes:
    mesh: a mesh with the axes `mesh.AXES`.
  """

  mesh: jax.sharding.Mesh

  def activations(self, h_BLD: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(h_BLD, self._named(P(BATCH_AXES, None, None)))

  def lookup(self, table_SD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """An explicit lookup: with XLA's own, the table's gradient moves activations over fsdp."""
    if self.mesh.size == 1:  # A collective on one device is a copy on some backends.
      return super().lookup(table_SD, tokens_BL)

    def shard_lookup(table, tokens):
      rows = jax.lax.all_gather(table, "fsdp", axis=1, tiled=True)
      index = tokens - jax.lax.axis_index("tensor") * len(rows)
      local = (index >= 0) & (index < len(rows))
      h_BLD = jnp.where(local[..., None], rows[jnp.where(local, index, 0)], 0.0)
      return jax.lax.psum(h_BLD, "tensor")

    return jax.shard_map(
      shard_lookup,
      mesh=self.mesh,
      in_specs=(EMBEDDING, P(BATCH_AXES, None)),
      out_specs=P(BATCH_AXES, None, None),
    )(table_SD, tokens_BL)

  def weights(self, name: str, tree: Any, specs: Mapping[str, jax.P]) -> Any:
    """Parameters gathered over fsdp; their gradients are reduce-scattered."""

    def leaf(path, x):
      spec = specs[f"{name}/{path_name(path)}"]
      return self.gathered(x, P(*spec[1:]) if name.startswith("blocks") else spec)

    return jax.tree.map_with_path(leaf, tree)

  def gathered(self, x: jax.Array, spec: jax.P) -> jax.Array:
    if "fsdp" not in spec:
      return x
    used = P(*(None if axis == "fsdp" else axis for axis in spec))
    return _gathered(x, self._named(spec), self._named(used))

  @property
  def per_shard(self) -> PerShard:
    return PerShard(self.mesh)

  def on_columns(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on each device's own sequences and columns. Loops over tiles end at different
    times on different devices, so they contain no collectives."""
    if self.mesh.size == 1:
      return super().on_columns(function)

    def on_shard(kernel, bias, *rest):
      kernel = jax.lax.all_gather(kernel, "fsdp", axis=0, tiled=True)
      first = jax.lax.axis_index("tensor") * bias.shape[0]
      return function(Columns(kernel, bias, first), *rest, axis="tensor")

    return self._sharded_head(on_shard, P(BATCH_AXES))

  def on_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with all columns gathered and positions split over tensor. If tensor does not
    divide the length, each device computes all positions."""
    if self.mesh.size == 1:
      return super().on_rows(function)

    def on_shard(kernel, bias, *rest):
      kernel = jax.lax.all_gather(kernel, "fsdp", axis=0, tiled=True)
      kernel = jax.lax.all_gather(kernel, "tensor", axis=1, tiled=True)
      bias = jax.lax.all_gather(bias, "tensor", tiled=True)
      return function(Columns(kernel, bias, 0), *rest)

    def sharded(kernel, bias, *rest):
      even = jax.tree.leaves(rest)[0].shape[1] % self.mesh.shape["tensor"] == 0
      rows = P(BATCH_AXES, "tensor") if even else P(BATCH_AXES)
      return self._sharded_head(on_shard, rows)(kernel, bias, *rest)

    return sharded

  def _sharded_head(self, on_shard: Callable[..., Any], rows: jax.P) -> Callable[..., Any]:
    def sharded(kernel, bias, *rest):
      # Loops start from zeros that do not vary over the mesh, and end with sums that do; the check
      # (check_vma) would require casts in the formulas.
      return jax.shard_map(
        on_shard,
        mesh=self.mesh,
        in_specs=(OUTPUT_KERNEL, OUTPUT_BIAS, *(rows for _ in rest)),
        out_specs=rows,
        check_vma=False,
      )(kernel, bias, *rest)

    return sharded

  def _named(self, spec: jax.P) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(self.mesh, spec)


def _gathered(
  x: jax.Array, stored: jax.sharding.NamedSharding, used: jax.sharding.NamedSharding
) -> jax.Array:
  # The transpose of a constraint is the same constraint, which would sum full gradients on every
  # device; this one requests each device's shard.
  @jax.custom_vjp
  def gather(x):
    return jax.lax.with_sharding_constraint(x, used)

  def backward(_, cotangent):
    return (jax.lax.with_sharding_constraint(cotangent, stored),)

  gather.defvjp(lambda x: (gather(x), None), backward)
  return gather(jax.lax.with_sharding_constraint(x, stored))
