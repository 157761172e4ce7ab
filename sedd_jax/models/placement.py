"""Where a network's arrays live.

The network calls these methods; on one device they do nothing. `parallel.OnMesh` overrides them for
a mesh, so networks do not depend on meshes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import P

from sedd_jax.diffusion import Columns
from sedd_jax.models.attention import PerShard

# Partition specs of every network: the embedding [S', D], and the kernel [D, S'] and bias [S'] of
# the output layer.
EMBEDDING = P("tensor", "fsdp")
OUTPUT_KERNEL = P("fsdp", "tensor")
OUTPUT_BIAS = P("tensor")


class Placement:
  """One device."""

  def activations(self, h_BLD: jax.Array) -> jax.Array:
    """Activations float[B, L, D] with their sharding constraint, at the embedding and per block."""
    return h_BLD

  def lookup(self, table_SD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """Rows float[B, L, D] of the embedding float[S', D] at tokens int[B, L]."""
    return table_SD[tokens_BL]

  def weights(self, name: str, tree: Any, specs: Mapping[str, jax.P]) -> Any:
    """Parameters gathered for use in products.

    Args:
      name: path of the tree, `ends/output` or `blocks`; leaves under `blocks` have no blocks axis.
      tree: one layer's parameters.
      specs: partition specs by name (`layers.Table.specs`).
    """
    del name, specs
    return tree

  def gathered(self, x: Any, spec: jax.P) -> Any:
    """An array stored with this spec, gathered along fsdp for use in products."""
    del spec
    return x

  @property
  def per_shard(self) -> PerShard:
    """How an attention kernel runs on each device's shard."""
    return PerShard()

  def on_columns(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of kernel float[D, S'], bias float[S'] and more, run where the columns are stored.

    Args:
      function: of (Columns, ...) and the keyword `axis`, the mesh axis over which columns are
        sharded, or None. The other arguments and the result are trees of arrays [B, ...]; it sums
        over the columns of all devices.
    """
    return lambda kernel, bias, *rest: function(Columns(kernel, bias, 0), *rest, axis=None)

  def on_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of kernel float[D, S'], bias float[S'] and more, run with rows split over devices.

    Args:
      function: of (Columns, ...) with all columns. The other arguments and the result are trees of
        arrays [B, L, ...]; it treats each row independently.
    """
    return lambda kernel, bias, *rest: function(Columns(kernel, bias, 0), *rest)
