"""Whole plans, on slices of CPU devices that stand for chips; test_plan_budgets.py has libtpu's."""

import dataclasses
import math
import sys
import types

import jax
import pytest
from support.experiments import TINY
from support.plans import OUT_OF_MEMORY, PROGRAM, slice_of

from sedd_jax.data import DataConfig
from sedd_jax.diffusion import Absorbing
from sedd_jax.diffusion.tiles import tile_shape
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.parallel.chips import TPUS, device_flops
from sedd_jax.planning import find_slice, plan_sampling, plan_training
from sedd_jax.planning import plan as planning
from sedd_jax.training.experiment import DiffusionConfig, TrainConfig
from sedd_jax.training.flops import forward_flops, needed_share
from sedd_jax.training.program import Program


@pytest.fixture(scope="module")
def tiny():
  return plan_training(TINY, 65, slice_of(4))


@pytest.fixture
def once(monkeypatch):
  """Compiles no more: what the compiler said of one program stands for all."""
  memory = types.SimpleNamespace(
    argument_size_in_bytes=1000, output_size_in_bytes=900, alias_size_in_bytes=890,
    temp_size_in_bytes=100, generated_code_size_in_bytes=10,
  )  # fmt: skip
  monkeypatch.setattr(planning, "compiled", lambda _: (memory, PROGRAM))


def test_a_plan_adds_up(tiny):
  parts = (tiny.argument_bytes_per_chip, tiny.temp_bytes_per_chip, tiny.code_bytes_per_chip)
  assert tiny.bytes_per_chip == sum(parts) > 0
  assert tiny.fits
  assert (tiny.chips, tiny.batch, tiny.length, tiny.accumulation) == (4, 4, 32, 1)
  assert (tiny.attention, tiny.compiler) == ("xla", "a compiler")
  network = TINY.network(65)
  share = needed_share(network.process, TINY.diffusion.make_noise())
  assert tiny.model_flops_per_step == 3 * forward_flops(network, 4, 32, share)
  # The output table is padded from 66 to 128 columns, and a little is computed for the noise.
  assert 1.0 < tiny.hlo_flops_per_step / tiny.model_flops_per_step < 2.0
  roofs = (tiny.compute_seconds, tiny.hbm_seconds, tiny.ici_seconds, tiny.dcn_seconds)
  assert tiny.seconds_bound == max(roofs) > 0
  assert tiny.compute_seconds == tiny.hlo_flops_per_step / 4 / TPUS["v5e"].flops
  assert tiny.hbm_seconds == tiny.hbm_traffic_per_chip / TPUS["v5e"].hbm_bandwidth
  sent = sum(sum(row.values()) for row in tiny.collective_bytes.values())
  assert tiny.ici_seconds == pytest.approx(sent / TPUS["v5e"].ici_bandwidth)
  assert tiny.tokens_per_second_bound == 4 * 32 / tiny.seconds_bound
  assert tiny.days_bound == 8 * tiny.seconds_bound / 86400
  assert tiny.chip_hours_bound == pytest.approx(24 * 4 * tiny.days_bound)
  # Four replicas sum the gradient of every parameter.
  params = jax.eval_shape(network.init, jax.random.key(0))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  assert tiny.collective_bytes["all-reduce"]["replica"] == pytest.approx(1.5 * size, rel=0.01)


def test_two_devices_a_chip_count_twice(once):
  single, double = (plan_training(TINY, 65, slice_of(chips)) for chips in (4, 2))
  assert single.bytes_per_chip == 1000 + (900 - 890) + 100 + 10
  assert double.bytes_per_chip == 2 * single.bytes_per_chip
  assert double.temp_bytes_per_chip == 2 * 100
  assert double.hlo_flops_per_step == single.hlo_flops_per_step == 4 * 2 * 8 * 16 * 16
  assert double.compute_seconds == 2 * single.compute_seconds
  assert double.collective_bytes == {"all-gather": {"replica": 2 * 3 * 8 * 16 * 4}}
  assert double.ici_seconds == 2 * single.ici_seconds
  assert double.largest_gather_bytes == 4 * 8 * 16 * 4


def test_what_is_larger_than_the_chip_does_not_fit(once):
  assert plan_training(TINY, 65, slice_of(4, hbm_bytes=1120)).fits
  small = plan_training(TINY, 65, slice_of(4, hbm_bytes=1119))
  assert not small.fits
  assert small.why_not
  assert small.bytes_per_chip == 1120


def test_a_sampling_step_calls_the_network_twice():
  plan = plan_sampling(TINY, 65, slice_of(4))
  assert plan.what == "sample"
  assert plan.steps == 1
  share = needed_share(Absorbing(65), TINY.diffusion.make_noise())
  assert plan.model_flops_per_step == 2 * forward_flops(TINY.network(65), 4, 32, share)
  assert 1.0 < plan.hlo_flops_per_step / plan.model_flops_per_step < 2.0


def test_accumulation_does_the_same_work(tiny):
  train = dataclasses.replace(TINY.train, batch_size=8, accumulation=2)
  halves = plan_training(dataclasses.replace(TINY, train=train), 65, slice_of(4))
  assert halves.accumulation == 2
  assert halves.hlo_flops_per_step == pytest.approx(2 * tiny.hlo_flops_per_step, rel=0.02)


@pytest.mark.slow
def test_the_output_layer_counts_in_the_share_of_rows_that_need_it():
  """TINY has 32 rows on a device, in tiles of 8, and 128 columns: the last half are padding."""
  uniform = dataclasses.replace(TINY, diffusion=DiffusionConfig.paper("uniform"))
  absorbing = dataclasses.replace(uniform, diffusion=DiffusionConfig(process="absorbing"))
  plans = [plan_training(one, 65, slice_of(4)) for one in (uniform, absorbing)]
  # One product forward, and backward the outputs again and two gradients; 4 tiles for 2.
  tile = 4 * 2 * 8 * 16 * 128
  assert plans[0].hlo_flops_per_step - plans[1].hlo_flops_per_step == 4 * (4 - 2) * tile


@pytest.mark.parametrize(
  ("train", "mesh", "rows", "columns"),
  [
    (TrainConfig(batch_size=16), MeshConfig(fsdp=4), 4096, 50304),
    (TrainConfig(batch_size=16, accumulation=2), MeshConfig(fsdp=4), 2048, 50304),
    (TrainConfig(batch_size=16), MeshConfig(fsdp=2, tensor=2), 8192, 25152),
    (TrainConfig(batch_size=4), MeshConfig(replica=4, fsdp=1), 1024, 50304),
  ],
)
def test_tiles_of_rows_are_those_of_a_device(train, mesh, rows, columns):
  height, _ = tile_shape(rows, columns)
  for process in ("absorb", "uniform"):
    experiment = dataclasses.replace(
      TINY,
      data=DataConfig(length=1024),
      diffusion=DiffusionConfig.paper(process),
      train=train,
      mesh=mesh,
    )
    program = Program(experiment=experiment, mesh=make_mesh(mesh), vocab_size=50257)
    tiles = planning.row_tiles(program, "train")
    if process == "uniform":
      assert tiles == rows / height
    else:
      assert (
        tiles - 1
        < needed_share(Absorbing(50257), program.score_entropy.noise) * rows / height
        <= tiles
      )


def failing(message):
  def fail(_):
    raise jax.errors.JaxRuntimeError(message)

  return fail


OUT_OF_MEMORY_TOO = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
  "Used 27.50G of 15.75G hbm. Exceeded hbm capacity by 11.75G.\nTotal hbm usage: ..."
)


@pytest.mark.parametrize("message", [OUT_OF_MEMORY, OUT_OF_MEMORY_TOO])
def test_the_compiler_says_how_much_is_missing(monkeypatch, message):
  monkeypatch.setattr(planning, "compiled", failing(message))
  plan = plan_training(TINY, 65, slice_of(4))
  assert not plan.fits
  assert plan.bytes_per_chip == 27.5 * 2**30
  assert plan.bytes_per_chip == plan.argument_bytes_per_chip + plan.temp_bytes_per_chip
  assert plan.why_not == message.splitlines()[0]
  assert math.isnan(plan.seconds_bound)


@pytest.mark.parametrize(
  "message",
  [
    "INTERNAL: Async done requires its operand to be an asynchronous op\nmore",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.0M of 16.0M vmem",
  ],
)
def test_a_compiler_that_fails_is_named(monkeypatch, message):
  monkeypatch.setattr(planning, "compiled", failing(message))
  with pytest.raises(ValueError, match="a compiler cannot compile this for cpu:4: ") as error:
    plan_training(TINY, 65, slice_of(4))
  assert message.splitlines()[0] in str(error.value)
  assert "--config.model.attention" in str(error.value)
  assert "\n" not in str(error.value)


def test_a_mesh_that_does_not_divide_is_refused():
  def planned(**mesh):
    return plan_training(dataclasses.replace(TINY, mesh=MeshConfig(**mesh)), 65, slice_of(4))

  with pytest.raises(ValueError, match=r"mesh.fsdp=3, .* make 3"):
    planned(replica=1, fsdp=3)
  with pytest.raises(ValueError, match=r"mesh.tensor=4 must divide model.heads=2"):
    planned(replica=1, tensor=4)


@pytest.mark.parametrize(
  "name", ["v5e", "v5e:", "v5e:4", "v7:4x4", "v5e:4x4x4x4", "0xv5e:4x4", "x v5e:4x4", "v5e:4x4 "]
)
def test_bad_topology_names(name):
  with pytest.raises(ValueError, match=r"must be a generation \(v4, v5e, v5p, v6e, tpu7x\)"):
    find_slice(name)


def test_without_libtpu_there_is_a_pip_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(ImportError, match="pip install libtpu"):
    find_slice("v5e:4x4")


def test_a_shape_that_libtpu_does_not_know_is_refused(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
  monkeypatch.setattr(
    "sedd_jax.planning.slices.topologies.get_topology_desc",
    lambda **_: failing("INVALID_ARGUMENT: no such shape")(None),
  )
  with pytest.raises(ValueError, match=r"--topology=v5e:3x5: libtpu refuses it: INVALID_ARG"):
    find_slice("v5e:3x5")


def test_chips_are_known_to_training_too():
  for kind, name in [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")]:
    assert device_flops(kind) == TPUS[name].flops
  assert device_flops("TPU v4") == TPUS["v4"].flops
  assert device_flops("TPU7x") == TPUS["tpu7x"].flops / 2
  assert device_flops("cpu") is None


@pytest.mark.parametrize(
  ("batch", "length", "mesh", "tiles"),
  [
    (64, 1024, MeshConfig(fsdp=1, tensor=4), 16),  # 16,384 rows, half of them, by 512.
    (8, 1022, MeshConfig(fsdp=1, tensor=4), 8),  # Tensor does not divide 1022: 8176 rows, by 511.
    (8, 64, MeshConfig(fsdp=4), 1),  # 128 rows in one tile.
  ],
)
def test_row_tiles_of_a_sampler_share_positions_over_tensor(batch, length, mesh, tiles):
  experiment = dataclasses.replace(
    TINY,
    data=dataclasses.replace(TINY.data, length=length),
    model=dataclasses.replace(TINY.model, heads=4),
    train=dataclasses.replace(TINY.train, batch_size=batch, accumulation=1),
  )
  program = Program(experiment=experiment, mesh=make_mesh(mesh), vocab_size=65)
  assert planning.row_tiles(program, "sample") == tiles
