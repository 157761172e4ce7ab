"""The mesh: devices in three named axes. One device is a mesh of size one."""

import dataclasses
from collections.abc import Callable

import jax

AXES = ("replica", "fsdp", "tensor")
_BATCH_AXES = ("replica", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the axes; one of them may be -1, for what is left.

  Attributes:
    replica: copies of all parameters, each with its share of the batch.
    fsdp: the batch and every parameter are sharded over this axis.
    tensor: width, heads and vocabulary are sharded over this axis.
  """

  replica: int = -1
  fsdp: int = 1
  tensor: int = 1


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
  """The mesh over all devices.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  sizes = [config.replica, config.fsdp, config.tensor]
  devices = jax.device_count()
  fixed = 1
  for name, size in zip(AXES, sizes, strict=True):
    if size != -1 and size < 1:
      raise ValueError(f"mesh.{name}={size} must be at least 1, or -1 for what is left")
    fixed *= max(size, 1)
  if sizes.count(-1) > 1 or devices % fixed or (-1 not in sizes and fixed != devices):
    named = ", ".join(f"mesh.{name}={size}" for name, size in zip(AXES, sizes, strict=True))
    raise ValueError(
      f"{named} do not make {devices} devices: at most one may be -1, and the product must be "
      f"{devices}"
    )
  shape = tuple(devices // fixed if size == -1 else size for size in sizes)
  return jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Sharding of arrays whose first axis counts examples."""
  return jax.sharding.NamedSharding(mesh, jax.P(_BATCH_AXES))


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, accumulation: int) -> None:
  """Refuses a batch that the mesh does not divide.

  Raises:
    ValueError: the message names a batch size that would do.
  """
  multiple = accumulation * mesh.shape["replica"] * mesh.shape["fsdp"]
  if batch_size % multiple:
    raise ValueError(
      f"train.batch_size={batch_size} must be a multiple of {multiple}: train.accumulation="
      f"{accumulation} times mesh.replica={mesh.shape['replica']} times "
      f"mesh.fsdp={mesh.shape['fsdp']}; for example {-(-batch_size // multiple) * multiple}"
    )


def constrain_activations(mesh: jax.sharding.Mesh) -> Callable[[jax.Array], jax.Array]:
  """The constraint put on activations [B, L, D]. Without it XLA may replicate them silently."""
  sharding = jax.sharding.NamedSharding(mesh, jax.P(_BATCH_AXES, None, None))
  return lambda h_BLD: jax.lax.with_sharding_constraint(h_BLD, sharding)
