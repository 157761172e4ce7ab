"""Where a network's arrays live: what a mesh changes about it.

The network calls these methods; on one device they do nothing. `parallel.OnMesh` has the same
methods for a mesh, so that no network knows of meshes.
"""

from collections.abc import Callable
from typing import Any

import jax

from sedd_jax.models.attention import PerShard


class Placement:
  """One device."""

  def activations(self, h_BLD: jax.Array) -> jax.Array:
    """The constraint on activations float[B, L, D], at the embedding and once per block."""
    return h_BLD

  def lookup(self, table_SD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """Rows float[B, L, D] of the embedding float[S', D] at tokens int[B, L]."""
    return table_SD[tokens_BL]

  def weights(self, name: str, tree: Any) -> Any:
    """Parameters as a product needs them.

    Args:
      name: path of the tree, `ends/output` or `blocks`; the leading axis of leaves under `blocks`
        is gone by then.
      tree: one layer's parameters.
    """
    del name
    return tree

  @property
  def per_shard(self) -> PerShard:
    """How an attention kernel runs on each device's own part."""
    return PerShard()

  def summed_columns(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Sums over the columns of the output layer, each device having some.

    Args:
      function: of (hidden float[B, L, D], kernel float[D, C], bias float[C], tokens, ...) and the
        keywords `first`, the state of its first column, and `axis`, the mesh axis that columns
        are sharded over (None: it has them all). Returns a tree of sums over its columns.

    Returns:
      A function of the same positional arguments, kernel and bias whole, that returns the sums
      over all columns.
    """
    return lambda *arguments: function(*arguments, first=0, axis=None)
