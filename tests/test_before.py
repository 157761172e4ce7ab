"""A run and an export made by older code still load, and the run goes on.

`golden/before_batch.tar.xz` was made at commit 5e52917, before rows were batches, parameters had a
table and loops their own config: `run/` (two steps), `export/`, `text.txt` and its scores.
"""

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import sedd_jax
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics


@pytest.fixture
def before(tmp_path, monkeypatch):
  """The folder that holds them."""
  with tarfile.open(Path(__file__).parent / "golden" / "before_batch.tar.xz") as archive:
    archive.extractall(tmp_path, filter="data")
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize("name", ["run", "export"])
def test_it_loads_and_scores_as_it_did(before, name):
  model = sedd_jax.load(before / name)
  expected = np.load(before / "expected.npz")
  found = model.log_score(expected["tokens"], np.array([0.3, 2.0], np.float32))
  np.testing.assert_allclose(found, expected["log_score"], atol=1e-5)
  assert model.decode(model.sample(1, steps=2))


def test_the_run_goes_on(before):
  stored = json.loads((before / "run" / "config.json").read_text())
  stored.pop("generations")
  experiment = Experiment.from_config(stored)
  longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=4))
  assert train(longer, before / "run") == 0
  assert sedd_jax.load(before / "run").info["step"] == 4
  assert max(line["step"] for line in read_metrics(before / "run")) == 4
