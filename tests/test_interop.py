"""The original's checkpoints: read exactly, refused clearly."""

import json
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
from support.networks import golden_network

import sedd_jax
from sedd_jax.interop.original import params_from_tensors, tensors_from_params


@pytest.fixture
def copy_of(shared_path, tmp_path):
  def copy(name):
    target = tmp_path / name
    shutil.copytree(shared_path(f"golden/{name}"), target)
    for file in target.rglob("*"):
      file.chmod(0o755)
    target.chmod(0o755)
    return target

  return copy


@pytest.mark.parametrize(
  "folder", ["hf_tiny", pytest.param("local_tiny", marks=pytest.mark.torch_ref)]
)
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-4), ("float64", 1e-8)])
def test_loaded_model_gives_the_originals_scores(golden, shared_path, x64, folder, dtype, atol):
  if folder == "local_tiny":
    pytest.importorskip("torch", reason="the .pth file is a torch pickle")
  arrays = golden("model_absorb.npz")
  model = sedd_jax.load(shared_path(f"golden/{folder}"), dtype=dtype)
  got = model.log_score(arrays["indices"], arrays["sigma"])
  assert got.dtype == dtype
  np.testing.assert_allclose(got, arrays["log_score"], atol=atol, rtol=0)


def test_tensors_round_trip_to_the_bit(golden):
  arrays = golden("model_absorb.npz")
  network, params = golden_network(arrays, "absorb", "float32")
  tensors = tensors_from_params(network, network.unpad(params))
  originals = {k[6:]: v for k, v in arrays.items() if k.startswith("param/")}
  originals.pop("rotary_emb.inv_freq")
  assert list(tensors) == list(originals), "names or their order differ"
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor, originals[name])
  again = params_from_tensors(network, tensors)
  jax.tree.map(np.testing.assert_array_equal, again, network.unpad(params))


def test_pth_without_torch_says_so(shared_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  with pytest.raises(ImportError, match="install torch"):
    sedd_jax.load(shared_path("golden/local_tiny"))


def test_missing_config_field_is_named(copy_of):
  folder = copy_of("hf_tiny")
  config = json.loads((folder / "config.json").read_text())
  del config["model"]["scale_by_sigma"]
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"model\.scale_by_sigma.*missing"):
    sedd_jax.load(folder)


def test_weights_of_another_shape_are_named(copy_of):
  folder = copy_of("hf_tiny")
  config = json.loads((folder / "config.json").read_text())
  config["model"]["cond_dim"] = 16
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="blocks/modulation/kernel"):
    sedd_jax.load(folder)


def test_wrong_number_of_blocks_is_named(copy_of):
  folder = copy_of("hf_tiny")
  config = json.loads((folder / "config.json").read_text())
  config["model"]["n_blocks"] = 3
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"missing blocks\.2\.adaLN_modulation"):
    sedd_jax.load(folder)


def test_truncated_safetensors_are_refused(copy_of):
  folder = copy_of("hf_tiny")
  whole = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    sedd_jax.load(folder)


def test_no_model_is_an_error_that_lists_what_was_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no model"):
    sedd_jax.load(tmp_path)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    sedd_jax.load(tmp_path / "nothing" / "here" / "at-all")


def test_hub_id_without_a_network_says_so(monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(ConnectionError, match="louaaron/sedd-none"):
    sedd_jax.load("louaaron/sedd-none")


def test_a_hub_id_is_fetched_and_is_the_source(shared_path, monkeypatch):
  asked = []

  def fetched(hub_id, allow_patterns):
    asked.append((hub_id, allow_patterns))
    return str(shared_path("golden/hf_tiny"))

  monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
  model = sedd_jax.load("louaaron/sedd-small")
  ((hub_id, patterns),) = asked
  assert hub_id == "louaaron/sedd-small"
  assert {"config.json", "model.safetensors", "pytorch_model.bin"} < set(patterns)
  assert model.info == {"source": hub_id, "origin": hub_id}


def test_a_hub_id_that_is_not_there_says_so(monkeypatch):
  from huggingface_hub.errors import RepositoryNotFoundError

  def missing(*_, **__):
    response: Any = types.SimpleNamespace(headers={}, request=None)
    raise RepositoryNotFoundError("404", response=response)

  monkeypatch.setattr("huggingface_hub.snapshot_download", missing)
  with pytest.raises(FileNotFoundError, match="the hub has no such id"):
    sedd_jax.load("louaaron/sedd-smal")


def test_paths_never_ask_the_hub(shared_path, tmp_path, monkeypatch):
  def asked(*_, **__):
    raise AssertionError("the hub was asked")

  monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
  monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)
  sedd_jax.load(shared_path("golden/hf_tiny"))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs" / "quickstart").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    sedd_jax.load("runs/quikstart")  # It has the form of a hub id.
  with pytest.raises(FileNotFoundError, match="holds no model"):
    sedd_jax.load("runs/quickstart")


def test_a_damaged_config_of_a_run_is_named(copy_of):
  folder = copy_of("local_tiny")
  (folder / ".hydra" / "config.yaml").write_text("tokens: [")
  with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
    sedd_jax.load(folder)


@pytest.mark.torch_ref
def test_a_run_without_its_average_is_named(copy_of):
  torch = pytest.importorskip("torch", reason="the .pth file is a torch pickle")
  folder = copy_of("local_tiny")
  file = folder / "checkpoints-meta" / "checkpoint.pth"
  checkpoint = torch.load(file, weights_only=True)
  average = checkpoint.pop("ema")
  torch.save(checkpoint, file)
  with pytest.raises(ValueError, match="holds no moving average"):
    sedd_jax.load(folder)
  average["shadow_params"] = average["shadow_params"][:-1]
  torch.save(checkpoint | {"ema": average}, file)
  with pytest.raises(ValueError, match=r"holds \d+ tensors, the config's model \d+"):
    sedd_jax.load(folder)
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r"checkpoint\.pth does not exist"):
    sedd_jax.load(folder)


def test_model_samples_infills_and_bounds(shared_path):
  model = sedd_jax.load(shared_path("golden/hf_tiny"))
  vocab = model.network.process.vocab_size
  samples = model.sample(3, steps=4, seed=1)
  assert samples.shape == (3, model.length)
  assert samples.dtype == np.int32
  assert samples.min() >= 0
  assert samples.max() < vocab
  np.testing.assert_array_equal(model.sample(2, steps=4, seed=1), samples[:2])
  given = np.zeros_like(samples, bool)
  given[:, ::3] = True
  filled = model.infill(samples[::-1], given, steps=4)
  np.testing.assert_array_equal(filled[given], samples[::-1][given])
  bound = model.bound(samples, num_times=8)
  assert bound.strict.shape == (3,)
  assert (bound.strict >= bound.paper).all()
  assert (bound.strict_stderr > 0).all()


def test_model_refuses_bad_tokens_and_settings(shared_path):
  model = sedd_jax.load(shared_path("golden/hf_tiny"))
  with pytest.raises(ValueError, match=r"must lie in \[0, 32\)"):
    model.log_score(np.full((1, 4), 32), 1.0)
  with pytest.raises(ValueError, match=r"int\[B, L\]"):
    model.log_score(np.zeros(4, int), 1.0)
  with pytest.raises(ValueError, match="sampler='magic'"):
    model.sample(1, sampler="magic")
  with pytest.raises(ValueError, match="without a tokenizer"):
    model.encode("text")
  with pytest.raises(ValueError, match=r"must lie in \[0, 31\)"):
    model.bound(np.full((1, 4), 31))
  with pytest.raises(ValueError, match="not empty"):
    model.bound(np.zeros((0, 4), int))


def test_original_weights_take_a_tokenizer(shared_path, tmp_path):
  from tokenizers import Tokenizer, models, pre_tokenizers

  vocabulary = {f"w{i}": i for i in range(31)}
  library = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
  library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  library.save(str(tmp_path / "tokenizer.json"))
  model = sedd_jax.load(shared_path("golden/hf_tiny"), tokenizer=str(tmp_path / "tokenizer.json"))
  assert model.decode(model.encode("w3 w30")[None]) == ["w3 w30"]
  other = f"gpt2:{shared_path('data/gpt2-tokenizer')}"
  with pytest.raises(ValueError, match="has 50257 tokens and the model 31"):
    sedd_jax.load(shared_path("golden/hf_tiny"), tokenizer=other)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(model.params))
