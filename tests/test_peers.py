"""Weights of MDLM and RADD: read to the same predictions.

Their networks are written here once more, in PyTorch functions on named tensors, after reading
their code (docs/checkpoints.md says which files). Weights are random, none of them 0, and saved in
the layouts that their hub repositories have.
"""

import json

import numpy as np
import pytest

import sedd_jax
from sedd_jax.interop.export import convert

torch = pytest.importorskip("torch", reason="the reference networks are PyTorch")
pytestmark = pytest.mark.torch_ref

VOCAB, WIDTH, COND, BLOCKS, HEADS, LENGTH = 13, 24, 10, 2, 3, 9
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

MDLM = {
  "model_type": "mdlm",
  "architectures": ["MDLM"],
  "vocab_size": VOCAB + 1,
  "model_length": LENGTH,
  "hidden_dim": WIDTH,
  "cond_dim": COND,
  "n_blocks": BLOCKS,
  "n_heads": HEADS,
  "dropout": 0.1,
  "time_conditioning": False,
  "torch_dtype": "float32",
}
RADD = {
  "tokens": VOCAB,
  "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
  "model": {
    "name": "small_radd",
    "type": "ddit_wot",
    "hidden_size": WIDTH,
    "cond_dim": 128,
    "length": LENGTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "dropout": 0.02,
    "use_checkpoint": False,
    "dtype": "float16",
  },
  "training": {"loss_type": "t_DCE"},
}


def mdlm_shapes():
  yield "vocab_embed.embedding", (VOCAB + 1, WIDTH)
  yield from linear("sigma_map.mlp.0", 256, COND)
  yield from linear("sigma_map.mlp.2", COND, COND)
  yield "rotary_emb.inv_freq", (WIDTH // HEADS // 2,)
  for i in range(BLOCKS):
    yield f"blocks.{i}.norm1.weight", (WIDTH,)
    yield f"blocks.{i}.norm2.weight", (WIDTH,)
    yield from branches(i)
    yield from linear(f"blocks.{i}.adaLN_modulation", COND, 6 * WIDTH)
  yield "output_layer.norm_final.weight", (WIDTH,)
  yield from linear("output_layer.linear", WIDTH, VOCAB + 1)
  yield from linear("output_layer.adaLN_modulation", COND, 2 * WIDTH)


def radd_shapes():
  yield "vocab_embed.embedding", (VOCAB + 1, WIDTH)
  yield "rotary_emb.inv_freq", (WIDTH // HEADS // 2,)
  for i in range(BLOCKS):
    for kind in ("weight", "bias"):
      yield f"blocks.{i}.norm1.{kind}", (WIDTH,)
      yield f"blocks.{i}.norm2.{kind}", (WIDTH,)
    yield from branches(i)
  for kind in ("weight", "bias"):
    yield f"output_layer.norm_final.{kind}", (WIDTH,)
  yield from linear("output_layer.linear", WIDTH, VOCAB + 1)


def linear(name, fan_in, fan_out):
  yield f"{name}.weight", (fan_out, fan_in)
  yield f"{name}.bias", (fan_out,)


def branches(i):
  yield f"blocks.{i}.attn_qkv.weight", (3 * WIDTH, WIDTH)
  yield f"blocks.{i}.attn_out.weight", (WIDTH, WIDTH)
  yield from linear(f"blocks.{i}.mlp.0", WIDTH, 4 * WIDTH)
  yield from linear(f"blocks.{i}.mlp.2", 4 * WIDTH, WIDTH)


def random_weights(shapes, seed=0):
  """Random float32 tensors, the rotary buffer as torch computes it."""
  rng = np.random.default_rng(seed)
  weights = {name: torch.tensor(rng.normal(0.0, 0.3, shape)).float() for name, shape in shapes}
  size = WIDTH // HEADS
  weights["rotary_emb.inv_freq"] = 1.0 / (10_000 ** (torch.arange(0, size, 2).float() / size))
  return weights


def normed(x, weight):
  return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5) * weight


def turned(z):
  """Rotary embedding of [B, L, H, K]: feature i with feature i + K / 2."""
  size = z.shape[-1]
  exponent = torch.arange(0, size, 2, dtype=z.dtype) / size
  angle = torch.arange(z.shape[1], dtype=z.dtype)[:, None] * 10_000.0**-exponent
  cos, sin = (f(angle)[None, :, None, :] for f in (torch.cos, torch.sin))
  first, second = z.chunk(2, dim=-1)
  return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attended(w, prefix, a):
  """Bidirectional attention of [B, L, D], spelt out."""
  q, k, v = (a @ w[f"{prefix}.attn_qkv.weight"].T).chunk(3, dim=-1)
  q, k, v = (z.reshape(*z.shape[:2], HEADS, -1) for z in (q, k, v))
  logits = torch.einsum("blhk,bmhk->bhlm", turned(q), turned(k)) / q.shape[-1] ** 0.5
  out = torch.einsum("bhlm,bmhk->blhk", logits.softmax(-1), v)
  return out.reshape(a.shape) @ w[f"{prefix}.attn_out.weight"].T


def layer(w, name, x):
  return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def perceptron(w, prefix, x):
  hidden = torch.nn.functional.gelu(layer(w, f"{prefix}.mlp.0", x), approximate="tanh")
  return layer(w, f"{prefix}.mlp.2", hidden)


def mdlm_log_probs(w, tokens, total, time_conditioning):
  """Log probabilities of clean tokens [B, L, V + 1] under MDLM's SUBS parameterization."""
  total = total if time_conditioning else torch.zeros_like(total)
  frequency = torch.exp(-np.log(10_000.0) * torch.arange(128, dtype=total.dtype) / 128)
  angle = total[:, None] * frequency
  features = torch.cat([angle.cos(), angle.sin()], dim=-1)
  silu = torch.nn.functional.silu
  cond = silu(layer(w, "sigma_map.mlp.2", silu(layer(w, "sigma_map.mlp.0", features))))
  h = w["vocab_embed.embedding"][tokens]
  for i in range(BLOCKS):
    block = f"blocks.{i}"
    modulation = layer(w, f"{block}.adaLN_modulation", cond)[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
    a = normed(h, w[f"{block}.norm1.weight"]) * (1 + scale1) + shift1
    h = h + gate1 * attended(w, block, a)
    m = normed(h, w[f"{block}.norm2.weight"]) * (1 + scale2) + shift2
    h = h + gate2 * perceptron(w, block, m)
  shift, scale = layer(w, "output_layer.adaLN_modulation", cond)[:, None].chunk(2, dim=-1)
  h = normed(h, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
  logits = layer(w, "output_layer.linear", h)
  logits[..., VOCAB] += -1e6
  return logits.log_softmax(-1)


def radd_log_probs(w, tokens):
  """Log probabilities of clean tokens [B, L, V] of RADD's network, which knows no noise."""
  h = w["vocab_embed.embedding"][tokens]
  for i in range(BLOCKS):
    block = f"blocks.{i}"
    bias1, bias2 = w[f"{block}.norm1.bias"], w[f"{block}.norm2.bias"]
    h = h + attended(w, block, normed(h, w[f"{block}.norm1.weight"]) + bias1)
    h = h + perceptron(w, block, normed(h, w[f"{block}.norm2.weight"]) + bias2)
  bias = w["output_layer.norm_final.bias"]
  h = normed(h, w["output_layer.norm_final.weight"]) + bias
  return layer(w, "output_layer.linear", h)[..., :VOCAB].log_softmax(-1)


def write(folder, config, weights, *, pickle=False):
  from safetensors.torch import save_file

  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  if pickle:
    torch.save(weights, folder / "pytorch_model.bin")
  else:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
  return folder


def write_mdlm(folder, weights, **changes):
  return write(folder, MDLM | changes, {f"backbone.{name}": x for name, x in weights.items()})


def inputs():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, VOCAB, (4, LENGTH))
  tokens[rng.random(tokens.shape) < 0.6] = VOCAB
  return tokens, np.array([0.01, 0.4, 2.0, 6.0])


def predictions(model, tokens, total):
  """The model's log probabilities of clean tokens, from its log scores: rows of masks alone."""
  log_score = np.asarray(model.log_score(tokens, total))
  masked = tokens == VOCAB
  log_probs = log_score[..., :VOCAB] + np.log(np.expm1(total))[:, None, None]
  return log_probs[masked], masked


def in_dtype(weights, dtype):
  return {name: x.to(getattr(torch, dtype)) for name, x in weights.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_mdlm_predicts_the_same(tmp_path, x64, dtype, time_conditioning):
  weights = random_weights(mdlm_shapes())
  folder = write_mdlm(tmp_path / "mdlm", weights, time_conditioning=time_conditioning)
  model = sedd_jax.load(folder, dtype=dtype)
  tokens, total = inputs()
  want = mdlm_log_probs(
    in_dtype(weights, dtype),
    torch.tensor(tokens),
    torch.tensor(total, dtype=getattr(torch, dtype)),
    time_conditioning,
  ).numpy()
  got, masked = predictions(model, tokens, total.astype(dtype))
  np.testing.assert_allclose(got, want[masked][:, :VOCAB], atol=TOLERANCE[dtype], rtol=0)
  assert model.network.config.time_input is time_conditioning
  assert model.length == LENGTH


@pytest.mark.parametrize("pickle", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_radd_predicts_the_same(tmp_path, x64, dtype, pickle):
  weights = random_weights(radd_shapes())
  model = sedd_jax.load(write(tmp_path / "radd", RADD, weights, pickle=pickle), dtype=dtype)
  tokens, total = inputs()
  want = radd_log_probs(in_dtype(weights, dtype), torch.tensor(tokens)).numpy()
  got, masked = predictions(model, tokens, total.astype(dtype))
  np.testing.assert_allclose(got, want[masked], atol=TOLERANCE[dtype], rtol=0)
  assert model.length == LENGTH


@pytest.mark.parametrize("peer", ["mdlm", "radd"])
def test_peers_convert_to_our_layout_and_not_to_the_originals(tmp_path, peer):
  if peer == "mdlm":
    folder = write_mdlm(tmp_path / peer, random_weights(mdlm_shapes()))
  else:
    folder = write(tmp_path / peer, RADD, random_weights(radd_shapes()))
  ours = convert(folder, tmp_path / "ours")
  tokens, total = inputs()
  total = total.astype(np.float32)
  model, again = sedd_jax.load(folder), sedd_jax.load(ours)
  np.testing.assert_array_equal(model.log_score(tokens, total), again.log_score(tokens, total))
  assert again.info["origin"] == peer
  assert model.sample(2, steps=3).max() < VOCAB
  bound = model.bound(tokens % VOCAB, num_times=4)
  assert np.isfinite(bound.strict).all()
  with pytest.raises(ValueError, match="parameterization='conditional'"):
    convert(folder, tmp_path / "theirs", layout="original")


def test_mdlms_faults_are_named(tmp_path):
  weights = random_weights(mdlm_shapes())
  for changes, message in (
    ({"vocab_size": 30_522}, r"vocab_size=30522 must be .* BERT's"),
    ({"time_conditioning": None}, "'time_conditioning' is missing"),
    ({"time_conditioning": "no"}, "time_conditioning='no' must be true or false"),
    ({"n_blocks": 2.5}, r"n_blocks=2\.5 must be an integer"),
    ({"n_blocks": 3}, r"missing blocks\.2"),
    ({"n_heads": 5}, r"heads=5 must divide"),
  ):
    folder = write_mdlm(tmp_path / str(len(list(tmp_path.iterdir()))), weights, **changes)
    with pytest.raises(ValueError, match=message):
      sedd_jax.load(folder)
  with pytest.raises(ValueError, match=r"does not start with 'backbone\.'"):
    sedd_jax.load(write(tmp_path / "plain", MDLM, weights))


def test_radds_faults_are_named(tmp_path):
  weights = random_weights(radd_shapes())
  del weights["blocks.1.norm2.bias"]
  with pytest.raises(ValueError, match=r"lack blocks\.1\.norm2\.bias"):
    sedd_jax.load(write(tmp_path / "a", RADD, weights))
  weights = random_weights(radd_shapes()) | {"sigma": torch.ones(1)}
  with pytest.raises(ValueError, match="unknown sigma"):
    sedd_jax.load(write(tmp_path / "b", RADD, weights))
  config = RADD | {"noise": {"type": "cosine"}}
  with pytest.raises(ValueError, match=r"noise\.type='cosine' must be"):
    sedd_jax.load(write(tmp_path / "c", config, random_weights(radd_shapes())))
