"""The processes that tests go through, and those of golden files."""

import functools

import jax
import pytest

from sedd_jax.diffusion import Absorbing, Geometric, LogLinear, Uniform

PROCESSES = [Absorbing(3), Uniform(3)]
both = pytest.mark.parametrize("process", PROCESSES, ids=str)
noises = pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=str)


def of_golden(arrays):
  """(process, arrays of its group) for every group, sizes read from the arrays."""
  prefixes = sorted(k.removesuffix("x0") for k in arrays if k.endswith("_x0"))
  for prefix in prefixes:
    group = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    size = group["log_score"].shape[-1]
    yield Absorbing(size - 1) if prefix.startswith("absorb") else Uniform(size), group


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(process, method, *args):
  """A method of a process, compiled."""
  return getattr(process, method)(*args)
