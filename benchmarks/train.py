"""Seconds of a training step: loss, gradient, AdamW and moving average, on new tokens each time."""

import itertools
import time

from benchmarks.inputs import token_batches
from benchmarks.measure import Compiled, measure, print_measured
from benchmarks.options import parser, read
from benchmarks.work import training_work


def main() -> None:
  """Prints the line."""
  options = read(parser("train", __doc__))
  started = time.perf_counter()
  program = options.program()
  state = program.create()
  batches = itertools.cycle(token_batches(program))
  compiled = Compiled(program.step, program.state, program.batch)

  def step():
    nonlocal state
    state, metrics = compiled.call(state, next(batches))
    return state, metrics

  measured = measure(options, started, step)
  tokens = options.experiment.train.batch_size * options.experiment.data.length
  work = training_work(program)
  print_measured("train", options, measured, work, compiled, tokens=tokens)


if __name__ == "__main__":
  main()
