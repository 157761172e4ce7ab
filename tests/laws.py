"""Exact laws of samplers on toys, by enumeration. Not a test: the tests import it.

Written from the definitions, in numpy, without the formulas of `sedd_jax.diffusion`: its noise
schedules and a toy's scores are all that enters. `python tests/laws.py` prints the figures of
docs/samplers.md.

N: sequences with masks, L: positions, S: states.
"""

import functools
import itertools
import sys

import jax
import numpy as np
import scipy.linalg
from support.oracle import Toy, random_toy
from support.statistics import total_variation

from sedd_jax.diffusion import END_TIME, Absorbing, Geometric, LogLinear, Uniform

FIRST_TO_LAST = (1.0, END_TIME)


def even(num_steps):
  """Times even in t, as `even_times`."""
  return np.linspace(*FIRST_TO_LAST, num_steps + 1)


def total_at(noise, t):
  """Total noise at a time, in float64."""
  with jax.enable_x64(True):
    return float(noise.total(float(t)))


def scores(toy, total):
  """float64[N, L, S]: exp(log score), 1 at the own entry."""
  return np.exp(toy.log_score(total))


def product(p):
  """float[N, N] from the law of each position, float[N, L, S]: positions move independently."""
  matrix = p[:, 0]
  for i in range(1, p.shape[1]):
    matrix = (matrix[:, :, None] * p[:, None, i]).reshape(len(p), -1)
  return matrix


def own(toy):
  """bool[N, L, S]."""
  return np.arange(toy.process.num_states) == toy.states[:, :, None]


def masks(toy):
  """bool[N, L]."""
  return toy.states == toy.process.vocab_size


def start(toy):
  """float64[N]: all masks, or uniform."""
  size = len(toy.states)
  return np.full(size, 1 / size) if toy.process.mask_id is None else np.eye(size)[-1]


# Laws of one step, float64[N, N].


def tweedie(toy, total, step, ratios=None):
  """Bayes' rule for one position, the others held, with matrix exponentials."""
  ratios = scores(toy, total) if ratios is None else ratios
  earlier = ratios @ transition(toy, -step)
  becomes = transition(toy, step)
  p = np.maximum(earlier * becomes.T[toy.states], 0.0)
  return product(p / p.sum(-1, keepdims=True))


@functools.cache
def transition(toy, step):
  """float64[S, S]: the matrix exponential of one token's generator over some noise."""
  return scipy.linalg.expm(step * toy.token_generator)


def posterior(toy, total):
  """float64[N, L, S]: normalised scores of real tokens where there is a mask."""
  p = scores(toy, total)
  if toy.process.mask_id is not None:
    p[..., toy.process.vocab_size] = 0.0
  return p / p.sum(-1, keepdims=True)


def denoise(toy, total):
  if toy.process.mask_id is None:
    return tweedie(toy, total, total)
  return product(np.where(masks(toy)[:, :, None], posterior(toy, total), own(toy)))


def remdm(toy, total, total_next, cap, rescale):
  kept, kept_next = np.exp(-total), np.exp(-total_next)
  again = min(cap, rescale * min(1.0, (1 - kept_next) / kept))
  lifted = (kept_next - (1 - again) * kept) / (1 - kept)
  mask = np.arange(toy.process.num_states) == toy.process.vocab_size
  masked = lifted * posterior(toy, total) + (1 - lifted) * mask
  return product(np.where(masks(toy)[:, :, None], masked, (1 - again) * own(toy) + again * mask))


def corrector(toy, total, size):
  """Noising and reverse rates at once, for a short while."""
  forward = np.where(own(toy), 0.0, toy.token_generator[toy.states])
  back = np.where(own(toy), 0.0, toy.token_generator.T[toy.states] * scores(toy, total))
  jumps = size * (1 - np.exp(-total)) * (forward + back)
  stay = np.maximum(1 - jumps.sum(-1, keepdims=True), 0.0)
  p = np.where(own(toy), stay, jumps)
  return product(p / p.sum(-1, keepdims=True))


def clock(total):
  """Its own inverse."""
  return -np.log(-np.expm1(-total))


def trapezoidal(toy, total, total_next, theta):
  between = clock((1 - theta) * clock(total) + theta * clock(total_next))
  ahead, step = 1 / (2 * theta * (1 - theta)), total - between
  start, middle = scores(toy, total), scores(toy, between)
  carried = start @ transition(toy, -step)
  at_own = np.where(own(toy), carried, 0.0).sum(-1, keepdims=True)
  if toy.process.mask_id is None:
    carried = carried / at_own
  else:  # At the exact score no mask is left over: the own entry is 1 by what scores mean.
    carried = np.where(own(toy), 1.0, start * np.expm1(total) / np.expm1(between))
  first = tweedie(toy, total, step)
  matrix = np.zeros_like(first)
  for x in range(len(first)):
    moved = (toy.states != toy.states[x])[:, :, None]
    mixed = np.maximum(ahead * middle - (ahead - 1) * carried[x], 0.0)
    mixed = np.where(own(toy), 1.0, np.where(moved, middle, mixed))
    matrix[x] = first[x] @ tweedie(toy, between, between - total_next, mixed)
  return matrix


# Laws of whole samplers, float64[N].


def clamped(toy, p, given):
  """float64[N]: the law of sequences of law p once given tokens (None: not given) are put in."""
  columns = [
    toy.states[:, i] if token is None else np.full(len(p), token) for i, token in enumerate(given)
  ]
  return np.bincount(toy.index(np.stack(columns, -1)), weights=p, minlength=len(p))


def run(toy, noise, times, steps, given=None):
  """The law after matrices steps(total, total_next) along times, and denoising."""
  given = given or [None] * toy.length
  p = clamped(toy, start(toy), given)
  totals = [total_at(noise, t) for t in times]
  for total, total_next in itertools.pairwise(totals):
    for matrix in steps(total, total_next):
      p = clamped(toy, p @ matrix, given)
  return clamped(toy, p @ denoise(toy, totals[-1]), given)


@functools.cache
def law(toy: Toy, noise, name: str, times: tuple[float, ...], given=None, **options) -> np.ndarray:
  """The law of a sampler that steps through given times."""

  def steps(total, total_next):
    match name:
      case "tweedie":
        return [tweedie(toy, total, total - total_next)]
      case "remdm":
        return [remdm(toy, total, total_next, **options)]
      case "trapezoidal":
        return [trapezoidal(toy, total, total_next, **options)]
      case "predictor_corrector":
        mend = corrector(toy, total_next, options["size"])
        return [tweedie(toy, total, total - total_next)] + [mend] * options.get("corrections", 1)
      case "confidence":
        return [confidence(toy, noise, total, total_next)]
    raise ValueError(name)

  return run(toy, noise, times, steps, given)


def by_order(toy: Toy, total: float, choose) -> np.ndarray:
  """The law of a sampler that fills in some masks a call until none is left.

  Args:
    toy: absorbing.
    total: noise that the score is asked at.
    choose: (posterior float[L, S], masked bool[L]) to [(probability, positions)].
  """
  p, given = start(toy), posterior(toy, total)
  for left in range(toy.length, 0, -1):
    for x in np.flatnonzero(masks(toy).sum(-1) == left):
      mass, p[x] = p[x], 0.0
      for chance, positions in choose(given[x], masks(toy)[x]) if mass else ():
        for y, share in fillings(toy, x, given[x], positions):
          p[y] += mass * chance * share
  return p


def fillings(toy, x, p, positions):
  """(sequence, probability) of every way to fill in some positions of sequence x."""
  for tokens in itertools.product(range(toy.process.vocab_size), repeat=len(positions)):
    filled = toy.states[x].copy()
    filled[list(positions)] = tokens
    yield toy.index(filled), np.prod([p[i, y] for i, y in zip(positions, tokens, strict=True)])


def one_at_random(p, masked):
  """First-hitting: each masked position is as likely."""
  del p
  return [(1 / masked.sum(), (i,)) for i in np.flatnonzero(masked)]


def entropy_bounded(gamma):
  """By rising entropy, while all entropies but the largest add up to gamma at most."""

  def choose(p, masked):
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), -1)
    order = sorted(np.flatnonzero(masked), key=lambda i: (entropy[i], i))
    count = sum(
      np.cumsum(entropy[order])[k] - entropy[order[k]] <= gamma for k in range(len(order))
    )
    return [(1.0, tuple(order[:count]))]

  return choose


def confidence(toy, noise, total, total_next):
  """All masked positions are drawn, the most probable draws stay."""
  share = np.expm1(-total_next) / np.expm1(-total_at(noise, 1.0))
  goal = int(np.floor(np.float32(toy.length * share)))
  given, size = posterior(toy, total), len(toy.states)
  matrix = np.zeros((size, size))
  for x in range(size):
    positions = np.flatnonzero(masks(toy)[x])
    count = max(len(positions) - goal, 0)
    for full, chance in fillings(toy, x, given[x], positions):
      p = {i: given[x][i, toy.states[full][i]] for i in positions}
      stay = sorted(positions, key=lambda i: (-p[i], i))[:count]
      y = toy.states[x].copy()
      y[stay] = toy.states[full][stay]
      matrix[x, toy.index(y)] += chance
  return matrix


def order_of(toy, noise, name, counts=(8, 16, 32, 64), **options):
  """(total variation from the data for each number of steps, fitted order)."""
  errors = [
    total_variation(law(toy, noise, name, tuple(even(n)), **options), toy.p_start) for n in counts
  ]
  return errors, -np.polyfit(np.log(counts), np.log(errors), 1)[0]


CORRECTIONS = ({"size": 0.1}, {"size": 0.5}, {"size": 0.5, "corrections": 4})


def given_data(toy, given):
  """float64[N]: the data law given some tokens (None: not given)."""
  fits = [all(t in (None, x) for t, x in zip(given, row, strict=True)) for row in toy.states]
  p = toy.p_start * fits
  return p / p.sum()


def main():
  """Prints the figures of docs/samplers.md."""
  jax.config.update("jax_enable_x64", True)
  rows = [
    ("tweedie", {}),
    ("trapezoidal", {"theta": 0.5}),
    ("trapezoidal", {"theta": 0.3}),
    ("predictor_corrector", {"size": 0.1}),
    ("remdm", {"cap": 0.02, "rescale": 1.0}),
    ("remdm", {"cap": 1.0, "rescale": 1.0}),
  ]
  for process in (Absorbing(3), Uniform(3)):
    for noise in (Geometric(), LogLinear()):
      for name, options in rows:
        if name == "remdm" and process.mask_id is None:
          continue
        toy = random_toy(process)
        errors, order = order_of(toy, noise, name, **options)
        shown = " ".join(f"{e:.5f}" for e in errors)
        print(f"{process} {type(noise).__name__} {name} {options}: {shown} order {order:.2f}")
  print("uniform, clamped: gap to the posterior")
  toy, times = random_toy(Uniform(3)), tuple(even(64))
  for noise in (Geometric(), LogLinear()):
    for given in ((1, None), (None, 2)):
      gaps = [total_variation(law(toy, noise, "tweedie", times, given), given_data(toy, given))]
      for options in CORRECTIONS:
        p = law(toy, noise, "predictor_corrector", times, given, **options)
        gaps.append(total_variation(p, given_data(toy, given)))
      print(type(noise).__name__, given, " ".join(f"{gap:.4f}" for gap in gaps))
  toy = random_toy(Absorbing(3), length=3)
  for name, choose in (
    ("first_hitting", one_at_random),
    ("entropy_bounded 0", entropy_bounded(0.0)),
    ("entropy_bounded 0.5", entropy_bounded(0.5)),
    ("entropy_bounded 1", entropy_bounded(1.0)),
  ):
    p = by_order(toy, 1.0, choose)
    print(f"L=3 {name}: {total_variation(p, toy.p_start):.2e}")
  for n in (1, 2, 3, 8, 64):
    p = law(toy, LogLinear(), "confidence", tuple(even(n)))
    print(f"L=3 confidence {n} steps: {total_variation(p, toy.p_start):.4f}")


if __name__ == "__main__":
  sys.exit(main())
