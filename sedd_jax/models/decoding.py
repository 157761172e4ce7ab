"""Text from an autoregressive network, token after token, with a cache.

B: sequences, L: positions, V: tokens.
"""

import jax
import jax.numpy as jnp

from sedd_jax.diffusion import Truncation, sample_categorical
from sedd_jax.models.build import Params
from sedd_jax.models.causal import Autoregressive


def decode(
  network: Autoregressive,
  params: Params,
  keys: jax.Array,
  prefix: jax.Array,
  prefix_lengths: jax.Array,
  *,
  truncation: Truncation = Truncation(),
) -> tuple[jax.Array, jax.Array]:
  """Continues prefixes; each new token is drawn given all before it.

  The network is called L times, once for each position, whatever is given.

  Args:
    network: where the first token has no law of its own, it comes after `network.start`.
    params: its parameters.
    keys: PRNG keys [B]; a sample depends on its key alone.
    prefix: int[B, L]; what stands after the prefix does not matter.
    prefix_lengths: int[B], tokens that are given.
    truncation: of each new token's law.

  Returns:
    Tokens int32[B, L], and float32[B, L], the log probability of each token, nats, before the
    truncation.
  """
  batch, length = prefix.shape

  def body(carry, i):
    cache, last_B = carry
    logits_BV, cache = network.step(params, cache, last_B, i)
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    drawn_B = jax.vmap(sample_categorical)(keys_B, truncation(logits_BV))
    token_B = jnp.where(i < prefix_lengths, prefix[:, i], drawn_B).astype(jnp.int32)
    law_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return (cache, token_B), (token_B, jnp.take_along_axis(law_BV, token_B[:, None], axis=1)[:, 0])

  first_B = jnp.full(batch, network.start, jnp.int32)
  start = (network.empty_cache(batch, length), first_B)
  _, (tokens_LB, log_prob_LB) = jax.lax.scan(body, start, jnp.arange(length, dtype=jnp.int32))
  return tokens_LB.T, log_prob_LB.T
