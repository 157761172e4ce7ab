"""sedd train: trains a model, or goes on with a run."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sedd_jax.cli import app
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train

USAGE = """Trains a model. The same command goes on with a run that was stopped.

  sedd train --config=configs/quickstart.py --workdir=runs/quickstart
  sedd train --config=configs/openwebtext.py:small,absorb --workdir=DIR \\
    --config.data.files='owt/*.jsonl.xz' --config.train.batch_size=256

Ctrl-C or SIGTERM saves and exits with 130 or 143; a second one leaves at once.
"""
_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :argument.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory: a new one, or one to go on with.")


def main() -> int:
  config, workdir = _CONFIG.value, _WORKDIR.value
  if config is None or workdir is None:
    missing = "--config" if config is None else "--workdir"
    raise ValueError(f"{missing} is missing; for example\n{USAGE}")
  return train(Experiment.from_config(config.to_dict()), Path(workdir))


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
