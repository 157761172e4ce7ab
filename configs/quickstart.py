"""A character model of the Python language reference, for two CPU cores.

sedd train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from sedd_jax.training.experiment import Experiment


def get_config() -> ConfigDict:
  config = ConfigDict(Experiment().to_config())
  config.data.files = "embedded"
  config.data.tokenizer = "chars"
  config.data.length = 128
  config.model.update(width=128, blocks=3, heads=4, cond_dim=64, dropout=0.0)
  config.optimizer.update(learning_rate=2e-3, warmup=100, schedule="cosine", ema=0.99)
  config.train.update(steps=1200, batch_size=32)
  config.report.update(
    log_every=10, evaluate_every=200, evaluate_times=4, preview_every=200, preview_steps=64
  )
  config.checkpoint.update(every=200, keep_last=2, keep_every=0)
  return config
