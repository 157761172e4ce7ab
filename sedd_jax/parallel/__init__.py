"""The device mesh, sharding rules, and a network's placement on the mesh."""

from sedd_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from sedd_jax.parallel.placement import OnMesh
from sedd_jax.parallel.sharding import tree_shardings

__all__ = ["MeshConfig", "OnMesh", "batch_sharding", "make_mesh", "tree_shardings"]
