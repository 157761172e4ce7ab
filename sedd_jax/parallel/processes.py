"""Several processes as one program: how they find each other, and what they agree on.

Everything here is JAX's own multi-controller runtime; one process needs none of it, and all
functions then do the obvious.
"""

import glob
import importlib.util
import os
import signal
from collections.abc import Mapping
from typing import Literal

import jax
from jax.experimental import multihost_utils

Mode = Literal["auto", "on", "off"]

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What jax needs to see inside a SLURM step.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def environment(variables: Mapping[str, str], *, on_tpu: bool) -> str | None:
  """Who started this process among others: `explicit`, `slurm`, `openmpi`, `tpu`, or None.

  Args:
    variables: the environment.
    on_tpu: whether this machine has TPU chips; a TPU host is always asked, since a slice of one
      host starts like one of many.

  Raises:
    ValueError: only some of the variables that go together are set.
  """
  explicit = [name for name in (_ADDRESS, _COUNT, _INDEX) if name in variables]
  if len(explicit) == 3:
    return "explicit"
  if explicit and explicit != [_ADDRESS]:
    missing = {_ADDRESS, _COUNT, _INDEX} - set(explicit)
    raise ValueError(
      f"{', '.join(explicit)} without {', '.join(sorted(missing))}: all three say where process 0 "
      "listens, how many processes there are, and which one this is"
    )
  if all(name in variables for name in _SLURM) and int(variables["SLURM_NTASKS"]) > 1:
    return "slurm"
  if int(variables.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return "openmpi"
  return "tpu" if on_tpu else None


def initialize(
  mode: Mode = "auto",
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_timeout: int = 60,
) -> None:
  """Joins the other processes. Call it before anything else touches a device.

  Args:
    mode: `auto` joins if the environment or the arguments say that there are others; `on` fails
      where they do not; `off` never joins.
    coordinator_address: host:port at which process 0 listens; else the environment says it.
    num_processes: how many there are; else the environment says it.
    process_id: which one this is; else the environment says it.
    heartbeat_timeout: seconds after which a silent process counts as lost, and the others stop.

  Raises:
    ValueError: the arguments or the environment are incomplete.
    RuntimeError: the others cannot be reached.
  """
  if mode == "off":
    return
  variables = dict(os.environ)
  for name, value in (
    (_ADDRESS, coordinator_address), (_COUNT, num_processes), (_INDEX, process_id),
  ):  # fmt: skip
    if value is not None:
      variables[name] = str(value)
  found = environment(variables, on_tpu=_on_tpu())
  if found is None:
    if mode == "on":
      raise ValueError(
        "--distributed=on, but nothing says who the other processes are: give "
        "--coordinator_address, --num_processes and --process_id, or start it with srun, mpirun or "
        "on a TPU slice"
      )
    return
  arguments = {}
  if found == "explicit":
    arguments = {
      "coordinator_address": variables[_ADDRESS],
      "num_processes": int(variables[_COUNT]),
      "process_id": int(variables[_INDEX]),
    }
    if not 0 <= arguments["process_id"] < arguments["num_processes"]:
      raise ValueError(
        f"process_id={process_id or variables[_INDEX]} must lie in [0, {variables[_COUNT]})"
      )
  elif found == "openmpi":
    arguments = _openmpi(variables)
  jax.distributed.initialize(
    **arguments,
    heartbeat_timeout_seconds=heartbeat_timeout,
    # Longer, and a process that failed alone would hold the others up as it leaves.
    shutdown_timeout_seconds=heartbeat_timeout,
  )


def _openmpi(variables: Mapping[str, str]) -> dict:
  """Open MPI up to 4 names the launcher's host, and jax reads it; 5 does not."""
  if "OMPI_MCA_orte_hnp_uri" in variables:
    return {}
  if _ADDRESS not in variables:
    raise ValueError(
      f"Open MPI 5 does not say where process 0 runs: set {_ADDRESS}=HOST:PORT or give "
      "--coordinator_address"
    )
  return {
    "coordinator_address": variables[_ADDRESS],
    "num_processes": int(variables["OMPI_COMM_WORLD_SIZE"]),
    "process_id": int(variables["OMPI_COMM_WORLD_RANK"]),
  }


def _on_tpu() -> bool:
  if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
    return False
  return bool(importlib.util.find_spec("libtpu")) and bool(
    glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  )


def is_lead() -> bool:
  """Whether this process writes files and speaks to the user."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agreed_stop(step: int) -> signal.Signals | None:
  """SIGTERM if some process got one, at the same step on all of them.

  JAX's preemption service catches the signal; call this once per step on every process.
  """
  return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None


def leave_at_once(code: int) -> None:
  """Ends this process without waiting for the others, who then see that it is gone."""
  os._exit(code)
