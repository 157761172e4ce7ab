"""sedd info: describes a run, a checkpoint or an export."""

import json
import sys

import jax
from absl import flags

from sedd_jax.cli import app, path_flags
from sedd_jax.cli.text import row
from sedd_jax.interop.info import describe
from sedd_jax.reports.description import OURS, fields, rows, title

USAGE = """Describes a run directory, one of its checkpoints, an export or a folder of weights.

  sedd info runs/quickstart
  sedd info runs/quickstart/checkpoints/1200 --all
  sedd info --checkpoint=exports/quickstart --json

It reads only small files and writes nothing, so it is safe while a run trains.
"""
_CHECKPOINT = path_flags.define_path("checkpoint", None, "The folder; its name alone does too.")
_ALL = flags.DEFINE_bool("all", False, "Every field of the config as well.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object, config and versions included.")


def main() -> None:
  (checkpoint,) = app.require(USAGE, _CHECKPOINT)
  # Shapes are counted and nothing is computed, so devices of a running training stay free.
  jax.config.update("jax_platforms", "cpu")
  found = describe(checkpoint)
  if _JSON.value:
    print(json.dumps(found, ensure_ascii=False))
    return
  print(title(found))
  for name, value in rows(found):
    print(row(name, value, sys.stdout))
  if _ALL.value or found["kind"] not in OURS:  # Of other layouts there is nothing else.
    print("\n".join(sorted(fields(found["config"]))))


def run() -> None:
  app.run(main, USAGE, takes="checkpoint")


if __name__ == "__main__":
  run()
