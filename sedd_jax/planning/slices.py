"""TPU slices that are not attached: their devices, as libtpu describes them."""

import dataclasses
import importlib.metadata
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from sedd_jax.parallel.chips import TPUS, Chip

_ABSENT_HOST = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  # Several programs may plan at the same time.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """Devices to compile for.

  Attributes:
    name: `v5e:16x16`, or `2xv5e:16x16` for two slices.
    chip: memory and peak rates of a chip.
    chips: number of chips in all slices.
    slices: number of slices, joined by the data center network.
    devices: jax devices, one or two per chip.
    compiler: versions of jax and libtpu.
  """

  name: str
  chip: Chip
  chips: int
  slices: int
  devices: tuple[Any, ...]
  compiler: str

  @property
  def devices_per_chip(self) -> int:
    return len(self.devices) // self.chips


def find_slice(topology: str) -> Slice:
  """The devices of a topology.

  Args:
    topology: a generation and a shape, such as `v5e:16x16`; `2xv5e:16x16` is two such slices.

  Raises:
    ValueError: the name has another form, or libtpu does not know the shape.
    ImportError: libtpu is not installed.
  """
  match = re.fullmatch(r"(?:(\d+)x)?(v4|v5e|v5p|v6e|tpu7x):(\d+(?:x\d+){1,2})", topology)
  if not match or match.group(1) == "0":
    raise ValueError(
      f"--topology={topology}: must be a generation ({', '.join(TPUS)}) and a shape in chips, for "
      "example v5e:4x4, v5p:4x4x4, or 2xv5e:16x16 for two slices"
    )
  slices, generation = int(match.group(1) or 1), match.group(2)
  # libtpu would ask a TPU host for these; it reads them when it is loaded.
  for name, value in _ABSENT_HOST.items():
    os.environ.setdefault(name, value)
  try:
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ImportError(
      "planning compiles with PyPI's libtpu, which is not installed: pip install libtpu"
    ) from error
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if generation == "v4":
    options["chip_config_name"] = "megacore"  # One device per chip, as in a run.
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{generation}:{match.group(3)}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"--topology={topology}: libtpu refuses it: {first_line(error)}") from error
  chips = {(getattr(d, "slice_index", 0), tuple(d.coords)) for d in found.devices}
  return Slice(
    name=topology,
    chip=TPUS[generation],
    chips=len(chips),
    slices=slices,
    devices=tuple(found.devices),
    compiler=f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}",
  )


def first_line(error: object) -> str:
  """The first line of an error message, at most 300 characters."""
  return str(error).strip().splitlines()[0][:300]
