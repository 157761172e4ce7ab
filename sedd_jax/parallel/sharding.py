"""Where each parameter lives: a table from path patterns to partition specs.

Optimizer moments and the moving average hold trees like the parameters', so the same table, matched
at the end of a path, covers the whole train state. Init, restore, training, sampling, export and
planning all read it.
"""

import math
import re
from typing import Any

import jax
from jax import P

# First match wins; leaves under blocks/ have a leading axis that counts blocks. `tensor` splits
# what one layer computes (heads, width of the MLP, vocabulary); `fsdp` only splits storage: it is
# gathered before use (`placement.py`).
RULES = (
  (r"ends/embedding/embedding$", P("tensor", "fsdp")),
  (r"ends/output/kernel$", P("fsdp", "tensor")),
  (r"ends/output/bias$", P("tensor")),
  (r"blocks/qkv/kernel$", P(None, "fsdp", None, "tensor")),
  (r"blocks/mlp_in/kernel$", P(None, "fsdp", "tensor")),
  (r"blocks/mlp_in/bias$", P(None, "tensor")),
  (r"blocks/(attn_out|mlp_out)/kernel$", P(None, "tensor", "fsdp")),
  (r"blocks/modulation/kernel$", P(None, None, "fsdp")),
  (r"", P()),
)


def spec_of(name: str) -> jax.P:
  """The partition spec of a leaf whose path ends like `blocks/qkv/kernel`."""
  return next(spec for pattern, spec in RULES if re.search(pattern, name))


def tree_shardings(mesh: jax.sharding.Mesh, tree: Any) -> Any:
  """A NamedSharding for every leaf of a tree of arrays or shapes.

  Raises:
    ValueError: an axis of the mesh does not divide what it shards; the message names the sizes
      that would.
  """
  sharded = {axis: 0 for axis in mesh.axis_names}

  def leaf(path, x):
    spec = spec_of(path_name(path))
    for size, axis in zip(x.shape, spec, strict=False):
      if axis is not None:
        sharded[axis] = math.gcd(sharded[axis], size)
    return jax.sharding.NamedSharding(mesh, spec)

  shardings = jax.tree.map_with_path(leaf, tree)
  for axis, common in sharded.items():
    if common % mesh.shape[axis]:
      fitting = [n for n in range(1, common + 1) if common % n == 0]
      here = [n for n in fitting if mesh.size % n == 0]
      raise ValueError(
        f"mesh.{axis}={mesh.shape[axis]} does not divide the parameters: what it shards has sizes "
        f"that are multiples of {common}, so it must divide {common}; on {mesh.size} devices: "
        f"{', '.join(map(str, here))}"
      )
  return shardings


def path_name(path: tuple[Any, ...]) -> str:
  """A path of jax.tree_util as text, `params/blocks/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
