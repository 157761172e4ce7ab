"""Operations that a network needs by its shape: the numerator of MFU."""

import jax.numpy as jnp

from sedd_jax.diffusion import MIN_TIME, Noise, Process
from sedd_jax.models import Transformer

_TIMES = 10_000


def needed_share(process: Process, noise: Noise) -> float:
  """Share of positions that need the output layer, at times spread evenly over [MIN_TIME, 1].

  Masked ones for the absorbing process, all for the uniform one. A sampler's times are nearly the
  same.
  """
  t = MIN_TIME + (1.0 - MIN_TIME) * (jnp.arange(_TIMES) + 0.5) / _TIMES
  return float(jnp.mean(process.score_share(noise.total(t))))


def forward_flops(network: Transformer, batch: int, length: int, share: float = 1.0) -> float:
  """Matrix operations of one forward pass, 2 for each multiplication and addition.

  Attention counts in full where it is bidirectional, and by half where it is causal. Padding of the
  vocabulary does not count, nor do the two small layers that read the noise level, and nothing is
  counted twice for rematerialisation. A training step takes three times as much.

  Args:
    batch: number of sequences.
    length: tokens in each.
    share: share of the tokens that need the output layer (`needed_share`).
  """
  table = network.table
  linear = table.products("token") + share * table.products("state")
  mixing = table.blocks * network.config.mixer.products(length)
  return 2.0 * (batch * length * (linear + mixing) + batch * table.products("row"))
