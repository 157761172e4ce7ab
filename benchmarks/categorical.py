"""Seconds of a categorical draw from each position's log weights, beside jax's unbiased draw."""

import itertools
import statistics
import time

import jax

from benchmarks.measure import Compiled, measure, print_measured
from benchmarks.options import parser, read
from benchmarks.work import draw_work
from sedd_jax.diffusion import sample_categorical
from sedd_jax.parallel import batch_sharding, make_mesh

_SPREAD = 3.0  # In nats: rows neither flat nor decided.


def main() -> None:
  """Runs it."""
  options = read(parser("categorical", __doc__), batch="samples")
  started = time.perf_counter()
  rows = options.experiment.train.batch_size * options.experiment.data.length
  states = options.experiment.diffusion.make_process(options.vocab).num_states
  key_weights, key_draws = jax.random.split(jax.random.key(0))
  log_weights = _SPREAD * jax.random.normal(key_weights, (rows, states))
  mesh = make_mesh(options.experiment.mesh)
  log_weights = jax.device_put(log_weights, batch_sharding(mesh))
  keys = itertools.cycle(list(jax.random.split(key_draws, 16)))

  ours = Compiled(jax.jit(sample_categorical), next(keys), log_weights)
  high = jax.jit(lambda key, log_weights: jax.random.categorical(key, log_weights, mode="high"))
  measured = measure(
    options,
    started,
    lambda: ours.call(next(keys), log_weights),
    lambda: high(next(keys), log_weights),
  )
  of_rival = statistics.median(measured.rival_times)
  print_measured(
    "categorical",
    options,
    measured,
    draw_work(rows, states),
    ours,
    rows=rows,
    states=states,
    jax_high_seconds=of_rival,
    jax_high_times=measured.rival_times,
    jax_high_over_ours=of_rival / statistics.median(measured.times),
  )


if __name__ == "__main__":
  main()
