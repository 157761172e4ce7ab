"""The course of a benchmark, and the fields that come of it.

Compile, first call, warm-up, peak memory, ceilings, timed calls: in this order, so that the peak is
the program's own and the ceilings are those of the minute. Every call is awaited.
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
  """A jitted function compiled for its arguments, with the seconds that this took."""

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
  """What a benchmark saw.

  Attributes:
    times: seconds of each timed call.
    rival_times: of each call of each rival, by name.
    first_seconds: from the start of the work, building and compiling included, to the end of the
      first call.
    peak: peak memory after warm-up, in bytes, and where it comes from.
    ceilings: of one device.
  """

  times: list[float]
  rival_times: dict[str, list[float]]
  first_seconds: float
  peak: dict[str, Any]
  ceilings: Ceilings


def measure(
  options: Options, started: float, call: Call, rivals: Mapping[str, Call] | None = None
) -> Measured:
  """Times a call, in turn with its rivals.

  Args:
    options: repeats, warm-up, and the compute dtype.
    started: when the work began, by `time.perf_counter`.
    call: one call, from threaded state to arrays that are awaited.
    rivals: others to compare with, by name.
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
  seconds_of(call)  # The ceilings have taken its place in the caches.
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
  """Of one call, until its arrays are there."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def peak_memory() -> dict[str, Any]:
  """The most memory held so far: of the fullest device, or of the process where none says."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  most = max(one.get("peak_bytes_in_use", 0) for one in stats)
  if most:
    return {"peak_memory_bytes": most, "peak_memory_is": "peak_bytes_in_use of one device"}
  return {"peak_memory_bytes": peak_resident_bytes(), "peak_memory_is": "ru_maxrss of the process"}


def described(options: Options) -> dict[str, Any]:
  """What was run, and on what."""
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
  """A time beside the least that the ceilings of all devices allow."""
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
    # Of the published peak; for kinds that have one, which CPUs do not.
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
  """The line of a benchmark.

  Args:
    tokens: made or trained on in a call; 0 where that has no meaning.
    fields: what is its own.
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
