"""Experiments small enough to train in a test."""

import dataclasses

from sedd_jax.data import DataConfig
from sedd_jax.parallel import MeshConfig
from sedd_jax.training.experiment import (
  CheckpointConfig,
  Experiment,
  ModelConfig,
  ReportConfig,
  TrainConfig,
)
from sedd_jax.training.optimizer import OptimizerConfig

TINY = Experiment(
  data=DataConfig(length=32),
  model=ModelConfig(width=16, blocks=1, heads=2, cond_dim=8, dropout=0.1),
  optimizer=OptimizerConfig(learning_rate=1e-3, warmup=5),
  train=TrainConfig(steps=8, batch_size=4),
  report=ReportConfig(
    log_every=2, evaluate_every=4, evaluate_times=2, evaluate_blocks=8, preview_every=4,
    preview_steps=2, samples=2,
  ),
  checkpoint=CheckpointConfig(every=4, keep_last=2, keep_every=0),
  mesh=MeshConfig(replica=4),
)  # fmt: skip


def with_steps(steps, experiment=TINY):
  return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=steps))


ABSORBING = Experiment(
  data=DataConfig(length=8),
  model=ModelConfig(width=16, blocks=2, heads=4, cond_dim=8, dropout=0.3),
  optimizer=OptimizerConfig(learning_rate=3e-3, warmup=2),
  train=TrainConfig(steps=6, batch_size=16),
)
