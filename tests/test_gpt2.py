"""GPT-2: Hugging Face's numbers, its cache, its memory, and folders that are refused."""

import dataclasses
import json
import math
import shutil

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sedd_jax
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.gpt2 import load_gpt2
from sedd_jax.models.gpt2 import GPT2, GPT2Config
from sedd_jax.parallel import MeshConfig, OnMesh, make_mesh, tree_shardings


def load(folder, dtype="float32"):
  return load_gpt2(folder, Fields.from_json(folder / "config.json"), dtype)


@pytest.fixture
def tiny(shared_path):
  return shared_path("golden/gpt2_tiny")


@pytest.fixture
def expected(shared_path):
  with np.load(shared_path("golden/gpt2_tiny/expected.npz")) as arrays:
    return dict(arrays)


@pytest.fixture
def copy(tiny, tmp_path):
  """A folder that may be changed: its config.json, and its tensors."""
  folder = tmp_path / "gpt2"
  folder.mkdir()
  for name in ("config.json", "model.safetensors"):
    shutil.copyfile(tiny / name, folder / name)

  def change(config=(), tensors=lambda x: x):
    fields = json.loads((tiny / "config.json").read_text()) | dict(config)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors(load_file(tiny / "model.safetensors")), folder / "model.safetensors")
    return folder

  return change


@pytest.mark.parametrize(
  ("dtype", "factor"), [("float64", 0.0), ("float32", 1.0)], ids=["float64", "float32"]
)
def test_numbers_of_the_reference(tiny, expected, x64, dtype, factor):
  """float64 to 1e-11; float32 as near as the reference's own float32 is to its float64."""
  network, params, tokenizer = load(tiny, dtype)
  atol = factor * float(expected["f32_max_difference"]) + 1e-11
  assert tokenizer is None
  for ids, logits in (("ids", "logits"), ("short_ids", "short_logits")):
    got = network.logits(params, jnp.asarray(expected[ids]))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected[logits], rtol=0, atol=atol)
  log_prob = network.log_prob(params, jnp.asarray(expected["ids"]))
  assert log_prob.dtype == dtype
  np.testing.assert_array_equal(log_prob[:, 0], 0.0)
  np.testing.assert_allclose(log_prob[:, 1:], expected["log_prob"], rtol=0, atol=2 * atol)
  sums = -np.sum(np.asarray(log_prob, np.float64), axis=1)
  np.testing.assert_allclose(sums, expected["sequence_nll"], rtol=0, atol=35 * 2 * atol)


def test_bfloat16_strays_by_its_rounding(tiny, expected):
  """Products of inputs with 8 bits: a few times 2^-8 of logits that are of size one."""
  network, params, _ = load(tiny, "bfloat16")
  got = network.logits(params, jnp.asarray(expected["ids"], jnp.int32))
  assert got.dtype == jnp.float32
  scale = float(np.std(expected["logits"]))
  error = np.abs(np.asarray(got) - expected["logits"])
  assert 0 < error.max() < 8 * 2**-8 * scale
  log_prob = np.asarray(network.log_prob(params, jnp.asarray(expected["ids"], jnp.int32)))[:, 1:]
  assert abs(np.mean(log_prob - expected["log_prob"])) < 2**-8 * scale


def test_cached_steps_are_the_full_pass(tiny, expected, x64):
  network, params, _ = load(tiny, "float64")
  tokens = jnp.asarray(expected["ids"])

  def read(cache, token_and_position):
    logits, cache = network.step(params, cache, *token_and_position)
    return cache, logits

  cache = network.empty_cache(len(tokens), network.longest)
  _, logits_LBV = jax.lax.scan(read, cache, (tokens.T, jnp.arange(tokens.shape[1])))
  whole = network.logits(params, tokens)
  np.testing.assert_allclose(jnp.swapaxes(logits_LBV, 0, 1), whole, rtol=0, atol=1e-11)


def test_no_state_sees_a_later_token(tiny, expected):
  network, params, _ = load(tiny)
  tokens = jnp.asarray(expected["ids"], jnp.int32)
  other = tokens.at[:, 20].set((tokens[:, 20] + 1) % network.vocab_size)
  before, after = network.hidden(params, tokens), network.hidden(params, other)
  np.testing.assert_array_equal(before[:, :20], after[:, :20])
  assert np.all(np.max(np.abs(before[:, 20:] - after[:, 20:]), axis=-1) > 0)


def test_log_prob_holds_no_logits_of_all_rows():
  """Of GPT-2's vocabulary: the largest array is far from all rows of logits."""
  config = GPT2Config(vocab_size=50_257, n_positions=1024, n_embd=64, n_layer=2, n_head=2)
  network = GPT2(config)
  tokens = jax.ShapeDtypeStruct((8, 1024), jnp.int32)
  jaxpr = jax.make_jaxpr(network.log_prob)(network.shapes(), tokens)

  def sizes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape"))
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from sizes(inner)

  largest = max(sizes(jaxpr.jaxpr))
  assert 50_257 * 64 < largest <= 2**24  # The embedding and its copy; then tiles.
  assert largest < 8 * 1024 * 50_257 / 16


def reference(config, tensors, tokens):
  """GPT-2 in numpy float64, position by position: independent of the code under test."""
  t = {k.removeprefix("transformer."): v.astype(np.float64) for k, v in tensors.items()}
  heads, width = config["n_head"], config["n_embd"]

  def norm(x, name):
    x = x - x.mean()
    x = x / np.sqrt((x * x).mean() + config["layer_norm_epsilon"])
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]

  def linear(x, name):
    return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

  h = [t["wte.weight"][token] + t["wpe.weight"][i] for i, token in enumerate(tokens)]
  for layer in range(config["n_layer"]):
    name = f"h.{layer}"
    qkv = [np.split(linear(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn"), 3) for x in h]
    scale = (width // heads) ** -0.5 if config["scale_attn_weights"] else 1.0
    scale /= layer + 1 if config["scale_attn_by_inverse_layer_idx"] else 1
    for i in reversed(range(len(h))):
      out = []
      for head in np.split(np.arange(width), heads):
        logit = np.array([qkv[i][0][head] @ qkv[j][1][head] for j in range(i + 1)]) * scale
        weight = np.exp(logit) / np.exp(logit).sum()
        out.append(sum(w * qkv[j][2][head] for j, w in enumerate(weight)))
      h[i] = h[i] + linear(np.concatenate(out), f"{name}.attn.c_proj")
      m = linear(norm(h[i], f"{name}.ln_2"), f"{name}.mlp.c_fc")
      m = 0.5 * m * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
      h[i] = h[i] + linear(m, f"{name}.mlp.c_proj")
  head = t.get("lm_head.weight", t["wte.weight"])
  return np.array([norm(x, "ln_f") @ head.T for x in h])


OPTIONS = {
  "as it is": {},
  "unscaled": {"scale_attn_weights": False},
  "by layer": {"scale_attn_by_inverse_layer_idx": True},
  "narrow MLP": {"n_inner": 40},
  "own head": {"tie_word_embeddings": False},
  "another epsilon": {"layer_norm_epsilon": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_config(copy, tiny, expected, x64, name):
  def changed(tensors):
    rng = np.random.default_rng(0)
    if name == "narrow MLP":
      cut = {k: v[..., :40] for k, v in tensors.items() if ".c_fc." in k}
      cut |= {k: v[:40] for k, v in tensors.items() if k.endswith("mlp.c_proj.weight")}
      tensors |= {k: np.ascontiguousarray(v) for k, v in cut.items()}
    if name == "own head":
      tensors["lm_head.weight"] = rng.normal(size=(97, 48)).astype(np.float32)
    return tensors

  folder = copy(OPTIONS[name], changed)
  config = json.loads((folder / "config.json").read_text())
  tokens = expected["short_ids"]
  network, params, _ = load(folder, "float64")
  assert network.num_parameters() == sum(x.size for x in jax.tree.leaves(params))
  got = network.logits(params, jnp.asarray(tokens))
  tensors = load_file(folder / "model.safetensors")
  want = np.stack([reference(config, tensors, row) for row in tokens])
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)
  changes = np.abs(want - expected["short_logits"]).max()
  assert changes < 1e-11 if not OPTIONS[name] else changes > 1e-3


def test_names_without_prefix_buffers_and_a_tied_head(copy, tiny):
  def changed(tensors):
    tensors = {k.removeprefix("transformer."): v for k, v in tensors.items()}
    tensors["h.1.attn.bias"] = np.tril(np.ones((1, 1, 40, 40), np.float32))
    tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    return tensors | {"lm_head.weight": tensors["wte.weight"].copy()}

  _, plain, _ = load(tiny)
  _, other, _ = load(copy(tensors=changed))
  jax.tree.map(np.testing.assert_array_equal, plain, other)


@pytest.mark.torch_ref
def test_a_torch_pickle(tiny, tmp_path):
  torch = pytest.importorskip("torch")
  shutil.copyfile(tiny / "config.json", tmp_path / "config.json")
  tensors = load_file(tiny / "model.safetensors")
  torch.save({k: torch.tensor(v) for k, v in tensors.items()}, tmp_path / "pytorch_model.bin")
  jax.tree.map(np.testing.assert_array_equal, load(tiny)[1], load(tmp_path)[1])


def test_a_folders_own_tokenizer(copy, shared_path):
  source = shared_path("data/gpt2-tokenizer")
  folder = copy()
  for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
    file = next(source.glob(f"{theirs}*"))
    shutil.copyfile(file, folder / (ours + file.suffix if file.suffix == ".xz" else ours))
  with pytest.raises(ValueError, match=r"tokenizer has 50257 tokens, .*vocab_size=97"):
    load(folder)
  wide = {"vocab_size": 50_257, "bos_token_id": 50_256}

  def widened(tensors):
    return tensors | {"transformer.wte.weight": np.zeros((50_257, 48), np.float32)}

  network, _, tokenizer = load(copy(wide, widened))
  assert tokenizer.decode(tokenizer.encode("Hello, world")) == "Hello, world"
  assert (network.vocab_size, network.start) == (50_257, tokenizer.eos_id)
  (folder / "tokenizer.json").write_text('{"version": "1.0"}')
  with pytest.raises(ValueError, match="its tokenizer cannot be read"):
    load(folder)


WRONG_CONFIGS = {
  "model_type='llama' must be 'gpt2'": {"model_type": "llama"},
  "add_cross_attention=True must be false": {"add_cross_attention": True},
  "activation_function='relu' must be 'gelu_new'": {"activation_function": "relu"},
  "n_embd=0 must be an integer of at least 1": {"n_embd": 0},
  "n_head=5 must divide n_embd=48": {"n_head": 5},
  "field 'n_positions' is missing": {"n_positions": None},
  r"bos_token_id=97 must lie in \[0, 97\)": {"bos_token_id": 97},
  r"bos_token_id=\[1\] must be one token id": {"bos_token_id": [1]},
  "scale_attn_weights=1 must be true or false": {"scale_attn_weights": 1},
  "layer_norm_epsilon=0.0 must be positive": {"layer_norm_epsilon": 0.0},
  "tie_word_embeddings=false needs lm_head.weight": {"tie_word_embeddings": False},
  r"missing h\.3\.attn\.c_attn\.bias, .* and 8 more, unknown none": {"n_layer": 4},
  r"missing none, unknown h\.2\..* and 8 more": {"n_layer": 2},
  r"wpe\.weight is \(40, 48\), not \(39, 48\)": {"n_positions": 39},
  r"h\.0\.mlp\.c_fc\.weight is \(48, 192\), not \(48, 50\)": {"n_inner": 50},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_configs_that_are_refused(copy, message):
  with pytest.raises(ValueError, match=message):
    load(copy(WRONG_CONFIGS[message]))


def test_weights_that_are_refused(copy):
  def with_head(tensors, value):
    return tensors | {"lm_head.weight": value}

  with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight"):
    load(copy(tensors=lambda x: with_head(x, np.ones((97, 48), np.float32))))
  with pytest.raises(ValueError, match=r"lm_head\.weight is \(97, 4\), not \(97, 48\)"):
    load(copy(tensors=lambda x: with_head(x, np.ones((97, 4), np.float32))))
  with pytest.raises(ValueError, match=r"'wte\.weight' is there twice"):
    load(copy(tensors=lambda x: x | {"wte.weight": x["transformer.wte.weight"].copy()}))
  with pytest.raises(ValueError, match=r"unknown h\.0\.crossattention\.q_attn\.weight"):
    load(copy(tensors=lambda x: x | {"h.0.crossattention.q_attn.weight": np.ones(3, np.float32)}))
  with pytest.raises(ValueError, match="dtype='int8' must be one of"):
    load(copy(), "int8")


def test_inputs_that_are_too_long(tiny):
  network, params, _ = load(tiny)
  with pytest.raises(ValueError, match="41 tokens exceed the 40 positions"):
    network.log_prob(params, jnp.zeros((1, 41), jnp.int32))
  with pytest.raises(ValueError, match="a cache of 41 positions"):
    network.empty_cache(1, 41)


def test_loaded_by_the_one_loader_it_is_a_model_like_the_others(tiny, expected):
  model = sedd_jax.load(tiny)
  assert isinstance(model, sedd_jax.CausalModel)
  logits = model.logits(expected["ids"])
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected["logits"], atol=2e-6)
  np.testing.assert_allclose(
    model.bound(expected["ids"]).strict, expected["sequence_nll"], rtol=1e-6
  )
  prefix = np.zeros((2, 9), np.int32)
  prefix[:, :3] = expected["ids"][:2, :3]
  given = np.broadcast_to(np.arange(9) < 3, (2, 9))
  greedy = model.infill(prefix, given, top_k=1)
  np.testing.assert_array_equal(greedy[:, :3], prefix[:, :3])
  # A prefix is read as it is, without a start in front.
  likeliest = np.argmax(model.logits(greedy[:, :-1]), axis=-1)
  np.testing.assert_array_equal(greedy[:, 3:], likeliest[:, 2:])
  given = np.array([[True] + [False] * 8, [False] * 9])
  mixed = model.infill(greedy, given, top_k=1)
  np.testing.assert_array_equal(mixed[1:], model.infill(greedy[1:], given[1:], top_k=1))
  started = np.insert(mixed[1:], 0, model.network.start, axis=1)
  likeliest = np.argmax(model.logits(started[:, :-1]), axis=-1)
  np.testing.assert_array_equal(mixed[1:], likeliest)
  with pytest.raises(ValueError, match="exceed the 40"):
    model.logits(np.zeros((1, 41), np.int32))


def test_a_mesh_gives_the_same_likelihoods(x64):
  """Parameters over fsdp and tensor, by the table that init reads too."""
  config = GPT2Config(
    vocab_size=48, n_positions=12, n_embd=16, n_layer=2, n_head=4, dtype="float64",
    tie_word_embeddings=False,
  )  # fmt: skip
  one = GPT2(config)
  params = jax.tree.map(lambda x: x.astype("float64"), one.table.init(jax.random.key(0)))
  tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 48)
  segments = jnp.repeat(jnp.arange(3), 4)[None].repeat(4, 0)
  mesh = make_mesh(MeshConfig(replica=1, fsdp=2, tensor=2))
  many = dataclasses.replace(one, placement=OnMesh(mesh))
  placed = jax.device_put(params, tree_shardings(mesh, params, one.table))
  for name, arguments in (("log_prob", (tokens,)), ("log_prob", (tokens, segments)),
                          ("logits", (tokens,))):  # fmt: skip
    want = jax.jit(getattr(one, name))(params, *arguments)
    got = jax.jit(getattr(many, name))(placed, *arguments)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
  assert placed["output"].sharding.spec == jax.P("fsdp", "tensor")


def test_documents_of_a_row_are_read_apart(x64):
  config = GPT2Config(vocab_size=20, n_positions=9, n_embd=16, n_layer=2, n_head=2, dtype="float64")
  network = GPT2(config)
  params = jax.tree.map(lambda x: x.astype("float64"), network.table.init(jax.random.key(0)))
  tokens = jax.random.randint(jax.random.key(1), (1, 9), 0, 20)
  segments = jnp.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
  other = tokens.at[0, :4].set((tokens[0, :4] + 1) % 20)
  first, second = (network.log_prob(params, t, segments)[0] for t in (tokens, other))
  np.testing.assert_array_equal(first[4:], second[4:])
  assert first[0] == first[4] == 0.0  # First tokens have no law.
  assert np.all(np.asarray(first[1:4]) != np.asarray(second[1:4]))
