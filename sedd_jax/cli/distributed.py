"""The flags by which a process joins others, and how it leaves them."""

import sys
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


def join() -> None:
  """Joins the other processes, as the flags and the environment say."""
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


def leave(code: int) -> None:
  """After an error: leaves at once if there are others.

  They may wait for this process in a collective, and it would wait for them at its exit.
  """
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    print(
      f"process {jax.process_index()} of {jax.process_count()} stops; the others stop within twice "
      f"--heartbeat_timeout={_HEARTBEAT.value} seconds. Started again, the same command goes on "
      "from the last checkpoint.",
      file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    processes.leave_at_once(code)
