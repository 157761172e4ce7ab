"""Searches over plans: batches and rematerialisation that fit, meshes to compare."""

import dataclasses
import functools
import re
from collections.abc import Callable

from sedd_jax.parallel import MeshConfig
from sedd_jax.planning.plan import Plan
from sedd_jax.training.experiment import Experiment

# From the least work to the least memory.
_POLICIES = ("none", "dots", "narrow", "full")


def fit(plan: Callable[[Experiment], Plan], experiment: Experiment, devices: int) -> Plan:
  """The plan with the largest batch that fits, and of those the one with least remat.

  From the experiment's batch it doubles until nothing fits, or halves until something does, then
  halves the gap until that is an eighth. Batches are whole numbers of sequences per device (a chip
  is one device, of tpu7x two); accumulation is 1. Each try is a compilation.

  Args:
    plan: compiles an experiment.
    experiment: its batch and remat are replaced.
    devices: number of devices.

  Returns:
    The best plan; that of one sequence per device with full remat where not even that fits.
  """

  @functools.cache
  def at(each: int, policy: str) -> Plan:
    train = dataclasses.replace(experiment.train, batch_size=each * devices, accumulation=1)
    model = dataclasses.replace(experiment.model, remat=policy)
    return plan(dataclasses.replace(experiment, train=train, model=model))

  def fits(each: int) -> bool:
    # What fits with less remat fits with more: ask the leanest.
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
  """Meshes from text: `fsdp=16;fsdp=4,tensor=4`. What is not named is 1, and -1 is what is left.

  Raises:
    ValueError: an axis is unknown, named twice or not a number.
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
