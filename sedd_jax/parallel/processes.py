"""Several processes as one program, on JAX's multi-controller runtime.

With one process, no function communicates.
"""

import glob
import importlib.util
import os
import signal
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

Mode = Literal["auto", "on", "off"]

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# The variables that jax needs inside a SLURM step.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def environment(variables: Mapping[str, str], *, on_tpu: bool) -> str | None:
  """The launcher of several processes: `explicit`, `slurm`, `openmpi`, `tpu`, or None.

  Args:
    variables: the environment variables.
    on_tpu: whether this machine has TPU chips; then the result is never None, since slices of one
      and of many hosts start alike.

  Raises:
    ValueError: only some of the variables that belong together are set.
  """
  explicit = [name for name in (_ADDRESS, _COUNT, _INDEX) if name in variables]
  if len(explicit) == 3:
    return "explicit"
  if explicit and explicit != [_ADDRESS]:
    missing = {_ADDRESS, _COUNT, _INDEX} - set(explicit)
    raise ValueError(
      f"{', '.join(explicit)} without {', '.join(sorted(missing))}: set all three: where process 0 "
      "listens, the number of processes, and this process's index"
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
  """Joins the other processes. Call it before anything uses a device.

  Args:
    mode: `auto` joins if the environment or the arguments describe other processes; `on` also tries
      jax's other launchers (Kubernetes jobs), and fails if there is none; `off` never joins.
    coordinator_address: host:port at which process 0 listens; default: from the environment.
    num_processes: number of processes; default: from the environment.
    process_id: index of this process; default: from the environment.
    heartbeat_timeout: seconds after which a silent process counts as lost, and the others stop.

  Raises:
    ValueError: the arguments or the environment are incomplete.
    RuntimeError: the other processes cannot be reached.
  """
  if mode == "off":
    return
  variables = dict(os.environ)
  for name, value in (
    (_ADDRESS, coordinator_address), (_COUNT, num_processes), (_INDEX, process_id),
  ):  # fmt: skip
    if value is not None:
      variables[name] = str(value)
  launcher = environment(variables, on_tpu=_on_tpu())
  if launcher is None and mode == "auto":
    if coordinator_address is not None:
      raise ValueError(
        f"--coordinator_address={coordinator_address} needs --num_processes and --process_id: "
        "the environment does not set them"
      )
    return
  arguments: dict[str, Any] = {}
  if _ADDRESS in variables:
    arguments["coordinator_address"] = variables[_ADDRESS]
  if launcher == "explicit":
    arguments |= _numbers(variables, _COUNT, _INDEX)
  elif launcher == "openmpi" and "OMPI_MCA_orte_hnp_uri" not in variables:
    # Open MPI up to 4 sets the launcher's host, which jax reads; Open MPI 5 does not.
    if _ADDRESS not in variables:
      raise ValueError(
        f"Open MPI 5 does not say where process 0 runs: set {_ADDRESS}=HOST:PORT or give "
        "--coordinator_address"
      )
    arguments |= _numbers(variables, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
  try:
    _join(arguments, heartbeat_timeout)
  except ValueError as error:
    if launcher is not None:
      raise
    raise ValueError(
      "--distributed=on, but nothing says who the other processes are: give "
      "--coordinator_address, --num_processes and --process_id, or start with srun, mpirun, on "
      f"a TPU slice or as a Kubernetes job ({error})"
    ) from error


def _numbers(variables: Mapping[str, str], count: str, index: str) -> dict[str, int]:
  processes, process = int(variables[count]), int(variables[index])
  if not 0 <= process < processes:
    raise ValueError(f"process_id={process} must lie in [0, {processes})")
  return {"num_processes": processes, "process_id": process}


def _join(arguments: Mapping[str, Any], heartbeat_timeout: int) -> None:
  jax.distributed.initialize(
    **arguments,
    heartbeat_timeout_seconds=heartbeat_timeout,
    # If longer, a process that failed alone would delay the exit of the others.
    shutdown_timeout_seconds=heartbeat_timeout,
  )


def _on_tpu() -> bool:
  if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
    return False
  return bool(importlib.util.find_spec("libtpu")) and bool(
    glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  )


def is_lead() -> bool:
  """Whether this process writes files and prints."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agreed_stop(step: int) -> signal.Signals | None:
  """SIGTERM if any process received it, at the same step on all processes; else None.

  JAX's preemption service catches the signal; call this once per step on every process.
  """
  return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None


def of_lead(value: int) -> int:
  """The value of process 0, on all processes."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def pass_on_interrupt() -> None:
  """Turns Ctrl-C into SIGTERM, which stops all processes together; a second Ctrl-C interrupts this
  process."""

  def handler(number: int, frame) -> None:
    del number, frame
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not print: a handler may run in the middle of another print.
    os.write(2, b"\nSIGINT: all processes save after this step; press again to exit at once\n")
    os.kill(os.getpid(), signal.SIGTERM)

  signal.signal(signal.SIGINT, handler)
