"""Runs of a few steps on one device, with a checkpoint every other step."""

import dataclasses

import jax
import pytest

from sedd_jax.data import DataConfig
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.training import program as program_module
from sedd_jax.training.experiment import CheckpointConfig
from support.experiments import TINY
from support.runs import final_state

QUICK = dataclasses.replace(
  TINY,
  data=DataConfig(length=32, split=(0.95, 0.952)),
  report=dataclasses.replace(
    TINY.report, log_every=1, evaluate_every=0, preview_every=0, samples=1
  ),
  checkpoint=CheckpointConfig(every=2, keep_last=4, keep_every=0),
  mesh=MeshConfig(replica=1, fsdp=1),
)


def changed(experiment=QUICK, **train):
  return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **train))


def keeping(**fields):
  return dataclasses.replace(QUICK, checkpoint=dataclasses.replace(QUICK.checkpoint, **fields))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The mesh of one device needs no other."""
  monkeypatch.setattr(program_module, "make_mesh", one_device_mesh)


def one_device_mesh(config):
  return make_mesh(config, devices=jax.devices()[:1])


def steps(workdir):
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  return {int(name) if name.isdigit() else name for name in names}


def state_of(workdir, experiment=QUICK):
  step, state = final_state(workdir, dataclasses.replace(experiment, mesh=MeshConfig(fsdp=4)))
  return step, state
