"""Exports: whole folders that come back to the bit, in our layout and the original's."""

import dataclasses
import filecmp
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.command import sedd
from support.experiments import TINY
from support.networks import random_params, small_network

import sedd_jax
from sedd_jax.data import Bytes, Chars
from sedd_jax.diffusion import Absorbing, Geometric, LogLinear, Uniform
from sedd_jax.interop.export import convert
from sedd_jax.interop.original import rotary_frequencies
from sedd_jax.models import ScoreTransformerConfig
from sedd_jax.training.loop import train

CHARACTERS = "abcdefghijk"
ABSORBING = Absorbing(len(CHARACTERS))


def made_model(process=ABSORBING, noise=LogLinear(), parameterization="scaled", **shape):
  network = small_network(process, **shape)
  network = dataclasses.replace(network, parameterization=parameterization)
  return sedd_jax.Model(
    network=network,
    params=random_params(network),
    noise=noise,
    length=12,
    tokenizer=Chars(CHARACTERS),
    info={"source": "somewhere", "origin": "toy", "step": 7, "corpus": {"name": "none|at all"}},
  )


def assert_same_model(got, want):
  assert dataclasses.replace(got.network.config, attention="auto") == dataclasses.replace(
    want.network.config, attention="auto", remat="none", unroll=1
  )
  assert got.network.process == want.network.process
  assert got.network.parameterization == want.network.parameterization
  assert got.noise == want.noise
  assert got.length == want.length
  jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
  tokens = np.arange(24).reshape(2, 12) % want.network.process.num_states
  total = np.array([0.3, 2.0], np.float32)
  np.testing.assert_array_equal(got.log_score(tokens, total), want.log_score(tokens, total))


def same_files(a, b, *names):
  return filecmp.cmpfiles(a, b, names, shallow=False)[0] == list(names)


VARIANTS = {
  "scaled": {},
  "score, geometric": {"noise": Geometric(1e-3, 9.0), "parameterization": "score"},
  "uniform": {"process": Uniform(11), "noise": Geometric(), "parameterization": "score"},
}
OURS_ALONE = {
  "conditional": ({"parameterization": "conditional"}, "parameterization='conditional'"),
  "eps": ({"noise": LogLinear(1e-2)}, r"diffusion\.eps=0\.01.*0\.001"),
  "time": ({"time_input": False}, r"model\.time_input=False"),
}


@pytest.mark.parametrize("variant", [*VARIANTS, *OURS_ALONE])
def test_export_comes_back_to_the_bit(tmp_path, variant):
  model = made_model(**(VARIANTS.get(variant) or OURS_ALONE.get(variant, ({},))[0]))
  folder = sedd_jax.export(model, tmp_path / "a")
  loaded = sedd_jax.load(folder)
  assert_same_model(loaded, model)
  assert loaded.decode(loaded.encode("badge")[None]) == ["badge"]
  assert loaded.info == model.info | {"source": str(folder)}
  again = sedd_jax.export(loaded, tmp_path / "b")
  names = sorted(file.name for file in folder.iterdir())
  assert names == ["README.md", "config.json", "model.safetensors", "sedd_tokenizer.json"]
  assert same_files(folder, again, *names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_originals_layout_comes_back_to_the_bit(tmp_path, variant):
  model = made_model(**VARIANTS[variant])
  folder = sedd_jax.export(model, tmp_path / "a", layout="original")
  loaded = sedd_jax.load(folder)
  assert_same_model(loaded, model)
  assert loaded.tokenizer.to_json() == model.tokenizer.to_json()
  again = sedd_jax.export(loaded, tmp_path / "b", layout="original")
  assert same_files(folder, again, "config.json", "model.safetensors", "sedd_tokenizer.json")


def test_exports_are_unpadded_float32(tmp_path):
  model = made_model(pad_multiple=64)
  tensors = load_file(sedd_jax.export(model, tmp_path / "a") / "model.safetensors")
  assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
  assert tensors["vocab_embed.embedding"].shape == (12, 32)
  assert tensors["output_layer.linear.weight"].shape == (12, 32)
  assert sum(x.size for x in tensors.values()) == model.network.num_parameters()


@pytest.mark.parametrize(("weights", "bits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("layout", ["sedd_jax", "original"])
def test_weights_of_half_the_bytes_are_the_nearest(tmp_path, weights, bits, layout):
  model = made_model()
  whole = sedd_jax.export(model, tmp_path / "whole", layout=layout)
  half = sedd_jax.export(model, tmp_path / "half", layout=layout, weights=weights)
  tensors, halves = (load_file(folder / "model.safetensors") for folder in (whole, half))
  for name, x in tensors.items():
    assert halves[name].dtype == jnp.dtype(weights)
    np.testing.assert_allclose(halves[name].astype(np.float32), x, rtol=2.0**-bits, atol=1e-7)
  assert f"{model.network.num_parameters():,}, {weights}" in (half / "README.md").read_text()
  assert sedd_jax.load(half).params.keys() == model.params.keys()


def test_weights_beyond_their_dtype_are_refused(tmp_path):
  model = made_model()
  large = dataclasses.replace(model, params=jax.tree.map(lambda x: x * 1e30, model.params))
  with pytest.raises(ValueError, match=r"this model in float16: tensor .* not finite"):
    sedd_jax.export(large, tmp_path / "large", weights="float16")
  with pytest.raises(ValueError, match="weights='float8' must be 'float32' or"):
    sedd_jax.export(model, tmp_path / "large", weights="float8")
  assert not (tmp_path / "large").exists()


def test_original_to_ours_to_original(shared_path, tmp_path):
  """The files of the original code: names, shapes, dtypes and bits, the buffer's too."""
  original = shared_path("golden/hf_tiny")
  convert(original, tmp_path / "ours")
  back = convert(tmp_path / "ours", tmp_path / "back", layout="original")
  want, got = (load_file(folder / "model.safetensors") for folder in (original, back))
  assert want.keys() == got.keys()
  for name, x in want.items():
    assert got[name].dtype == x.dtype
    np.testing.assert_array_equal(got[name], x, err_msg=name)
  theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (original, back))
  for section in ("graph", "noise"):
    assert ours[section] == theirs[section]
  assert ours["tokens"] == theirs["tokens"]
  assert ours["model"] | {"name": "tiny"} == theirs["model"]


def test_scores_of_the_original_survive_the_conversions(golden, shared_path, tmp_path, x64):
  arrays = golden("model_absorb.npz")
  convert(shared_path("golden/hf_tiny"), tmp_path / "ours")
  convert(tmp_path / "ours", tmp_path / "back", layout="original")
  for folder in ("ours", "back"):
    model = sedd_jax.load(tmp_path / folder, dtype="float64")
    got = model.log_score(arrays["indices"], arrays["sigma"])
    np.testing.assert_allclose(got, arrays["log_score"], atol=1e-8, rtol=0)


@pytest.mark.torch_ref
def test_a_run_of_the_original_converts_with_its_step(shared_path, tmp_path):
  torch = pytest.importorskip("torch", reason="the .pth file is a torch pickle")
  run = shared_path("golden/local_tiny")
  folder = convert(run, tmp_path / "hub", layout="original")
  pth = torch.load(run / "checkpoints-meta" / "checkpoint.pth", weights_only=True)
  model = sedd_jax.load(run)
  assert model.info["step"] == pth["step"]
  tensors = load_file(folder / "model.safetensors")
  averages = pth["ema"]["shadow_params"]
  names = [name for name in pth["model"] if name in tensors and "inv_freq" not in name]
  assert len(names) == len(averages)
  for name, average in zip(names, averages, strict=True):
    np.testing.assert_array_equal(tensors[name], average.numpy(), err_msg=name)


@pytest.mark.torch_ref
def test_pytorch_model_bin_is_read_like_safetensors(shared_path, tmp_path):
  torch = pytest.importorskip("torch", reason="the .bin file is a torch pickle")
  source = shared_path("golden/hf_tiny")
  shutil.copy(source / "config.json", tmp_path / "config.json")
  tensors = load_file(source / "model.safetensors")
  state = {name: torch.from_numpy(x) for name, x in tensors.items()}
  torch.save(state, tmp_path / "pytorch_model.bin")
  assert_same_model(sedd_jax.load(tmp_path), sedd_jax.load(source))
  whole = (tmp_path / "pytorch_model.bin").read_bytes()
  (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a whole torch file"):
    sedd_jax.load(tmp_path)
  torch.save([1, 2], tmp_path / "pytorch_model.bin")
  with pytest.raises(ValueError, match="must hold a state dict"):
    sedd_jax.load(tmp_path)


@pytest.mark.torch_ref
@pytest.mark.parametrize("width", [8, 12, 32, 64])
def test_rotary_frequencies_are_torchs_to_the_bit(width):
  torch = pytest.importorskip("torch")
  want = 1.0 / (10_000 ** (torch.arange(0, width, 2).float() / width))
  got = rotary_frequencies(ScoreTransformerConfig(num_states=3, width=2 * width, heads=2))
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.parametrize("variant", OURS_ALONE)
def test_what_the_original_cannot_hold_is_refused(tmp_path, variant):
  changes, message = OURS_ALONE[variant]
  with pytest.raises(ValueError, match=message):
    sedd_jax.export(made_model(**changes), tmp_path / "out", layout="original")
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  assert train(TINY, workdir) == 0
  return workdir


def test_a_run_exports_its_moving_average(run, tmp_path):
  trained = sedd_jax.load(run)
  folder = sedd_jax.export(trained, tmp_path / "out")
  loaded = sedd_jax.load(folder)
  assert_same_model(loaded, trained)
  assert loaded.tokenizer.to_json() == trained.tokenizer.to_json()
  for name in ("step", "corpus", "origin", "evaluation"):
    assert loaded.info[name] == trained.info[name]
  assert loaded.info["step"] == 8
  assert loaded.info["origin"] == "tiny"
  assert str(run.parent) not in (folder / "config.json").read_text(), "a path of this machine"
  np.testing.assert_array_equal(loaded.sample(2, steps=3), trained.sample(2, steps=3))
  card = (folder / "README.md").read_text()
  bound = trained.info["evaluation"]["heldout_bits_per_char_strict"]
  assert f"strict {bound:.4f} ±" in card
  assert "| training step | 8 |" in card


def test_a_run_of_before_time_input_loads(run, tmp_path):
  """Configs that runs saved before the field was there."""
  from sedd_jax.training.experiment import Experiment

  config = json.loads((run / "config.json").read_text())
  assert config["model"].pop("time_input") is True
  assert Experiment.from_config(config).model.time_input


def test_card_of_a_model_of_which_little_is_known(tmp_path):
  model = dataclasses.replace(made_model(), tokenizer=None, info={})
  card = (sedd_jax.export(model, tmp_path / "a", layout="original") / "README.md").read_text()
  assert card.startswith("---\n# license: not stated")
  assert "Not measured." in card
  assert "| training step | not known |" in card
  assert f"| parameters | {model.network.num_parameters():,}, float32 |" in card
  assert "from load_model import load_model" in card
  card = (sedd_jax.export(made_model(), tmp_path / "b") / "README.md").read_text()
  assert "| noise | LogLinear (eps=0.001) |" in card
  assert r"none\|at all" in card, "a bar would end the cell"
  assert 'sedd_jax.load("FOLDER")' in card


# What is refused, and what it leaves behind.


@pytest.fixture
def exported(tmp_path):
  return sedd_jax.export(made_model(), tmp_path / "exported")


def changed(folder, change):
  config = json.loads((folder / "config.json").read_text())
  change(config)
  (folder / "config.json").write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.update(format_version=2), r"format_version=2 must be 1; a newer"),
    (lambda c: c.update(format="other"), r"format='other' must be 'sedd_jax'"),
    (lambda c: c.pop("vocab_size"), r"'vocab_size' is missing"),
    (lambda c: c.update(vocab_size="11"), r"vocab_size='11' must be an integer"),
    (lambda c: c.update(length=0), r"length=0 must be an integer of at least 1"),
    (lambda c: c.update(vocab_size=5), r"tensors|weights do not fit.*12"),
    (lambda c: c["model"].pop("width"), r"'model\.width' is missing"),
    (lambda c: c["model"].update(width=48), r"weights do not fit"),
    (lambda c: c["model"].update(blocks=3), r"missing blocks\.2"),
    (lambda c: c["model"].update(widht=3), r"widht is unknown: did you mean 'width'"),
    (lambda c: c["diffusion"].pop("parameterization"), r"parameterization' is missing"),
    (lambda c: c["diffusion"].pop("eps"), r"'diffusion\.eps' is missing"),
    (lambda c: c["diffusion"].update(noise="linear"), r"noise='linear' must be"),
  ],
)
def test_a_wrong_config_is_named(exported, change, message):
  with pytest.raises(ValueError, match=message):
    sedd_jax.load(changed(exported, change))


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    ("config.json", '{"format": ', r"config\.json is damaged"),
    ("config.json", "[1]", r"config\.json must hold named fields"),
    ("config.json", "\0\xff", r"config\.json is damaged"),
    ("model.safetensors", "", "not a whole safetensors file"),
    ("model.safetensors", "x" * 100, "not a whole safetensors file"),
    ("sedd_tokenizer.json", "{", r"sedd_tokenizer\.json is damaged"),
    ("sedd_tokenizer.json", '{"kind": "chars"}', r"sedd_tokenizer\.json.*'characters' is missing"),
    ("sedd_tokenizer.json", '{"kind": "bpe", "definition": "?"}', r"sedd_tokenizer\.json"),
    ("sedd_tokenizer.json", json.dumps(Bytes().to_json()), r"has 256 tokens.*vocab_size=11"),
  ],
)
def test_a_damaged_file_is_named(exported, file, content, message):
  (exported / file).write_bytes(content.encode("latin-1"))
  with pytest.raises(ValueError, match=message):
    sedd_jax.load(exported)


def test_missing_unknown_and_infinite_tensors_are_named(exported):
  file = exported / "model.safetensors"
  whole = load_file(file)
  for change, message in (
    (lambda t: t.pop("sigma_map.mlp.2.bias"), r"missing sigma_map\.mlp\.2\.bias"),
    (lambda t: t.update(extra=np.ones(2)), "unknown extra"),
    (lambda t: t["blocks.0.norm1.weight"].__setitem__(3, np.nan), r"blocks\.0\.norm1.*not finite"),
  ):
    tensors = {name: x.copy() for name, x in whole.items()}
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
      sedd_jax.load(exported)
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r"has a config\.json and no model\.safetensors"):
    sedd_jax.load(exported)


def test_half_precision_weights_are_read(exported):
  """Stored in less than float32, they are widened; numbers without a fraction lose nothing."""
  import ml_dtypes

  file = exported / "model.safetensors"
  tensors = {name: np.round(4 * x) for name, x in load_file(file).items()}
  save_file(tensors, file)
  want = sedd_jax.load(exported)
  for dtype in (np.float16, ml_dtypes.bfloat16):
    save_file({name: x.astype(dtype) for name, x in tensors.items()}, file)
    assert_same_model(sedd_jax.load(exported), want)


def test_another_layouts_config_is_named(exported):
  def as_bert(config):
    config.clear()
    config.update(model_type="bert")

  with pytest.raises(ValueError, match="model_type='bert' must be 'mdlm' or 'gpt2'"):
    sedd_jax.load(changed(exported, as_bert))


def test_nothing_is_overwritten(exported, tmp_path):
  model = made_model()
  before = (exported / "README.md").read_bytes()
  with pytest.raises(FileExistsError, match="is not empty"):
    sedd_jax.export(model, exported)
  assert (exported / "README.md").read_bytes() == before
  (tmp_path / "file").write_text("mine")
  with pytest.raises(FileExistsError, match="is a file"):
    sedd_jax.export(model, tmp_path / "file")
  with pytest.raises(ValueError, match="layout='theirs' must be 'sedd_jax' or 'original'"):
    sedd_jax.export(model, tmp_path / "new", layout="theirs")
  (tmp_path / "empty").mkdir()
  assert_same_model(sedd_jax.load(sedd_jax.export(model, tmp_path / "empty")), model)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
  model = made_model()

  def fails(*_):
    raise OSError("disk full")

  monkeypatch.setattr("sedd_jax.interop.export.model_card", fails)
  with pytest.raises(OSError, match="disk full"):
    sedd_jax.export(model, tmp_path / "deep" / "out")
  assert not list((tmp_path / "deep").iterdir())
  params = jax.tree.map(lambda x: x * np.inf, model.params)
  with pytest.raises(ValueError, match=r"this model: tensor .* not finite"):
    sedd_jax.export(dataclasses.replace(model, params=params), tmp_path / "deep" / "out")
  assert not list((tmp_path / "deep").iterdir())


def test_modes_follow_the_umask(tmp_path):
  before = os.umask(0o022)
  try:
    folder = sedd_jax.export(made_model(), tmp_path / "out")
  finally:
    os.umask(before)
  assert folder.stat().st_mode & 0o777 == 0o755


def test_dtype_of_an_export_is_its_own_unless_asked(tmp_path):
  model = made_model(dtype="bfloat16")
  folder = sedd_jax.export(model, tmp_path / "out")
  assert_same_model(sedd_jax.load(folder), model)
  assert sedd_jax.load(folder, dtype="float32").network.config.dtype == "float32"


# The command line.


def test_export_and_convert_on_the_command_line(run, tmp_path):
  ours, theirs, again = (tmp_path / name for name in ("ours", "theirs", "again"))
  for arguments in (
    ("export", f"--checkpoint={run}", f"--out={ours}"),
    ("export", f"--checkpoint={run}", f"--out={theirs}", "--layout=original"),
    ("convert", f"--from={theirs}", f"--to={again}"),
  ):
    done = sedd(*arguments)
    assert done.returncode == 0, done.stderr
    assert "README.md, config.json, model.safetensors, sedd_tokenizer.json" in done.stdout
  assert same_files(ours, again, "model.safetensors", "sedd_tokenizer.json")
  done = sedd("sample", f"--checkpoint={again}", "--steps=2", "--length=16", "--prefix=def ")
  assert done.returncode == 0, done.stderr
  assert "def " in done.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["export", "--out=x"], "--checkpoint is missing"),
    (["convert", "--from=x"], "--to is missing"),
    (["convert", "--from=/no/such", "--to=/tmp/x-not-made"], "does not exist"),
    (["convert", "--from=/no/such", "--to=.", "--layout=original"], "is not empty"),
    (["export", "--checkpoint=x", "--out=y", "--layout=theirs"], "should be one of"),
  ],
)
def test_bad_flags_are_errors_without_a_traceback(arguments, message):
  done = sedd(*arguments)
  assert done.returncode == 2
  assert message in done.stderr + done.stdout
  assert "Traceback" not in done.stderr
