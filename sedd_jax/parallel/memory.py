"""Memory of devices and of this machine, held against batches that cannot fit."""

import os
from collections.abc import Sequence
from typing import Any

_GIB = 2**30


def check_batch(name: str, rows: int, row_bytes: int, devices: Sequence[Any] | None = None) -> None:
  """Checks, before anything is made, that some rows fit.

  Far from an estimate: only what is certain to be held is counted, so that no batch that fits is
  refused. `sedd plan` compiles and tells the whole.

  Args:
    name: the setting with its value, for messages.
    rows: rows at a time, on each device or on this machine.
    row_bytes: the least that one row takes.
    devices: the local devices that hold them, of one kind; None for this machine's memory.

  Raises:
    ValueError: they do not fit.
  """
  room = _host_bytes() if devices is None else _device_bytes(devices[0])
  if room is not None and rows * row_bytes > room:
    where = "this machine" if devices is None else "a device"
    most = room // row_bytes
    advice = f"no more than {most:,} could fit" if most else "not one fits: rows are too long"
    raise ValueError(
      f"{name}: {rows:,} rows at a time need at least {rows * row_bytes / _GIB:,.1f} GiB, and "
      f"{where} has {room / _GIB:,.1f} GiB; {advice}"
    )


def _device_bytes(device: Any) -> int | None:
  """The memory of a device, or None if it is not known."""
  if device.platform == "cpu":
    return _host_bytes()
  stats = device.memory_stats()
  return int(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None


def _host_bytes() -> int | None:
  """The memory of this machine, or None if it is not known."""
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (ValueError, OSError):
    return None
