"""Token-by-token sampling from an autoregressive network, with a cache.

B: sequences, L: positions, V: tokens.
"""

import jax
import jax.numpy as jnp

from sedd_jax.diffusion import Truncation, sample_categorical
from sedd_jax.models.causal import Autoregressive
from sedd_jax.models.layers import Params


def decode(
  network: Autoregressive,
  params: Params,
  keys: jax.Array,
  prefix: jax.Array,
  prefix_lengths: jax.Array,
  *,
  truncation: Truncation = Truncation(),
  started: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """Samples that continue prefixes; each new token is drawn given all tokens before it.

  The network is called once for each position, given or not.

  Seven arguments: a network and its weights, keys, prefixes and their lengths, and how to draw.

  Args:
    network: the autoregressive network.
    params: its parameters.
    keys: PRNG keys [B]; the randomness of a sample depends on its key alone.
    prefix: int[B, L]; entries after the prefix are ignored.
    prefix_lengths: int[B], number of given tokens.
    truncation: truncation of each new token's law.
    started: whether the network reads `network.start` first. If not, it reads the first token of
      the prefix first, and no prefix may be empty.

  Returns:
    Tokens int32[B, L], and the log probability of each token before truncation, float32[B, L],
    nats; 0 for the first token if not started.
  """
  batch, length = prefix.shape
  first = 0 if started else 1

  def body(carry, i):
    cache, last_B = carry
    logits_BV, cache = network.step(params, cache, last_B, i - first)
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    drawn_B = jax.vmap(sample_categorical)(keys_B, truncation(logits_BV))
    token_B = jnp.where(i < prefix_lengths, prefix[:, i], drawn_B).astype(jnp.int32)
    law_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return (cache, token_B), (token_B, jnp.take_along_axis(law_BV, token_B[:, None], axis=1)[:, 0])

  first_B = jnp.full(batch, network.start) if started else prefix[:, 0]
  state = (network.empty_cache(batch, length), first_B.astype(jnp.int32))
  positions = jnp.arange(first, length, dtype=jnp.int32)
  _, (tokens_LB, log_prob_LB) = jax.lax.scan(body, state, positions)
  tokens = jnp.concatenate([prefix[:, :first].astype(jnp.int32), tokens_LB.T], axis=1)
  return tokens, jnp.pad(log_prob_LB.T, ((0, 0), (first, 0)))
