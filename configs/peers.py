"""SEDD and its peers on the same text, with the same network, budget and seeds.

  sedd train --config=configs/peers.py:mdlm --workdir=runs/mdlm
  sedd sweep --config=configs/peers.py --root=runs/peers
  sedd sweep --config=configs/peers.py --root=runs/peers --config.data.files=text8.txt

The second command trains all of them, three seeds each, and prints the table. Names:

  sedd-absorb   score entropy, absorbing, scores scaled by the noise (arXiv:2310.16834)
  sedd-uniform  score entropy, uniform noise, geometric schedule (the same paper)
  mdlm          conditional law of clean tokens, no time input: MDLM (2406.07524), RADD (2406.03736)
  md4           the same with time input: MD4 (2406.04329)
  d3pm          the same in 1000 discrete steps: D3PM, absorbing (2107.03006)
  udlm          conditional law of clean tokens under uniform noise: UDLM (2412.10193)
  ar            autoregressive: the same trunk with causal attention

All else is the same, including the learning rate, which was not tuned for any. Text: the embedded
corpus; docs/results.md has bits per character on text8's first 3 million characters.
Cost of a run with these defaults: not measured.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

import sedd_jax.training.experiment as sedd

_CONDITIONAL = {"diffusion.parameterization": "conditional"}
PEERS: dict[str, dict[str, Any]] = {
  "sedd-absorb": {},
  "sedd-uniform": {
    "diffusion.process": "uniform",
    "diffusion.noise": "geometric",
    "diffusion.parameterization": "score",
  },
  "mdlm": _CONDITIONAL | {"model.time_input": False},
  "md4": _CONDITIONAL,
  "d3pm": _CONDITIONAL | {"objective": "discrete_time"},
  "udlm": _CONDITIONAL | {"diffusion.process": "uniform"},
  "ar": {"objective": "autoregressive"},
}
_SEEDS = (1, 2, 3)


def get_config(name: str = "sedd-absorb") -> ConfigDict:
  if name not in PEERS:
    raise ValueError(f"peers.py:{name}: {name!r} must be one of {', '.join(PEERS)}")
  experiment = sedd.Experiment(
    data=sedd.DataConfig(files="embedded", tokenizer="chars", length=128),
    model=sedd.ModelConfig(width=128, blocks=3, heads=4, cond_dim=64, dropout=0.0, remat="dots"),
    optimizer=sedd.OptimizerConfig(
      learning_rate=3e-3, warmup=50, schedule="cosine", b2=0.98, ema=0.99
    ),
    train=sedd.TrainConfig(steps=1300, batch_size=32),
    report=sedd.ReportConfig(
      log_every=10, evaluate_every=200, evaluate_times=4, evaluate_blocks=64, preview_every=0,
      preview_steps=64,
    ),
    checkpoint=sedd.CheckpointConfig(every=200, keep_last=1, keep_every=0),
  )  # fmt: skip
  config = ConfigDict(dataclasses.asdict(experiment))
  config.update_from_flattened_dict({"label": name} | PEERS[name])
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """Overrides for all peers with three seeds each; for `sedd sweep`."""
  for name, overrides in PEERS.items():
    for seed in _SEEDS:
      yield {"label": name, "seed": seed} | overrides
