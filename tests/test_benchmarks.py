"""The benchmarks: what they print, what they count by hand, and the PyTorch baseline's numbers."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # They are no part of the package.

from benchmarks import options as options_module
from benchmarks.report import commit
from benchmarks.shapes import assigned
from benchmarks.work import head_work, training_work

TINY = (
  "--set=model.width=32", "--set=model.blocks=2", "--set=model.heads=2", "--set=model.cond_dim=16",
  "--set=data.length=16", "--vocab=101", "--batch=4", "--repeats=3", "--warmup=1",
)  # fmt: skip
# Of TINY: B, L, D, H, S, width of a head, conditioning, features of the noise level.
B, L, D, H, S, K, C, N = 4, 16, 32, 2, 102, 16, 16, 256
BLOCK_PARAMETERS = (
  D + D * 3 * D + D * D + D + (D * 4 * D + 4 * D) + (4 * D * D + D) + (C * 6 * D + 6 * D)
)
END_PARAMETERS = S * D + (N * C + C) + (C * C + C) + D + (C * 2 * D + 2 * D) + (D * S + S)
PARAMETERS = 2 * BLOCK_PARAMETERS + END_PARAMETERS
READ = PARAMETERS - (S - B * L) * D  # 64 tokens look up at most 64 of 102 rows.
HEAD = 2 * B * L * D * S
BLOCK = (
  2 * B * L * D * 3 * D  # queries, keys, values
  + 2 * 2 * B * H * L * L * K  # weights, and what they weigh
  + 2 * B * L * D * D
  + 2 * 2 * B * L * D * 4 * D
  + 2 * B * C * 6 * D
)
FORWARD = 2 * BLOCK + HEAD + 2 * B * C * 2 * D
TRAINING_SHARE = 0.999 * (1 + 1e-3) / 2  # A token is masked with probability 0.999 t.


def line(name, *flags):
  """What a benchmark prints, run as a user would."""
  done = subprocess.run(
    [sys.executable, "-m", f"benchmarks.{name}", *flags],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  (printed,) = done.stdout.splitlines()
  return json.loads(printed)


def read(monkeypatch, *flags):
  monkeypatch.setattr(sys, "argv", ["train", *flags])
  return options_module.read(options_module.parser("train", "A test."))


def check_common(result, name):
  assert result["benchmark"] == name
  assert result["commit"] == commit()
  assert result["cpu"]["cores"] == len(os.sched_getaffinity(0))
  assert result["environment"].get("XLA_FLAGS") == os.environ.get("XLA_FLAGS")
  assert {"python", "date", "device", "config"} <= result.keys()


def check_times(result, name):
  check_common(result, name)
  assert len(result["times"]) == 3
  assert result["median_seconds"] == sorted(result["times"])[1] > 0
  assert result["peak_memory_bytes"] > 2**26  # A Python with jax or torch holds as much.
  assert result["peak_memory_is"].startswith("ru_maxrss")


def check_jax(result, name):
  check_times(result, name)
  assert (result["batch"], result["length"], result["vocab"]) == (B, L, 101)
  assert result["config"]["model"]["width"] == D
  assert result["seconds_to_first_step"] > result["compile_seconds"] > 0
  assert result["compiled_bytes_per_device"].keys() == {"temp", "argument", "output"}
  assert result["device"] == {"platform": "cpu", "kind": "cpu", "count": 1}
  work, best = result["work"], result["ceilings"]
  least = (
    work["flops_needed"] / best["matmul_flops_per_second"],
    work["bytes_needed"] / best["copy_bytes_per_second"],
  )
  assert result["least_seconds"] == pytest.approx(max(least))
  median = result["median_seconds"]
  assert result["share_of_matmul_ceiling"] == pytest.approx(least[0] / median)
  assert result["share_of_copy_ceiling"] == pytest.approx(least[1] / median)
  assert result["mfu"] is None  # No peak of a CPU is published.


def check_work(result, *, dense, needed, bytes_needed):
  assert result["work"]["flops_dense"] == dense
  assert result["work"]["flops_needed"] == pytest.approx(needed, rel=1e-6)
  assert result["work"]["bytes_needed"] == pytest.approx(bytes_needed, rel=1e-6)


@pytest.mark.slow
def test_a_training_step_counted_by_hand():
  result = line("train", *TINY)
  check_jax(result, "train")
  check_work(
    result,
    dense=3 * FORWARD,
    needed=3 * (FORWARD - (1 - TRAINING_SHARE) * HEAD),
    bytes_needed=4 * (2 * READ + 10 * PARAMETERS),
  )
  assert result["tokens_per_second"] == pytest.approx(B * L / result["median_seconds"])


@pytest.mark.slow
def test_sampling_counted_by_hand():
  result = line("sample", *TINY, "--steps=4")
  check_jax(result, "sample")
  assert result["num_steps"] == 4
  share = 0.999 * (1 + 1e-5) / 2  # Mean of five equally spaced times.
  check_work(
    result,
    dense=5 * FORWARD,
    needed=5 * (FORWARD - (1 - share) * HEAD),
    bytes_needed=4 * 5 * READ,
  )


@pytest.mark.slow
def test_the_output_layer_counted_by_hand():
  result = line("loss", *TINY)
  check_jax(result, "loss")
  rows = TRAINING_SHARE * B * L
  check_work(
    result,
    dense=3 * HEAD,
    needed=3 * TRAINING_SHARE * HEAD,
    bytes_needed=4 * 3 * (rows * D + D * S + S),
  )
  assert 0 < result["masked_share_drawn"] < 1


def test_the_uniform_process_needs_every_row(monkeypatch):
  program = read(monkeypatch, *TINY, "--process=uniform").program()
  head, states = 2 * B * L * D * (S - 1), S - 1
  found = head_work(program)
  assert found.masked_share == 1
  assert found.flops_dense == found.flops_needed == 3 * head
  assert found.bytes_needed == 4 * 3 * (B * L * D + D * states + states)
  found = training_work(program)
  assert found.flops_dense == found.flops_needed == 3 * (FORWARD - HEAD + head)


@pytest.mark.slow
def test_draws_beside_those_of_jax():
  result = line("categorical", *TINY)
  check_jax(result, "categorical")
  assert (result["rows"], result["states"]) == (B * L, S)
  check_work(result, dense=0, needed=0, bytes_needed=4 * B * L * (S + 1))
  for mode in ("high", "low"):
    ratio = sorted(result[f"jax_{mode}_times"])[1] / result["median_seconds"]
    assert result[f"jax_{mode}_over_ours"] == pytest.approx(ratio)


@pytest.mark.slow
def test_lengths_and_their_plot(tmp_path):
  flags = ("--shortest=32", "--longest=64", f"--plot={tmp_path}/lengths.png")
  result = line("length", *TINY, *flags, "--batch=1", "--process=uniform")
  check_common(result, "length")
  assert result["config"]["diffusion"]["process"] == "uniform"
  assert result["batch"] == 1
  assert result["lengths"] == [32, 64]
  assert [len(times) for times in result["all_times"]] == [3, 3]
  assert result["seconds"] == [sorted(times)[1] for times in result["all_times"]]
  short, long = result["temp_bytes"]
  assert long > short > 0
  assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.tpu_plugin
def test_lengths_compiled_for_an_absent_tpu():
  pytest.importorskip("libtpu")
  flags = ("--set=model.heads=1", "--set=model.width=128", "--shortest=128", "--longest=128")
  result = line("length", *TINY, *flags, "--batch=1", "--topology=v5e:1x1")
  check_common(result, "length")
  assert result["lengths"] == [128]
  assert result["seconds"] is None
  assert result["temp_bytes"][0] > 0
  assert result["topology"]["name"] == "v5e:1x1"
  assert result["config"]["model"]["attention"] == "splash"


# --- Flags


def test_overrides_reach_the_experiment(monkeypatch):
  found = read(
    monkeypatch, "--config=B", "--set=model.dropout=0", "--set", "model.dtype=bfloat16", "--batch=8"
  )
  assert found.experiment.model.dropout == 0.0
  assert found.experiment.model.dtype == "bfloat16"
  assert found.experiment.train.batch_size == 8
  assert (found.experiment.model.width, found.vocab) == (384, 50257)


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--set=model.dropuot=0.1", "config.model.dropuot is unknown: did you mean 'dropout'?"),
    ("--set=modle.dropout=0.1", "config.modle is unknown: did you mean 'model'?"),
    ("--set=seed.x=1", "seed is no section"),
    ("--set=model.width", "must be name=value"),
    ("--set=model.width='wide'", "config.model.width='wide' must be of type int"),
    ("--repeats=0", "--repeats and --warmup must be at least 1"),
  ],
)
def test_wrong_flags_are_refused(monkeypatch, capsys, flag, message):
  with pytest.raises(SystemExit, match="2"):
    read(monkeypatch, flag)
  assert message in capsys.readouterr().err


def test_assignments_leave_their_source_alone():
  source = {"a": {"b": 1}}
  assert assigned(source, ["a.b=(1, 2)", "c=text"]) == {"a": {"b": (1, 2)}, "c": "text"}
  assert source == {"a": {"b": 1}}


@pytest.mark.parametrize("size", ["small", "medium"])
def test_shapes_are_those_of_the_config(size, monkeypatch):
  spec = importlib.util.spec_from_file_location("owt", REPOSITORY / "configs" / "openwebtext.py")
  assert spec
  assert spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(f"{size},absorb")
  found = read(monkeypatch, f"--config={size}").experiment
  assert vars(found.model) == config.model.to_dict()
  assert found.data.length == config.data.length
  assert vars(found.diffusion) == config.diffusion.to_dict()
  for name in ("learning_rate", "warmup", "ema"):
    assert getattr(found.optimizer, name) == config.optimizer[name]


# --- The baseline in PyTorch, against the original's numbers


@pytest.fixture
def baseline():
  """benchmarks.pytorch in float64."""
  torch = pytest.importorskip("torch")
  from benchmarks import pytorch

  before = torch.get_default_dtype()
  torch.set_default_dtype(torch.float64)
  yield pytorch
  torch.set_default_dtype(before)


def golden_model(pytorch, arrays):
  import torch

  sizes = {name: int(arrays[f"cfg_{name}"]) for name in ("cond_dim", "length")}
  sizes |= {name: int(arrays[f"cfg_n_{name}"]) for name in ("heads", "blocks")}
  shape = pytorch.Shape(
    width=int(arrays["cfg_hidden_size"]),
    vocab=int(arrays["cfg_tokens"]),
    batch=len(arrays["loss_t"]),
    samples=1,
    dropout=0.0,
    **sizes,
  )
  model = pytorch.Sedd(shape)
  given = {
    k.removeprefix("param/"): torch.tensor(v) for k, v in arrays.items() if k.startswith("param/")
  }
  # The golden run had its frequencies in float64, and stored them in float32.
  stored = given.pop("rotary_emb.inv_freq")
  given["rotary_emb.inv_freq"] = model.rotary_emb.inv_freq
  np.testing.assert_allclose(stored, given["rotary_emb.inv_freq"], rtol=1e-6)
  model.load_state_dict(given)
  return model, shape


@pytest.mark.torch_ref
def test_the_baseline_has_the_originals_outputs_loss_and_gradient(baseline, golden):
  import torch

  arrays = golden("model_absorb.npz")
  tensors = {k: torch.tensor(v) for k, v in arrays.items() if v.ndim}
  model, _ = golden_model(baseline, arrays)
  for prefix in ("", "alt_"):
    found = model(tensors[f"{prefix}indices"], tensors[f"{prefix}sigma"])
    np.testing.assert_allclose(found.detach(), arrays[f"{prefix}log_score"], rtol=1e-9, atol=1e-11)
  loss = baseline.loss_at(model, tensors["loss_x0"], tensors["loss_xt"], tensors["loss_t"])
  np.testing.assert_allclose(loss.detach(), arrays["loss"], rtol=1e-9)
  loss.mean().backward()
  for name, param in model.named_parameters():
    want = arrays[f"grad/{name}"]
    np.testing.assert_allclose(param.grad, want, rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.torch_ref
@pytest.mark.parametrize("prefix", ["absorb_v50_", "absorb_v8_"])
def test_the_baseline_has_the_originals_score_entropy_and_probabilities(baseline, golden, prefix):
  import torch

  arrays = golden("graph.npz")
  group = {k.removeprefix(prefix): torch.tensor(v) for k, v in arrays.items() if prefix in k}
  found = baseline.score_entropy(group["log_score"], group["sigma"], group["x"], group["x0"])
  np.testing.assert_allclose(found, group["score_entropy"], rtol=1e-9)
  sampling = golden("sampling.npz")
  for kind in ("absorb_loglinear_post_", "absorb_loglinear_rand_"):
    score, x, step = (
      torch.tensor(sampling[kind + name]) for name in ("score", "x", "analytic_dsigma")
    )
    found = baseline.step_probs(score, x, step)
    np.testing.assert_allclose(found, sampling[kind + "analytic_probs"], rtol=1e-7, atol=1e-7)


@pytest.mark.torch_ref
def test_the_baseline_trains_as_the_original(baseline, golden):
  import torch

  model, shape = golden_model(baseline, golden("model_absorb.npz"))
  arrays = golden("train_absorb.npz")
  assert arrays["accum"] == 1
  recipe = baseline.Recipe(learning_rate=float(arrays["lr"]), warmup=int(arrays["warmup"]))
  trainer = baseline.Trainer(model, shape, compiled=False, recipe=recipe)
  for x0, x, t, want in zip(*(arrays[k] for k in ("x0", "xt", "t", "loss")), strict=True):
    batch = (torch.tensor(array[0]) for array in (x0, x, t))
    loss = baseline.loss_at(trainer.forward, *batch).mean()
    np.testing.assert_allclose(loss.item(), want, rtol=1e-8)
    loss.backward()
    trainer.update()
  for (name, param), average in zip(model.named_parameters(), trainer.average, strict=True):
    np.testing.assert_allclose(param.detach(), arrays[f"final/{name}"], atol=1e-9, err_msg=name)
    np.testing.assert_allclose(average, arrays[f"ema/{name}"], atol=1e-9, err_msg=name)


@pytest.mark.torch_ref
def test_the_baseline_samples_as_the_original(baseline, golden, monkeypatch):
  import torch

  model, shape = golden_model(baseline, golden("model_absorb.npz"))
  arrays = golden("trajectory_absorb.npz")
  uniforms = iter([*arrays["analytic_u_steps"], arrays["analytic_u_final"]])
  monkeypatch.setattr(torch, "rand_like", lambda p: torch.tensor(next(uniforms), dtype=p.dtype))
  batch, length = arrays["analytic_x_final"].shape
  steps = len(arrays["analytic_x_steps"])
  found = baseline.sampled(model.eval(), batch, length, steps, shape.vocab)
  np.testing.assert_array_equal(found, arrays["analytic_x_final"])


@pytest.mark.torch_ref
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_the_baseline_prints_a_line(mode):
  pytest.importorskip("torch")
  sizes = {"width": 32, "blocks": 2, "heads": 2, "cond_dim": 16, "length": 16, "vocab": 101}
  flags = [f"--set={name}={value}" for name, value in sizes.items()]
  result = line("pytorch", *flags, f"--mode={mode}", "--steps=2", "--repeats=3", "--batch=4")
  check_times(result, "pytorch")
  assert result["mode"] == mode
  assert {name: result["config"][name] for name in sizes} == sizes


@pytest.mark.torch_ref
def test_time_to_a_bound_is_measured_against_the_baseline(tmp_path):
  pytest.importorskip("torch")
  found = line(
    "quality", "--config=Q", "--steps=6", "--baseline_steps=4", "--every=3", "--rows=64",
    "--num_times=2", f"--out={tmp_path / 'quality'}", "--set=optimizer.warmup=2",
  )  # fmt: skip
  assert [point["step"] for point in found["ours"]] == [3, 6]
  assert found["baseline"]["steps"] == 4
  assert 3.0 < found["baseline"]["bound"] < 9.0, "of a network that has hardly trained"
  assert (tmp_path / "quality" / "quality.png").is_file()
  assert json.loads((tmp_path / "quality" / "lines.json").read_text())[0]["seed"] == 1


def test_a_bound_is_reached_between_two_points():
  from benchmarks.quality import Point, seconds_to

  points = [
    Point(step=i, seconds=10.0 * i, bound=bound, error=0.1)
    for i, bound in enumerate((4.0, 3.0, 3.5, 2.0), 1)
  ]
  assert seconds_to(4.5, points) == 10.0
  assert seconds_to(3.25, points) == 17.5
  assert seconds_to(2.5, points) == pytest.approx(30.0 + 10.0 * (3.5 - 2.5) / 1.5)
  assert seconds_to(1.0, points) is None
