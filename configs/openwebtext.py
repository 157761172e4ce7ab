"""SEDD small and medium on OpenWebText, as published (arXiv:2310.16834, section 5.3).

  sedd prepare --files='owt/*.jsonl.xz' --heldout_files=wikitext103.txt --tokenizer=gpt2 \\
    --out=prepared/owt --workers=16
  sedd train --config=configs/openwebtext.py:small,absorb --workdir=runs/owt \\
    --config.data.files=prepared/owt

Arguments: small, medium or xl, then absorb or uniform. The text may also come from the hub,
--files=hf:NAME (docs/data.md). Tokens are GPT-2's, downloaded once unless
--tokenizer=gpt2:FOLDER names a folder that holds them.

Settings of the original's code: batch 512, length 1024, Adam at 3e-4 with 2500 steps of warm-up,
EMA 0.9999, dropout 0.1. It split medium's batch into 2 micro-batches (on 8 GPUs of 80 GB); here one
is enough, since [B, L, V] is never materialized. If memory is short, --config.train.accumulation=2
gives the same loss.

Batch 512 in one pass needs 8 TPU chips of 16 GiB for small and 16 for medium, with
--config.model.remat=narrow. With twice as many chips, or larger ones, the default `dots` fits,
which computes less. `sedd plan` shows this for any slice (docs/plans).

Published zero-shot perplexity bounds on WikiText-103: small absorb 40.62, small uniform 49.60,
medium absorb 29.98, medium uniform 36.81.
Here: not measured. Cost: not measured.
"""

import dataclasses

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd

_MODELS = {
  "small": sedd.ModelConfig(width=768, blocks=12, heads=12, dtype="bfloat16", remat="dots"),
  "medium": sedd.ModelConfig(width=1024, blocks=24, heads=16, dtype="bfloat16", remat="dots"),
  # GPT-3 XL's shape (arXiv:2005.14165, table 2.1); the SEDD paper has no model of this size.
  "xl": sedd.ModelConfig(width=2048, blocks=24, heads=16, dtype="bfloat16", remat="dots"),
}


def get_config(argument: str = "small,absorb") -> ConfigDict:
  size, _, process = argument.partition(",")
  if size not in _MODELS:
    raise ValueError(f"openwebtext.py:{argument}: {size!r} must be {', '.join(_MODELS)}")
  experiment = sedd.Experiment(
    data=sedd.DataConfig(files="", tokenizer="gpt2", length=1024),
    diffusion=sedd.DiffusionConfig.paper(process),
    model=_MODELS[size],
    optimizer=sedd.OptimizerConfig(learning_rate=3e-4, warmup=2500, ema=0.9999),
    train=sedd.TrainConfig(steps=1_300_000, batch_size=512),
    report=sedd.ReportConfig(evaluate_every=5000, preview_every=50_000),
    checkpoint=sedd.CheckpointConfig(every=10_000, keep_last=2, keep_every=50_000),
  )
  return ConfigDict(dataclasses.asdict(experiment))
