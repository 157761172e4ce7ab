"""Seconds to sample a batch, from t = 1 to the final denoising step."""

import itertools
import time

import numpy as np

from benchmarks.inputs import disturbed_params
from benchmarks.measure import Compiled, measure, print_measured
from benchmarks.options import parser, read
from benchmarks.work import sampling_work
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.parallel.mesh import distribute


def main() -> None:
  """Prints the line."""
  flags = parser("sample", __doc__, repeats=3)
  flags.set_defaults(warmup=1)
  flags.add_argument("--steps", type=int, default=64, help="sampling steps; one more network call")
  flags.add_argument("--sampler", default="tweedie", help="as in sedd sample")
  options = read(flags, batch="samples")
  steps, batch = options.flags.steps, options.experiment.train.batch_size
  started = time.perf_counter()
  program = options.program()
  params = disturbed_params(program)
  numbers = (
    distribute(np.arange(batch * i, batch * (i + 1), dtype=np.int32), program.batch.tokens.sharding)
    for i in itertools.count()
  )
  objective = program.score_entropy
  settings = SamplerSettings(sampler=options.flags.sampler, steps=steps)
  sampling = settings.sampling(objective.network.process, objective.noise)
  compiled = Compiled(program.sampler(sampling), params, next(numbers))
  measured = measure(options, started, lambda: compiled.call(params, next(numbers)))
  tokens = batch * options.experiment.data.length
  work = sampling_work(program, steps)
  print_measured("sample", options, measured, work, compiled, tokens=tokens, num_steps=steps)


if __name__ == "__main__":
  main()
