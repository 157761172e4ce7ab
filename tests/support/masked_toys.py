"""Toys whose network says p(x_i | tokens not masked), and not that of the data.

B: sequences, L: positions, S: states, M: clean sequences.
"""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import Absorbing
from support.oracle import Toy, random_toy


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedToy(Toy):
  """A toy whose network says p(x_i | tokens not masked), and not that of the data.

  Attributes:
    timed: how much that depends on the noise.
  """

  timed: float = 0.0

  def raw(self, x_BL, total_B):
    """Outputs of the network, float[B, L, S]."""
    i = jnp.arange(self.length)[None, :, None]
    y = jnp.arange(self.process.num_states)[None, None, :]
    phase = 2.3 * self.index(x_BL)[:, None, None] + 1.7 * i + 2.9 * y
    return 1.5 * jnp.sin(phase) + self.timed * jnp.cos(phase + total_B[:, None, None])

  def log_score_fn(self, x_BL, total_B):
    raw_BLS = self.raw(x_BL, total_B)
    conditional = self.process.parameterization("conditional")
    return conditional.log_score(raw_BLS, x_BL, total_B[:, None])

  @functools.cached_property
  def clean_states(self):
    """int[M, L]."""
    return self.states[self.clean]

  def cross_entropies(self, hidden, last):
    """float64[M, L]: -log p of each token, where the positions of hidden are masked."""
    x = np.where(np.isin(np.arange(self.length), hidden), self.process.mask_id, self.clean_states)
    total = min(-math.log1p(-len(hidden) / self.length) if len(hidden) < self.length else 99, last)
    raw = np.asarray(self.raw(jnp.asarray(x), jnp.full(len(x), total)))
    raw = raw[..., : self.process.vocab_size]
    log_p = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, self.clean_states[..., None], -1)[..., 0]

  def orders_bound(self, last):
    """float64[M]: the mean of -log p over all orders, and -log of the mean of p."""
    losses = np.stack([
      sum(self.cross_entropies(order[i:], last)[:, order[i]] for i in range(self.length))
      for order in itertools.permutations(range(self.length))
    ])  # fmt: skip
    return losses.mean(0), -np.log(np.exp(-losses).mean(0))


@functools.cache
def masked_toy(timed=0.0, length=3):
  base = random_toy(Absorbing(3 if length < 3 else 2), length)
  return MaskedToy(base.process, base.p0, timed=timed)
