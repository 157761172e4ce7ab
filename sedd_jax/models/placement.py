"""Where a network's arrays live: what a mesh changes about it.

The network calls these methods; on one device they do nothing. `parallel.OnMesh` has the same
methods for a mesh, so that no network knows of meshes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import P

from sedd_jax.diffusion import Columns
from sedd_jax.models.attention import PerShard

# How a mesh cuts the tables of states of every network: the embedding [S', D], and the kernel
# [D, S'] and bias [S'] of the output layer.
EMBEDDING = P("tensor", "fsdp")
OUTPUT_KERNEL = P("fsdp", "tensor")
OUTPUT_BIAS = P("tensor")


class Placement:
  """One device."""

  def activations(self, h_BLD: jax.Array) -> jax.Array:
    """The constraint on activations float[B, L, D], at the embedding and once per block."""
    return h_BLD

  def lookup(self, table_SD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """Rows float[B, L, D] of the embedding float[S', D] at tokens int[B, L]."""
    return table_SD[tokens_BL]

  def weights(self, name: str, tree: Any, specs: Mapping[str, jax.P]) -> Any:
    """Parameters as a product needs them.

    Args:
      name: path of the tree, `ends/output` or `blocks`; the leading axis of leaves under `blocks`
        is gone by then.
      tree: one layer's parameters.
      specs: of a network's parameters, by name (`layers.Table.specs`).
    """
    del name, specs
    return tree

  def gathered(self, x: Any, spec: jax.P) -> Any:
    """An array that is stored so, as products need it: whole along fsdp."""
    del spec
    return x

  @property
  def per_shard(self) -> PerShard:
    """How an attention kernel runs on each device's own part."""
    return PerShard()

  def on_columns(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function of the output layer where its columns are.

    Args:
      function: of (Columns, ...) and the keyword `axis`, the mesh axis that columns are sharded
        over (None: all are here). The other arguments and the result are trees of arrays [B, ...];
        its sums over columns are over those of all devices.

    Returns:
      A function of kernel float[D, S'], bias float[S'] and the others.
    """
    return lambda kernel, bias, *rest: function(Columns(kernel, bias, 0), *rest, axis=None)

  def on_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function of whole rows of the output layer, each device having some rows.

    Args:
      function: of (Columns, ...), where the columns are all. The other arguments and the result are
        trees of arrays [B, L, ...], of which it treats each row by itself.

    Returns:
      A function of kernel float[D, S'], bias float[S'] and the others.
    """
    return lambda kernel, bias, *rest: function(Columns(kernel, bias, 0), *rest)
