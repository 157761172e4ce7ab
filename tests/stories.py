"""stories260K: a real language model of 260,000 weights, for text of exactly known likelihood.

A Llama (RMS norms, rotary positions on neighbouring features, grouped keys and values, gated MLP)
in llama2.c's first file format, with its tokenizer: ../shared/data/README.md. It has the members
that `evaluation/judge.py` asks of a network, in jax, and draws samples with their log likelihood in
numpy, so that the two check each other. `python tests/stories.py` prints the table of
docs/quality.md.

B: sequences, L: positions, D: width, H: heads, G: heads of keys and values, K: head width.
"""

import dataclasses
import itertools
import lzma
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

BOS = 1
_EPSILON = 1e-5
_HEADER = ("width", "inner", "blocks", "heads", "kv_heads", "vocab_size", "longest")


@dataclasses.dataclass(frozen=True)
class Stories:
  """The network. A story begins behind BOS, which also ends it."""

  width: int
  inner: int
  blocks: int
  heads: int
  kv_heads: int
  vocab_size: int
  longest: int

  start = BOS
  scores_first = False

  def hidden(self, params, tokens):
    """float[B, L, D]."""
    batch, length = tokens.shape
    seen_LM = jnp.tril(jnp.ones((length, length), bool))
    h_BLD = params["embedding"][tokens]
    for i in range(self.blocks):
      block = {name: x[i] for name, x in params.items() if x.ndim > 1 and name != "embedding"}
      a_BLD = _norm(h_BLD, block["norm1"])
      q_BLHK = _rotated(self._heads(a_BLD @ block["q"].T, self.heads))
      k_BLHK = _rotated(self._heads(a_BLD @ block["k"].T, self.kv_heads))
      v_BLHK = self._heads(a_BLD @ block["v"].T, self.kv_heads)
      k_BLHK, v_BLHK = (
        jnp.repeat(z, self.heads // self.kv_heads, axis=2) for z in (k_BLHK, v_BLHK)
      )
      logits_BHLM = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK) * q_BLHK.shape[-1] ** -0.5
      logits_BHLM = jnp.where(seen_LM[None, None], logits_BHLM, -jnp.inf)
      out = jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(logits_BHLM, axis=-1), v_BLHK)
      h_BLD = h_BLD + out.reshape(batch, length, -1) @ block["out"].T
      m_BLD = _norm(h_BLD, block["norm2"])
      gated = jax.nn.silu(m_BLD @ block["gate"].T) * (m_BLD @ block["up"].T)
      h_BLD = h_BLD + gated @ block["down"].T
    return _norm(h_BLD, params["norm"])

  def logits(self, params, tokens):
    return self.hidden(params, tokens) @ params["embedding"].T

  def log_prob(self, params, tokens):
    log_prob_BLV = jax.nn.log_softmax(self.logits(params, tokens)[:, :-1], axis=-1)
    found = jnp.take_along_axis(log_prob_BLV, tokens[:, 1:, None], axis=-1)[:, :, 0]
    return jnp.pad(found, ((0, 0), (1, 0)))

  def sample(self, params, num, length, seed=0, temperature=1.0):
    """Stories as they come: tokens behind BOS int32[num, length], and their log likelihoods in nats
    float64[num] at temperature 1, added up in float64 as they are drawn. The next story may begin
    in the same row.
    """
    weights = {name: np.asarray(x, np.float64) for name, x in params.items()}
    rng = np.random.default_rng(seed)
    groups, size = self.heads // self.kv_heads, self.width // self.heads
    cache = np.zeros((2, self.blocks, num, length, self.kv_heads, size))
    token, log_likelihood = np.full(num, BOS), np.zeros(num)
    found = np.zeros((num, length), np.int32)
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    turn = np.exp(1j * angle)

    def norm(x, scale):
      return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + _EPSILON) * scale

    def rotate(x, position):
      turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn[position]
      return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    for position in range(length):
      h = weights["embedding"][token]
      for i in range(self.blocks):
        block = {name: x[i] for name, x in weights.items() if x.ndim > 1}
        a = norm(h, block["norm1"])
        q = rotate((a @ block["q"].T).reshape(num, self.kv_heads, groups, size), position)
        cache[0, i, :, position] = rotate((a @ block["k"].T).reshape(num, -1, size), position)
        cache[1, i, :, position] = (a @ block["v"].T).reshape(num, -1, size)
        keys, values = cache[:, i, :, : position + 1]
        logits = np.einsum("bghk,bmgk->bghm", q, keys) / np.sqrt(size)
        attended = np.exp(logits - logits.max(axis=-1, keepdims=True))
        attended /= attended.sum(axis=-1, keepdims=True)
        out = np.einsum("bghm,bmgk->bghk", attended, values)
        h = h + out.reshape(num, -1) @ block["out"].T
        m = norm(h, block["norm2"])
        gate = m @ block["gate"].T
        h = h + (gate / (1 + np.exp(-gate)) * (m @ block["up"].T)) @ block["down"].T
      logits = norm(h, weights["norm"]) @ weights["embedding"].T
      p = np.exp(logits - logits.max(axis=-1, keepdims=True))
      p /= p.sum(axis=-1, keepdims=True)
      law = p ** (1 / temperature)
      law /= law.sum(axis=-1, keepdims=True)
      drawn = np.sum(np.cumsum(law, axis=-1) < rng.random(num)[:, None], axis=-1)
      token = np.minimum(drawn, self.vocab_size - 1)
      log_likelihood += np.log(p[np.arange(num), token])
      found[:, position] = token
    return found, log_likelihood

  def _heads(self, z, heads):
    return z.reshape(*z.shape[:2], heads, -1)


class StoriesTokenizer:
  """Pieces with scores: the best pair of neighbours is joined until none is a piece."""

  eos_id = BOS

  def __init__(self, pieces, scores):
    self.pieces, self.scores = pieces, scores
    self._ids = {piece: i for i, piece in enumerate(pieces)}

  @property
  def vocab_size(self):
    return len(self.pieces)

  def encode(self, text):
    tokens = []
    for character in " " + text:
      known = self._ids.get(character.encode())
      tokens += [byte + 3 for byte in character.encode()] if known is None else [known]
    while True:
      pairs = [
        (self.scores[joined], -i, joined)
        for i, (a, b) in enumerate(itertools.pairwise(tokens))
        if (joined := self._ids.get(self.pieces[a] + self.pieces[b])) is not None
      ]
      if not pairs:
        return np.array(tokens, np.int32)
      _, where, joined = max(pairs)
      tokens[-where : 2 - where] = [joined]

  def decode(self, ids):
    """The text, with a line of dashes between stories."""
    out = b""
    for i in map(int, ids):
      piece = self.pieces[i]
      if i == BOS:
        piece = b"\n---\n"
      elif 3 <= i < 259:
        piece = bytes([i - 3])
      out += piece
    return out.decode(errors="replace").removeprefix(" ")


def load_stories(folder: Path):
  """The network, its parameters in float32, and its tokenizer."""
  data = lzma.decompress((folder / "stories260K.bin.xz").read_bytes())
  network = Stories(**dict(zip(_HEADER, struct.unpack("<7i", data[:28]), strict=True)))
  numbers = np.frombuffer(data, np.float32, offset=28)
  width, inner, blocks = network.width, network.inner, network.blocks
  kv = width * network.kv_heads // network.heads
  shapes = {
    "embedding": (network.vocab_size, width),
    "norm1": (blocks, width),
    "q": (blocks, width, width),
    "k": (blocks, kv, width),
    "v": (blocks, kv, width),
    "out": (blocks, width, width),
    "norm2": (blocks, width),
    "gate": (blocks, inner, width),
    "down": (blocks, width, inner),
    "up": (blocks, inner, width),
    "norm": (width,),
  }
  params, used = {}, 0
  for name, shape in shapes.items():
    size = int(np.prod(shape))
    params[name] = jnp.asarray(numbers[used : used + size].reshape(shape))
    used += size
  # Cosines and sines of the rotary embedding follow, which we compute.
  assert len(numbers) - used == network.longest * width // network.heads
  return network, params, _tokenizer(folder, network.vocab_size)


def _tokenizer(folder, vocab_size):
  data = lzma.decompress((folder / "tok512.bin.xz").read_bytes())
  pieces, scores, at = [], [], 4
  for _ in range(vocab_size):
    score, size = struct.unpack_from("<fi", data, at)
    pieces.append(data[at + 8 : at + 8 + size])
    scores.append(score)
    at += 8 + size
  assert at == len(data)
  return StoriesTokenizer(pieces, scores)


def _norm(z, scale):
  z = z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=-1, keepdims=True) + _EPSILON)
  return z * scale.reshape((1,) * (z.ndim - 1) + (-1,))


def _rotated(z_BLHK):
  length, size = z_BLHK.shape[1], z_BLHK.shape[3]
  frequency = 10000.0 ** (-jnp.arange(0, size, 2) / size)
  angle = (jnp.arange(length)[:, None] * frequency[None, :])[None, :, None, :]
  even, odd = z_BLHK[..., 0::2], z_BLHK[..., 1::2]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(z_BLHK.shape)


def _table(num=1000, length=96):
  """What the metrics say of real samples and of what is none."""
  from sedd_jax.evaluation.judge import Judge
  from sedd_jax.evaluation.mauve import mauve
  from sedd_jax.evaluation.quality import quality, verdict

  shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"
  network, params, tokenizer = load_stories(shared)
  judge = Judge(network, params, batch_size=100)
  rng = np.random.default_rng(0)
  reference, own = (network.sample(params, num, length, seed=seed)[0] for seed in (1, 2))
  again = next(i for i in range(network.vocab_size) if tokenizer.decode([i]) == "ittle")
  cold, greedy, hot = (
    network.sample(params, num, length, seed=3, temperature=t)[0] for t in (0.7, 0.01, 1.3)
  )
  sets = {
    "the model's own samples": own,
    "at temperature 0.7": cold,
    "at temperature 1.3": hot,
    "at temperature 0.01": greedy,
    "own samples, tokens shuffled in each": rng.permuted(own, axis=1),
    "one token again and again": np.full_like(own, again),
    "tokens drawn evenly": rng.integers(3, network.vocab_size, own.shape),
    "half the text, half one token": np.concatenate([own[::2], np.full_like(own[::2], again)]),
  }
  nats, features = judge.nats(reference), judge.features(reference)
  print("| samples | perplexity | token entropy | repetition | novelty | MAUVE | verdict |")
  print("|---|---|---|---|---|---|---|")
  for name, rows in sets.items():
    found, theirs = quality(rows), judge.nats(rows)
    word = verdict(
      rows, reference, nats=theirs.per_token, reference_nats=nats.per_token
    ).word  # fmt: skip
    near = mauve(judge.features(rows), features)
    print(
      f"| {name} | {theirs.perplexity()[0]:.2f} ± {theirs.perplexity()[1]:.2f} "
      f"| {found.token_entropy:.3f} | {found.repetition:.3f} | {found.novelty:.3f} "
      f"| {near.mauve:.3f} ± {near.mauve_spread:.3f} | {word} |"
    )


if __name__ == "__main__":
  _table()
