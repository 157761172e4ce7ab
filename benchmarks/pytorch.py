"""The original in PyTorch, for paired timings: `--mode=train` or `--mode=sample`; and for paired
bounds (`benchmarks/quality.py`), trained on given rows: `--mode=fit`.

A baseline written from a description of the original code (arXiv:2310.16834): it computes the same
arrays, including dense scores [B, L, S], and is neither tuned nor slowed. There are two
differences: attention is `scaled_dot_product_attention`, since flash-attn needs CUDA, and the small
fused helpers (TorchScript there) are plain functions. It runs in float32 on a CPU, only with
absorbing noise. This module does not import jax, so peak memory is PyTorch's own.

The caller sets MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ (the line reports
them): with glibc's defaults every large array is mapped and cleared again.

B: sequences, L: positions, D: width, C: width of the conditioning, H: heads, K: head width, S:
states.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from benchmarks.report import peak_resident_bytes, print_line
from benchmarks.shapes import SHAPES, Shape, assigned

_EPS, _MIN_TIME, _END_TIME = 1e-3, 1e-3, 1e-5
_CLIP = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """The settings of the optimizer; the original's by default.

  Attributes:
    learning_rate: peak.
    warmup: steps.
    beta2: decay of the second moment.
    ema: decay of the moving average.
    decay_steps: steps at which a cosine after the warm-up reaches 0; 0 for none, as the original.
  """

  learning_rate: float = 3e-4
  warmup: int = 2500
  beta2: float = 0.999
  ema: float = 0.9999
  decay_steps: int = 0

  def rate(self, step: int) -> float:
    """Of update 1, 2, ..."""
    warm = min(step / self.warmup, 1.0)
    if not self.decay_steps:
      return self.learning_rate * warm
    share = max(step - self.warmup, 0) / max(self.decay_steps - self.warmup, 1)
    return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


# --- Network


class LayerNorm(nn.Module):
  """Layer norm with a weight and no bias."""

  def __init__(self, width: int):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(width))

  def forward(self, h_BLD):
    return F.layer_norm(h_BLD, h_BLD.shape[-1:]) * self.weight


class NoiseEmbedding(nn.Module):
  """Sinusoids of the total noise and two linear maps."""

  def __init__(self, cond_dim: int):
    super().__init__()
    self.mlp = nn.Sequential(nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

  def forward(self, total_B):
    index = torch.arange(128, dtype=total_B.dtype)
    angle = total_B[:, None] * torch.exp(-math.log(10000.0) * index / 128)
    return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class Embedding(nn.Module):
  """A table of rows."""

  def __init__(self, states: int, width: int):
    super().__init__()
    self.embedding = nn.Parameter(torch.empty(states, width))
    nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

  def forward(self, tokens):
    return self.embedding[tokens]


class Rotary(nn.Module):
  """Cosines and sines [1, L, 3, 1, K] for queries, keys and values; values stay as they are."""

  inv_freq: torch.Tensor

  def __init__(self, head_width: int):
    super().__init__()
    self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, head_width, 2) / head_width))
    self.length, self.cos, self.sin = None, None, None

  def forward(self, length: int):
    if length != self.length:
      angle = torch.outer(torch.arange(length).to(self.inv_freq), self.inv_freq)
      angle = torch.cat([angle, angle], dim=-1)[None, :, None, None, :]
      self.length = length
      self.cos = angle.cos().repeat(1, 1, 3, 1, 1)
      self.sin = angle.sin().repeat(1, 1, 3, 1, 1)
      self.cos[:, :, 2], self.sin[:, :, 2] = 1.0, 0.0
    return self.cos, self.sin


def rotated(qkv, cos, sin):
  """qkv [B, L, 3, H, K] with rotated queries and keys."""
  half = qkv.shape[-1] // 2
  turned = torch.cat([-qkv[..., half:], qkv[..., :half]], dim=-1)
  return qkv * cos + turned * sin


def modulated(h, shift, scale):
  """h shifted and scaled by the conditioning."""
  return h * (1 + scale) + shift


class Block(nn.Module):
  """Attention and MLP, each shifted, scaled and gated."""

  def __init__(self, shape: Shape):
    super().__init__()
    width = shape.width
    self.heads, self.dropout = shape.heads, shape.dropout
    self.norm1 = LayerNorm(width)
    self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
    self.attn_out = nn.Linear(width, width, bias=False)
    self.norm2 = LayerNorm(width)
    self.mlp = nn.Sequential(
      nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
    )
    self.adaLN_modulation = _zeroed(nn.Linear(shape.cond_dim, 6 * width))

  def forward(self, h_BLD, cos, sin, cond_BC):
    shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond_BC)[:, None].chunk(
      6, dim=2
    )
    B, L, D = h_BLD.shape
    qkv = self.attn_qkv(modulated(self.norm1(h_BLD), shift1, scale1))
    qkv = rotated(qkv.view(B, L, 3, self.heads, -1), cos, sin)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D)
    h_BLD = h_BLD + gate1 * F.dropout(self.attn_out(out), self.dropout, self.training)
    out = self.mlp(modulated(self.norm2(h_BLD), shift2, scale2))
    return h_BLD + gate2 * F.dropout(out, self.dropout, self.training)


class FinalLayer(nn.Module):
  """The last norm and the output layer."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.norm_final = LayerNorm(shape.width)
    self.linear = _zeroed(nn.Linear(shape.width, shape.vocab + 1))
    self.adaLN_modulation = _zeroed(nn.Linear(shape.cond_dim, 2 * shape.width))

  def forward(self, h_BLD, cond_BC):
    shift, scale = self.adaLN_modulation(cond_BC)[:, None].chunk(2, dim=2)
    return self.linear(modulated(self.norm_final(h_BLD), shift, scale))


class Sedd(nn.Module):
  """Tokens int64[B, L] and total noise [B] to log scores [B, L, S], 0 at the tokens."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.vocab_embed = Embedding(shape.vocab + 1, shape.width)
    self.sigma_map = NoiseEmbedding(shape.cond_dim)
    self.rotary_emb = Rotary(shape.width // shape.heads)
    self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.blocks)])
    self.output_layer = FinalLayer(shape)

  def forward(self, tokens, total_B):
    h_BLD = self.vocab_embed(tokens)
    cond_BC = F.silu(self.sigma_map(total_B))
    cos, sin = self.rotary_emb(tokens.shape[1])
    for block in self.blocks:
      h_BLD = block(h_BLD, cos, sin, cond_BC)
    z_BLS = self.output_layer(h_BLD, cond_BC)
    z_BLS = z_BLS - _expm1(total_B).log()[:, None, None] - math.log(z_BLS.shape[-1] - 1)
    return torch.scatter(z_BLS, -1, tokens[..., None], torch.zeros_like(z_BLS[..., :1]))


def _zeroed(layer: nn.Linear) -> nn.Linear:
  nn.init.zeros_(layer.weight)
  nn.init.zeros_(layer.bias)
  return layer


# --- Absorbing noise and the loss


def total_noise(t):
  """Log-linear total noise."""
  return -torch.log1p(-(1 - _EPS) * t)


def noise_rate(t):
  """The derivative of `total_noise`."""
  return (1 - _EPS) / (1 - (1 - _EPS) * t)


def _expm1(total):
  return torch.where(total < 0.5, torch.expm1(total), torch.exp(total) - 1)


def score_entropy(log_score, total, x, x0):
  """Score entropy [B, L], 0 at unmasked tokens; total is [B, 1]."""
  masked = x == log_score.shape[-1] - 1
  ratio = 1 / _expm1(total).expand_as(x)[masked]
  negative = ratio * torch.gather(log_score[masked], -1, x0[masked][..., None]).squeeze(-1)
  positive = log_score[masked][:, :-1].exp().sum(dim=-1)
  constant = ratio * (ratio.log() - 1)
  entropy = torch.zeros(*x.shape, dtype=log_score.dtype)
  entropy[masked] += positive - negative + constant
  return entropy


def corrupted(x0, total, mask: int):
  """x0 with each token masked with probability 1 - e^-total; total is [B, 1]."""
  moves = torch.rand(*x0.shape) < 1 - (-total).exp()
  return torch.where(moves, mask, x0)


def loss_at(model, x0, x, t):
  """The loss [B], nats per sequence."""
  total = total_noise(t)
  entropy = score_entropy(model(x, total), total[:, None], x, x0)
  return (noise_rate(t)[:, None] * entropy).sum(dim=-1)


class Trainer:
  """AdamW with warm-up and clipping, and the moving average."""

  def __init__(self, model: Sedd, shape: Shape, compiled: bool, recipe: Recipe):
    self.model, self.shape, self.recipe = model.train(), shape, recipe
    self.forward = torch.compile(model) if compiled else model
    self.params = list(model.parameters())
    self.optimizer = torch.optim.AdamW(
      self.params, lr=0.0, betas=(0.9, recipe.beta2), weight_decay=0.0
    )
    self.average = [p.clone().detach() for p in self.params]
    self.steps = 0

  def step(self, x0) -> float:
    """The loss, after one update."""
    t = (1 - _MIN_TIME) * torch.rand(x0.shape[0]) + _MIN_TIME
    x = corrupted(x0, total_noise(t)[:, None], self.shape.vocab)
    loss = loss_at(self.forward, x0, x, t).mean()
    loss.backward()
    self.update()
    return loss.item()

  def update(self) -> None:
    """Updates parameters and average from the stored gradients."""
    self.steps += 1
    for group in self.optimizer.param_groups:
      group["lr"] = self.recipe.rate(self.steps)
    nn.utils.clip_grad_norm_(self.params, _CLIP)
    self.optimizer.step()
    self.optimizer.zero_grad()
    decay = min(self.recipe.ema, (1 + self.steps) / (10 + self.steps))
    with torch.no_grad():
      for average, param in zip(self.average, self.params, strict=True):
        average.sub_((1 - decay) * (average - param))


def fit(trainer: Trainer, rows, batch: int, num_steps: int, folder: Path) -> list[float]:
  """Trains on rows int64[N, L] in random order, writes the moving average as model.safetensors, and
  gives the seconds of each step."""
  times, order = [], torch.randperm(0)
  for _ in range(num_steps):
    if len(order) < batch:
      order = torch.randperm(len(rows))
    taken, order = order[:batch], order[batch:]
    start = time.perf_counter()
    trainer.step(rows[taken])
    times.append(time.perf_counter() - start)
  names = [name for name, _ in trainer.model.named_parameters()]
  folder.mkdir(parents=True, exist_ok=True)
  average = dict(zip(names, trainer.average, strict=True))
  save_file(average, folder / "model.safetensors")
  return times


# --- Sampling


def draw(probs):
  """States drawn by a race of exponentials; negative entries never win."""
  race = 1e-10 - (torch.rand_like(probs) + 1e-10).log()
  return (probs / race).argmax(dim=-1)


def step_probs(score, x, step):
  """The law of every token an amount `step` [B, 1] of total noise earlier; [B, L, S]."""
  mask = score.shape[-1] - 1
  staggered = score.clone()
  extra = (1 - step.exp()) * staggered.sum(dim=-1)
  staggered *= step.exp()[:, None]
  staggered[..., -1] += extra
  stays = torch.exp(-step)
  edge = stays[..., None] * F.one_hot(x, num_classes=mask + 1)
  edge += torch.where(x == mask, 1 - stays, 0.0)[..., None]
  return staggered * edge


@torch.no_grad()
def sampled(model, batch: int, length: int, num_steps: int, mask: int):
  """Tokens int64[batch, length] after the original's analytic steps and the denoising step."""
  x = torch.full((batch, length), mask, dtype=torch.int64)
  times = torch.linspace(1, _END_TIME, num_steps + 1)
  size = (1 - _END_TIME) / num_steps
  for i in range(num_steps):
    t = times[i] * torch.ones(batch, 1)
    total = total_noise(t)
    score = model(x, total[:, 0]).exp()
    x = draw(step_probs(score, x, total - total_noise(t - size)))
  total = total_noise(times[-1] * torch.ones(batch, 1))
  score = model(x, total[:, 0]).exp()
  return draw(step_probs(score, x, total)[..., :-1])


def main() -> None:
  """Prints the line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.pytorch", description=__doc__)
  parser.add_argument("--config", choices=SHAPES, default="A")
  parser.add_argument("--mode", choices=("train", "sample", "fit"), default="train")
  parser.add_argument("--batch", type=int)
  parser.add_argument("--steps", type=int, default=64, help="of sampling, or of the fit")
  parser.add_argument("--rows", type=Path, help="of the fit: FILE.npy, int[N, L]")
  parser.add_argument("--out", type=Path, help="of the fit: folder for the weights")
  parser.add_argument("--recipe", action="append", default=[], metavar="NAME=VALUE")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
  flags = parser.parse_args()
  try:
    shape = dataclasses.replace(SHAPES[flags.config], **assigned({}, flags.set))
    recipe = Recipe(**assigned({}, flags.recipe))
  except (TypeError, ValueError) as error:
    parser.error(str(error))
  torch.set_num_threads(flags.threads)
  torch.manual_seed(flags.seed)
  started = time.perf_counter()
  model = Sedd(shape)
  if flags.mode == "fit":
    trainer = Trainer(model, shape, flags.compile, recipe)
    rows = torch.from_numpy(np.load(flags.rows).astype(np.int64))
    times = fit(trainer, rows, flags.batch or shape.batch, flags.steps, flags.out)
    print_line(
      "pytorch",
      times,
      mode=flags.mode,
      recipe=dataclasses.asdict(recipe),
      config=dataclasses.asdict(shape),
      batch=flags.batch or shape.batch,
      torch=torch.__version__,
    )
    return
  if flags.mode == "train":
    batch = flags.batch or shape.batch
    trainer = Trainer(model, shape, flags.compile, recipe)
    batches = torch.randint(shape.vocab, (4, batch, shape.length))

    def call(i):
      trainer.step(batches[i % 4])

  else:
    batch = flags.batch or shape.samples
    with torch.no_grad():
      for param in model.parameters():
        param += 0.02 * torch.randn_like(param)
    network = torch.compile(model.eval()) if flags.compile else model.eval()

    def call(i):
      sampled(network, batch, shape.length, flags.steps, shape.vocab)

  first, times = 0.0, []
  for i in range(1 + flags.warmup + flags.repeats):
    start = time.perf_counter()
    call(i)
    times.append(time.perf_counter() - start)
    first = first or time.perf_counter() - started
  print_line(
    "pytorch",
    times[1 + flags.warmup :],
    mode=flags.mode,
    seconds_to_first_step=first,
    peak_memory_bytes=peak_resident_bytes(),
    peak_memory_is="ru_maxrss of the process",
    config_name=flags.config,
    config=dataclasses.asdict(shape),
    batch=batch,
    length=shape.length,
    vocab=shape.vocab,
    num_steps=flags.steps if flags.mode == "sample" else None,
    compiled=flags.compile,
    device={"platform": "cpu", "threads": flags.threads},
    torch=torch.__version__,
  )


if __name__ == "__main__":
  main()
