"""Where each parameter lives: a table from path patterns to partition specs.

Optimizer moments and the moving average hold trees like the parameters', so the same table, matched
at the end of a path, covers the whole train state.
"""

import re
from typing import Any

import jax
from jax import P

# First match wins; leaves under blocks/ have a leading axis that counts blocks.
RULES = (
  (r"ends/embedding/embedding$", P("tensor", "fsdp")),
  (r"ends/output/kernel$", P("fsdp", "tensor")),
  (r"ends/output/bias$", P("tensor")),
  (r"blocks/(qkv|mlp_in)/kernel$", P(None, "fsdp", "tensor")),
  (r"blocks/mlp_in/bias$", P(None, "tensor")),
  (r"blocks/(attn_out|mlp_out)/kernel$", P(None, "tensor", "fsdp")),
  (r"blocks/modulation/kernel$", P(None, None, "fsdp")),
  (r"", P()),
)


def tree_shardings(mesh: jax.sharding.Mesh, tree: Any) -> Any:
  """A NamedSharding for every leaf of a tree of arrays or shapes."""

  def leaf(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree.map_with_path(leaf, tree)
