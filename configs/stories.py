"""The recipe of the model that comes with the package, for any text of short documents.

  sedd train --config=configs/stories.py --workdir=runs/stories --config.data.files='stories/*.txt'

3.0 million parameters: 6 MB as float16. How the text of that model was made, and the bound that it
reached: docs/results.md, "The model in the box". Cost of the whole length: not measured.
"""

import dataclasses

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd


def get_config() -> ConfigDict:
  experiment = sedd.Experiment(
    data=sedd.DataConfig(files="embedded", tokenizer="bpe:512", length=128),
    diffusion=sedd.DiffusionConfig(parameterization="conditional"),
    model=sedd.ModelConfig(
      width=192,
      blocks=6,
      heads=6,
      cond_dim=16,
      time_input=False,
      dropout=0.0,
      remat="dots",
      pad_multiple=1,
    ),
    optimizer=sedd.OptimizerConfig(
      name="muon",
      learning_rate=2e-3,
      warmup=100,
      schedule="cosine",
      b2=0.98,
      ema=0.998,
      weight_decay=0.1,
    ),
    train=sedd.TrainConfig(steps=9000, batch_size=32),
    report=sedd.ReportConfig(
      log_every=50, evaluate_every=1000, preview_every=2000, preview_steps=64
    ),
    checkpoint=sedd.CheckpointConfig(every=500, keep_last=2, keep_every=0),
  )
  return ConfigDict(dataclasses.asdict(experiment))
