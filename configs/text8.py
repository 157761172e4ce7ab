"""Character-level text8 with the benchmark's usual settings: blocks of 256, a 12-layer network.

  sedd train --config=configs/text8.py:absorb --workdir=runs/text8 --config.data.files=/data/text8
  sedd train --config=configs/text8.py:uniform --workdir=runs/text8u --config.data.files=/data/text8
  sedd sweep --config=configs/text8.py --root=runs/lr --config.data.files=/data/text8

The file holds the 100,000,000 characters of text8 (no extension, or .txt, .gz, .xz). The usual
split: 90 M characters for training, 5 M for validation (held out here); the last 5 M are the test
split and are not used.

Optimizer, EMA and dropout are those of the original's code; it has no working text8 config, so
batch and steps are ours. Published by arXiv:2310.16834 (bits per character, test split): absorb
<= 1.39, uniform <= 1.47.
Here: not measured. Cost: not measured.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd


def get_config(process: str = "absorb") -> ConfigDict:
  experiment = sedd.Experiment(
    data=sedd.DataConfig(files="", tokenizer="chars", length=256, split=(0.9, 0.95)),
    diffusion=sedd.DiffusionConfig.paper(process),
    model=sedd.ModelConfig(
      width=768, blocks=12, heads=12, cond_dim=128, dropout=0.1, dtype="bfloat16"
    ),
    optimizer=sedd.OptimizerConfig(learning_rate=3e-4, warmup=2500, ema=0.9999),
    train=sedd.TrainConfig(steps=1_000_000, batch_size=512),
    report=sedd.ReportConfig(evaluate_every=5000, preview_every=50_000),
    checkpoint=sedd.CheckpointConfig(every=10_000, keep_last=2, keep_every=100_000),
  )
  return ConfigDict(dataclasses.asdict(experiment))


def sweep() -> Iterator[dict[str, Any]]:
  """Overrides for learning rates around the default, two seeds each; for `sedd sweep`."""
  for learning_rate in (1e-4, 3e-4, 1e-3):
    for seed in (0, 1):
      yield {"optimizer.learning_rate": learning_rate, "seed": seed}
