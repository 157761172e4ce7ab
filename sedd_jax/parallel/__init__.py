"""The device mesh and the table of sharding rules."""

from sedd_jax.parallel.mesh import MeshConfig, batch_sharding, constrain_activations, make_mesh
from sedd_jax.parallel.sharding import tree_shardings

__all__ = [
  "MeshConfig",
  "batch_sharding",
  "constrain_activations",
  "make_mesh",
  "tree_shardings",
]
