"""The mesh: devices along three named axes. One device is a mesh of size one."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the axes; one of them may be -1, for the remaining devices.

  Attributes:
    replica: copies of all parameters, each with its share of the batch.
    fsdp: the batch and every parameter are sharded over this axis.
    tensor: width, heads and vocabulary are sharded over this axis.

  Raises:
    ValueError: sizes are out of range, or several are -1; the message has one line per error.
  """

  replica: int = 1
  fsdp: int = -1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    faults = [
      f"mesh.{name}={size} must be at least 1, or -1 for all remaining devices"
      for name, size in sizes.items()
      if size != -1 and size < 1
    ]
    if list(sizes.values()).count(-1) > 1:
      named = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
      faults.append(f"{named}: at most one may be -1")
    if faults:
      raise ValueError("\n".join(faults))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """The mesh over all devices.

  Several slices (TPU slices joined by a data center network) are placed along replica: parameters
  are gathered inside a slice, and only gradients cross the slow network.

  Args:
    config: sizes of the axes.
    devices: all devices by default; planning passes those of an absent slice.

  Raises:
    ValueError: the product of the sizes is not the number of devices, or replica is not a multiple
      of the number of slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  shape = _shape(config, len(devices))
  slices = _slices(devices)
  if shape[0] % slices:
    raise ValueError(
      f"mesh.replica={shape[0]} must be a multiple of the {slices} slices, for example {slices}: "
      f"parameters are sharded inside a slice, over the {len(devices) // slices} devices that "
      "mesh.fsdp times mesh.tensor must divide"
    )
  if slices > 1:
    in_slice = (shape[0] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      in_slice, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return jax.sharding.Mesh(
    np.asarray(grid), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES)
  )


def _slices(devices: Sequence[Any]) -> int:
  """Number of TPU slices; 1 on GPUs and CPUs. These have a slice index per host too, but JAX's
  device order already keeps a host's devices together."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def _shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
  sizes = [config.replica, config.fsdp, config.tensor]
  named = ", ".join(f"mesh.{name}={size}" for name, size in zip(AXES, sizes, strict=True))
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 not in sizes and fixed != devices:
    raise ValueError(f"{named} make {fixed}, not {devices} devices: -1 takes all that remain")
  if devices % fixed:
    divisors = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
    raise ValueError(
      f"{named} do not make {devices} devices: the product of the fixed sizes is {fixed} and must "
      f"be one of {divisors}"
    )
  replica, fsdp, tensor = (devices // fixed if size == -1 else size for size in sizes)
  return replica, fsdp, tensor


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Sharding of arrays whose first axis counts examples."""
  return jax.sharding.NamedSharding(mesh, jax.P(BATCH_AXES))


def batch_multiple(mesh: jax.sharding.Mesh) -> int:
  """Number of shards of the batch; batch sizes must be a multiple of it."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def distribute(rows: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
  """A global array from rows that every process holds; each process provides its devices' rows."""
  return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def check_fits(mesh: jax.sharding.Mesh, *, batch_size: int, accumulation: int, heads: int) -> None:
  """Checks that the mesh divides the batch and the heads.

  Raises:
    ValueError: it does not; the message has one line per error, with sizes that fit.
  """
  faults, tensor = [], mesh.shape["tensor"]
  multiple = accumulation * batch_multiple(mesh)
  if batch_size % multiple:
    below = batch_size // multiple * multiple
    fitting = " or ".join(str(size) for size in (below, below + multiple) if size)
    faults.append(
      f"train.batch_size={batch_size} must be a multiple of {multiple}: train.accumulation="
      f"{accumulation} times mesh.replica={mesh.shape['replica']} times "
      f"mesh.fsdp={mesh.shape['fsdp']}; for example {fitting}"
    )
  if heads % tensor:
    fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
    faults.append(f"mesh.tensor={tensor} must divide model.heads={heads}: {fitting}")
  if faults:
    raise ValueError("\n".join(faults))
