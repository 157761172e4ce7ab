"""Attention kernels against the one that is written out, and which of them is chosen where."""

import dataclasses
import functools
import importlib.util
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import random_params, small_network

from sedd_jax.diffusion import Absorbing
from sedd_jax.models import attention as attention_module
from sedd_jax.models.attention import ATTENTION, PerShard, attention, choose
from sedd_jax.models.layers import nested
from sedd_jax.models.placement import Placement
from sedd_jax.training.experiment import Experiment

AXES = ("replica", "fsdp", "tensor")
KERNEL_NAMES = ("splash_mha_fwd", "splash_mha_dkv")  # And splash_mha_dq for a long sequence.


def random_inputs(shape, dtype, sharpness=2.0):
  """Queries, keys, values and a cotangent [B, L, H, K]; some weights are far from 1 / L."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, cotangent = (jax.random.normal(key, shape, jnp.float32) for key in keys)
  # Rounded even for float32, so that each dtype sees the same problem.
  return [z.astype(jnp.bfloat16).astype(dtype) for z in (sharpness * q, k, v, cotangent)]


def output_and_gradients(q, k, v, cotangent, **options):
  out, pullback = jax.vjp(functools.partial(attention, **options), q, k, v)
  return out, *pullback(cotangent)


def relative_errors(got, want):
  pairs = [
    (np.asarray(g, np.float64), np.asarray(w, np.float64)) for g, w in zip(got, want, strict=True)
  ]
  return np.array([np.linalg.norm(g - w) / np.linalg.norm(w) for g, w in pairs])


def cpu_mesh(*sizes):
  return jax.make_mesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def absent_device(platform, kind, capability=""):
  device = SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
  return PerShard(SimpleNamespace(devices=np.array([device]), shape=dict.fromkeys(AXES, 1)))


V5E, V3 = absent_device("tpu", "TPU v5 lite"), absent_device("tpu", "TPU v3")
H100, V100 = absent_device("gpu", "H100", "9.0"), absent_device("gpu", "V100", "7.0")
A100, MI300 = absent_device("gpu", "A100", "8.0"), absent_device("gpu", "MI300", "gfx942")


def queries(batch=4, length=256, heads=4, width=64, dtype="bfloat16"):
  return jax.ShapeDtypeStruct((batch, length, heads, width), dtype)


# 128 and 384 positions are one block; 640 are five, since none longer divides them. 2304 are too
# many for the kernel that makes all three gradients.
@pytest.mark.parametrize(
  "shape",
  [(2, 128, 3, 64), (1, 384, 2, 16), (1, 640, 1, 128), (1, 2304, 1, 16)],
  ids=lambda shape: f"{shape}",
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 1e-2)])
def test_splash_equals_xla_in_values_and_gradients(shape, dtype, tolerance):
  want = output_and_gradients(*random_inputs(shape, jnp.float32), kernel="xla")
  got = jax.jit(functools.partial(output_and_gradients, kernel="splash"))(
    *random_inputs(shape, dtype)
  )
  assert {z.dtype for z in got} == {jnp.dtype(dtype)}
  errors = relative_errors(got, want)
  assert errors.max() < tolerance, errors


@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 1, 2), (2, 2, 1)], ids=str)
def test_splash_runs_on_each_devices_own_part(sizes):
  mesh = cpu_mesh(*sizes)
  inputs = random_inputs((4, 128, 4, 16), jnp.float32)
  want = output_and_gradients(*inputs, kernel="xla")
  sharding = jax.sharding.NamedSharding(mesh, jax.P(("replica", "fsdp"), None, "tensor", None))
  inputs = jax.device_put(inputs, sharding)
  on_mesh = functools.partial(output_and_gradients, kernel="splash", per_shard=PerShard(mesh))
  compiled = jax.jit(on_mesh).lower(*inputs).compile()
  got = compiled(*inputs)
  assert relative_errors(got, want).max() < 3e-6
  assert all(z.sharding.is_equivalent_to(sharding, z.ndim) for z in got)
  # Left to itself GSPMD would gather what the interpreted kernel reads.
  assert not re.findall("all-gather|all-reduce|all-to-all|collective", compiled.as_text())


@pytest.mark.slow
def test_splash_of_a_whole_network_equals_xla():
  process = Absorbing(10)
  tokens = jax.random.randint(jax.random.key(0), (2, 128), 0, 11)
  total = jnp.array([0.3, 2.0])

  def run(kernel):
    network = small_network(process, attention=kernel, remat="dots")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_grad(params):
      log_score = network.log_score(params, tokens, total)
      return jnp.mean(log_score**2), log_score

    (_, log_score), grad = loss_and_grad(random_params(network))
    return log_score, grad

  (got, got_grad), (want, want_grad) = run("splash"), run("xla")
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
  errors = relative_errors(jax.tree.leaves(got_grad), jax.tree.leaves(want_grad))
  assert errors.max() < 1e-4, errors


@pytest.mark.parametrize("length", [128, 2304])
def test_splash_keeps_its_output_once_and_with_heads_merged(length):
  inputs = [jax.ShapeDtypeStruct((2, length, 3, 16), jnp.bfloat16)] * 3
  policy = jax.checkpoint_policies.save_only_these_names(ATTENTION)
  attend = jax.checkpoint(functools.partial(attention, kernel="splash"), policy=policy)
  kept = jax.eval_shape(lambda *qkv: jax.tree.leaves(jax.vjp(attend, *qkv)[1]), *inputs)
  shapes = sorted(z.shape for z in kept if z.dtype != jnp.int8)
  assert shapes == sorted([(2, length, 3, 16)] * 3 + [(2, length, 48), (2, 3, length)])


@pytest.mark.parametrize(
  ("remat", "forward"), [("none", 1), ("dots", 1), ("narrow", 1), ("full", 2)]
)
def test_rematerialisation_runs_the_forward_kernel_again_only_where_nothing_is_kept(remat, forward):
  """Of the program of one step, lowered for a TPU that is not there."""

  class OnTpu(PerShard):
    device = V5E.device

  class There(Placement):
    per_shard = OnTpu()

  network = dataclasses.replace(
    small_network(Absorbing(10), attention="splash", remat=remat), placement=There()
  )
  tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)

  def loss(params, tokens):
    return jnp.sum(network.read(params, tokens, jnp.ones(2)))

  traced = jax.jit(jax.grad(loss)).trace(random_params(network), tokens)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  calls = [text.count(f'kernel_name = "{name}') for name in KERNEL_NAMES]
  assert calls == [forward, 1]


@pytest.mark.slow
def test_blocks_attend_through_per_shard():
  calls = []

  class Recorder(PerShard):
    def __call__(self, attend):
      calls.append(attend)
      return attend

  mixer = small_network(Absorbing(10), attention="splash").config.mixer
  layers = {layer.name: jnp.ones(layer.shape) for layer in mixer.layers()}
  params = nested(layers)["blocks"]
  params["qkv"]["kernel"] = params["qkv"]["kernel"].reshape(32, 3, 32)
  mixer(params, jnp.ones((1, 128, 32)), None, Recorder())
  assert len(calls) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_auto_on_cpu_is_xla_to_the_letter(dtype):
  def program(kernel):
    run = functools.partial(output_and_gradients, kernel=kernel)
    return str(jax.make_jaxpr(run)(*random_inputs((2, 128, 2, 16), dtype)))

  with jax.enable_x64(dtype == "float64"):
    assert program("auto") == program("xla")
    assert "pallas" not in program("auto")


@pytest.mark.parametrize(
  ("place", "changes", "kernel"),
  [
    (PerShard(), {}, "xla"),
    (V5E, {}, "splash"),
    (V5E, dict(dtype="float32", width=16), "splash"),
    (V5E, dict(length=200), "xla"),
    (V5E, dict(dtype="float64"), "xla"),
    (V3, {}, "xla"),
    (H100, {}, "cudnn"),
    (H100, dict(width=256), "cudnn"),
    (H100, dict(dtype="float32"), "xla"),
    (H100, dict(dtype="float64"), "xla"),
    (H100, dict(width=20), "xla"),
    (A100, {}, "cudnn"),
    (A100, dict(width=256), "xla"),
    (V100, {}, "xla"),
    (MI300, {}, "xla"),
  ],
)
def test_auto_chooses_what_fits(place, changes, kernel):
  with jax.enable_x64(True):
    assert choose("auto", queries(**changes), place) == kernel


@pytest.mark.parametrize(
  ("kernel", "place", "changes", "parts"),
  [
    ("splash", PerShard(), dict(length=200), ["data.length=200", "multiple of 128", "256"]),
    ("splash", PerShard(), dict(dtype="float64"), ["model.dtype", "'float64'"]),
    ("splash", H100, {}, ["TPU", "not gpu"]),
    ("splash", V3, {}, ["v4 or later", "TPU v3"]),
    ("cudnn", PerShard(), {}, ["NVIDIA GPU", "not 'cpu'"]),
    ("cudnn", V100, {}, ["8.0", "'V100'"]),
    ("cudnn", H100, dict(dtype="float32"), ["model.dtype 'bfloat16'", "'float32'"]),
    ("cudnn", A100, dict(width=136), ["model.width / model.heads", "136", "at most 128"]),
  ],
)
def test_a_kernel_that_cannot_run_is_refused_by_name(kernel, place, changes, parts):
  with (
    jax.enable_x64(True),
    pytest.raises(ValueError, match=f"model.attention='{kernel}'") as refusal,
  ):
    choose(kernel, queries(**changes), place)
  for part in [*parts, "model.attention='xla'"]:
    assert part in str(refusal.value)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(batch=3), "the 3 sequences to be a multiple of mesh.replica x mesh.fsdp=2"),
    (dict(heads=3), "model.heads=3 to be a multiple of mesh.tensor=2"),
  ],
)
def test_parts_that_a_mesh_does_not_divide_are_refused(changes, message):
  place = PerShard(cpu_mesh(1, 2, 2))
  with pytest.raises(ValueError, match=message):
    choose("splash", queries(**changes), place)
  assert choose("splash", queries(), place) == "splash"


def test_attention_refuses_before_it_computes():
  q, k, v, _ = random_inputs((1, 200, 1, 16), jnp.float32)
  with pytest.raises(ValueError, match=r"data\.length=200"):
    attention(q, k, v, kernel="splash")


def test_config_names_the_kernel():
  assert Experiment.from_config({"model": {"width": 32, "heads": 2}}).model.attention == "auto"
  experiment = Experiment.from_config({"model": {"attention": "splash"}})
  assert experiment.network(vocab_size=10).config.attention == "splash"
  with pytest.raises(ValueError, match=r"model\.attention='flash'.*splash"):
    Experiment.from_config({"model": {"attention": "flash"}})


@pytest.fixture(params=["v5e:2x2", "v6e:2x2"])
def tpu_mesh(request):
  """Four absent TPU devices, for which libtpu compiles."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install 'jax[tpu]' brings it, also without a TPU")
  from jax.experimental import topologies

  # No metadata server is asked where there is no TPU; several processes may compile at once.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
  devices = topologies.get_topology_desc(platform="tpu", topology_name=request.param).devices
  return jax.sharding.Mesh(
    np.array(devices).reshape(1, 2, 2), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
  )


def compiled_for(mesh, kernel, shape, dtype="bfloat16", remat=False):
  """Forward and backward of one attention, compiled for a mesh of absent devices."""
  attend = functools.partial(attention, kernel=kernel, per_shard=PerShard(mesh))
  attend = jax.checkpoint(attend) if remat else attend

  def gradients(q, k, v, cotangent):
    out, pullback = jax.vjp(attend, q, k, v)
    return out, *pullback(cotangent)

  sharding = jax.sharding.NamedSharding(mesh, jax.P(("replica", "fsdp"), None, "tensor", None))
  inputs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)] * 4
  return jax.jit(gradients).lower(*inputs).compile()


@pytest.mark.tpu_plugin
@pytest.mark.parametrize("kernel", ["splash", "auto"])
def test_splash_compiles_for_tpu_and_holds_no_weights(tpu_mesh, kernel):
  shape = (8, 1024, 12, 64)
  xla, splash = (compiled_for(tpu_mesh, name, shape) for name in ("xla", kernel))
  text = splash.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2
  assert all(name in text for name in KERNEL_NAMES)
  assert not re.findall("all-gather|all-reduce|all-to-all|collective", text)
  assert "tpu_custom_call" not in xla.as_text()
  sizes = [c.memory_analysis().temp_size_in_bytes for c in (xla, splash)]
  assert sizes[1] < sizes[0] / 4, sizes


@pytest.mark.tpu_plugin
@pytest.mark.parametrize(
  ("length", "width", "dtype"),
  [
    *[(128, 128, "float32"), (256, 64, "float32"), (1024, 128, "bfloat16"), (1152, 16, "bfloat16")],
    *[(2048, 256, "float32"), (4096, 64, "bfloat16")],
  ],
)
def test_splash_compiles_for_tpu_in_other_shapes(tpu_mesh, length, width, dtype):
  compiled = compiled_for(tpu_mesh, "auto", (4, length, 4, width), dtype, remat=True)
  text = compiled.as_text()
  assert all(name in text for name in KERNEL_NAMES)
  assert ("splash_mha_dq" in text) == (length > 2048)


@pytest.mark.tpu_plugin
def test_auto_compiles_for_tpu_where_splash_does_not_fit(tpu_mesh):
  for shape in [(4, 200, 4, 64), (3, 128, 4, 64)]:
    sharding = jax.sharding.NamedSharding(tpu_mesh, jax.P())
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)] * 3
    attend = functools.partial(attention, kernel="auto", per_shard=PerShard(tpu_mesh))
    assert "tpu_custom_call" not in jax.jit(attend).lower(*inputs).compile().as_text()


def test_cudnn_equals_xla_in_values_and_gradients():
  if jax.default_backend() != "gpu":
    pytest.skip(
      f"cudnn runs on NVIDIA GPUs alone, and this is {jax.default_backend()}; with one at hand: "
      "JAX_PLATFORMS=cuda"
    )
  shape = (2, 256, 3, 64)
  want = output_and_gradients(*random_inputs(shape, jnp.float32), kernel="xla")
  inputs = random_inputs(shape, jnp.bfloat16)
  assert choose("auto", inputs[0], PerShard()) == "cudnn"
  got = jax.jit(functools.partial(output_and_gradients, kernel="cudnn"))(*inputs)
  errors = relative_errors(got, want)
  assert errors.max() < 1e-2, errors


# Long sequences with xla: some queries at a time.


def attention_gradient(length, heads=2, width=4):
  keys = jax.random.split(jax.random.key(length), 3)
  q, k, v = (jax.random.normal(key, (1, length, heads, width)) for key in keys)

  def loss(q, k, v):
    return jnp.sum(jnp.sin(3 * attention(q, k, v, kernel="xla")))

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(q, k, v).compile(), (q, k, v)


@pytest.mark.parametrize("length", [60, 67])  # Parts of 20, and of 17 with one query of padding.
def test_parts_of_the_queries_equal_all_of_them(monkeypatch, length, x64):
  compiled, arrays = attention_gradient(length)
  want, wanted = compiled(*arrays)
  monkeypatch.setattr(attention_module, "_MOST_QUERIES", 20)
  compiled, arrays = attention_gradient(length)
  got, grads = compiled(*arrays)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  for g, w in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-12)


def test_memory_of_xla_attention_is_linear_in_the_length(monkeypatch):
  monkeypatch.setattr(attention_module, "_MOST_QUERIES", 128)
  once, twice = (
    attention_gradient(length)[0].memory_analysis().temp_size_in_bytes for length in (1024, 2048)
  )
  assert twice < 2.2 * once
  assert twice < 4 * 2 * 2048**2  # Less than one array of weights in float32.
