"""Whole sampling runs of the original, network and all: token for token with its uniforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import golden_network

from sedd_jax.diffusion import Euler, Geometric, LogLinear, Row, Tweedie


def race(p, uniforms):
  """The original's draw: exponentials race, the fastest wins."""
  return (np.asarray(p) / (1e-10 - np.log(uniforms.astype(np.float64) + 1e-10))).argmax(-1)


@pytest.mark.parametrize(("prefix", "step"), [("euler", Euler()), ("analytic", Tweedie())])
@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_every_step_of_the_original_is_ours(golden, x64, name, prefix, step):
  model, arrays = golden(f"model_{name}.npz"), golden(f"trajectory_{name}.npz")
  network, params = golden_network(model, name, "float64")
  noise = LogLinear() if name == "absorb" else Geometric()
  run = {k.removeprefix(f"{prefix}_"): v for k, v in arrays.items() if k.startswith(prefix)}
  times = run["timesteps"]

  @jax.jit
  def log_score(x, t):
    return network.log_score(params, x, jnp.broadcast_to(noise.total(t), x.shape[:1]))

  @functools.partial(jax.jit, static_argnames="step")
  def step_probs(x, t, t_next, step):
    row = Row(log_score(x, t), x, jnp.broadcast_to(noise.total(t), x.shape))
    return step.law(row, t, t_next, process=network.process, noise=noise)

  x = run["x_init"]
  for i, want in enumerate(run["x_steps"]):
    p = step_probs(x, times[i], times[i + 1], step)
    x = race(p, run["u_steps"][i])
    np.testing.assert_array_equal(x, want, err_msg=f"step {i}")
  p = network.process.denoise_probs(log_score(x, times[-1]), x, noise.total(times[-1]))
  np.testing.assert_array_equal(
    race(p[..., : network.process.vocab_size], run["u_final"]), run["x_final"]
  )
