"""A byte model of your own text files, for one GPU, or a few minutes on a CPU; no download.

  sedd train --config=configs/books.py --workdir=runs/books --config.data.files='books/*.txt.xz'
  sedd train --config=configs/books.py:tiny --workdir=runs/try --config.data.files='books/*.txt.xz'

Arguments: base (29 million parameters, sequences of 512 bytes) or tiny (0.8 million, 128 bytes).
base holds out the last twentieth of the text, tiny a hundredth; --config.data.heldout_files names
other files instead. Bytes work for any language and script, and bits per character are comparable
between tokenizers.

base sees 1 GB in 30,000 steps: ten times a library of 200 books. Smaller text needs fewer steps,
--config.train.steps=3000. If memory is short, --config.train.accumulation=2 gives the same result.
To fine-tune a run on your own text: --config.init_from=runs/books.

base here: not measured. Cost: not measured.
tiny here, on 10 MB of English books: strict bound of 3.10 bits per character (bigram entropy 3.47).
Cost: 9 CPU minutes, on 2 shared cores.
"""

import dataclasses

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd

_SIZES = ("base", "tiny")


def get_config(size: str = "base") -> ConfigDict:
  if size not in _SIZES:
    raise ValueError(f"books.py:{size}: {size!r} must be {' or '.join(_SIZES)}")
  experiment = _base() if size == "base" else _tiny()
  return ConfigDict(dataclasses.asdict(experiment))


def _base() -> sedd.Experiment:
  return sedd.Experiment(
    data=sedd.DataConfig(files="", tokenizer="bytes", length=512),
    model=sedd.ModelConfig(width=512, blocks=8, heads=8, dropout=0.0, dtype="bfloat16"),
    optimizer=sedd.OptimizerConfig(
      learning_rate=1e-3, warmup=1000, schedule="cosine", b2=0.98, ema=0.999
    ),
    train=sedd.TrainConfig(steps=30_000, batch_size=64),
    report=sedd.ReportConfig(log_every=50, evaluate_every=1000, preview_every=5000),
    checkpoint=sedd.CheckpointConfig(every=1000, keep_last=2, keep_every=0),
  )


def _tiny() -> sedd.Experiment:
  return sedd.Experiment(
    data=sedd.DataConfig(files="", tokenizer="bytes", length=128, split=(0.95, 0.96)),
    model=sedd.ModelConfig(width=128, blocks=3, heads=4, cond_dim=64, dropout=0.0, remat="dots"),
    optimizer=sedd.OptimizerConfig(
      learning_rate=3e-3, warmup=50, schedule="cosine", b2=0.98, ema=0.99
    ),
    train=sedd.TrainConfig(steps=1300, batch_size=32),
    report=sedd.ReportConfig(
      log_every=10, evaluate_every=200, evaluate_times=4, preview_every=200, preview_steps=64
    ),
    checkpoint=sedd.CheckpointConfig(every=200, keep_last=2, keep_every=0),
  )
