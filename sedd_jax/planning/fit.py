"""The largest batch that fits, found by compiling; and meshes to compare, read from text."""

import dataclasses
import functools
import re
from collections.abc import Callable

from sedd_jax.parallel import MeshConfig
from sedd_jax.planning.plan import Plan
from sedd_jax.training.experiment import Experiment

# From the least recomputation to the least memory.
_POLICIES = ("none", "dots", "narrow", "full")


def fit(plan: Callable[[Experiment], Plan], experiment: Experiment, devices: int) -> Plan:
  """The plan with the largest batch that fits and, for that batch, the least rematerialisation.

  The search starts from the experiment's batch and doubles it until it no longer fits, or halves it
  until it fits. Bisection then narrows the range to an eighth of the batch. A batch is a multiple
  of the number of devices (tpu7x has two devices per chip). Accumulation is 1. Each attempt is a
  compilation.

  Args:
    plan: compiles an experiment.
    experiment: the run; its batch, accumulation and remat are replaced.
    devices: number of devices.

  Returns:
    The best plan. If not even one sequence per device fits, the plan for that with full remat.
  """

  @functools.cache
  def at(each: int, policy: str) -> Plan:
    train = dataclasses.replace(experiment.train, batch_size=each * devices, accumulation=1)
    model = dataclasses.replace(experiment.model, remat=policy)
    return plan(dataclasses.replace(experiment, train=train, model=model))

  def fits(each: int) -> bool:
    # The last policy needs the least memory: if it does not fit, no other does.
    return at(each, _POLICIES[-1]).fits

  low, high = 0, max(1, experiment.train.batch_size // devices)
  if fits(high):
    while fits(high):
      low, high = high, 2 * high
  else:
    while high > 1 and not low:
      half = high // 2
      low, high = (half, high) if fits(half) else (0, half)
  while high - low > max(1, low // 8):
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  if not low:
    return at(1, _POLICIES[-1])
  return next(one for one in (at(low, policy) for policy in _POLICIES) if one.fits)


def meshes(text: str) -> list[MeshConfig]:
  """Meshes from text such as `fsdp=16;fsdp=4,tensor=4`; axes not named are 1, -1 takes the rest.

  Raises:
    ValueError: an axis is unknown or named twice, or its size is not a number.
  """
  found = []
  for part in filter(None, (part.strip() for part in text.split(";"))):
    sizes: dict[str, int] = {}
    for item in part.split(","):
      match = re.fullmatch(r"\s*(replica|fsdp|tensor)\s*=\s*(-?[0-9]+)\s*", item)
      if not match or match.group(1) in sizes:
        raise ValueError(
          f"mesh {part!r}: {item.strip()!r} must be one of replica=N, fsdp=N, tensor=N, each once"
        )
      sizes[match.group(1)] = int(match.group(2))
    found.append(MeshConfig(**{"replica": 1, "fsdp": 1, "tensor": 1} | sizes))
  if not found:
    raise ValueError(f"no mesh in {text!r}: for example 'fsdp=16;fsdp=4,tensor=4'")
  return found
