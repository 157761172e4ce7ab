"""Seconds of a categorical draw from each position's log weights, compared with jax's two modes."""

import itertools
import statistics
import time
from typing import Any

import jax

from benchmarks.measure import Compiled, measure, print_measured
from benchmarks.options import parser, read
from benchmarks.work import draw_work
from sedd_jax.diffusion import sample_categorical
from sedd_jax.parallel import batch_sharding, make_mesh

_SPREAD = 3.0  # Nats: rows are neither flat nor nearly deterministic.


def main() -> None:
  """Prints the line."""
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

  def jax_draw(mode: str):
    draw = jax.jit(lambda key, log_weights: jax.random.categorical(key, log_weights, mode=mode))
    return lambda: draw(next(keys), log_weights)

  # In its default mode, "low", jax never draws a state 20.4 nats below the best.
  rivals = {mode: jax_draw(mode) for mode in ("high", "low")}
  measured = measure(options, started, lambda: ours.call(next(keys), log_weights), rivals)
  median = statistics.median(measured.times)
  compared: dict[str, Any] = {}
  for mode, times in measured.rival_times.items():
    seconds = statistics.median(times)
    compared |= {
      f"jax_{mode}_seconds": seconds,
      f"jax_{mode}_times": times,
      f"jax_{mode}_over_ours": seconds / median,
    }
  print_measured(
    "categorical",
    options,
    measured,
    draw_work(rows, states),
    ours,
    rows=rows,
    states=states,
    **compared,
  )


if __name__ == "__main__":
  main()
