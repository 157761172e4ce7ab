"""The sharding of each array in a tree of parameters.

Optimizer moments and the moving average contain trees like the parameters', so the same table of
layers covers the whole train state. Init, restore, training, sampling, export and planning read it.
"""

import math
from typing import Any

import jax

from sedd_jax.models.layers import Table


def tree_shardings(mesh: jax.sharding.Mesh, tree: Any, table: Table) -> Any:
  """A NamedSharding for every leaf of a tree of arrays or shapes; leaves that are not in the table
  are replicated.

  Raises:
    ValueError: a mesh axis does not divide the sizes that it shards; the message lists sizes that
      fit.
  """
  sharded = {axis: 0 for axis in mesh.axis_names}

  def leaf(path, x):
    layer = table.of_path(path)
    spec = jax.P() if layer is None else table.specs[layer.name]
    for size, axis in zip(x.shape, spec, strict=False):
      if axis is not None:
        sharded[axis] = math.gcd(sharded[axis], size)
    return jax.sharding.NamedSharding(mesh, spec)

  shardings = jax.tree.map_with_path(leaf, tree)
  for axis, common in sharded.items():
    if common % mesh.shape[axis]:
      fitting = [n for n in range(1, common + 1) if common % n == 0]
      possible = [n for n in fitting if mesh.size % n == 0]
      raise ValueError(
        f"mesh.{axis}={mesh.shape[axis]} does not divide the parameters: it shards axes whose "
        f"sizes are multiples of {common}, so it must divide {common}; on {mesh.size} devices: "
        f"{', '.join(map(str, possible))}"
      )
  return shardings


def path_name(path: tuple[Any, ...]) -> str:
  """A path of jax.tree_util as text, `params/blocks/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
