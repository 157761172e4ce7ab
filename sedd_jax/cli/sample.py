"""sedd sample: prints text from a trained model."""

import numpy as np
from absl import flags

import sedd_jax
from sedd_jax.cli import app

USAGE = """Prints samples, or fills in text between a prefix and a suffix.

  sedd sample --checkpoint=runs/quickstart --num=4 --steps=64 --seed=0
  sedd sample --checkpoint=runs/quickstart --prefix='The ' --suffix='.' --length=80
"""
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory, folder of weights or hub id.")
_NUM = flags.DEFINE_integer("num", 1, "Number of samples.")
_STEPS = flags.DEFINE_integer("steps", 64, "Sampling steps; the network is called steps + 1 times.")
_SEED = flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) alone.")
_SAMPLER = flags.DEFINE_string("sampler", "tweedie", "tweedie or euler.")
_LENGTH = flags.DEFINE_integer("length", None, "Tokens; by default the length it was trained at.")
_PREFIX = flags.DEFINE_string("prefix", "", "Text that every sample starts with.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "gpt2 or gpt2:FOLDER, for weights that come without one."
)
_SUFFIX = flags.DEFINE_string("suffix", "", "Text that every sample ends with.")


def main() -> None:
  if _CHECKPOINT.value is None:
    raise ValueError(f"--checkpoint is missing; for example\n{USAGE}")
  for flag in (_NUM, _STEPS):
    if flag.value < 1:
      raise ValueError(f"--{flag.name}={flag.value} must be at least 1")
  model = sedd_jax.load(_CHECKPOINT.value, tokenizer=_TOKENIZER.value)
  length = model.length if _LENGTH.value is None else _LENGTH.value
  prefix, suffix = model.encode(_PREFIX.value), model.encode(_SUFFIX.value)
  if len(prefix) + len(suffix) > length:
    raise ValueError(
      f"--prefix ({len(prefix)} tokens) and --suffix ({len(suffix)}) do not fit --length={length}"
    )
  tokens, given = np.zeros((_NUM.value, length), np.int32), np.zeros((_NUM.value, length), bool)
  for row in (slice(0, len(prefix)), prefix), (slice(length - len(suffix), length), suffix):
    tokens[:, row[0]], given[:, row[0]] = row[1], True
  samples = model.infill(
    tokens, given, steps=_STEPS.value, seed=_SEED.value, sampler=_SAMPLER.value
  )
  for i, text in enumerate(model.decode(samples)):
    print(f"--- sample {i} (seed {_SEED.value}, {_STEPS.value} steps)\n{text}")


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
