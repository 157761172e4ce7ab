"""Searches over plans: batches and rematerialisation that fit, meshes to compare."""

import dataclasses
from collections.abc import Callable

from sedd_jax.parallel import MeshConfig
from sedd_jax.planning.plan import Plan
from sedd_jax.training.experiment import Experiment

# From the least work to the least memory.
_POLICIES = ("none", "dots", "full")


def fit(plan: Callable[[Experiment], Plan], experiment: Experiment, chips: int) -> Plan:
  """The plan with the largest batch per chip that fits, and of those the one with least remat.

  Doubles the batch per chip until nothing fits, then halves the gap. Batches are whole numbers of
  sequences per chip; accumulation is 1.

  Args:
    plan: compiles an experiment.
    experiment: its batch and remat are replaced.
    chips: number of chips.

  Returns:
    The best plan; the plan of one sequence per chip with full remat where not even that fits.
  """

  def at(per_chip: int, policy: str) -> Plan:
    return plan(
      dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, batch_size=per_chip * chips, accumulation=1),
        model=dataclasses.replace(experiment.model, remat=policy),
      )
    )

  def fitting(per_chip: int) -> Plan | None:
    # What fits with less remat fits with more: ask the leanest first.
    leanest = at(per_chip, _POLICIES[-1])
    return leanest if leanest.fits else None

  low, high, best = 0, 1, None
  while (found := fitting(high)) is not None:
    low, high, best = high, 2 * high, found
  while high - low > max(1, low // 8):
    middle = (low + high) // 2
    found = fitting(middle)
    if found is None:
      high = middle
    else:
      low, best = middle, found
  if best is None:
    return at(1, _POLICIES[-1])
  for policy in _POLICIES[:-1]:
    eased = at(low, policy)
    if eased.fits:
      return eased
  return best


def meshes(text: str) -> list[MeshConfig]:
  """Meshes from text: `fsdp=16;fsdp=4,tensor=4`. What is not named is 1, and -1 is what is left.

  Raises:
    ValueError: an axis is unknown, named twice or not a number.
  """
  found = []
  for part in filter(None, (part.strip() for part in text.split(";"))):
    sizes = {"replica": 1, "fsdp": 1, "tensor": 1}
    named = set()
    for item in part.split(","):
      axis, _, size = item.strip().partition("=")
      if axis not in sizes or axis in named or not size.lstrip("-").isdigit():
        raise ValueError(
          f"mesh {part!r}: {item.strip()!r} must be one of replica=N, fsdp=N, tensor=N, each once"
        )
      named.add(axis)
      sizes[axis] = int(size)
    found.append(MeshConfig(**sizes))
  if not found:
    raise ValueError(f"no mesh in {text!r}: for example 'fsdp=16;fsdp=4,tensor=4'")
  return found
