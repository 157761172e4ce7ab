"""Runs as processes of their own, and the states they leave behind."""

import dataclasses
import sys
import time

import jax
import numpy as np

import sedd_jax
from sedd_jax.parallel import make_mesh, tree_shardings
from sedd_jax.training.checkpoints import Checkpoints, newest_whole
from sedd_jax.training.optimizer import make_optimizer
from sedd_jax.training.state import create_state
from support.experiments import TINY
from support.paths import REPOSITORY


def final_state(workdir, experiment=TINY):
  """The state at the latest checkpoint, as numpy arrays."""
  network = sedd_jax.load(workdir).network
  step = newest_whole(workdir)
  state = load_state(workdir, step, network, experiment, make_mesh(experiment.mesh))
  state = dataclasses.replace(state, key=jax.random.key_data(state.key))
  return step, jax.tree.map(np.asarray, state)


def load_state(workdir, step, network, experiment, mesh):
  """The state of a step, sharded over a mesh."""
  optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, network.table)
  shapes = jax.eval_shape(lambda key: create_state(key, network, optimizer), jax.random.key(0))
  like = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    tree_shardings(mesh, shapes, network.table),
  )
  with Checkpoints(workdir, network) as checkpoints:
    return checkpoints.load_state(step, like)


def command(workdir, *overrides):
  """The same tiny run as a process of its own, from the quickstart's config."""
  fields = {
    "data.tokenizer": "chars", "data.length": 32, "diffusion.parameterization": "scaled",
    "optimizer.name": "adamw", "optimizer.weight_decay": 0.0,
    "model.width": 16, "model.blocks": 1, "model.heads": 2,
    "model.cond_dim": 8, "model.dropout": 0.1, "optimizer.learning_rate": 1e-3,
    "optimizer.warmup": 5, "optimizer.schedule": "constant", "optimizer.ema": 0.9999,
    "train.batch_size": 4, "report.evaluate_every": 0, "report.preview_every": 0,
    "report.evaluate_times": 2, "report.preview_steps": 2, "report.samples": 1,
    "checkpoint.every": 10,
  }  # fmt: skip
  return [
    sys.executable, "-m", "sedd_jax.cli.train",
    f"--config={REPOSITORY}/configs/quickstart.py", f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in fields.items()), *overrides,
  ]  # fmt: skip


def wait_for(condition, process, what):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, f"the run ended before {what}: {process.communicate()}"
    assert time.monotonic() < deadline, f"no {what} within two minutes"
    time.sleep(0.01)
