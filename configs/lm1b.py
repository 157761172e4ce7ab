"""One Billion Words (LM1B) with BERT's tokens: sequences of 128, a 12-layer network.

  sedd prepare --files=tfds:lm1b@train --heldout_files=tfds:lm1b@test \\
    --tokenizer=bert --detokenizer=lm1b --out=prepared/lm1b
  sedd train --config=configs/lm1b.py:absorb --workdir=runs/lm1b --config.data.files=prepared/lm1b

Arguments: absorb or uniform. tfds:lm1b has to be built once with TensorFlow (docs/data.md). Local
files also work: --files='lm1b/train-*.jsonl.gz', with one sentence {"text": "..."} per line. Tokens
are the 30,522 pieces of bert-base-uncased, downloaded once unless the tokenizer is bert:FOLDER,
with a folder that holds its vocab.txt. They are lower case, and so are samples.

Tokens and length are those of the published figures and of MDLM's code. A row is a sentence, [SEP],
and padding, which is given and not in the loss. MDLM's rows begin with [CLS], these don't, so
perplexities per token are only roughly comparable. To sample sentences of any length, train with
--config.data.fill=counted.
Optimizer, EMA and dropout are those of the original's code, which has no config for this corpus;
batch and steps are ours.

Published by arXiv:2310.16834 (perplexity bound per token, test split): absorb <= 32.79, uniform
<= 40.25.
Here: not measured. Cost: not measured.
"""

import dataclasses

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd


def get_config(process: str = "absorb") -> ConfigDict:
  experiment = sedd.Experiment(
    data=sedd.DataConfig(
      files="", tokenizer="bert", detokenizer="lm1b", length=128, packing="pad", fill="given"
    ),
    diffusion=sedd.DiffusionConfig.paper(process),
    model=sedd.ModelConfig(width=768, blocks=12, heads=12, dtype="bfloat16", remat="dots"),
    optimizer=sedd.OptimizerConfig(learning_rate=3e-4, warmup=2500, ema=0.9999),
    train=sedd.TrainConfig(steps=1_000_000, batch_size=512),
    report=sedd.ReportConfig(evaluate_every=5000, preview_every=50_000),
    checkpoint=sedd.CheckpointConfig(every=10_000, keep_last=2, keep_every=100_000),
  )
  return ConfigDict(dataclasses.asdict(experiment))
