"""Meshes from text, and the search for the largest batch that fits."""

import dataclasses
import types

import pytest
from support.experiments import TINY

from sedd_jax.parallel import MeshConfig
from sedd_jax.planning.fit import fit, meshes


def test_meshes_from_text():
  assert meshes("fsdp=16; fsdp=4,tensor=4 ;replica=-1,fsdp=2") == [
    MeshConfig(replica=1, fsdp=16, tensor=1),
    MeshConfig(replica=1, fsdp=4, tensor=4),
    MeshConfig(replica=-1, fsdp=2, tensor=1),
  ]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("fsdp=4,fsdp=4", "'fsdp=4' must be one of"),
    ("data=4", "'data=4' must be one of"),
    ("fsdp=four", "'fsdp=four' must be one of"),
    ("fsdp=--3", "'fsdp=--3' must be one of"),
    ("fsdp=4,", "'' must be one of"),
    (" ; ", "no mesh in"),
  ],
)
def test_bad_meshes(text, message):
  with pytest.raises(ValueError, match=message):
    meshes(text)


def fake_plan(room, asked):
  """A chip with room for so many sequences; a policy takes its share of it."""
  share = {"none": 4, "dots": 2, "narrow": 1.5, "full": 1}

  def plan(experiment):
    each = experiment.train.batch_size / 4
    asked.append((each, experiment.model.remat))
    assert experiment.train.accumulation == 1
    return types.SimpleNamespace(
      batch=experiment.train.batch_size,
      remat=experiment.model.remat,
      fits=each * share[experiment.model.remat] <= room,
    )

  return plan


def fitted(room, start):
  asked = []
  train = dataclasses.replace(TINY.train, batch_size=4 * start, accumulation=2)
  found = fit(fake_plan(room, asked), dataclasses.replace(TINY, train=train), 4)
  assert len(asked) == len(set(asked))  # No program is compiled twice.
  return found.batch / 4, found.remat, found.fits, len(asked)


@pytest.mark.parametrize("start", [1, 3, 8, 64])
@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 13, 40])
def test_fit_finds_the_largest_batch(room, start):
  each, remat, fits, compilations = fitted(room, start)
  assert fits
  assert each <= room < each + max(1, each // 8) + 1
  assert remat == "full"
  assert compilations <= 14


@pytest.mark.parametrize(("dots", "policy"), [(8, "dots"), (7, "narrow")])
def test_fit_prefers_the_least_remat(dots, policy):
  class Roomy(types.SimpleNamespace):
    pass

  def plan(experiment):
    each = experiment.train.batch_size / 4
    limit = {"none": 4, "dots": dots, "narrow": 8, "full": 8}[experiment.model.remat]
    return Roomy(batch=each, remat=experiment.model.remat, fits=each <= limit)

  found = fit(plan, TINY, 4)
  assert (found.batch, found.remat) == (8, policy)


def test_fit_says_when_nothing_fits():
  assert fitted(0, 16)[:3] == (1, "full", False)
