"""The JSON line of a benchmark, and its provenance. This module does not import jax."""

import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
# Settings that affect times or memory.
_TELLING = re.compile(r"MALLOC_|GLIBC_|XLA_|JAX_|LD_PRELOAD|OMP_|MKL_|CUDA_VISIBLE|LIBTPU_")


def print_line(benchmark: str, times: Sequence[float], **fields: Any) -> None:
  """Prints the one line.

  Args:
    benchmark: its name.
    times: seconds of each timed call; may be empty.
    fields: its other fields.
  """
  line = {
    "benchmark": benchmark,
    "median_seconds": statistics.median(times) if times else None,
    "times": list(times),
    **fields,
    "commit": commit(),
    "cpu": {"model": _cpu_model(), "cores": len(os.sched_getaffinity(0))},
    "python": platform.python_version(),
    "environment": {k: v for k, v in sorted(os.environ.items()) if _TELLING.match(k)},
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }
  print(json.dumps(line, allow_nan=False), flush=True)


def peak_resident_bytes() -> int:
  """Peak memory of this process in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def commit() -> str | None:
  """The checkout's short hash, with `+dirty` if files differ from it; None without git."""
  try:
    head, status = (
      subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
      for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return head.strip() + ("+dirty" if status else "")


def _cpu_model() -> str:
  info = Path("/proc/cpuinfo")
  text = info.read_text() if info.exists() else ""
  match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
  return match.group(1) if match else platform.processor()
