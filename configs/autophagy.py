"""A self-consuming loop: each generation is trained on samples of the one before.

  sedd train --config=configs/autophagy.py --workdir=runs/loop
  sedd train --config=configs/autophagy.py:ar,augmented --workdir=runs/loop-ar
  sedd sweep --config=configs/autophagy.py --root=runs/loops
  sedd report runs/loop runs/loop-ar --out=loops.html

Arguments: sedd (absorbing) or ar (autoregressive), and synthetic (samples only), augmented (all
samples so far and the first generation's real text) or fresh (samples and unseen real text).
--config.generations.temperature=0.8 biases sampling towards likely tokens;
--config.generations.count=10 trains more generations, also after a loop has ended.

After arXiv:2307.01850, with text: every generation starts from random weights. The report has a row
per generation: the bound on real held-out text, and entropy, distinct-n and repetition of its
samples.

Five generations on the embedded text by default. Strict bound in bits per character and cost:
not measured; docs/results.md has a smaller loop.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd
from sedd_jax.studies.loop import REGIMES, GenerationsConfig, Loop

_OBJECTIVES = {"sedd": "score_entropy", "ar": "autoregressive"}


def get_config(argument: str = "sedd,synthetic") -> ConfigDict:
  model, _, regime = argument.partition(",")
  regime = regime or "synthetic"
  if model not in _OBJECTIVES or regime not in REGIMES:
    raise ValueError(
      f"autophagy.py:{argument} must be MODEL,REGIME: {' or '.join(_OBJECTIVES)}, and "
      f"{', '.join(REGIMES)}"
    )
  loop = Loop(
    label=f"{model}-{regime}",
    objective=_OBJECTIVES[model],
    data=sedd.DataConfig(files="embedded", tokenizer="chars", length=64),
    model=sedd.ModelConfig(width=96, blocks=2, heads=4, cond_dim=64, dropout=0.0),
    optimizer=sedd.OptimizerConfig(
      learning_rate=3e-3, warmup=50, schedule="cosine", b2=0.98, ema=0.99
    ),
    train=sedd.TrainConfig(steps=1000, batch_size=32),
    report=sedd.ReportConfig(
      log_every=50, evaluate_every=0, evaluate_times=4, preview_every=0, preview_steps=64,
      samples=1,
    ),
    checkpoint=sedd.CheckpointConfig(every=500, keep_last=1, keep_every=0),
    generations=GenerationsConfig(count=4, regime=regime, rows=2048),
  )  # fmt: skip
  return ConfigDict(dataclasses.asdict(loop))


def sweep() -> Iterator[dict[str, Any]]:
  """Overrides for both models in each regime, with and without bias; for `sedd sweep`."""
  for model, objective in _OBJECTIVES.items():
    for regime in REGIMES:
      for temperature in (1.0, 0.8):
        yield {
          "label": f"{model}-{regime}",
          "objective": objective,
          "generations.regime": regime,
          "generations.temperature": temperature,
        }
