"""Seconds of the output layer with the score entropy and both gradients, from hidden states."""

import time

import jax
import jax.numpy as jnp

from benchmarks.inputs import disturbed_params, token_batches
from benchmarks.measure import Compiled, measure, print_measured
from benchmarks.options import parser, read
from benchmarks.work import head_work
from sedd_jax.diffusion import sample_times


def main() -> None:
  """Prints the line."""
  options = read(parser("loss", __doc__))
  started = time.perf_counter()
  program = options.program()
  network, noise = program.score_entropy.network, program.score_entropy.noise
  batch, length = program.batch.tokens.shape
  params = disturbed_params(program)
  x0 = token_batches(program, 1)[0].tokens
  keys = jax.random.split(jax.random.key(0), batch + 2)
  t = sample_times(keys[0], jnp.arange(batch), batch)
  total, rate = noise.total(t), noise.rate(t)
  x = jax.vmap(network.process.corrupt)(keys[2:], x0, total)
  dtype = network.config.wide_dtype
  hidden = jax.random.normal(keys[1], (batch, length, network.config.width), dtype)

  @jax.jit
  def loss_and_grad(output, hidden, x, x0, total, rate):
    def loss(output, hidden):
      stats = network.stats_of_hidden({"ends": {"output": output}}, hidden, x, x0, total)
      entropy_BL = network.process.score_entropy_from_stats(stats, x, x0, total[:, None])
      return jnp.mean(rate * jnp.sum(entropy_BL, axis=-1))

    return jax.value_and_grad(loss, argnums=(0, 1))(output, hidden)

  rows = jax.device_put((hidden, x, x0, total, rate), program.batch.tokens.sharding)
  arguments = (params["ends"]["output"], *rows)
  compiled = Compiled(loss_and_grad, *arguments)
  measured = measure(options, started, lambda: compiled.call(*arguments))
  mask = network.process.mask_id
  drawn = 1.0 if mask is None else float(jnp.mean(x == mask))
  work = head_work(program)
  print_measured(
    "loss", options, measured, work, compiled, tokens=batch * length, masked_share_drawn=drawn
  )


if __name__ == "__main__":
  main()
