"""The measurement of a benchmark, and the fields of its line.

The order is: compile, first call, warm-up, peak memory, ceilings, timed calls. So the peak is the
program's own, and the ceilings are measured just before the calls. Every call is awaited.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.options import Options
from benchmarks.report import peak_resident_bytes, print_line
from benchmarks.work import Work
from sedd_jax.parallel.chips import device_flops

Call = Callable[[], Any]


class Compiled:
  """A jitted function compiled for its arguments, with the compilation's seconds."""

  def __init__(self, jitted: Any, *arguments: Any):
    start = time.perf_counter()
    self.call = jitted.lower(*arguments).compile()
    self.seconds = time.perf_counter() - start
    memory = self.call.memory_analysis()
    self.memory = {
      name: getattr(memory, f"{name}_size_in_bytes") for name in ("temp", "argument", "output")
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """A benchmark's measurements.

  Attributes:
    times: seconds of each timed call.
    rival_times: seconds of each call of each rival, by name.
    first_seconds: from the start of the work to the end of the first call, including compilation.
    peak: peak memory after warm-up, in bytes, and its source.
    ceilings: throughput of one device.
  """

  times: list[float]
  rival_times: dict[str, list[float]]
  first_seconds: float
  peak: dict[str, Any]
  ceilings: Ceilings


def measure(
  options: Options, started: float, call: Call, rivals: Mapping[str, Call] | None = None
) -> Measured:
  """Timings of a call, alternating with its rivals.

  Args:
    options: repeats, warm-up, and the compute dtype.
    started: start of the work by `time.perf_counter`.
    call: makes one call and returns arrays to wait for.
    rivals: calls to compare with, by name.
  """
  flags, rivals = options.flags, rivals or {}
  seconds_of(call)
  first_seconds = time.perf_counter() - started
  for _ in range(flags.warmup):
    seconds_of(call)
  peak = peak_memory()
  for rival in rivals.values():
    for _ in range(flags.warmup):
      seconds_of(rival)
  ceilings = measure_ceilings(options.experiment.model.dtype)
  seconds_of(call)  # Warms the caches again after the ceilings.
  times, rival_times = [], {name: [] for name in rivals}
  for _ in range(flags.repeats):
    times.append(seconds_of(call))
    for name, rival in rivals.items():
      rival_times[name].append(seconds_of(rival))
  return Measured(
    times=times,
    rival_times=rival_times,
    first_seconds=first_seconds,
    peak=peak,
    ceilings=ceilings,
  )


def seconds_of(call: Call) -> float:
  """Seconds of one call, until its arrays are ready."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def peak_memory() -> dict[str, Any]:
  """Peak memory so far: of the fullest device, or of the process if no device reports it."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  most = max(device.get("peak_bytes_in_use", 0) for device in stats)
  if most:
    return {"peak_memory_bytes": most, "peak_memory_is": "peak_bytes_in_use of one device"}
  return {"peak_memory_bytes": peak_resident_bytes(), "peak_memory_is": "ru_maxrss of the process"}


def described(options: Options) -> dict[str, Any]:
  """Fields for the config and the device."""
  device = jax.devices()[0]
  return {
    "config_name": options.flags.config,
    "config": dataclasses.asdict(options.experiment),
    "batch": options.experiment.train.batch_size,
    "length": options.experiment.data.length,
    "vocab": options.vocab,
    "device": {
      "platform": device.platform, "kind": device.device_kind, "count": jax.device_count()
    },
    "jax": jax.__version__,
  }  # fmt: skip


def compared(work: Work, ceilings: Ceilings, seconds: float) -> dict[str, Any]:
  """Fields that compare a time with the least time that the devices' ceilings allow."""
  count = jax.device_count()
  least_matmul = work.flops_needed / (ceilings.matmul_flops_per_second * count)
  least_copy = work.bytes_needed / (ceilings.copy_bytes_per_second * count)
  published = device_flops(jax.devices()[0].device_kind)
  return {
    "work": dataclasses.asdict(work),
    "ceilings": dataclasses.asdict(ceilings),
    "share_of_matmul_ceiling": least_matmul / seconds,
    "share_of_copy_ceiling": least_copy / seconds,
    "least_seconds": max(least_matmul, least_copy),
    # Share of the published peak; None for kinds without one, such as CPUs.
    "mfu": work.flops_needed / (published * count * seconds) if published else None,
  }


def print_measured(
  benchmark: str,
  options: Options,
  measured: Measured,
  work: Work,
  compiled: Compiled,
  *,
  tokens: int = 0,
  **fields: Any,
) -> None:
  """Prints the line of a benchmark.

  Args:
    tokens: tokens generated or trained on per call; 0 if not applicable.
    fields: additional fields.
  """
  median = statistics.median(measured.times)
  if tokens:
    fields["tokens_per_second"] = tokens / median
  print_line(
    benchmark,
    measured.times,
    **fields,
    compile_seconds=compiled.seconds,
    seconds_to_first_step=measured.first_seconds,
    compiled_bytes_per_device=compiled.memory,
    **measured.peak,
    **compared(work, measured.ceilings, median),
    **described(options),
  )
