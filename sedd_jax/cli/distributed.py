"""Flags that join a process to others, and its exit after an error."""

import os
import sys
import time
from typing import Any

import jax
from absl import flags

from sedd_jax.parallel import processes

_MODE = flags.DEFINE_enum(
  "distributed", "auto", ["auto", "on", "off"], "Whether to join other processes."
)
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_timeout", 60, "Seconds after which a silent process counts as lost."
)

_USER_ERROR = 2
_LAST_SECONDS = 5.0


def join() -> None:
  """Joins the other processes, by the flags and the environment."""
  if _HEARTBEAT.value < 1:
    raise ValueError(f"--heartbeat_timeout={_HEARTBEAT.value} must be at least 1")
  mode: Any = _MODE.value
  processes.initialize(
    mode,
    coordinator_address=_ADDRESS.value,
    num_processes=_COUNT.value,
    process_id=_INDEX.value,
    heartbeat_timeout=_HEARTBEAT.value,
  )
  if jax.distributed.is_initialized():
    processes.pass_on_interrupt()


def leave(code: int) -> None:
  """Exits at once after an error, if there are other processes.

  They may wait for this process in a collective, and a normal exit would wait for them.
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return
  index, count = jax.process_index(), jax.process_count()
  again = (
    ""
    if code == _USER_ERROR
    else (" Started again, the same command goes on from the last checkpoint.")
  )
  print(
    f"process {index} of {count} stops; the others stop within twice "
    f"--heartbeat_timeout={_HEARTBEAT.value} seconds.{again}",
    file=sys.stderr,
  )
  sys.stdout.flush()
  sys.stderr.flush()
  if index == 0 and code == _USER_ERROR:
    # The coordinator exits last: the others are about to report the same error.
    time.sleep(_LAST_SECONDS)
  os._exit(code)
