"""The flags that benchmarks share, and the experiment that they describe."""

import argparse
import dataclasses
from typing import Any

import jax

from benchmarks.shapes import SHAPES, Shape, assigned
from sedd_jax.data import DataConfig
from sedd_jax.parallel import make_mesh
from sedd_jax.training.experiment import DiffusionConfig, Experiment, ModelConfig, TrainConfig
from sedd_jax.training.program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The options of a benchmark.

  Attributes:
    experiment: the run.
    vocab: V, number of real tokens.
    flags: all flags.
  """

  experiment: Experiment
  vocab: int
  flags: argparse.Namespace

  def program(self) -> Program:
    """The experiment's program on all devices."""
    mesh = make_mesh(self.experiment.mesh)
    return Program(experiment=self.experiment, mesh=mesh, vocab_size=self.vocab)


def parser(benchmark: str, description: str | None, repeats: int = 10) -> argparse.ArgumentParser:
  """A parser of the shared flags."""
  prog = f"python -m benchmarks.{benchmark}"
  flags = argparse.ArgumentParser(prog=prog, description=description)
  flags.add_argument("--config", choices=SHAPES, default="A", help="shape of network and batch")
  flags.add_argument("--batch", type=int, help="sequences, over all devices")
  flags.add_argument("--vocab", type=int, help="number of real tokens")
  flags.add_argument("--process", choices=("absorb", "uniform"), default="absorb")
  flags.add_argument("--repeats", type=int, default=repeats, help="timed calls")
  flags.add_argument("--warmup", type=int, default=2, help="calls before the timed ones")
  flags.add_argument(
    "--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. model.dropout=0.0"
  )
  return flags


def read(flag_parser: argparse.ArgumentParser, *, batch: str = "batch") -> Options:
  """The options from the command line; exits with a message if a flag is wrong.

  Args:
    batch: the shape's field that holds the default batch.
  """
  flags = flag_parser.parse_args()
  if flags.repeats < 1 or flags.warmup < 1:
    flag_parser.error("--repeats and --warmup must be at least 1")
  shape = SHAPES[flags.config]
  try:
    values = assigned(dataclasses.asdict(_experiment(shape, flags.process, batch)), flags.set)
    if flags.batch is not None:
      values["train"]["batch_size"] = flags.batch
    experiment = Experiment.from_config(values)
  except ValueError as error:
    flag_parser.error(str(error))
  return Options(
    experiment=experiment,
    vocab=shape.vocab if flags.vocab is None else flags.vocab,
    flags=flags,
  )


def _experiment(shape: Shape, process: str, batch: str) -> Experiment:
  devices, rows = jax.device_count(), getattr(shape, batch)
  fields = {field.name for field in dataclasses.fields(ModelConfig)}
  model: dict[str, Any] = {k: v for k, v in dataclasses.asdict(shape).items() if k in fields}
  return Experiment(
    data=DataConfig(files="", length=shape.length),
    diffusion=DiffusionConfig.paper(process),
    model=ModelConfig(**model),
    # All devices get the same number of sequences.
    train=TrainConfig(batch_size=-(-rows // devices) * devices),
  )
