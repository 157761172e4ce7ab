"""Small networks, and those of golden files."""

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import Absorbing, Uniform
from sedd_jax.interop.original import params_from_tensors
from sedd_jax.models import Network, ScoreTransformerConfig

PROCESSES = {"absorb": Absorbing, "uniform": Uniform}


def golden_network(arrays, name, dtype):
  """The tiny model of a golden file, and its parameters."""
  process = PROCESSES[name](int(arrays["cfg_tokens"]))
  network = Network(
    config=ScoreTransformerConfig(
      num_states=process.num_states,
      width=int(arrays["cfg_hidden_size"]),
      blocks=int(arrays["cfg_n_blocks"]),
      heads=int(arrays["cfg_n_heads"]),
      cond_dim=int(arrays["cfg_cond_dim"]),
      dropout=0.0,
      dtype=dtype,
    ),
    process=process,
    parameterization="scaled" if arrays["cfg_scale_by_sigma"] else "score",
  )
  tensors = {k[6:]: v.astype(dtype) for k, v in arrays.items() if k.startswith("param/")}
  params = jax.tree.map(jnp.asarray, params_from_tensors(network, tensors))
  return network, network.pad(params)


def golden_loss(network, params, arrays, dtype):
  """The objective on the golden file's corrupted batch."""
  x, x0, total = arrays["loss_xt"], arrays["loss_x0"], jnp.asarray(arrays["loss_sigma"], dtype)
  stats = network.score_stats(params, x, x0, total)
  entropy = network.process.score_entropy_from_stats(stats, x, x0, total[:, None])
  return jnp.mean(arrays["loss_dsigma"].astype(dtype) * entropy.sum(-1))


def small_network(process, **changes):
  shape = dict(width=32, blocks=2, heads=2, cond_dim=16, dropout=0.0)
  config = ScoreTransformerConfig(num_states=process.num_states, **(shape | changes))
  return Network(config=config, process=process)


def random_params(network, seed=0, scale=0.3):
  """Parameters none of which is zero, so that every one of them matters."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: network.unpad(network.init(jax.random.key(0))))
  return network.pad(
    jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, scale, x.shape), jnp.float32), shapes)
  )
