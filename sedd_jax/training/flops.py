"""What a network costs by its own shape: the yardstick of MFU."""

from sedd_jax.models import Network


def forward_flops(network: Network, batch: int, length: int) -> float:
  """Matrix operations of one forward pass, 2 for each multiplication and addition.

  Attention counts in full (it is bidirectional). Padding of the vocabulary does not, nor do the two
  small layers that read the noise level, and nothing is counted twice for rematerialisation. A
  training step takes three times as much.

  Args:
    batch: number of sequences.
    length: tokens in each.
  """
  shape = network.config
  tokens, width = batch * length, shape.width
  linear = shape.blocks * 12 * width**2 + width * shape.num_states
  attention = shape.blocks * 2 * length * width
  modulation = shape.cond_dim * width * (6 * shape.blocks + 2)
  return 2.0 * (tokens * (linear + attention) + batch * modulation)
