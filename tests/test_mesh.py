"""The same run on any mesh: losses, checkpoints and refusals on fake devices."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import ABSORBING, TINY, with_steps
from support.rows import ArrayRows
from support.runs import final_state

import sedd_jax
from sedd_jax.data import Batches, DataConfig
from sedd_jax.diffusion import Absorbing, Uniform
from sedd_jax.models import Network, ScoreTransformerConfig
from sedd_jax.parallel import MeshConfig, OnMesh, make_mesh, tree_shardings
from sedd_jax.planning.costs import costs
from sedd_jax.training.experiment import DiffusionConfig
from sedd_jax.training.feed import Feed
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics
from sedd_jax.training.program import Program

STEPS = ABSORBING.train.steps
UNIFORM = dataclasses.replace(ABSORBING, diffusion=DiffusionConfig.paper("uniform"))
CONDITIONAL = dataclasses.replace(
  ABSORBING, diffusion=DiffusionConfig(parameterization="conditional")
)
UDLM = dataclasses.replace(
  UNIFORM, diffusion=dataclasses.replace(UNIFORM.diffusion, parameterization="conditional")
)
D3PM = dataclasses.replace(CONDITIONAL, objective="discrete_time")
MUON = dataclasses.replace(
  ABSORBING, optimizer=dataclasses.replace(ABSORBING.optimizer, name="muon")
)
AUTOREGRESSIVE = dataclasses.replace(ABSORBING, objective="autoregressive")
BLOCKS = ArrayRows(np.random.default_rng(0).integers(0, 10, (64, 8), np.int32))


def losses(experiment, mesh, devices, accumulation=1):
  """The loss of every step."""
  experiment = dataclasses.replace(
    experiment, train=dataclasses.replace(experiment.train, accumulation=accumulation)
  )
  mesh = make_mesh(MeshConfig(**mesh), jax.devices()[:devices])
  program = Program(experiment=experiment, mesh=mesh, vocab_size=10)
  state, found = program.create(), []
  batches = Batches([BLOCKS], experiment.train.batch_size, experiment.seed)
  with Feed(batches, program.batch.tokens.sharding, 0) as feed:
    for _ in range(STEPS):
      state, values = program.step(state, feed.next())
      found.append(float(values["loss"]))
  return found


@functools.cache
def one_device(experiment):
  """Losses on one device."""
  return losses(experiment, {}, 1)


MESHES = [
  (4, dict(replica=1, fsdp=2, tensor=2), 4),
]
MORE_MESHES = [
  (2, dict(replica=1, tensor=2), 4),
  (4, dict(replica=1, fsdp=4), 4),
  (4, dict(replica=1, fsdp=2, tensor=2), 1),
  (1, dict(replica=1), 4),
  (2, dict(fsdp=2), 1),
  (4, dict(replica=2, tensor=2), 4),
  (1, dict(replica=1), 16),
  (2, dict(replica=2), 1),
  (4, dict(replica=4), 1),
  (4, dict(replica=2, fsdp=2), 4),
  (4, dict(replica=1, tensor=4), 1),
  *((devices, mesh, 5 - accumulation) for devices, mesh, accumulation in MESHES),
]


@pytest.mark.parametrize(
  ("devices", "mesh", "accumulation"),
  [*MESHES, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE_MESHES)],
  ids=str,
)
def test_every_loss_is_the_same_on_any_mesh_and_accumulation(devices, mesh, accumulation):
  """Dropout on, float32."""
  found = losses(ABSORBING, mesh, devices, accumulation)
  np.testing.assert_allclose(found, one_device(ABSORBING), rtol=1e-6)
  assert len(set(found)) == STEPS


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param(UNIFORM, id="uniform"),
    pytest.param(AUTOREGRESSIVE, id="autoregressive"),
    pytest.param(MUON, id="muon"),
    pytest.param(UDLM, id="udlm", marks=pytest.mark.slow),
    pytest.param(CONDITIONAL, id="conditional", marks=pytest.mark.slow),
    pytest.param(D3PM, id="d3pm", marks=pytest.mark.slow),
  ],
)
def test_every_loss_is_the_same_for_other_objectives_and_optimizers(kind):
  found = losses(kind, dict(replica=1, fsdp=2, tensor=2), 4)
  np.testing.assert_allclose(found, one_device(kind), rtol=1e-6)


# --- the vocabulary on tensor


def full_vocabulary(process, mesh, parameterization):
  """GPT-2's vocabulary on a narrow network: a gradient and its compiled text."""
  config = ScoreTransformerConfig(
    num_states=process.num_states, width=16, blocks=1, heads=4, cond_dim=8, dropout=0.0
  )
  place = OnMesh(mesh) if mesh else sedd_jax.models.placement.Placement()
  network = Network(
    config=config, process=process, parameterization=parameterization, placement=place
  )
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  shardings = tree_shardings(mesh, shapes, config.table) if mesh else None
  params = jax.jit(
    lambda key: jax.tree.map(
      lambda x: x + 0.02 * jax.random.normal(key, x.shape), network.init(key)
    ),
    out_shardings=shardings,
  )(jax.random.key(1))
  vocab = process.vocab_size
  x0 = jnp.asarray([[0, 1, vocab - 1, 17, 50_000, 3, 12_575, 12_576]] * 3)
  masked = process.mask_id if process.mask_id is not None else 25_000
  x = x0.at[0, ::2].set(masked).at[1, 1:].set(masked)
  total = jnp.asarray([0.3, 1.7, 0.01])

  def loss(params):
    stats = network.score_stats(params, x, x0, total)
    return jnp.sum(process.score_entropy_from_stats(stats, x, x0, total[:, None]))

  compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
  value, grad = compiled(params)
  return float(value), jax.tree.map(np.asarray, network.unpad(grad)), compiled.as_text(), x.size


@pytest.mark.parametrize(
  ("process", "parameterization"),
  [
    (Absorbing(50_257), "scaled"),
    pytest.param(Absorbing(50_257), "conditional", marks=pytest.mark.slow),
    pytest.param(Uniform(50_257), "score", marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_gpt2_vocabulary_on_four_devices_equals_one(process, parameterization):
  mesh = make_mesh(MeshConfig(replica=1, tensor=4))
  want, want_grad, _, _ = full_vocabulary(process, None, parameterization)
  got, grad, text, positions = full_vocabulary(process, mesh, parameterization)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for one, other in zip(jax.tree.leaves(want_grad), jax.tree.leaves(grad), strict=True):
    assert np.linalg.norm(one - other) <= 2e-5 * np.linalg.norm(one)
  # Nothing as large as the scores of all positions moves between devices.
  exchanges = costs(text, mesh.shape, open_trips=1).collectives
  moved = [size for one in exchanges for size in one.shapes if one.axes != "none"]
  assert moved, "the sums must cross devices"
  assert max(map(np.prod, moved)) < positions * 50_257 / 4


# --- checkpoints


@pytest.mark.slow
def test_checkpoint_of_one_mesh_goes_on_on_another(tmp_path):
  """fsdp, then a mixed mesh: the curve and the last state of a run without a stop on replicas."""
  text = tmp_path / "corpus.txt"
  text.write_text("\n\n".join(f"{i} times {i} is {i * i}." for i in range(400)))
  experiment = dataclasses.replace(
    TINY,
    data=DataConfig(files=str(text), length=32),
    report=dataclasses.replace(TINY.report, log_every=1, evaluate_every=0, preview_every=0),
  )
  meshes = [
    MeshConfig(replica=1, fsdp=4),
    MeshConfig(replica=1, fsdp=2, tensor=2),
  ]
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert train(with_steps(6, experiment), whole) == 0
  for steps, mesh in zip((3, 6), meshes, strict=True):
    assert train(with_steps(steps, dataclasses.replace(experiment, mesh=mesh)), parts) == 0

  def curve(workdir):
    lines = read_metrics(workdir)
    return {d["step"]: d["loss_nats_per_sequence"] for d in lines if "grad_norm" in d}

  want, got = curve(whole), curve(parts)
  assert sorted(want) == sorted(got) == list(range(1, 7))
  np.testing.assert_allclose([got[i] for i in want], list(want.values()), rtol=1e-6)
  (_, one), (_, other) = final_state(whole), final_state(parts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), one.params, other.params)
  # And on one device, for sampling.
  assert sedd_jax.load(parts).sample(1, steps=2).shape == (1, 32)
  bound = json.loads((parts / "evaluation.json").read_text())["heldout_bits_per_char_strict"]
  whole_bound = json.loads((whole / "evaluation.json").read_text())["heldout_bits_per_char_strict"]
  np.testing.assert_allclose(bound, whole_bound, rtol=1e-5)


# --- batches


def test_each_device_reads_its_own_rows_only():
  asked = []

  class Spied(Batches):
    def rows(self, step, which):
      asked.append((step, which.start, which.stop))
      return super().rows(step, which)

  mesh = make_mesh(MeshConfig(replica=2, tensor=2))
  program = Program(experiment=ABSORBING, mesh=mesh, vocab_size=10)
  batches = Spied([BLOCKS], 16, 0)
  with Feed(batches, program.batch.tokens.sharding, 5) as feed:
    first = feed.next()
    second = feed.next()
  for got, want in ((first, 5), (second, 6)):
    jax.tree.map(np.testing.assert_array_equal, got, Batches([BLOCKS], 16, 0)[want])
    assert got.tokens.sharding == got.loss_mask.sharding == program.batch.tokens.sharding
  assert {(start, stop) for _, start, stop in asked} == {(0, 8), (8, 16)}


# --- meshes


def test_mesh_sizes():
  assert dict(make_mesh(MeshConfig()).shape) == {"replica": 1, "fsdp": 4, "tensor": 1}
  mesh = make_mesh(MeshConfig(replica=1, fsdp=-1, tensor=2))
  assert dict(mesh.shape) == {"replica": 1, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
  ("mesh", "match"),
  [
    (dict(replica=-1, fsdp=3), r"mesh\.fsdp=3.* 4 devices.*must be one of 1, 2, 4"),
    (dict(replica=-1, fsdp=-1), "at most one may be -1"),
    (dict(replica=2, fsdp=4), "make 8, not 4 devices"),
    (dict(tensor=0), r"mesh\.tensor=0 must be at least 1"),
  ],
)
def test_mesh_that_does_not_fit_the_devices_is_refused(mesh, match):
  with pytest.raises(ValueError, match=match):
    make_mesh(MeshConfig(**mesh))


def changed(experiment, **sections):
  return dataclasses.replace(
    experiment,
    **{
      name: dataclasses.replace(getattr(experiment, name), **fields)
      for name, fields in sections.items()
    },
  )


@pytest.mark.parametrize(
  ("sections", "mesh", "match"),
  [
    (dict(train=dict(batch_size=10)), dict(fsdp=4, replica=1), r"batch_size=10.*4.*8 or 12"),
    (dict(train=dict(batch_size=2)), dict(fsdp=4, replica=1), r"multiple of 4.*for example 4$"),
    (dict(model=dict(width=36, heads=6)), dict(tensor=4, replica=1), r"model\.heads=6: 1, 2, 3, 6"),
    (
      dict(model=dict(width=30, heads=5)), dict(fsdp=4, replica=1),
      r"mesh\.fsdp=4 does not divide.*multiples of 30.*on 4 devices: 1, 2",
    ),
    (
      dict(model=dict(pad_multiple=1, heads=8)), dict(tensor=4, replica=1),
      r"mesh\.tensor=4 does not divide.*multiples of 1\b",
    ),
  ],
)  # fmt: skip
def test_mesh_that_does_not_divide_the_run_is_refused_with_numbers_that_would(
  sections, mesh, match
):
  with pytest.raises(ValueError, match=match):
    Program(
      experiment=changed(ABSORBING, **sections), mesh=make_mesh(MeshConfig(**mesh)), vocab_size=10
    )


class FakeDevice(types.SimpleNamespace):
  __hash__ = object.__hash__


def fake_slices(slices, per_slice, platform="tpu"):
  """Devices of several slices, as far as a mesh looks at them."""
  return [
    FakeDevice(
      id=s * per_slice + i, process_index=s, slice_index=s, platform=platform, device_kind="fake",
      coords=(i % 2, i // 2, 0), core_on_chip=0,
    )
    for s in range(slices)
    for i in range(per_slice)
  ]  # fmt: skip


def test_slices_lie_along_replica():
  devices = fake_slices(2, 4)[::-1]
  mesh = make_mesh(MeshConfig(replica=-1, fsdp=2), devices)
  assert dict(mesh.shape) == {"replica": 4, "fsdp": 2, "tensor": 1}
  slice_of = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert (slice_of == slice_of[:, :1, :1]).all(), "fsdp leaves a slice"
  assert set(slice_of[:2].flat) != set(slice_of[2:].flat)


def test_hosts_of_gpus_are_no_slices():
  """jax gives every host a slice index; parameters may be sharded over all of them."""
  mesh = make_mesh(MeshConfig(), fake_slices(2, 4, platform="gpu"))
  assert dict(mesh.shape) == {"replica": 1, "fsdp": 8, "tensor": 1}
  mesh = make_mesh(MeshConfig(replica=2, tensor=2), fake_slices(2, 4, platform="gpu"))
  hosts = np.vectorize(lambda device: device.process_index)(mesh.devices)
  assert (hosts == np.array([0, 1])[:, None, None]).all()


def test_mesh_that_would_shard_parameters_across_slices_is_refused():
  with pytest.raises(ValueError, match=r"mesh\.replica=1 must be a multiple of the 2 slices"):
    make_mesh(MeshConfig(replica=1, fsdp=8), fake_slices(2, 4))
