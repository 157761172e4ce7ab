"""What plans are made with where there is no TPU: slices of CPU devices, and what compilers say."""

import dataclasses

import jax

from sedd_jax.parallel.chips import TPUS
from sedd_jax.planning import Slice
from support.programs import module

PROGRAM = module(
  "%p = f32[8,16] parameter(0)",
  "%w = f32[16,16] parameter(1)",
  "%d = f32[8,16] dot(%p, %w), lhs_contracting_dims={1}",
  "ROOT %g = f32[32,16] all-gather(%d), replica_groups=[1,4]<=[4], dimensions={0}",
)


def slice_of(chips, **fields):
  made = Slice(
    name="cpu:4",
    chip=dataclasses.replace(TPUS["v5e"], **fields),
    chips=chips,
    slices=1,
    devices=tuple(jax.devices()[:4]),
    compiler="a compiler",
  )
  return made


OUT_OF_MEMORY = (
  "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
  "required for HLO temporaries (27.50G) exceeds available HBM (15.75G). HLO module: "
  "jit_train_step.\nSee https://openxla.org/xla/errors/error_1000 for more details."
)
