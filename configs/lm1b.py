"""One Billion Words (LM1B) with BERT's tokens: sequences of 128, a 12-layer network.

  sedd train --config=configs/lm1b.py:absorb --workdir=runs/lm1b \\
    --config.data.files='lm1b/train-*.jsonl.gz' --config.data.heldout_files=lm1b/test.jsonl.gz

Arguments: absorb or uniform. A line of the .jsonl files is a sentence, {"text": "..."}. Tokens are
the 30,522 pieces of bert-base-uncased, downloaded once unless --config.data.tokenizer=bert:FOLDER
names a folder that holds its vocab.txt. They know no upper case, so samples have none.

Tokens and length are those of the published figures, and of MDLM's code. Its rows are [CLS], one
sentence, [SEP], and padding that the loss leaves out; here [SEP] follows every sentence, there is
no [CLS], and sentences are joined and cut into blocks. So perplexities per token compare only
roughly.
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
    data=sedd.DataConfig(files="", tokenizer="bert", length=128),
    diffusion=sedd.DiffusionConfig.paper(process),
    model=sedd.ModelConfig(width=768, blocks=12, heads=12, dtype="bfloat16", remat="dots"),
    optimizer=sedd.OptimizerConfig(learning_rate=3e-4, warmup=2500, ema=0.9999),
    train=sedd.TrainConfig(steps=1_000_000, batch_size=512),
    report=sedd.ReportConfig(evaluate_every=5000, preview_every=50_000),
    checkpoint=sedd.CheckpointConfig(every=10_000, keep_last=2, keep_every=100_000),
  )
  return ConfigDict(dataclasses.asdict(experiment))
